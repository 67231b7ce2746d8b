# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where each of several VMs is, by what all hosts say of them. Pure.

The rules are those of one VM (vm_place.py): up where a host says so now, down only by proof for
every host, else unknown. What differs is the source: a slot lists the VMs that are up, acting or
barred there, and says by its silence that the others are down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from broker.peers.vm_place import OwnReads, SeenHost, VmPlace, vm_place
from scoring.hosts.liveness import Liveness
from scoring.vm.state import StateName
from scoring.vm_facts import Health, PeerVm, VmStatus

MOVING = StateName.ENGINE_MIGRATING_AWAY.value
#: States of a machine that is about to do something with its VM.
ACTING = frozenset(
    state.value
    for state in (
        StateName.ENGINE_START,
        StateName.ENGINE_STARTING,
        StateName.ENGINE_MIGRATING_AWAY,
        StateName.ENGINE_STOP,
        StateName.ENGINE_FORCE_STOP,
    )
)


@dataclass(frozen=True, slots=True)
class HostWord:
    """One host and its word on the VMs. `host`: the witnesses of its life; what that says of the
    engine is not looked at. `vms`: what it says of VMs, by number. `lists`: it knows of several
    VMs, so that it says of one that is not in `vms` that it is down."""

    host: SeenHost
    vms: Mapping[int, PeerVm]
    lists: bool = True


@dataclass(frozen=True, slots=True)
class VmSeen:
    """One VM as all hosts see it. `place`: where it is. `word`: what the host says that has it up,
    else the one that acts on it (`acting`, None: none does). `barred`: the hosts that failed to
    start it, and until when they do not try again (this host's clock)."""

    number: int
    place: VmPlace
    acting: int | None = None
    word: PeerVm | None = None
    barred: Mapping[int, float] = field(default_factory=dict)


def vms_seen(
    numbers: Iterable[int], hosts: Iterable[HostWord], reads: OwnReads
) -> Mapping[int, VmSeen]:
    """Each of the VMs with these numbers; `hosts`: this one and all others that may run them."""
    hosts = tuple(hosts)
    up_at: dict[int, list[HostWord]] = {}
    acting_at: dict[int, HostWord] = {}
    barred: dict[int, dict[int, float]] = {}
    for each in hosts:
        if each.host.liveness is not Liveness.LIVE:
            continue
        for number, vm in each.vms.items():
            if vm.report.vm is VmStatus.UP:
                up_at.setdefault(number, []).append(each)
            if vm.state in ACTING:
                acting_at[number] = each
            if vm.barred_until_s is not None:
                barred.setdefault(number, {})[each.host.host_id] = vm.barred_until_s
    found: dict[int, VmSeen] = {}
    unlisted: list[SeenHost] = []
    for number in numbers:
        up = up_at.get(number)
        if not up and not unlisted:
            unlisted = [_unlisted(each) for each in hosts]
        place = _where(number, up) if up else _nowhere(number, hosts, unlisted, reads)
        at = acting_at.get(number)
        if place.host is not None:
            at = next(each for each in hosts if each.host.host_id == place.host)
        word = None if at is None else at.vms[number]
        acting = None if at is None else at.host.host_id
        found[number] = VmSeen(number, place, acting, word, barred.get(number, {}))
    return found


def _where(number: int, up: list[HostWord]) -> VmPlace:
    """The place of a VM that is up on these hosts: after a move two may say so for a moment."""
    best = max(up, key=lambda each: _rank(each.vms[number]))
    health = best.vms[number].report.health
    return VmPlace(True, best.host.host_id, None if health is Health.UNKNOWN else _good(health))


def _rank(vm: PeerVm) -> tuple[bool, bool, int]:
    return _good(vm.report.health), vm.state != MOVING, vm.last_ran


def _good(health: Health) -> bool:
    return health is Health.GOOD


def _nowhere(
    number: int, hosts: tuple[HostWord, ...], unlisted: list[SeenHost], reads: OwnReads
) -> VmPlace:
    """The verdict on a VM that no live host has up. `unlisted`: see _unlisted."""
    seen = [
        without if (vm := each.vms.get(number)) is None else _listed(each.host, vm)
        for each, without in zip(hosts, unlisted, strict=True)
    ]
    return vm_place(seen, reads)


def _unlisted(word: HostWord) -> SeenHost:
    """The host with its word on a VM that it does not list in the place of that on the engine."""
    host = word.host
    status = VmStatus.DOWN if word.lists and host.vm is not None else None
    heard = _heard(host)
    return replace(host, vm=status, health=Health.BAD, reason="", moving=False, heard=heard)


def _heard(host: SeenHost) -> VmStatus | None:
    """An answer over the network names the engine alone: a sign of life, and no word on this VM."""
    return None if host.heard is None else VmStatus.UNKNOWN


def _listed(host: SeenHost, vm: PeerVm) -> SeenHost:
    """The host with its last word on this VM in the place of that on the engine."""
    return replace(
        host,
        vm=vm.report.vm,
        health=vm.report.health,
        reason=vm.report.reason or "",
        moving=vm.state == MOVING,
        heard=_heard(host),
    )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What this host knows about the VM's place: up (on which host), down, or unknown. Pure.

A host that does not see the VM running has not seen it stopped. An administrator who reads "down"
starts it elsewhere, wakes a colleague or restores a backup; while the VM runs on, all of these do
harm.

Rules of this file:

1. Up: a host reports it up now: this host, one whose slot changes, or one that answers over the
   network.
2. Down needs a proof for every host: its own present report, or that nothing on it can hold the
   lease (its host id is free, or sanlock calls it dead). Or a proof for the VM: the engine lease is
   free, or its owner is gone.
3. Everything else is unknown, and the known facts are shown. This host's own trouble comes first: a
   host that cannot read the storage, or reads another one than the others write to, knows nothing
   about them.
4. "Most likely" needs a sign of life of the host that had the VM, from after the moment when its
   slot stopped. There is no countdown: a host whose sanlock renews is never called dead.

A further witness is a further field of `SeenHost`, and one more line in `_word` or `_cannot_run`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from broker.daemon.since import Since
from broker.wire.status import EngineSummary
from scoring.hosts.liveness import Liveness
from scoring.vm_facts import Health, VmStatus

#: The agent asks for the lease every two beats; an older answer proves nothing.
LEASE_OLD_S = 4.0
#: The status that a host publishes of a VM that it does not run.
NOT_HERE = frozenset({VmStatus.DOWN, VmStatus.DOWN_UNEXPECTED, VmStatus.DOWN_MISSING})
#: sanlock's states of a host id under which nothing can run.
_GONE = frozenset({"free", "dead"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenHost:
    """One host as this one sees it now.

    `vm`, `health`, `reason`: its last word on the VM on itself; `vm` None: it has never published
    a readable one. `liveness`: of its slot. `age_s`: since its slot changed, or was
    first seen. `moving`: its agent moves the VM to another host. `stopped`: its agent ended in
    good order. `heard`: its present answer over the network, None: no answer. `renews`: its
    sanlock has renewed its host id since its slot stands still. `renewed_s`: since its last
    renewal was seen. `sanlock`: sanlock's state of its id.
    """

    host_id: int
    name: str
    vm: VmStatus | None
    health: Health = Health.UNKNOWN
    reason: str = ""
    liveness: Liveness = Liveness.LIVE
    local: bool = False
    age_s: float = 0.0
    moving: bool = False
    stopped: bool = False
    heard: VmStatus | None = None
    unanswered_s: float | None = None
    renews: bool = False
    renewed_s: float | None = None
    sanlock: str = "unknown"


@dataclass(frozen=True, slots=True)
class LeaseOwner:
    """The owner of the engine lease, found `age_s` ago. `gone`: nothing can hold it any more."""

    owner: int | None
    gone: bool
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnReads:
    """How this host reads the whiteboard. `age_s`: since its last good read, None: none yet.
    `state`: ok, error or hung. `all_known`: a host that has a slot, or is in the lockspace, would
    have been found by now. `elsewhere`: why it is not the storage of the others, "": it is.
    """

    blind: bool = False
    age_s: float | None = 0.0
    state: str = "ok"
    all_known: bool = True
    elsewhere: str = ""


@dataclass(frozen=True, slots=True)
class VmPlace:
    """Where the VM is. `up` None: unknown; `host` only while it is up; `healthy` None: unknown.
    `known`: while it is not up, the reason for that verdict, and what is known. `likely`: see
    EngineSummary."""

    up: bool | None
    host: int | None = None
    healthy: bool | None = None
    known: str = ""
    likely: int | None = None


def vm_place(
    hosts: Iterable[SeenHost], reads: OwnReads, lease: LeaseOwner | None = None
) -> VmPlace:
    """The verdict. `hosts`: this one and every other that may be there; `lease`: None: its owner
    was not asked for, or there was no answer."""
    hosts = list(hosts)
    up = [host for host in hosts if _word(host) is VmStatus.UP]
    if up:
        where = next((host for host in up if _healthy(host)), up[0])
        return VmPlace(True, where.host_id, _healthy(where))
    if reads.elsewhere:
        return VmPlace(None, known=reads.elsewhere)
    if lease is not None and (lease.age_s > LEASE_OLD_S or reads.blind):
        lease = None
    if lease is not None and (lease.owner is None or lease.gone):
        how = "is free" if lease.owner is None else f"was host {lease.owner}'s, which is gone"
        return VmPlace(False, healthy=False, known=f"the engine lease {how}")
    moving = next((h for h in hosts if h.moving and h.liveness is Liveness.LIVE), None)
    if moving is not None and not reads.blind:
        known = (
            f"{_title(moving)} moves the VM to another host, which does not say yet that it runs"
        )
        return VmPlace(None, known=known)
    unseen = [host for host in hosts if not _says_down(host) and not _cannot_run(host, reads)]
    if not unseen and not reads.blind and not reads.all_known:
        return VmPlace(None, known="not every slot of the whiteboard was read yet")
    if not unseen and not reads.blind:
        gone = [host.name for host in hosts if not _says_down(host) and host.vm not in NOT_HERE]
        known = f"nothing runs on {' and '.join(gone)} any more" if gone else ""
        return VmPlace(False, healthy=False, known=known)
    owner = None if lease is None else lease.owner
    unseen.sort(key=lambda host: _rank(host, owner))
    if reads.blind:
        had_it = next((host for host in unseen if host.vm is VmStatus.UP), None)
        itself = next((host for host in unseen if host.local), None)
        parts = [_blind(reads), _before(had_it), "" if itself is None else _about(itself, owner)]
        likely = None if had_it is None else had_it.host_id
        return VmPlace(None, known="; ".join(filter(None, parts)), likely=likely)
    first = unseen[0]
    likely = first.host_id if _had_it(first, owner) and _lives(first) else None
    return VmPlace(None, known=_about(first, owner) + _and_others(unseen), likely=likely)


def _word(host: SeenHost) -> VmStatus | None:
    """The host's present word on the VM on itself; None: there is none."""
    return host.vm if host.liveness is Liveness.LIVE else host.heard


def _healthy(host: SeenHost) -> bool | None:
    """The health on a host that has the VM up. An answer over the network has no health."""
    if host.liveness is not Liveness.LIVE or host.health is Health.UNKNOWN:
        return None
    return host.health is Health.GOOD


def _says_down(host: SeenHost) -> bool:
    return _word(host) in NOT_HERE


def _cannot_run(host: SeenHost, reads: OwnReads) -> bool:
    """Whether a host that says nothing now can have nothing running: its host id is free or dead,
    or its agent had ended, in good order and without the VM."""
    if host.liveness is Liveness.LIVE or reads.blind:
        return False
    return host.sanlock in _GONE or (host.stopped and host.vm in NOT_HERE)


def _had_it(host: SeenHost, owner: int | None) -> bool:
    return host.vm is VmStatus.UP or host.host_id == owner


def _lives(host: SeenHost) -> bool:
    return host.renews or host.heard is not None or host.liveness is Liveness.LIVE


def _rank(host: SeenHost, owner: int | None) -> tuple[bool, bool, bool, int]:
    """The order of hosts in the text: the lease's owner, a host that had the VM, this host."""
    return (host.host_id != owner, host.vm is not VmStatus.UP, not host.local, host.host_id)


def _blind(reads: OwnReads) -> str:
    state = "" if reads.state == "ok" else f" ({reads.state})"
    since = "yet" if reads.age_s is None else f"for {reads.age_s:.0f} s"
    return (
        f"this host has not read the whiteboard {since}{state}: "
        "what the other hosts do is not known"
    )


def _before(had_it: SeenHost | None) -> str:
    if had_it is None:
        return ""
    return f"{_title(had_it)} had the VM when it was last read, and most likely has it still"


def _about(host: SeenHost, owner: int | None) -> str:
    """What is known of one host that might run it."""
    if host.local:
        return f"whether the VM runs on this host is not known: {host.reason or 'no answer'}"
    if host.liveness is Liveness.LIVE:
        why = host.reason or "its libvirt does not answer"
        return f"{_title(host)} does not know whether the VM runs there: {why}"
    if host.vm is None:
        return f"host {host.host_id} has no slot that can be read, and its host id is in use"
    had_it = _had_it(host, owner)
    if host.liveness is Liveness.UNCERTAIN:
        text = f"{_title(host)} was not seen to write yet"
        return f"{text}; by its slot the VM runs there" if had_it else text
    text = ", ".join([f"{_title(host)} wrote nothing for {host.age_s:.0f} s", *_witnesses(host)])
    if not had_it:
        return f"{text}: whether it has started the VM meanwhile is not known"
    has_it = "owns the engine lease" if host.host_id == owner else "had the VM"
    if _lives(host):
        return f"{text}: the VM most likely runs there"
    return f"{text}: it {has_it}, whether the VM still runs there is not known"


def _witnesses(host: SeenHost) -> list[str]:
    parts = []
    if host.renews:
        parts.append("its sanlock renews")
    elif host.renewed_s is not None:
        parts.append(f"its sanlock renewed {host.renewed_s:.0f} s ago")
    if host.heard is not None:
        parts.append("it answers on the network")
    elif host.unanswered_s is not None:
        parts.append(f"no answer on the network for {host.unanswered_s:.0f} s")
    return parts


def _and_others(unseen: Sequence[SeenHost]) -> str:
    count = len(unseen) - 1
    if not count:
        return ""
    return f"; nor is it known of {count} other host{'s' if count > 1 else ''}"


def _title(host: SeenHost) -> str:
    return f"{host.name} (id {host.host_id})"


class PlaceSince:
    """Gets the VM's place each beat, and remembers since when it is the same.

    While the place is unknown it counts as unchanged: found again on the same host, the VM was
    there all the time.
    """

    def __init__(self) -> None:
        self._place, self._health, self._unknown = Since(), Since(), Since()

    def look(self, place: VmPlace, now_s: float) -> None:
        """Take in the present place."""
        self._unknown.look(place.up is None, now_s)
        if place.up is None:
            return
        self._place.look(place.host, now_s)
        if place.healthy is not None:
            self._health.look((place.host, place.healthy), now_s)

    def summary(
        self,
        place: VmPlace,
        hostname: str | None,
        last_up: str | None,
        now_s: float,
        is_reached: bool | None = None,
    ) -> EngineSummary:
        """`hostname`: of the host that has it up. `last_up`: where it was seen last. `is_reached`:
        by other hosts (broker/peers/outside_watch.py)."""
        of_place, value = self._place, place.host
        if place.up is None:
            of_place, value = self._unknown, True
        of_health = place.healthy is not None
        health = (place.host, place.healthy)
        return EngineSummary(
            up=place.up,
            healthy=place.healthy,
            host=place.host,
            hostname=hostname,
            for_s=of_place.for_s(value, now_s),
            at_least=of_place.is_since_before(value),
            health_for_s=self._health.for_s(health, now_s) if of_health else None,
            health_at_least=of_health and self._health.is_since_before(health),
            last_up=None if place.up else last_up,
            known=place.known,
            likely=place.likely,
            reached=is_reached,
        )

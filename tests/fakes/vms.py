# SPDX-License-Identifier: LGPL-2.1-or-later
"""Five VMs on three hosts, as a broker sees them and as its status shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from broker.peers.vm_place import OwnReads, SeenHost
from broker.peers.vm_places import HostWord, VmSeen, vms_seen
from broker.status.vms import Known, entries, n_plus_1, short
from broker.wire.status import EngineSummary, PenaltyOnWire, Status
from scoring.vm.plan import Host, after_each_death, place
from scoring.vm_facts import EngineStatus, Health, PeerVm, VmSpec, VmStatus
from tests.fakes import statuses

GIB = 1024
NOW_S = 1000.0
DAY_S = 86_400.0
ENGINE, DB, SSO, WEB, WIKI = 1, 2, 3, 4, 5
SPECS = (
    VmSpec(ENGINE, "engine", 4 * GIB, priority=100),
    VmSpec(DB, "db", 8 * GIB, priority=90),
    VmSpec(SSO, "sso", 2 * GIB, priority=80),
    VmSpec(WEB, "web", 2 * GIB, after=(SSO,)),
    VmSpec(WIKI, "wiki", 1 * GIB, priority=10),
)
FREE_GIB = {1: 1, 2: 10, 3: 2}


def up(state: str = "EngineUp", health: Health = Health.GOOD, **changed: Any) -> PeerVm:
    """What a host says of a VM that is up there."""
    reason = None if health is Health.GOOD else "the health page answers 503"
    report = EngineStatus(VmStatus.UP, health, "up", reason)
    return replaced(PeerVm(report, state, last_ran=7), **changed)


def down(state: str = "", **changed: Any) -> PeerVm:
    """What a host says of a VM that it lists and that is not up there."""
    return replaced(PeerVm(EngineStatus(VmStatus.DOWN, Health.BAD), state), **changed)


def replaced(vm: PeerVm, **changed: Any) -> PeerVm:
    """The VM with these changes."""
    return vm._replace(**changed)


#: By host id, what it says of the VMs: all are well, and web boots.
WORDS: Mapping[int, Mapping[int, PeerVm]] = {
    1: {ENGINE: up(), WEB: up("EngineStarting", Health.BAD)},
    2: {DB: up(), SSO: up()},
    3: {WIKI: up()},
}


def word(host_id: int, vms: Mapping[int, PeerVm], **changed: Any) -> HostWord:
    """A live host that says this."""
    seen = SeenHost(
        host_id=host_id, name=f"host{host_id}", vm=VmStatus.DOWN, local=host_id == 1, **changed
    )
    return HostWord(seen, vms)


def seen(words: Mapping[int, Mapping[int, PeerVm]] = WORDS) -> Mapping[int, VmSeen]:
    """Where each VM is, by these hosts' words."""
    hosts = [word(host_id, vms) for host_id, vms in words.items()]
    return vms_seen([spec.number for spec in SPECS], hosts, OwnReads())


def plan_hosts(words: Mapping[int, Mapping[int, PeerVm]] = WORDS) -> tuple[Host, ...]:
    """The hosts as a plan sees them."""
    return tuple(
        Host(host_id, 3400, 32 * GIB, FREE_GIB[host_id] * GIB, vms=frozenset(_up(vms)))
        for host_id, vms in words.items()
    )


def _up(vms: Mapping[int, PeerVm]) -> list[int]:
    return [number for number, vm in vms.items() if vm.report.vm is VmStatus.UP]


def known(words: Mapping[int, Mapping[int, PeerVm]] = WORDS, **changed: Any) -> Known:
    """What host 1 knows of them; the missing ones have a plan."""
    where = seen(words)
    missing = frozenset(number for number, vm in where.items() if vm.place.up is False)
    since = dict.fromkeys(where, (3 * DAY_S, False))
    since |= {WEB: (9.0, False), WIKI: (7200.0, True)}
    made = Known(
        SPECS,
        where,
        lambda host_id: f"host{host_id}",
        since,
        place(SPECS, plan_hosts(words), missing),
        after_each_death(SPECS, plan_hosts(words), missing),
        host_id=1,
    )
    return replace(made, **changed)


def status(words: Mapping[int, Mapping[int, PeerVm]] = WORDS, **changed: Any) -> Status:
    """The status of host 1."""
    what = known(words)
    load = PenaltyOnWire("load", 350, "mean load 0.60")
    hosts = [
        statuses.host(1, statuses.UP, local=True, age_s=0.2, state="EngineUp"),
        statuses.host(2, age_s=0.2),
        statuses.host(3, age_s=0.2, score=3050, penalties=(load,)),
    ]
    of_hosts = {host_id: len(_up(vms)) for host_id, vms in words.items()}
    hosts = [
        msgspec.structs.replace(
            host,
            vms=of_hosts[host.host_id],
            free_mb=float(FREE_GIB[host.host_id] * GIB),
            total_mb=32.0 * GIB,
        )
        for host in hosts
    ]
    given: dict[str, Any] = {
        "engine": EngineSummary(True, True, 1, "host1", 3 * DAY_S, False, 3 * DAY_S, False),
        "vms": entries(what, NOW_S),
        "short": short(what),
        "n_plus_1": n_plus_1(what),
    }
    return statuses.status(*hosts, **{**given, **changed})

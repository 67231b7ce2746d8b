# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host as the decision sees it, in JSON: in the view that the agent gets, and in its journal.

The first version knew one VM. Its JSON has the facts of that VM, number 1, among those of the host,
and agents, brokers and journals of all versions keep to that. The decision itself has one record a
VM (scoring/observation.py); the two forms are turned into each other here and nowhere else. What
has one name in both is copied by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any

from msgspec import Struct

from scoring.observation import FenceAsk, HostShutdown, LocalHost, PeerReport
from scoring.storage_word import StorageWord
from scoring.vm_facts import (
    ENGINE,
    Claim,
    DomainHere,
    EngineStatus,
    OutsideView,
    PeerVm,
    Unfit,
    VmHere,
)


class LocalOnWire(Struct, frozen=True):
    """This host; fields as in LocalHost, and for VM 1 as in VmHere. `vms`: the others."""

    host_id: int
    engine: EngineStatus
    engine_taken_s: float
    lease_held: bool | None = None
    network: float | None = None
    bridge_up: bool | None = None
    mem_free_mb: float | None = None
    cpu_load: float | None = None
    config_up_to_date: bool | None = None
    maintenance: bool = False
    last_ran: int = 0
    fence_path_ok: bool | None = None
    lock_driver: bool | None = None
    migrating_s: float | None = None
    unfit: tuple[Unfit, ...] = ()
    domain: DomainHere = DomainHere()
    healthy_before: bool = True
    shutdown: HostShutdown | None = None
    uplink_up: bool | None = None
    way_out: bool | None = None
    outside: OutsideView | None = None
    vms: tuple[VmHere, ...] = ()
    total_mb: float | None = None
    free_mb: float | None = None
    free_huge_mb: float | None = None
    reaches: frozenset[int] = frozenset()
    may_restart: bool = False
    storage_lost_since_s: float | None = None
    unwritten_since_s: float | None = None

    @classmethod
    def of(cls, local: LocalHost) -> LocalOnWire:
        """A host in this form."""
        engine, *others = local.vms
        return cls(
            engine=engine.report,
            engine_taken_s=engine.taken_s,
            vms=tuple(others),
            **_LOCAL.of(local),
            **_VM_HERE.of(engine),
        )

    def observed(self) -> LocalHost:
        """This host in the form that the decision takes."""
        engine = VmHere(self.engine, self.engine_taken_s, **_VM_HERE.of(self))
        return LocalHost(vms=(engine, *self.vms), **_LOCAL.of(self))


class PeerOnWire(Struct, frozen=True):
    """Another host; fields as in PeerReport, and for VM 1 as in PeerVm. `outside`: how it reaches
    VM 1 on another host. `vms`, `reached`: of the others."""

    host_id: int
    timestamp: int
    score: int
    engine: EngineStatus
    hostname: str = ""
    maintenance: bool = False
    stopped: bool = False
    state: str = ""
    boot_id: str = ""
    last_ran: int = 0
    read_s: float | None = None
    heartbeat_s: float | None = None
    unanswered_since_s: float | None = None
    renewal_s: float | None = None
    renewal_timestamp: int = 0
    memory_short: bool = False
    moving_until_s: float | None = None
    mem_free_mb: float | None = None
    hears: frozenset[int] = frozenset()
    outside: OutsideView | None = None
    way_out: bool | None = None
    uplink_up: bool | None = None
    fence_ask: FenceAsk | None = None
    vms: Mapping[int, PeerVm] = {}
    claims: tuple[Claim, ...] = ()
    speaks: int = 1
    registry: int = 0
    total_mb: float | None = None
    free_mb: float | None = None
    free_huge_mb: float | None = None
    host_score: int | None = None
    reaches: frozenset[int] = frozenset()
    reached: Mapping[int, OutsideView] = {}
    overdue_since_s: float | None = None
    machine_silent_since_s: float | None = None
    machine_heard_s: float | None = None
    storage_word: StorageWord | None = None
    touches: frozenset[int] = frozenset()

    @classmethod
    def of(cls, peer: PeerReport) -> PeerOnWire:
        """A host in this form."""
        vms, reached = dict(peer.vms), dict(peer.reached)
        engine, outside = vms.pop(ENGINE), reached.pop(ENGINE, None)
        return cls(
            engine=engine.report,
            outside=outside,
            vms=vms,
            reached=reached,
            **_PEER.of(peer),
            **_VM_THERE.of(engine),
        )

    def observed(self) -> PeerReport:
        """The peer in the form that the decision takes."""
        engine = PeerVm(self.engine, **_VM_THERE.of(self))
        outside = {} if self.outside is None else {ENGINE: self.outside}
        return PeerReport(
            vms={ENGINE: engine, **self.vms},
            reached={**outside, **self.reached},
            **_PEER.of(self),
        )


class _Shared:
    """The facts that have one name in both forms."""

    def __init__(self, one: Iterable[str], other: Iterable[str], *but: str) -> None:
        self._names = sorted(set(one) & set(other) - set(but))
        self._values = attrgetter(*self._names)

    def of(self, either: object) -> dict[str, Any]:
        """The shared fields as arguments of the other form."""
        return dict(zip(self._names, self._values(either), strict=True))


_LOCAL = _Shared(LocalOnWire.__struct_fields__, (f.name for f in fields(LocalHost)), "vms")
_VM_HERE = _Shared(LocalOnWire.__struct_fields__, (f.name for f in fields(VmHere)))
_PEER = _Shared(
    PeerOnWire.__struct_fields__, (f.name for f in fields(PeerReport)), "vms", "reached"
)
#: A PeerVm's `outside` is another fact than that of PeerOnWire.
_VM_THERE = _Shared(PeerOnWire.__struct_fields__, PeerVm._fields, "outside")

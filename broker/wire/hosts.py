# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host as the decision sees it, in JSON: in the view that the agent gets, and in its journal.

The first version knew one VM. Its JSON has the facts of that VM, number 1, among those of the host,
and agents, brokers and journals of all versions keep to that. The decision itself has one record a
VM (scoring/observation.py); the two forms are turned into each other here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping

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

    @classmethod
    def of(cls, local: LocalHost) -> LocalOnWire:
        """A host in this form."""
        engine, *others = local.vms
        return cls(
            host_id=local.host_id,
            engine=engine.report,
            engine_taken_s=engine.taken_s,
            lease_held=engine.lease_held,
            network=local.network,
            bridge_up=local.bridge_up,
            mem_free_mb=local.mem_free_mb,
            cpu_load=local.cpu_load,
            config_up_to_date=engine.config_up_to_date,
            maintenance=local.maintenance,
            last_ran=engine.last_ran,
            fence_path_ok=local.fence_path_ok,
            lock_driver=local.lock_driver,
            migrating_s=engine.migrating_s,
            unfit=engine.unfit,
            domain=engine.domain,
            healthy_before=engine.healthy_before,
            shutdown=local.shutdown,
            uplink_up=engine.uplink_up,
            way_out=local.way_out,
            outside=engine.outside,
            vms=tuple(others),
            total_mb=local.total_mb,
            free_mb=local.free_mb,
            free_huge_mb=local.free_huge_mb,
            reaches=local.reaches,
            may_restart=local.may_restart,
            storage_lost_since_s=local.storage_lost_since_s,
        )

    def observed(self) -> LocalHost:
        """It as the decision takes it."""
        engine = VmHere(
            self.engine,
            self.engine_taken_s,
            lease_held=self.lease_held,
            migrating_s=self.migrating_s,
            last_ran=self.last_ran,
            config_up_to_date=self.config_up_to_date,
            unfit=self.unfit,
            domain=self.domain,
            healthy_before=self.healthy_before,
            uplink_up=self.uplink_up,
            outside=self.outside,
        )
        return LocalHost(
            host_id=self.host_id,
            vms=(engine, *self.vms),
            network=self.network,
            bridge_up=self.bridge_up,
            mem_free_mb=self.mem_free_mb,
            cpu_load=self.cpu_load,
            maintenance=self.maintenance,
            fence_path_ok=self.fence_path_ok,
            lock_driver=self.lock_driver,
            shutdown=self.shutdown,
            way_out=self.way_out,
            total_mb=self.total_mb,
            free_mb=self.free_mb,
            free_huge_mb=self.free_huge_mb,
            reaches=self.reaches,
            may_restart=self.may_restart,
            storage_lost_since_s=self.storage_lost_since_s,
        )


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
            host_id=peer.host_id,
            timestamp=peer.timestamp,
            score=peer.score,
            engine=engine.report,
            hostname=peer.hostname,
            maintenance=peer.maintenance,
            stopped=peer.stopped,
            state=engine.state,
            boot_id=peer.boot_id,
            last_ran=engine.last_ran,
            read_s=peer.read_s,
            heartbeat_s=peer.heartbeat_s,
            unanswered_since_s=peer.unanswered_since_s,
            renewal_s=peer.renewal_s,
            renewal_timestamp=peer.renewal_timestamp,
            memory_short=engine.memory_short,
            moving_until_s=engine.moving_until_s,
            mem_free_mb=peer.mem_free_mb,
            hears=peer.hears,
            outside=outside,
            way_out=peer.way_out,
            uplink_up=engine.uplink_up,
            fence_ask=peer.fence_ask,
            vms=vms,
            claims=peer.claims,
            speaks=peer.speaks,
            registry=peer.registry,
            total_mb=peer.total_mb,
            free_mb=peer.free_mb,
            free_huge_mb=peer.free_huge_mb,
            host_score=peer.host_score,
            reaches=peer.reaches,
            reached=reached,
            overdue_since_s=peer.overdue_since_s,
            machine_silent_since_s=peer.machine_silent_since_s,
            machine_heard_s=peer.machine_heard_s,
            storage_word=peer.storage_word,
            touches=peer.touches,
        )

    def observed(self) -> PeerReport:
        """It as the decision takes it."""
        engine = PeerVm(
            self.engine,
            self.state,
            self.last_ran,
            self.moving_until_s,
            self.memory_short,
            self.uplink_up,
        )
        outside = {} if self.outside is None else {ENGINE: self.outside}
        return PeerReport(
            host_id=self.host_id,
            timestamp=self.timestamp,
            score=self.score,
            vms={ENGINE: engine, **self.vms},
            hostname=self.hostname,
            maintenance=self.maintenance,
            stopped=self.stopped,
            boot_id=self.boot_id,
            read_s=self.read_s,
            heartbeat_s=self.heartbeat_s,
            unanswered_since_s=self.unanswered_since_s,
            renewal_s=self.renewal_s,
            renewal_timestamp=self.renewal_timestamp,
            mem_free_mb=self.mem_free_mb,
            hears=self.hears,
            way_out=self.way_out,
            fence_ask=self.fence_ask,
            claims=self.claims,
            speaks=self.speaks,
            registry=self.registry,
            total_mb=self.total_mb,
            free_mb=self.free_mb,
            free_huge_mb=self.free_huge_mb,
            host_score=self.host_score,
            reaches=self.reaches,
            reached={**outside, **self.reached},
            overdue_since_s=self.overdue_since_s,
            machine_silent_since_s=self.machine_silent_since_s,
            machine_heard_s=self.machine_heard_s,
            storage_word=self.storage_word,
            touches=self.touches,
        )

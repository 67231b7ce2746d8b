# SPDX-License-Identifier: LGPL-2.1-or-later
"""A few hosts that decide about several VMs, beat after beat, with `decide` alone.

Nothing of the daemons is in it: what a host decides is carried out at once, or a beat later, on
plain values, and each host sees the others as their slots would show them. For the questions of
placing and claiming; tests/simulation has the whole cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agent.report import report_of
from broker.this_host.sick_vm import SickVm
from scoring.decide import Decision, decide
from scoring.decision import Action, AskLease, MigrateVm, PowerOffVm, ShutDownVm, StartVm
from scoring.observation import (
    FenceAsk,
    LeaseAnswer,
    LocalHost,
    Observation,
    Order,
    Outcome,
    PeerReport,
    StartResult,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)
from scoring.rules import Rules
from scoring.state import AgentState
from scoring.vm.several import barred_until_s
from scoring.vm.state import StateName
from scoring.vm_facts import (
    DETAIL_MIGRATION_SOURCE,
    ENGINE,
    Claim,
    DomainHere,
    EngineStatus,
    Health,
    Leftover,
    PeerVm,
    VmHere,
    VmSpec,
    VmStatus,
)

BOOT_S = 5.0
#: Hosts that have looked around for so long know enough.
BEGIN_S = 100.0
_ENDED = EngineStatus(VmStatus.DOWN_UNEXPECTED, Health.BAD, "crashed")
_LEAVING = EngineStatus(VmStatus.UP, Health.UNKNOWN, DETAIL_MIGRATION_SOURCE)
_DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "off")


@dataclass
class Host:
    """One host. `vms`: VM -> since when its QEMU runs. `slot`: what it published last. `has_read`:
    whether it has read the registry. `unknown`: the VMs whose state its libvirt does not tell."""

    host_id: int
    memory_mb: int
    state: AgentState
    vms: dict[int, float] = field(default_factory=dict)
    slot: PeerReport | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    written: tuple[Claim, ...] = ()
    last: Decision | None = None
    alive: bool = True
    maintenance: bool = False
    may_restart: bool = False
    fails: set[int] = field(default_factory=set)
    speaks: int = 2
    write_fails: bool = False
    order: Order | None = None
    load: float = 0.1
    huge_mb: int = 0
    blind: bool = False
    lock_driver: bool | None = None
    ended: set[int] = field(default_factory=set)
    way_out: bool | None = None
    uplinks: dict[int, bool] = field(default_factory=dict)
    has_read: bool = True
    unknown: set[int] = field(default_factory=set)


class Hosts:
    """`memory`: host id -> MiB for VMs."""

    def __init__(
        self,
        specs: tuple[VmSpec, ...],
        memory: Mapping[int, int],
        engine_mb: int = 1024,
        balance: bool = False,
    ) -> None:
        self.specs = {spec.number: spec for spec in specs}
        self.engine_mb = engine_mb
        self.rules = Rules(vm_memory_mb=engine_mb, balance=balance)
        self.hosts = {n: Host(n, mb, AgentState(self.rules)) for n, mb in memory.items()}
        self.leases: dict[int, int] = {}
        self.now_s, self.beats = BEGIN_S, 0
        self.starts: list[tuple[float, int, int]] = []
        self.moves: list[tuple[float, int, int, int]] = []
        self.sick: set[int] = set()
        #: VMs whose health is not known.
        self.unasked: set[int] = set()
        #: Sick VMs whose health check has never passed.
        self.never_healthy: set[int] = set()
        #: VMs whose process nothing ends.
        self.unkillable: set[int] = set()
        self.slow = False
        self.stubborn: set[int] = set()
        self.migration_possible = True
        self.arrives_late = False
        self.ordered: list[MigrateVm] = []
        self.leaving: set[int] = set()
        self.leftovers: set[int] = set()
        self.forgotten: set[int] = set()
        self.devices: frozenset[int] = frozenset()
        self.asked: list[tuple[int, Action]] = []
        for host in self.hosts.values():
            host.slot = self._slot(host)

    def memory_of(self, vm: int) -> int:
        return self.engine_mb if vm == ENGINE else self.specs[vm].memory_mb

    def free_mb(self, host: Host) -> int:
        taken = (vm for vm in host.vms if vm == ENGINE or not self.specs[vm].huge)
        return host.memory_mb - sum(map(self.memory_of, taken))

    def free_huge_mb(self, host: Host) -> int:
        taken = (vm for vm in host.vms if vm != ENGINE and self.specs[vm].huge)
        return host.huge_mb - sum(map(self.memory_of, taken))

    def run(self, beats: int) -> None:
        for _ in range(beats):
            self.beat()

    def where(self) -> dict[int, int]:
        """VM -> the host that runs it."""
        return {vm: h.host_id for h in self.hosts.values() if h.alive for vm in h.vms}

    def put(self, vm: int, host: int) -> None:
        """A VM that runs there since long."""
        self.hosts[host].vms[vm] = self.now_s - 1000
        self.leases[vm] = host

    def fall_silent(self, host: int) -> None:
        """Cut the power of a host; its leases stay its own."""
        self.hosts[host].alive = False
        self.hosts[host].vms.clear()

    def die(self, host: int) -> None:
        """Cut the power of a host, and have it proven dead at once."""
        self.fall_silent(host)
        self.leases = {vm: owner for vm, owner in self.leases.items() if owner != host}

    def end(self, vm: int, unexpectedly: bool) -> None:
        """End the process of a VM on the host that has it."""
        host = self.hosts[self.where()[vm]]
        del host.vms[vm], self.leases[vm]
        if unexpectedly:
            host.ended.add(vm)

    def beat(self) -> None:
        """One second: every host decides on the slots of the beat before, one after the other."""
        self.now_s, self.beats = self.now_s + 1, self.beats + 1
        for host in self.hosts.values():
            if host.alive:
                host.last = decide(host.state, self._observed(host), self.now_s)
                host.state, host.outcomes = host.last.state, []
                for action in host.last.actions:
                    self._carry_out(host, action)
        for host in self.hosts.values():
            if host.alive:
                host.slot = self._slot(host)
                host.written = () if host.write_fails else host.state.claims

    def _carry_out(self, host: Host, action: Action) -> None:
        match action:
            case AskLease(vm=vm):
                owner = self.leases.get(vm)
                host.outcomes.append(LeaseAnswer(True, self.now_s, owner=owner, vm=vm))
            case StartVm(vm=vm):
                result = StartResult.STARTED
                if self.leases.setdefault(vm, host.host_id) != host.host_id:
                    result = StartResult.LEASE_HELD
                elif vm in host.fails:
                    del self.leases[vm]
                    result = StartResult.FAILED
                else:
                    host.vms[vm] = self.now_s
                    self.starts.append((self.now_s, vm, host.host_id))
                if not self.slow:
                    host.outcomes.append(VmStartEnded(result, "no such disk", vm))
            case PowerOffVm(vm=vm) if vm in self.unkillable:
                host.outcomes.append(VmStopEnded(False, "the process does not end", vm=vm))
            case ShutDownVm(vm=vm) if vm in self.stubborn | self.unkillable:
                host.outcomes.append(VmStopEnded(True, vm=vm))
            case ShutDownVm(vm=vm) | PowerOffVm(vm=vm):
                host.vms.pop(vm, None)
                self.leases.pop(vm, None)
                host.outcomes.append(VmStopEnded(True, vm=vm))
            case MigrateVm() if self.arrives_late:
                self.ordered.append(action)
            case MigrateVm(target=target, vm=vm):
                del host.vms[vm]
                self.hosts[target].vms[vm] = self.now_s - BOOT_S
                self.leases[vm] = target
                self.moves.append((self.now_s, vm, host.host_id, target))
                host.outcomes.append(VmMigrationEnded(target, True, vm=vm))
            case _:
                self.asked.append((host.host_id, action))

    def _report(self, host: Host, vm: int) -> EngineStatus:
        if vm in host.unknown:
            return EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN)
        if vm not in host.vms:
            return _ENDED if vm in host.ended else _DOWN
        if vm in self.leaving:
            return _LEAVING
        if vm in self.unasked:
            return EngineStatus(VmStatus.UP, Health.UNKNOWN)
        well = self.now_s - host.vms[vm] >= BOOT_S and vm not in self.sick
        return EngineStatus(VmStatus.UP, Health.GOOD if well else Health.BAD)

    def _observed(self, host: Host) -> Observation:
        here = tuple(
            VmHere(
                self._report(host, vm),
                self.now_s,
                vm in host.vms,
                last_ran=host.state.vms[vm].last_ran if vm in host.state.vms else 0,
                healthy_before=vm not in self.never_healthy,
                uplink_up=host.uplinks.get(vm),
                number=vm,
                domain=DomainHere(leftover=Leftover.CRASHED if vm in self.leftovers else None),
            )
            for vm in self.specs
            if vm != ENGINE and host.has_read
        )
        engine = VmHere(
            self._report(host, ENGINE),
            self.now_s,
            lease_held=ENGINE in host.vms,
            config_up_to_date=True,
        )
        local = LocalHost(
            host.host_id,
            vms=(engine, *here),
            network=1.0,
            mem_free_mb=self.free_mb(host),
            cpu_load=host.load,
            maintenance=host.maintenance,
            may_restart=host.may_restart,
            lock_driver=host.lock_driver,
            way_out=host.way_out,
            total_mb=host.memory_mb,
            free_mb=self.free_mb(host),
            free_huge_mb=self.free_huge_mb(host),
        )
        peers = tuple(h.slot for h in self.hosts.values() if h is not host and h.slot is not None)
        return Observation(
            local,
            peers,
            storage_good_since_s=None if host.blind else 0.0,
            sweep=self.beats,
            global_maintenance=False,
            lockspace_joined=True,
            migration_possible=self.migration_possible,
            outcomes=tuple(host.outcomes),
            specs=tuple(
                v for n, v in self.specs.items() if host.has_read and n not in self.forgotten
            ),
            registry=int(host.has_read),
            own_claims=host.written,
            order=host.order,
            fence_devices=self.devices,
        )

    def _slot(self, host: Host) -> PeerReport:
        timing, engine = self.rules.timing, host.state.engine
        vms = {ENGINE: PeerVm(self._report(host, ENGINE), engine.name.value, engine.last_ran)}
        for vm in self.specs if host.has_read else ():
            state = host.state.vms.get(vm)
            bar_s = None
            if state is not None:
                bar_s = barred_until_s(state, timing.retry_expiry, timing.unexpected_down)
            if vm != ENGINE and (state is not None or vm in host.vms):
                name = "" if state is None else state.name.value
                ran = 0 if state is None else state.last_ran
                report = self._report(host, vm)
                up = host.uplinks.get(vm)
                vms[vm] = PeerVm(report, name, ran, uplink_up=up, barred_until_s=bar_s)
        return PeerReport(
            host.host_id,
            self.beats + 1,
            3400 if host.last is None else host.last.score.value,
            vms,
            maintenance=host.maintenance,
            mem_free_mb=self.free_mb(host),
            claims=tuple(replace(claim, by=host.host_id) for claim in host.state.claims),
            speaks=host.speaks,
            registry=int(host.has_read),
            total_mb=host.memory_mb,
            free_mb=self.free_mb(host),
            free_huge_mb=self.free_huge_mb(host),
            host_score=3400 if host.load < 0.4 else 2000,
            way_out=host.way_out,
            fence_ask=self._ask(host),
        )

    def _ask(self, host: Host) -> FenceAsk | None:
        """The request to be switched off. A report has none where no VM asks: none is made then,
        as in nearly every beat."""
        if host.last is None or not any(vm.asks_off for vm in host.last.state.vms.values()):
            return None
        return SickVm().ask(report_of(host.last), None, self.now_s)


def in_state(hosts: Hosts, host: int, vm: int) -> StateName | None:
    """The state of a host's machine for a VM; None: it has none."""
    state = hosts.hosts[host].state.vms.get(vm)
    return None if state is None else state.name

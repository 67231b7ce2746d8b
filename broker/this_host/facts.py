# SPDX-License-Identifier: LGPL-2.1-or-later
"""This host's facts, and its part of the status.

A host whose agent is silent is shown as a live host with score 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from broker.config.in_force import InForce
from broker.lockspace.hosts import budget_s, standing_fields
from broker.maintenance.host_shutdown import ShuttingDown
from broker.maintenance.modes import Modes, mode_status
from broker.monitors.watched import Watched
from broker.peers.table import Table
from broker.registry.cache import RegistryCache
from broker.this_host import disks_shown
from broker.this_host.agent_report import AgentReport
from broker.this_host.disks_record import DisksRecord
from broker.this_host.outside import Outside
from broker.this_host.sick_vm import SickVm
from broker.this_host.vm_sample import VmSample
from broker.this_host.vms import VmsHere
from broker.vm.healthy_once import HealthyOnce
from broker.whiteboard import lines as slot_lines
from broker.wire.status import HostStatus, OutsideStatus, PenaltyOnWire, ReasonOnWire
from scoring.decision import Code
from scoring.hosts.fence_ask import in_words
from scoring.hosts.liveness import Liveness
from scoring.observation import FenceAsk
from scoring.vm.state import StateName
from scoring.vm_facts import ENGINE, MAY_BE_UP, OutsideView, VmStatus

#: How a VM without a process here is reported; an unknown VM is not.
NO_PROCESS = frozenset({VmStatus.DOWN, VmStatus.DOWN_UNEXPECTED, VmStatus.DOWN_MISSING})


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine under the broker. `boot_id`: of its present boot. `wall`: UTC seconds
    since 1970. `freeing_left`: see AgentReport."""

    boot_id: str
    wall: Callable[[], float]
    freeing_left: Callable[[], int | None]


class ThisHost:
    """The parts. `vms`: those beside the engine. `left_out`: the number of lines that this host's
    slot had no room for."""

    def __init__(
        self,
        in_force: InForce,
        watched: Watched,
        table: Table,
        registry: RegistryCache,
        modes: Modes,
        shutdown: ShuttingDown,
        machine: Machine,
    ) -> None:
        state_dir = Path(in_force.config.daemon.state_dir)
        self._in_force, self._board, self._lockspace = in_force, table.board, table.lockspace
        self.modes, self.shutdown = modes, shutdown
        self.wall, self.boot_id = machine.wall, machine.boot_id
        self.monitors = watched.runner
        self.vm = VmSample(watched)
        self.agent = AgentReport(in_force, machine.freeing_left)
        self.outside = Outside(in_force, watched)
        self.vms = VmsHere(table, registry, watched.vms, self.agent, in_force)
        self.disks = DisksRecord(table.board, in_force.host_id, in_force.host_name, machine.wall)
        self.disks.in_use = lambda: self.monitors.value("what_runs")
        self.healthy_once = HealthyOnce(state_dir / "healthy-once", in_force.config.health)
        self.sick_vm = SickVm()
        self.left_out = 0

    def fence_ask(self, now_s: float) -> FenceAsk | None:
        """This host's request about a sick VM that it cannot end."""
        return self.sick_vm.ask(self.agent.last, self.agent.silent_s(now_s), now_s)

    def is_empty(self, now_s: float) -> bool:
        """Whether no process of a protected VM is left here, by samples that are not old, but those
        that the agent gave up and could not end (rule 6 of scoring/hosts/storage_lost.py)."""
        ending = self.agent.ending(now_s)
        return (
            (self.vm.status(now_s)[0].vm in NO_PROCESS or ENGINE in ending)
            and self.vm.facts.leftover is None
            and all(
                (vm.report.vm in NO_PROCESS or vm.number in ending) and vm.domain.leftover is None
                for vm in self.vms.samples(now_s)
            )
        )

    def is_drained(self, now_s: float) -> bool:
        """Whether the agent reported that it is in local maintenance, and no VM is left here."""
        in_maintenance = self.agent.state == StateName.LOCAL_MAINTENANCE
        return in_maintenance and not self.vms.left(now_s)

    def score(self, now_s: float) -> int:
        """The score that this host publishes."""
        report = self.agent.last
        return 0 if report is None or self.agent.silent_s(now_s) is not None else report.score

    def status(self, now_s: float) -> HostStatus:
        """The status that this host publishes."""
        report, in_force = self.agent.last, self._in_force
        silent_s = self.agent.silent_s(now_s)
        penalties: tuple[PenaltyOnWire, ...]
        if report is None or silent_s is not None:
            why = "the agent on this host does not report"
            score = 0
            penalties = (PenaltyOnWire("agent", in_force.config.score.base_score, why),)
        else:
            score, penalties = report.score, report.penalties
        intent, move = slot_lines.intent_of(self.agent.intent_line(now_s), in_force.host_id)
        written_s = self._board.last_write_s
        return HostStatus(
            host_id=in_force.host_id,
            hostname=in_force.host_name,
            liveness=Liveness.LIVE.value,
            score=score,
            state=report.state if report is not None else "",
            penalties=penalties,
            reason=report.reasons[0].text if report is not None and report.reasons else "",
            engine_status=self.vm.status(now_s)[0],
            age_s=None if written_s is None else now_s - written_s,
            maintenance=self.modes.is_set,
            mode=mode_status(self.modes.local_countdown, now_s),
            **standing_fields(self._lockspace.witnesses.get(in_force.host_id), now_s),
            stopped=report.stopped if report is not None else False,
            local=True,
            agent=self._agent_state(now_s),
            domain_type=report.domain_type if report is not None else "",
            unknown=report.unknown if report is not None else (),
            intent=intent,
            move=move,
            left_out=self.left_out,
            differs=disks_shown.codes(self.disks.in_use()),
            host_shutdown=self.shutdown.way or "" if self.shutdown.drains else "",
            memory_image=bool(self.vm.facts.memory_image),
            outside=outside_status(self.outside.seen, now_s),
            way_out=self.outside.way_out(),
            uplink_up=self.monitors.value("uplink"),
            fence_ask=fence_ask_text(self.fence_ask(now_s), self.vms.names),
            api=in_force.config.advertised(),
            unprotected=self.said_of(now_s, Code.VM_UNPROTECTED),
            stuck=self.said_of(now_s, Code.DRAIN_STUCK),
        )

    def _agent_state(self, now_s: float) -> str:
        """Whether the agent reports: ok, stopped, or silent and for how long."""
        report, silent_s = self.agent.last, self.agent.silent_s(now_s)
        if report is None:
            return "silent"
        if silent_s is not None:
            return f"silent for {silent_s:.0f} s"
        return "stopped" if report.stopped else "ok"

    def reasons(self, now_s: float) -> dict[int, tuple[ReasonOnWire, ...]]:
        """Why the agent does what it does about each VM, by number; none while it is silent."""
        report = self.agent.last
        if report is None or self.agent.silent_s(now_s) is not None:
            return {}
        return {ENGINE: report.reasons} | {vm.number: vm.reasons for vm in report.vms}

    def said_of(self, now_s: float, *codes: Code) -> tuple[int, ...]:
        """The VMs of which the agent reports one of these reasons."""
        return tuple(
            number
            for number, given in sorted(self.reasons(now_s).items())
            if any(reason.code in codes for reason in given)
        )

    def is_unheard(self, now_s: float) -> bool:
        """Whether this host's slot was not written for so long that the others call it silent."""
        written_s = self._board.last_write_s
        return written_s is not None and now_s - written_s >= self._in_force.timing.suspect_after

    def shown(self, now_s: float) -> HostStatus:
        """The status for people: as the peers count this host, not as it would publish itself."""
        own = self.status(now_s)
        if not self.is_unheard(now_s):
            return own
        why = f"its slot was not written for {own.age_s:.0f} s: the other hosts see it silent"
        penalty = PenaltyOnWire("storage", self._in_force.config.score.base_score, why)
        return replace(own, score=0, penalties=(penalty,))

    def lockspace_budget_s(self, now_s: float) -> float | None:
        """How long the storage may still stay away before sanlock ends the VM here."""
        if not self._lockspace.joined:
            return None
        return budget_s(self._lockspace.renewed_s, self._in_force.io_timeout_s, now_s)

    def may_run(self, now_s: float) -> tuple[int, ...]:
        """The numbers of the VMs that run here, or may: libvirt does not say that they do not."""
        engine = {ENGINE: self.vm.status(now_s)[0].vm}
        found = engine | {vm.number: vm.report.vm for vm in self.vms.samples(now_s)}
        return tuple(number for number, vm in sorted(found.items()) if vm in MAY_BE_UP)

    def line(self, now_s: float) -> str:
        """The state in one line, for the service manager."""
        board, lockspace = self._board, self._lockspace
        parts = [
            f"host {self._in_force.host_id}",
            "lockspace joined" if lockspace.joined else lockspace.problem,
            f"agent {self._agent_state(now_s)}",
            f"storage: {board.problem}" if board.problem else "storage ok",
            self._in_force.problem,
        ]
        return ", ".join(filter(None, parts))


def fence_ask_text(ask: FenceAsk | None, names: Mapping[int, str]) -> str:
    """Why a host asks to be switched off; empty: it does not. `names`: of the VMs, by number."""
    return "" if ask is None else in_words(ask, names.get(ask.vm, ""))


def outside_status(seen: OutsideView | None, now_s: float) -> OutsideStatus | None:
    """How a host reaches the VM elsewhere, with ages; None: nothing yet."""
    if seen is None or (seen.good_s is None and seen.bad_since_s is None):
        return None
    good_s, bad_s = (
        None if at_s is None else now_s - at_s for at_s in (seen.good_s, seen.bad_since_s)
    )
    return OutsideStatus(seen.owner, good_s, bad_s)

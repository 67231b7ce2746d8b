# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent's beat: one view from the broker, one decision, its actions begun, one report
returned. The broker's beat drives it; news and ended actions begin it earlier."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from msgspec.structs import replace as replace_fields

from agent.actions import ActionRunner
from agent.fence.rehearsal import Rehearsals
from agent.fence.storage import NO_STORAGE_FENCE, StorageFence
from agent.ports import FenceDevices
from agent.report import report_of
from agent.vm.measured import Measured
from broker.client.ask import BrokerError
from broker.daemon.log_lines import fields
from broker.wire.exchange import BegunReason, Report, View
from broker.wire.status import MeasuredOnWire
from scoring.decide import Decision, decide
from scoring.decision import MigrateVm, Reason
from scoring.hosts.fence_rate import is_noted
from scoring.observation import LocalHost, Observation
from scoring.rules import Rules
from scoring.state import AgentState
from scoring.vm.state import StateName
from scoring.vm_facts import ENGINE, Obstacle, Unfit

log = logging.getLogger("ha-agent")

#: How long an agent that is ending waits for a start or stop under way.
STOP_PATIENCE_S = 10.0
#: Pause before a broker that does not answer is asked again.
BROKER_RETRY_S = 0.5
#: How many of the latest reasons are kept that no report has brought to the broker yet.
BEGUN_MAX = 32
#: How long a move of the VM waits until it is published for the others.
PUBLISH_PATIENCE_S = 5.0


class BrokerLink(Protocol):
    """Port to the broker."""

    async def exchange(self, report: Report, newer_than: int | None = None) -> View:
        """Send a report, get the view; with `newer_than` only when it is newer than that version.

        Raises BrokerDown or BrokerRefused.
        """


class Notes(Protocol):
    """Port to the journal. `problem`: why decisions are not recorded now; empty while they are."""

    problem: str

    def note(
        self, before: AgentState, observation: Observation, now_s: float, decision: Decision
    ) -> None:
        """Record one decision; never blocks, never raises."""


class Agent:
    """Decides for one host. `stop()` ends it; the VM stays as it is."""

    def __init__(
        self,
        rules: Rules,
        link: BrokerLink,
        actions: ActionRunner,
        domain_type: str,
        migration_possible: bool,
        journal: Notes | None = None,
        rehearsals: Rehearsals | None = None,
        measured: Measured | None = None,
    ) -> None:
        #: Why libvirt refuses the VM's definition; empty while it accepts it.
        self.refused: Callable[[], str] = lambda: ""
        self._journal = journal
        self._rehearsals = rehearsals
        self._measured = measured
        self._link = link
        self._actions = actions
        self._domain_type = domain_type
        self._migration_possible = migration_possible
        self._state = AgentState(rules)
        self._report = Report(
            score=0,
            state=StateName.REINITIALIZE_FSM.value,
            penalties=(),
            reasons=(),
            last_ran=0,
            domain_type=domain_type,
        )
        self._beat = 0
        self._stopping = False
        self._view: View | None = None
        self._view_s = 0.0
        self._came = asyncio.Event()
        self._wake_s = float("inf")
        self._broker_problem = ""
        self._logged: tuple[str, ...] = ()
        self._names: dict[int, str] = {}
        #: Why the present configuration file is not in force; empty when it is.
        self.config_problem = ""
        self._begun: tuple[BegunReason, ...] = ()
        self.last: Decision | None = None
        #: Decides instead of this version's `decide`, where it is set.
        self.decides: Callable[[AgentState, Observation, float], Decision] | None = None
        #: Called after each step, even one without a broker.
        self.on_step: Callable[[], None] = lambda: None

    def stop(self) -> None:
        """Have the agent end: AgentStopped is published, then `run` returns."""
        self._stopping = True
        self._actions.news.set()

    def reconfigure(
        self,
        rules: Rules,
        fence: FenceDevices,
        rehearse_every_s: float,
        migration_possible: bool,
        storage_fence: StorageFence | None = None,
    ) -> None:
        """Use other rules and fence devices from the next decision on. `storage_fence`: None: the
        storage is not fenced."""
        self.config_problem = ""
        self._migration_possible = migration_possible
        self._state = replace(self._state, rules=rules)
        self._actions.use_fence(fence, storage_fence)
        if self._rehearsals is not None:
            self._rehearsals.use(fence, rehearse_every_s, storage_fence or NO_STORAGE_FENCE)
        self._actions.news.set()

    async def run(self) -> None:
        """Decide whenever there is something new, until stopped.

        An error that no code expects ends it, in an ExceptionGroup: the outcome of an action that
        failed so never comes, and the VM would wait for it. The next agent begins with what it
        finds.
        """
        async with asyncio.TaskGroup() as group:
            beside = (
                group.create_task(self._watch(), name="watch the broker"),
                group.create_task(
                    self._actions.finish_freeing_of_before(), name="finish a freeing"
                ),
            )
            await self._steps()
            for task in beside:
                task.cancel()

    async def _steps(self) -> None:
        loop = asyncio.get_running_loop()
        end_s = float("inf")
        while self._state.engine.name is not StateName.AGENT_STOPPED:
            await self._news(min(self._wake_s, end_s))
            if self._actions.failure is not None:
                raise self._actions.failure
            if self._stopping:
                end_s = min(end_s, loop.time() + STOP_PATIENCE_S)
                if loop.time() >= end_s or (self._view is None and not self._actions.busy):
                    return
            await self.step()
            self.on_step()

    async def _news(self, until_s: float) -> None:
        """Wait for a view, an outcome or a stop, but not beyond `until_s`."""
        try:
            async with asyncio.timeout_at(None if until_s == float("inf") else until_s):
                await self._actions.news.wait()
        except TimeoutError:
            pass
        self._actions.news.clear()

    async def _watch(self) -> None:
        """Keep the newest view; without an answer of the broker everything stays as it is."""
        newer_than = 0
        while True:
            try:
                self._view = await self._exchange(newer_than)
                newer_than = self._view.version
                self._actions.log_is_written = self._view.log_is_written
                slots = {peer.host_id: peer.timestamp for peer in self._view.peers}
                self._actions.last_look.slots = slots
                self._actions.last_look.asks = _asks(self._view)
                self._log_broker_problem("")
                self._actions.news.set()
            except BrokerError as error:
                self._view, newer_than = None, 0
                self._log_broker_problem(str(error))
                self._actions.news.set()
                await asyncio.sleep(BROKER_RETRY_S)

    async def _exchange(self, newer_than: int | None = None) -> View:
        """Report, and get a view. New reasons are reported until a report has arrived."""
        report = self._report
        view = await self._link.exchange(report, newer_than)
        self._view_s = asyncio.get_running_loop().time()
        self._begun = tuple(begun for begun in self._begun if begun not in report.begun)
        self._report = replace_fields(self._report, begun=self._begun)
        self._came.set()
        return view

    async def _published(self, beat: int) -> str:
        """Wait until that beat's decision is in this host's slot; returns why it is not, or ""."""
        try:
            async with asyncio.timeout(PUBLISH_PATIENCE_S):
                while self._view is None or (
                    self._view.told_beat is not None and self._view.told_beat < beat
                ):
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            return f"this host could not publish it for {PUBLISH_PATIENCE_S:g} s"
        return ""

    async def step(self) -> None:
        """Make one decision on the newest view. Without a broker nothing is decided."""
        if self._view is None:
            self._wake_s = float("inf")
            return
        before = self._state
        self._names = {spec.number: spec.name for spec in self._view.specs}
        decision = self._decide(self._view)
        now_s, wake_s = asyncio.get_running_loop().time(), decision.wake_s
        self._wake_s = wake_s if wake_s is not None and wake_s > now_s else float("inf")
        moves = [action for action in decision.actions if isinstance(action, MigrateVm)]
        for action in decision.actions:
            if action not in moves:
                self._actions.begin(action)
        self._log_reasons(before, decision)
        if _shown(decision.state) != _shown(before):
            # A new state or claim is published at once, not with the next beat.
            try:
                self._view = await self._exchange()
            except BrokerError as error:
                self._log_broker_problem(str(error))
        for action in moves:
            # The target is published first: no host may take the handing over for a death.
            self._actions.begin_move(action, self._published(self._beat))

    def _decide(self, view: View) -> Decision:
        self._beat += 1
        self._actions.know(view.system_uuids)
        if self._rehearsals is not None:
            self._rehearsals.see(view.system_uuids, view.hostnames)
        self._actions.hostnames = view.hostnames
        self._actions.what_ran = view.what_ran
        self._actions.registry = max([view.registry, *(peer.registry for peer in view.peers)])
        self._actions.is_noted = lambda host: _is_noted(view, host)
        seen = view.observed()
        observation = replace(
            seen,
            local=self._local(seen.local),
            fence_devices=self._actions.fence_hosts,
            fence_lease_held=self._actions.fence_held,
            migration_possible=self._migration_possible,
            outcomes=self._actions.take_outcomes(),
            stopping=self._stopping,
        )
        now_s = asyncio.get_running_loop().time()
        decision = (self.decides or decide)(self._state, observation, now_s)
        if self._journal is not None:
            self._journal.note(self._state, observation, now_s, decision)
        if self._measured is not None:
            self._measured.look(self._state.engine.name, decision, now_s)
        before = () if self.last is None else tuple(_key(each) for each in self.last.reasons)
        fresh = [reason for reason in decision.reasons if _key(reason) not in before]
        begun = (BegunReason(self._beat, r.code.value, r.text, r.vm) for r in fresh)
        self._begun = (*self._begun, *begun)[-BEGUN_MAX:]
        self._state, self.last = decision.state, decision
        self._actions.last_look.take(decision.state, self._view_s)
        freeing, is_fencer = self._freeing(decision.state)
        self._report = replace_fields(
            report_of(decision),
            beat=self._beat,
            domain_type=self._domain_type,
            config_problem=self.config_problem,
            state_problem="" if self._journal is None else self._journal.problem,
            fence_paths={} if self._rehearsals is None else dict(self._rehearsals.paths),
            storage_fence=None if self._rehearsals is None else self._rehearsals.storage_path,
            measured=MeasuredOnWire() if self._measured is None else self._measured.on_wire,
            begun=self._begun,
            freeing=freeing,
            freeing_fencer=is_fencer,
        )
        return decision

    def _freeing(self, state: AgentState) -> tuple[int | None, bool]:
        """The host id that this agent frees, or is about to free without the fence lease, which it
        announces first; and whether it does so without that lease."""
        if self._actions.freeing is not None:
            return self._actions.freeing, self._actions.freeing_fencer
        step = state.host.takeover
        fencer = None if step is None else step.fencer
        if fencer is None or not (fencer.offs or fencer.freeing):
            return None, False
        return fencer.host_id, True

    def _local(self, local: LocalHost) -> LocalHost:
        """The host as its broker sees it, and the facts that only this agent knows."""
        refused = self.refused()
        engine, *others = local.vms
        if not refused or any(each.obstacle is Obstacle.CANNOT_START for each in engine.unfit):
            return local
        unfit = (*engine.unfit, Unfit(Obstacle.CANNOT_START, refused))
        return replace(local, vms=(replace(engine, unfit=unfit), *others))

    def line(self) -> str:
        """The agent's state in one line, for the service manager."""
        if self._broker_problem:
            return f"{self._state.engine.name}, nothing is decided: {self._broker_problem}"
        problem = f", {self.config_problem}" if self.config_problem else ""
        return f"{self._state.engine.name}, score {self._report.score}{problem}"

    def _log_reasons(self, before: AgentState, decision: Decision) -> None:
        """Log one line for each change of state of a VM, and for the engine one when the reasons to
        stay have changed."""
        was, now = before.engine.name, decision.state.engine.name
        reasons = [reason for reason in decision.reasons if reason.vm in (ENGINE, 0)]
        codes = tuple(reason.code for reason in reasons)
        if now is not was:
            moved = fields(self._about(was, decision, reasons), event="transition", always=True)
            log.info("%s -> %s because %s", was, now, _because(reasons), extra=moved)
        elif codes != self._logged:
            stays = fields(self._about(was, decision, reasons), event="reasons")
            log.info("%s stays because %s", was, _because(reasons), extra=stays)
        self._logged = codes
        for number, vm in decision.state.vms.items():
            earlier = before.vms.get(number)
            if number != ENGINE and earlier is not None and vm.name is not earlier.name:
                reasons = [reason for reason in decision.reasons if reason.vm == number]
                name = self._names.get(number, f"VM {number}")
                log.info("%s: %s -> %s because %s", name, earlier.name, vm.name, _because(reasons))

    def _about(
        self, before: StateName, decision: Decision, reasons: Sequence[Reason]
    ) -> dict[str, object]:
        """The fields of a decision for the journal; the reason that counts is the last one."""
        codes = [reason.code.value for reason in reasons]
        return {
            "from": before.value,
            "state": decision.state.engine.name.value,
            "reason": codes[-1] if codes else None,
            "reasons": " ".join(codes),
            "score": decision.score.value,
            "beat": self._beat,
        }

    def _log_broker_problem(self, problem: str) -> None:
        """Log a problem once when it begins and once when it ends."""
        if problem and not self._broker_problem:
            log.warning("%s; nothing is decided meanwhile", problem)
        elif self._broker_problem and not problem:
            log.info("the broker answers again")
        self._broker_problem = problem


def _asks(view: View) -> frozenset[int]:
    """The hosts whose newest slots ask that they be switched off."""
    return frozenset(peer.host_id for peer in view.peers if peer.fence_ask is not None)


def _is_noted(view: View, host_id: int) -> bool:
    """Whether the fence log has this host's intent to switch that host off, in its present boot."""
    boots = {peer.host_id: peer.boot_id for peer in view.peers}
    return is_noted(view.fence_log, view.local.host_id, host_id, boots.get(host_id, ""))


def _key(reason: Reason) -> tuple[str, int]:
    return reason.code.value, reason.vm


def _shown(state: AgentState) -> tuple[object, ...]:
    """What the other hosts should read at once."""
    claims = {(claim.number, claim.host_id) for claim in state.claims}
    return {number: vm.name for number, vm in state.vms.items()}, claims


def _because(reasons: Sequence[Reason]) -> str:
    return "; ".join(f"{reason.code}: {reason.text}" for reason in reasons)

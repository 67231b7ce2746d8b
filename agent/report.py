# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the agent's report: the part of a decision that other hosts and people read."""

from __future__ import annotations

from collections.abc import Iterable

from broker.wire.exchange import LeaseSeen, PlanOnWire, Report, VmReportOnWire
from broker.wire.intent import Act, Intent
from broker.wire.status import PenaltyOnWire, ReasonOnWire
from scoring.decide import Decision
from scoring.decision import Reason
from scoring.rules import Rules
from scoring.state import AgentState
from scoring.vm.several import barred_until_s
from scoring.vm.state import StateName, VmState
from scoring.vm_facts import ENGINE


def report_of(decision: Decision) -> Report:
    """The report on one decision. Facts that do not come from the decision are added by the
    agent."""
    state, engine, plan = decision.state, decision.state.engine, decision.plan
    asks_for, asks_since_s = _asks_off(state)
    return Report(
        score=decision.score.value,
        state=engine.name.value,
        penalties=tuple(PenaltyOnWire(p.name, p.points, p.why) for p in decision.score.penalties),
        reasons=_reasons(decision.reasons, {ENGINE, 0}),
        last_ran=engine.last_ran,
        stopped=engine.name is StateName.AGENT_STOPPED,
        unknown=decision.score.unknown,
        intent=_intent(state),
        moving_until_s=engine.moving_until_s,
        answers=tuple(answer for vm in state.vms.values() for answer in vm.answers),
        lease=_lease(engine),
        unstopped_since_s=asks_since_s,
        unstopped_vm=asks_for,
        given_up_since_s=engine.given_up_since_s,
        vms=tuple(
            _of_vm(number, vm, decision, state.rules)
            for number, vm in sorted(state.vms.items())
            if number != ENGINE
        ),
        claims=state.claims,
        plan=PlanOnWire(dict(plan.order), dict(plan.short)) if plan.order or plan.short else None,
        host_score=decision.host_score,
        watched=decision.watched,
        vm_memory_mb=state.rules.vm_memory_mb,
    )


def _of_vm(number: int, vm: VmState, decision: Decision, rules: Rules) -> VmReportOnWire:
    timing = rules.timing
    return VmReportOnWire(
        number,
        vm.name.value,
        vm.last_ran,
        vm.retries,
        vm.moving_to,
        vm.moving_until_s,
        barred_until_s(vm, timing.retry_expiry, timing.unexpected_down),
        _reasons(decision.reasons, {number}),
        _lease(vm),
        _move(vm),
        vm.given_up_since_s,
    )


def _asks_off(state: AgentState) -> tuple[int, float | None]:
    """The sick VM for which this host asks to be switched off, of several the one that could not be
    ended for longest, and since when that is so (None: it does not ask)."""
    since_s = {
        number: vm.unstopped_since_s
        for number, vm in state.vms.items()
        if vm.asks_off and vm.unstopped_since_s is not None
    }
    if not since_s:
        return ENGINE, None
    asks_for = min(since_s, key=lambda number: (since_s[number], number))
    return asks_for, since_s[asks_for]


def _reasons(reasons: Iterable[Reason], about: set[int]) -> tuple[ReasonOnWire, ...]:
    """The last reason belongs to the state the beat ended in: it goes first."""
    said = [ReasonOnWire(each.code.value, each.text) for each in reasons if each.vm in about]
    return tuple(reversed(said))


def _intent(state: AgentState) -> str:
    """What the others should know before it is done."""
    host = state.host
    if moving := _move(state.engine):
        return moving
    if host.switching_on is not None:
        return Intent(Act.SWITCH_ON, host.switching_on).words
    step = host.takeover
    if step is None or not (
        step.switching_off or step.ordered_s or step.freeing or step.freed_s is not None
    ):
        return ""
    return Intent(Act.FENCE, step.host_id).words


def _move(vm: VmState) -> str:
    if vm.moving_to is None and vm.moving_until_s is None:
        return ""
    return Intent(Act.MIGRATE, vm.moving_to).words


def _lease(vm: VmState) -> LeaseSeen | None:
    """The owner of a VM's lease, by the last answer."""
    answer = vm.lease
    if answer is None or not answer.known:
        return None
    return LeaseSeen(answer.owner, answer.owner_is_gone, answer.asked_s)

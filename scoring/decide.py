# SPDX-License-Identifier: LGPL-2.1-or-later
"""The decision: `decide(state, observation, now_s) -> Decision(state, actions, reasons, score)`.

Every host makes this decision for itself, once a beat. A VM cannot start before the host that owns
its lease is proven dead, and that proof exists once, however many VMs wait for it. So the hosts are
judged first, each VM takes its step on that judgement, and the dead host is pursued last.

Rules of this file:

1. No clock, no I/O, no logging. The same arguments give the same decision, always.
2. Facts about hosts come from scoring/hosts/ alone, facts about a VM from that VM's turn. A VM that
   waits for the death of a host names that host; it starts no proof itself.

The stages of one beat:

    look        which hosts live, which actions have ended   once, for all hosts
    place       where the missing VMs go                     only while a VM is missing
    step        each VM takes a step in its state machine, and names the dead host it waits for
    pursue      prove that host dead, or begin early with a live host that is overdue; switch a
                fenced host on again
    look again  withdraw an order that must not be carried out any more
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scoring.decision import Action, Reason
from scoring.hosts import early, fencing, last_look, switch_on
from scoring.hosts.look import look
from scoring.hosts.turn import HostTurn
from scoring.observation import LeaseAnswer, Observation
from scoring.state import AgentState
from scoring.vm import heir, left_behind, machine, orders, room, unstoppable
from scoring.vm.memory import take_in
from scoring.vm.plan import NO_PLAN, Plan
from scoring.vm.score import Score
from scoring.vm.several import Several, host_score
from scoring.vm.state import StateName, VmState
from scoring.vm.turn import VmTurn, own_score
from scoring.vm_facts import ENGINE


@dataclass(frozen=True, slots=True)
class Decision:
    """The next state, the actions to carry out now, the reasons, and this host's score.

    `wake_s`: when to decide again even if no beat and no news has come by then. `plan`: where the
    missing VMs of the registry go. `host_score`: this host's score before the penalties of a
    particular VM (None: the registry has no VMs). `watched`: the hosts whose heir this host is; it
    asks them often, to learn early that a sign of life is overdue.
    """

    state: AgentState
    actions: tuple[Action, ...]
    reasons: tuple[Reason, ...]
    score: Score
    wake_s: float | None = None
    plan: Plan = NO_PLAN
    host_score: int | None = None
    watched: tuple[int, ...] = ()


def decide(state: AgentState, observation: Observation, now_s: float) -> Decision:
    """One beat: the stages at the head of this file."""
    host = look(state.host, state.rules, observation, now_s)
    fencing.take_in(host, observation.outcomes)
    several = Several(host, state.vms) if observation.specs else None
    turns = [_turn(host, state, several, number) for number in _active(several)]
    for turn in turns:
        take_in(turn)
        orders.take(turn)
        machine.walk(turn)
    watched = heir.watched(turns[0])
    _pursue(host, turns, watched)
    if any(turn.wants_hosts_back for turn in turns):
        switch_on.again(host)
    for turn in turns:
        left_behind.clear(turn)
        room.keep(turn)
    for turn in turns:
        unstoppable.ask(turn)
    fencing.forget(host)
    last_look.look_again(host, _lease(host, turns))
    wakes_s = [fencing.wake_s(host), *(turn.wake_s for turn in turns)]
    return Decision(
        replace(state, host=host.state, vms=_remembered(state, several, turns)),
        tuple(host.actions),
        tuple(host.reasons),
        own_score(turns[0]),
        min((at_s for at_s in wakes_s if at_s is not None), default=None),
        NO_PLAN if several is None else several.plan,
        None if several is None else host_score(observation.local, host),
        watched,
    )


def _active(several: Several | None) -> list[int]:
    """The VMs that take a step; the engine always does, and first."""
    return [ENGINE] if several is None else [ENGINE, *several.active()]


def _turn(host: HostTurn, state: AgentState, several: Several | None, number: int) -> VmTurn:
    outcomes = host.observation.outcomes
    ended = list(outcomes if several is None else several.ended.get(number, ()))
    vm = state.vms.get(number)
    return VmTurn(host, number, VmState() if vm is None else vm, ended, several=several)


def _remembered(
    state: AgentState, several: Several | None, turns: Sequence[VmTurn]
) -> dict[int, VmState]:
    """The memory of each VM after this beat; a VM that took no step keeps its old memory while
    that is of use."""
    stepped = {turn.number: turn.state for turn in turns}
    if several is None:
        return stepped
    return {
        number: vm
        for number, vm in {**state.vms, **stepped}.items()
        if number == ENGINE or (number in several.specs and several.is_remembered(number, vm))
    }


def _pursue(host: HostTurn, turns: Sequence[VmTurn], watched: Sequence[int]) -> None:
    """Pursue the host that some VM waits for. Where no VM waits, begin early with a host that is
    overdue but not suspected yet. A VM that is being started waits for nobody."""
    waiting = [turn for turn in turns if turn.state.name is StateName.ENGINE_DOWN]
    waits = [turn.waits_for for turn in waiting if turn.waits_for is not None]
    if waits:
        said = len(host.reasons)
        fencing.pursue(host, waits)
        if all(turn.number != ENGINE for turn in waiting if turn.waits_for is not None):
            # These reasons concern the host alone: the engine does not wait for it.
            host.reasons[said:] = [replace(each, vm=0) for each in host.reasons[said:]]
    elif any(turn.keeps_waiting for turn in waiting):
        host.pursued = True
    else:
        early.pursue(host, watched)


def _lease(host: HostTurn, turns: Sequence[VmTurn]) -> LeaseAnswer | None:
    """The last answer about a lease that the pursued host owns; else any answer about a lease."""
    step = host.state.takeover
    if step is not None and step.is_early:
        # No VM waits for that lease yet.
        return step.lease
    pursued = None if step is None else step.host_id
    known = [turn.state.lease for turn in turns if turn.state.lease is not None]
    return next((lease for lease in known if lease.owner == pursued), known[0] if known else None)

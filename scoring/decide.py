# SPDX-License-Identifier: LGPL-2.1-or-later
"""The decision: `decide(state, observation, now_s) -> Decision(state, actions, reasons, score)`.

One beat has these stages:

    look      who lives, what has ended                           once, for all hosts
    place     where the missing VMs go                            only while one is missing
    step      each VM's state machine; it says whose death it waits for
    pursue    the proof that a host is dead, for all VMs that wait for it, or early, of a host that
              is overdue; whoever was switched off is switched on again
    look again  whether what is under way must still be done

Rules of this file:

1. No clock, no I/O, no logging. The same arguments give the same decision, always.
2. What is known of a host is asked of the hosts' part alone, what is known of a VM of its own part.
   A VM that waits for a dead host says so; it pursues nobody.
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
    """The next state, what to do now, why, and this host's score in that state.

    `wake_s`: when to decide again even if no beat and no news has come by then. `plan`: where the
    missing VMs of the registry go; `host_score`: what this host has left of the base score,
    whichever of them it would run (None: there are none). `watched`: the hosts whose heir this one
    is, of which it wants to know early that a sign of life is overdue.
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
    """One beat: take in the observation, walk each machine until a state stays, say why."""
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
    unstoppable.ask(turns[0])
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
    """What is kept of each VM: of one that has nothing to do here, that it ran here last."""
    stepped = {turn.number: turn.state for turn in turns}
    if several is None:
        return stepped
    return {
        number: vm
        for number, vm in {**state.vms, **stepped}.items()
        if number == ENGINE or (number in several.specs and several.is_remembered(number, vm))
    }


def _pursue(host: HostTurn, turns: Sequence[VmTurn], watched: Sequence[int]) -> None:
    """Pursue the host that some VM waits for; a VM that starts waits for nobody. Where no VM waits
    a host may be overdue that is not suspected yet."""
    waiting = [turn for turn in turns if turn.state.name is StateName.ENGINE_DOWN]
    waits = [turn.waits_for for turn in waiting if turn.waits_for is not None]
    if waits:
        said = len(host.reasons)
        fencing.pursue(host, waits)
        if all(turn.number != ENGINE for turn in waiting if turn.waits_for is not None):
            # It is about a host alone: the engine does not wait for it.
            host.reasons[said:] = [replace(each, vm=0) for each in host.reasons[said:]]
    elif any(turn.keeps_waiting for turn in waiting):
        host.pursued = True
    else:
        early.pursue(host, watched)


def _lease(host: HostTurn, turns: Sequence[VmTurn]) -> LeaseAnswer | None:
    """The last answer about a lease that the pursued host owns, or about any."""
    step = host.state.takeover
    if step is not None and step.is_early:
        # No VM waits for that lease yet.
        return step.lease
    pursued = None if step is None else step.host_id
    known = [turn.state.lease for turn in turns if turn.state.lease is not None]
    return next((lease for lease in known if lease.owner == pursued), known[0] if known else None)

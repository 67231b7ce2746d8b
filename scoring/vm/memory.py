# SPDX-License-Identifier: LGPL-2.1-or-later
"""Updates the memory about one VM, from the observation and from ended actions, before any state
acts.

Every state reads this memory, so it is updated once and first. If each state handled the outcomes
itself, an outcome that comes after the machine has left that state would be lost: a failed start
would not count, or an order would never be answered.
"""

from __future__ import annotations

from dataclasses import replace

from scoring.observation import (
    DomainDisarmed,
    LeaseAnswer,
    MigrationCancelled,
    MigrationPath,
    OrderKind,
    Outcome,
    StartResult,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)
from scoring.vm import health, orders, storage_lost, unstoppable
from scoring.vm.state import MoveProblem, StateName, VmState
from scoring.vm.turn import VmTurn


def take_in(turn: VmTurn) -> None:
    """Update the memory by the observation and by the actions that have ended."""
    state, observation, now_s = turn.state, turn.observation, turn.now_s
    if state.since_s is None:
        last_ran = max(state.last_ran, turn.here.last_ran)
        state = replace(state, since_s=now_s, last_ran=last_ran)
    if state.retries and now_s - state.last_failure_s >= turn.rules.timing.retry_expiry:
        state = replace(state, retries=0, last_failure="")
    for outcome in turn.ended:
        state = orders.with_outcome(turn, _with_outcome(state, outcome, now_s), outcome)
    up = turn.vm_up_here or turn.up_elsewhere() is not None
    missing_since_s = state.missing_since_s
    if up or observation.storage_good_since_s is None:
        missing_since_s = None
    elif missing_since_s is None:
        missing_since_s = now_s
    ahead = state.ahead if missing_since_s is not None else ()
    uplink_down_s = state.uplink_down_s
    if turn.here.uplink_up is not False:
        uplink_down_s = None
    elif uplink_down_s is None:
        uplink_down_s = now_s
    # A host that was away may have been repaired: its failed moves are forgotten.
    problems = {
        host: known
        for host, known in state.move_problems.items()
        if any(peer.host_id == host for peer in turn.live)
    }
    changed = {
        "missing_since_s": missing_since_s,
        "ahead": ahead,
        "uplink_down_s": uplink_down_s,
        "locked_since_s": None if up else state.locked_since_s,
        "move_problems": problems,
    }
    # Copying the state costs time, and there may be fifty VMs.
    if any(getattr(state, name) != value for name, value in changed.items()):
        state = replace(state, **changed)  # type: ignore[arg-type]
    turn.state = state
    health.look_at_unknown(turn)
    unstoppable.look_at_stops(turn)
    storage_lost.look_at_given_up(turn)


def _with_outcome(state: VmState, outcome: Outcome, now_s: float) -> VmState:
    """The memory after an action has ended. The states read the outcome itself as well."""
    match outcome:
        case VmStartEnded(result=StartResult.FAILED):
            return replace(
                state,
                acting=False,
                acted_s=now_s,
                retries=state.retries + 1,
                last_failure_s=now_s,
                last_failure=outcome.detail,
            )
        case VmStartEnded(result=StartResult.IMAGE_LOCKED):
            return replace(
                state,
                acting=False,
                acted_s=now_s,
                lease=None,
                locked_since_s=now_s if state.locked_since_s is None else state.locked_since_s,
                locked_s=now_s,
                locked_by=outcome.detail,
            )
        case VmStopEnded(ok=ok):
            since_s = state.unstopped_since_s
            if not ok and since_s is None:
                since_s = now_s
            elif ok and state.name is StateName.ENGINE_FORCE_STOP:
                since_s = None
            # The pause after a start that timed out begins when the VM has ended.
            failure_s = now_s if ok and state.sick and state.retries else state.last_failure_s
            return replace(
                state,
                acting=False,
                acted_s=now_s,
                lease=None,
                unstopped_since_s=since_s,
                last_failure_s=failure_s,
            )
        case VmStartEnded():
            return replace(state, acting=False, acted_s=now_s, lease=None, locked_since_s=None)
        case VmMigrationEnded():
            return replace(_moved(state, outcome, now_s), acting=False, acted_s=now_s)
        case LeaseAnswer():
            return replace(state, lease=outcome, asking_lease=False)
        case MigrationCancelled():
            return replace(state, asking_cancel=False, cancelled_s=now_s)
        case DomainDisarmed():
            return replace(state, disarming=False, disarmed_s=now_s)
        case MigrationPath():
            return replace(state, asking_path=False, path=outcome)
        case _:
            # The memory about hosts takes in the other outcomes (scoring/hosts/fencing.py).
            return state


def _moved(state: VmState, outcome: VmMigrationEnded, now_s: float) -> VmState:
    """The memory of failed moves after a migration has ended."""
    target = outcome.target
    failed_s = {host: at_s for host, at_s in state.move_failed_s.items() if host != target}
    problems = {host: known for host, known in state.move_problems.items() if host != target}
    # An operator's order may have been cancelled: it says nothing about the agent's own moves.
    if not outcome.ok and (state.order is None or state.order.kind is not OrderKind.MIGRATE):
        failed_s[target] = now_s
        before = state.move_problems.get(target)
        tries = 1 if before is None else before.tries + 1
        why = outcome.detail or "no reason"
        problems[target] = MoveProblem(why, outcome.lasting, tries, outcome.everywhere)
    return replace(state, move_failed_s=failed_s, move_problems=problems)

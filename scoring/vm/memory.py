# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an agent remembers: what an observation adds to it before any state is asked, and what is
forgotten once all have been asked."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from scoring.decision import DropFenceLease
from scoring.hosts import fence_ask, takeover
from scoring.hosts.liveness import Liveness, liveness, look
from scoring.observation import (
    DomainDisarmed,
    EngineMigrationEnded,
    EngineStartEnded,
    EngineStopEnded,
    FenceLeaseAnswer,
    FenceOwnerAnswer,
    HostIdFreed,
    LeaseAnswer,
    MigrationCancelled,
    MigrationPath,
    OrderKind,
    Outcome,
    PeerReport,
    PowerAnswer,
    PowerOffEnded,
    PowerOnEnded,
    StartResult,
    VmStatus,
)
from scoring.state import AgentState, MoveProblem, StateName, Takeover
from scoring.vm import orders
from scoring.vm.turn import Turn


def take_in(turn: Turn) -> None:
    """Bring memory up to date with what was seen and with what ended, before any state acts."""
    state, observation, now_s = turn.state, turn.observation, turn.now_s
    timing = state.rules.timing
    if observation.storage_good_since_s is not None:
        seen = look(state.seen, observation.peers, now_s)
        by_liveness: dict[Liveness, list[PeerReport]] = {kind: [] for kind in Liveness}
        for peer in observation.peers:
            kind = liveness(seen[peer.host_id], now_s, timing.suspect_after)
            by_liveness[kind].append(peer)
        turn.live = tuple(by_liveness[Liveness.LIVE])
        turn.uncertain = tuple(by_liveness[Liveness.UNCERTAIN])
        turn.asking = fence_ask.asking(turn.live, state.rules)
    else:
        seen = {}
    if state.retries and now_s - state.last_failure_s >= timing.retry_expiry:
        state = replace(state, retries=0, last_failure="")
    for outcome in turn.ended:
        state = orders.with_outcome(_with_outcome(state, outcome, now_s), outcome)
    up = observation.local.engine.vm is VmStatus.UP or any(
        p.engine.vm is VmStatus.UP for p in turn.live if p is not turn.asking
    )
    missing_since_s = state.missing_since_s
    if up or observation.storage_good_since_s is None:
        missing_since_s = None
    elif missing_since_s is None:
        missing_since_s = now_s
    ahead = state.ahead if missing_since_s is not None else ()
    uplink_down_s = state.uplink_down_s
    if observation.local.uplink_up is not False:
        uplink_down_s = None
    elif uplink_down_s is None:
        uplink_down_s = now_s
    turn.state = replace(
        state,
        seen=seen,
        missing_since_s=missing_since_s,
        ahead=ahead,
        uplink_down_s=uplink_down_s,
        # A host that comes back may have been mended.
        move_problems={
            host: known
            for host, known in state.move_problems.items()
            if any(peer.host_id == host for peer in turn.live)
        },
    )
    fence_ask.look_at_stops(turn)


def _with_outcome(state: AgentState, outcome: Outcome, now_s: float) -> AgentState:
    """What an ended action changes in memory; the states read the outcome itself as well."""
    match outcome:
        case EngineStartEnded(result=StartResult.FAILED):
            return replace(
                state,
                acting=False,
                acted_s=now_s,
                retries=state.retries + 1,
                last_failure_s=now_s,
                last_failure=outcome.detail,
            )
        case EngineStopEnded(ok=ok):
            since_s = state.unstopped_since_s
            if not ok and since_s is None:
                since_s = now_s
            elif ok and state.name is StateName.ENGINE_FORCE_STOP:
                since_s = None
            return replace(
                state, acting=False, acted_s=now_s, lease=None, unstopped_since_s=since_s
            )
        case EngineStartEnded():
            return replace(state, acting=False, acted_s=now_s, lease=None)
        case EngineMigrationEnded():
            return replace(_moved(state, outcome, now_s), acting=False, acted_s=now_s)
        case LeaseAnswer():
            step = state.takeover
            if step is not None:
                step = takeover.with_lease(step, outcome)
            return replace(state, lease=outcome, asking_lease=False, takeover=step)
        case PowerAnswer():
            return replace(state, takeover=_with_power(state, outcome))
        case FenceLeaseAnswer():
            if state.takeover is None:
                return state
            step = replace(state.takeover, taking_fence=False, refused=not outcome.held)
            if outcome.held:
                step = replace(step, fence_since_s=outcome.since_s)
            else:
                step = _paused(
                    step, f"the fence lease was not given: {outcome.detail}", state, now_s
                )
            return replace(state, takeover=step)
        case FenceOwnerAnswer(answer=answer):
            step = state.takeover
            if step is not None:
                step = replace(step, fence_owner=answer, asking_owner=False)
            return replace(state, takeover=step)
        case HostIdFreed() if _is_of_fencer(state, outcome):
            assert state.takeover is not None
            return replace(state, takeover=_fencer_freed(state.takeover, outcome, state, now_s))
        case HostIdFreed():
            if state.takeover is None or state.takeover.host_id != outcome.host_id:
                return state
            step = replace(
                state.takeover,
                freeing=False,
                withdrawn="",
                freed_s=now_s if outcome.ok else None,
            )
            if not outcome.ok:
                step = _paused(step, f"its id was not freed: {outcome.detail}", state, now_s)
            return replace(state, takeover=step)
        case PowerOffEnded():
            if state.takeover is None or state.takeover.host_id != outcome.host_id:
                return state
            step = takeover.with_order(state.takeover, outcome, now_s, state.rules.timing)
            return replace(state, takeover=step)
        case PowerOnEnded(host_id=host):
            switched_on_s = {**state.switched_on_s, host: now_s}
            return replace(state, switching_on=None, on_withdrawn="", switched_on_s=switched_on_s)
        case MigrationCancelled():
            return replace(state, asking_cancel=False, cancelled_s=now_s)
        case DomainDisarmed():
            return replace(state, disarming=False, disarmed_s=now_s)
        case MigrationPath():
            return replace(state, asking_path=False, path=outcome)
        case _:
            assert_never(outcome)


def _moved(state: AgentState, outcome: EngineMigrationEnded, now_s: float) -> AgentState:
    """What the end of a migration says of later moves to that host."""
    target = outcome.target
    failed_s = {host: at_s for host, at_s in state.move_failed_s.items() if host != target}
    problems = {host: known for host, known in state.move_problems.items() if host != target}
    # What an operator ordered, and may have cancelled, says nothing of our own moves.
    if not outcome.ok and (state.order is None or state.order.kind is not OrderKind.MIGRATE):
        failed_s[target] = now_s
        before = state.move_problems.get(target)
        tries = 1 if before is None else before.tries + 1
        problems[target] = MoveProblem(outcome.detail or "no reason", outcome.lasting, tries)
    return replace(state, move_failed_s=failed_s, move_problems=problems)


def _with_power(state: AgentState, answer: PowerAnswer) -> Takeover | None:
    """One more reading, of the VM's host, of the host that owns the fence lease, or of one that is
    both."""
    step, timing = state.takeover, state.rules.timing
    if step is None:
        return None
    fencer = step.fencer
    if fencer is not None and fencer.host_id == answer.host_id:
        step = replace(step, fencer=takeover.with_power(fencer, answer, timing))
    if step.host_id == answer.host_id:
        step = takeover.with_power(step, answer, timing)
    return step


def _is_of_fencer(state: AgentState, outcome: HostIdFreed) -> bool:
    step = state.takeover
    return (
        step is not None
        and step.fencer is not None
        and step.fencer.freeing
        and step.fencer.host_id == outcome.host_id
    )


def _fencer_freed(
    step: Takeover, outcome: HostIdFreed, state: AgentState, now_s: float
) -> Takeover:
    """The id of the host that owns the fence lease was freed, or not. The lease is asked for at
    once then; where that host had the VM as well, the VM's lease is free too."""
    assert step.fencer is not None
    if not outcome.ok:
        fencer = replace(step.fencer, freeing=False, withdrawn="")
        problem = f"its id was not freed: {outcome.detail}"
        return replace(step, fencer=_paused(fencer, problem, state, now_s))
    freed_s = now_s if step.host_id == outcome.host_id else step.freed_s
    return replace(step, fencer=None, fence_owner=None, not_before_s=now_s, freed_s=freed_s)


def _paused(step: Takeover, problem: str, state: AgentState, now_s: float) -> Takeover:
    """Start the protocol over after a pause: nothing read before it counts."""
    return replace(
        step, offs=(), problem=problem, not_before_s=now_s + state.rules.timing.takeover_retry
    )


def forget(turn: Turn) -> None:
    """A takeover is remembered only while it is pursued; the fence lease goes with it.

    What it has under way is waited for: no device is asked twice at once, and the fence
    lease outlasts a freeing and the switching off or on of a host. An order or a freeing that is
    under way is withdrawn.
    """
    if turn.pursuing and turn.state.name is StateName.ENGINE_DOWN:
        return
    step = turn.state.takeover
    if step is not None:
        step = Takeover(
            step.host_id,
            step.since_s,
            power=step.power,
            asking_power=step.asking_power,
            taking_fence=step.taking_fence,
            switching_off=step.switching_off,
            freeing=step.freeing,
            withdrawn=step.withdrawn or _why(turn),
            asking_owner=step.asking_owner,
            fencer=_left(step.fencer, turn),
        )
        if not (
            step.asking_power
            or step.taking_fence
            or step.switching_off
            or step.freeing
            or step.asking_owner
            or step.fencer is not None
        ):
            step = None
        turn.state = replace(turn.state, takeover=step)
    in_use = turn.state.switching_on is not None or (
        step is not None and (step.freeing or step.switching_off)
    )
    if turn.observation.fence_lease_held and not in_use:
        turn.actions.append(DropFenceLease())


def _why(turn: Turn) -> str:
    """Why a takeover is not pursued any more."""
    return "; ".join(reason.text for reason in turn.reasons[-1:])


def _left(fencer: Takeover | None, turn: Turn) -> Takeover | None:
    """What is under way about the host that owns the fence lease, withdrawn; None: nothing."""
    if fencer is None or not (fencer.freeing or fencer.asking_power):
        return None
    return replace(fencer, offs=(), withdrawn=fencer.withdrawn or _why(turn))


def wake_s(turn: Turn) -> float | None:
    """When the next power reading may count, while one is waited for; or when something else that
    is waited for is over."""
    step = turn.state.takeover
    if step is None:
        return turn.wake_s
    due_s = [
        each.offs[-1].over_s + turn.state.rules.timing.power_reread
        for each in (step, step.fencer)
        if each is not None
        and each.offs
        and not (each.asking_power or each.freeing or each.switching_off)
    ]
    return min(due_s, default=turn.wake_s)

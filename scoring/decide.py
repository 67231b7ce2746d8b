# SPDX-License-Identifier: LGPL-2.1-or-later
"""The decision: `decide(state, observation, now_s) -> Decision(state, actions, reasons, score)`.

Rules of this file:

1. No clock, no I/O, no logging. The same arguments give the same decision, always.
2. A state is a function. It returns the next state's name, or stays; it may emit actions
   and always says why. Within one beat the machine walks on until a state stays, at most
   once through every state.
3. An action that starts, stops or moves the VM is emitted once; until its outcome came
   (`acting`) no other such action is. An engine sample older than that outcome is stale,
   and nothing is concluded from it.
4. Before any state: the agent is asked to end, global maintenance, a whiteboard newer than
   this version, an unknown local VM, local maintenance; in this order. Where a VM runs
   here, local maintenance does not leave it alone: EngineUp drains it first.
5. Nothing is started while anything needed for it is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import assert_never

from scoring import orders, placement, takeover
from scoring.decision import (
    AskLease,
    Code,
    Decision,
    DropFenceLease,
    MigrateEngine,
    PowerOffEngine,
    PowerOnHost,
    ShutdownEngine,
    StartEngine,
)
from scoring.evidence import Evidence
from scoring.liveness import Liveness, liveness, look
from scoring.observation import (
    DETAIL_ALREADY_LOCKED,
    DETAIL_MIGRATION_SOURCE,
    DETAIL_PAUSED,
    EngineMigrationEnded,
    EngineStartEnded,
    EngineStopEnded,
    FenceLeaseAnswer,
    FenceRecord,
    FenceStep,
    Health,
    HostIdFreed,
    LeaseAnswer,
    MigrationCancelled,
    Observation,
    Outcome,
    PeerReport,
    PowerAnswer,
    PowerOffEnded,
    PowerOnEnded,
    Standing,
    StartResult,
    VmStatus,
)
from scoring.score import Penalty, Score, ScoreInput, score
from scoring.state import NEVER_S, TRANSITIONS, AgentState, StateName, Takeover
from scoring.timing import START_RETRIES_MAX
from scoring.turn import Turn, entered, name_of, others

_S = StateName

#: Published states of a peer that is about to have, or still has, the VM in its hands.
_BUSY_STATES = frozenset(
    {
        _S.ENGINE_START,
        _S.ENGINE_STARTING,
        _S.ENGINE_STOP,
        _S.ENGINE_FORCE_STOP,
        _S.ENGINE_MIGRATING_AWAY,
    }
)

#: A host that was switched off longer ago is left to people.
SWITCH_ON_WITHIN_S = 3600.0


def decide(state: AgentState, observation: Observation, now_s: float) -> Decision:
    """One beat: take in the observation, walk the machine until a state stays, say why."""
    turn = Turn(state, observation, now_s, list(observation.outcomes))
    if state.since_s is None:
        turn.state = replace(
            state, since_s=now_s, last_ran=max(state.last_ran, observation.local.last_ran)
        )
    _take_in(turn)
    orders.take(turn)
    visited: set[StateName] = set()
    while turn.state.name not in visited:
        before = turn.state.name
        visited.add(before)
        after = _HANDLERS[before](turn)
        if after is not before:
            assert after in TRANSITIONS[before], f"{before} -> {after} is no transition"
            turn.state = entered(turn, after)
    _drop_what_is_not_needed(turn)
    return Decision(
        turn.state, tuple(turn.actions), tuple(turn.reasons), _score(turn), _wake_s(turn)
    )


# --- taking in ---------------------------------------------------------------------------


def _take_in(turn: Turn) -> None:
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
    else:
        seen = {}
    if state.retries and now_s - state.last_failure_s >= timing.retry_expiry:
        state = replace(state, retries=0)
    for outcome in turn.ended:
        state = orders.with_outcome(_with_outcome(state, outcome, now_s), outcome)
    up = observation.local.engine.vm is VmStatus.UP or any(
        p.engine.vm is VmStatus.UP for p in turn.live
    )
    missing_since_s = state.missing_since_s
    if up or observation.storage_good_since_s is None:
        missing_since_s = None
    elif missing_since_s is None:
        missing_since_s = now_s
    turn.state = replace(state, seen=seen, missing_since_s=missing_since_s)


def _with_outcome(state: AgentState, outcome: Outcome, now_s: float) -> AgentState:
    """What an ended action changes in memory; the states read the outcome itself as well."""
    match outcome:
        case EngineStartEnded(result=StartResult.FAILED):
            return replace(
                state, acting=False, acted_s=now_s, retries=state.retries + 1, last_failure_s=now_s
            )
        case EngineStartEnded() | EngineStopEnded():
            return replace(state, acting=False, acted_s=now_s, lease=None)
        case EngineMigrationEnded(ok=ok):
            not_before_s = now_s + (0 if ok else state.rules.timing.migrate_retry)
            return replace(state, acting=False, acted_s=now_s, move_not_before_s=not_before_s)
        case LeaseAnswer():
            step = state.takeover
            if step is not None:
                step = takeover.with_lease(step, outcome)
            return replace(state, lease=outcome, asking_lease=False, takeover=step)
        case PowerAnswer():
            if state.takeover is None or state.takeover.host_id != outcome.host_id:
                return state
            return replace(
                state, takeover=takeover.with_power(state.takeover, outcome, state.rules.timing)
            )
        case FenceLeaseAnswer():
            if state.takeover is None:
                return state
            step = replace(state.takeover, taking_fence=False)
            if outcome.held:
                step = replace(step, fence_since_s=outcome.since_s)
            else:
                step = _paused(
                    step, f"the fence lease was not given: {outcome.detail}", state, now_s
                )
            return replace(state, takeover=step)
        case HostIdFreed():
            if state.takeover is None or state.takeover.host_id != outcome.host_id:
                return state
            step = replace(state.takeover, freeing=False, freed_s=now_s if outcome.ok else None)
            if not outcome.ok:
                step = _paused(step, f"its id was not freed: {outcome.detail}", state, now_s)
            return replace(state, takeover=step)
        case PowerOffEnded():
            if state.takeover is None or state.takeover.host_id != outcome.host_id:
                return state
            return replace(state, takeover=takeover.with_order(state.takeover, outcome, now_s))
        case PowerOnEnded(host_id=host):
            switched_on_s = {**state.switched_on_s, host: now_s}
            return replace(state, switching_on=None, switched_on_s=switched_on_s)
        case MigrationCancelled():
            return state
        case _:
            assert_never(outcome)


def _paused(step: Takeover, problem: str, state: AgentState, now_s: float) -> Takeover:
    """Start the protocol over after a pause: nothing read before it counts."""
    return replace(
        step, offs=(), problem=problem, not_before_s=now_s + state.rules.timing.takeover_retry
    )


def _drop_what_is_not_needed(turn: Turn) -> None:
    """A takeover is remembered only while it is pursued; the fence lease goes with it.

    What it has under way is waited for: no device is asked twice at once, and the fence
    lease outlasts a freeing and the switching off or on of a host.
    """
    if turn.pursuing and turn.state.name is _S.ENGINE_DOWN:
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
        )
        if not (step.asking_power or step.taking_fence or step.switching_off or step.freeing):
            step = None
        turn.state = replace(turn.state, takeover=step)
    in_use = turn.state.switching_on is not None or (
        step is not None and (step.freeing or step.switching_off)
    )
    if turn.observation.fence_lease_held and not in_use:
        turn.actions.append(DropFenceLease())


def _wake_s(turn: Turn) -> float | None:
    """When the next power reading may count, while one is waited for."""
    step = turn.state.takeover
    if step is None or step.asking_power or step.freeing or step.switching_off or not step.offs:
        return None
    return step.offs[-1].read_s + turn.state.rules.timing.power_reread


def _score(turn: Turn) -> Score:
    """This host's score in the state the beat ended in; a host that is asked to be kept
    out of the way is in LocalMaintenance for its peers, whatever its machine still does."""
    local, state = turn.observation.local, turn.state
    name = _S.LOCAL_MAINTENANCE if local.maintenance else state.name
    if state.name is _S.AGENT_STOPPED:
        name = state.name
    elif turn.observation.lockspace_joined is False and not turn.vm_up_here:
        # It could not start the VM: nobody must wait for it.
        why = "this host has not joined the lockspace"
        return Score(0, (Penalty("lockspace", state.rules.weights.base_score, why),))
    return score(
        ScoreInput(
            state=name,
            network=local.network,
            bridge_up=local.bridge_up,
            mem_free_mb=local.mem_free_mb,
            vm_memory_mb=state.rules.vm_memory_mb,
            cpu_load=local.cpu_load,
            config_up_to_date=local.config_up_to_date,
            retries=state.retries,
            fence_path_ok=local.fence_path_ok,
        ),
        state.rules.weights,
    )


# --- what comes before any state -----------------------------------------------------------


def _stopping(turn: Turn) -> StateName | None:
    if turn.observation.stopping:
        turn.because(Code.STOPPING, "the agent was asked to end; the VM stays as it is")
        return _S.AGENT_STOPPED
    return None


def _global_maintenance(turn: Turn) -> StateName | None:
    """GlobalMaintenance while it is set; hold still while it is not known or not readable."""
    if turn.observation.global_maintenance:
        turn.because(Code.GLOBAL_MAINTENANCE, "global maintenance: nothing starts, stops or moves")
        return _S.GLOBAL_MAINTENANCE
    if turn.observation.newer_versions:
        hosts = ", ".join(map(str, turn.observation.newer_versions))
        turn.because(
            Code.NEWER_METADATA,
            f"host(s) {hosts} write a newer whiteboard than this version reads: upgrade this host",
        )
        return turn.state.name
    if turn.observation.global_maintenance is None:
        turn.because(
            Code.GLOBAL_MAINTENANCE_UNKNOWN,
            "whether global maintenance is set could not be read yet: holding still",
        )
        return turn.state.name
    return None


def _vm_unknown(turn: Turn) -> StateName | None:
    if turn.vm is VmStatus.UNKNOWN:
        reason = turn.observation.local.engine.reason or "no answer"
        turn.because(Code.LOCAL_VM_UNKNOWN, f"the state of the VM here is unknown: {reason}")
        return _S.UNKNOWN_LOCAL_VM_STATE
    return None


def _local_maintenance(turn: Turn) -> StateName | None:
    if turn.observation.local.maintenance and not turn.vm_up_here:
        turn.because(Code.LOCAL_MAINTENANCE, "this host is in local maintenance")
        return _S.LOCAL_MAINTENANCE
    return None


def _before(turn: Turn, *checks: Callable[[Turn], StateName | None]) -> StateName | None:
    """The first check that has something to say decides."""
    for check in checks:
        name = check(turn)
        if name is not None:
            return name
    return None


def _usual(turn: Turn) -> StateName | None:
    return _before(turn, _stopping, _global_maintenance, _vm_unknown, _local_maintenance)


def _fresh(turn: Turn) -> bool:
    """Whether the engine sample may be judged; says so when not."""
    if turn.sample_is_stale:
        turn.because(Code.AWAITING_SAMPLE, "waiting for the VM's state after the last action")
        return False
    return True


# --- the states, in the order of a life -----------------------------------------------------


def _reinitialize(turn: Turn) -> StateName:
    if (name := _usual(turn)) is not None:
        return name
    if turn.vm_up_here:
        turn.because(Code.VM_FOUND_HERE, "the VM runs here")
        return _S.ENGINE_STARTING
    turn.because(Code.VM_NOT_HERE, "the VM does not run here")
    return _S.ENGINE_DOWN


def _engine_down(turn: Turn) -> StateName:
    """Stays while the VM runs elsewhere, while too little is known, while a better host is
    there or the lease is not free; otherwise EngineStart."""
    if (name := _usual(turn)) is not None:
        return name
    if not _fresh(turn):
        return _S.ENGINE_DOWN
    if turn.vm_up_here:
        turn.because(Code.VM_FOUND_HERE, "the VM runs here")
        return _S.ENGINE_STARTING
    if (up := turn.up_elsewhere()) is not None:
        turn.because(Code.UP_ELSEWHERE, f"the VM runs on {name_of(up)}")
        return _S.ENGINE_DOWN
    if not (_may_start_here(turn) and _lease_allows(turn)):
        turn.state = replace(turn.state, startable_since_s=None)
        return _S.ENGINE_DOWN
    if not _first_in_line(turn):
        return _S.ENGINE_DOWN
    turn.start_allowed = True
    return _S.ENGINE_START


def _engine_start(turn: Turn) -> StateName:
    if (outcome := turn.take(EngineStartEnded)) is not None:
        return _start_ended(turn, outcome)
    if turn.state.acting:
        # Leaving now would forget that a start is under way.
        turn.because(Code.STARTING, f"starting the VM for {turn.in_state_s:.0f} s")
        return _S.ENGINE_START
    if (name := _usual(turn)) is not None:
        return name
    if not turn.start_allowed:
        # What EngineDown found in an earlier beat allows nothing now.
        turn.because(Code.START_FAILED, "the start ended without a result, looking anew")
        return _S.ENGINE_DOWN
    turn.because(Code.STARTING, "starting the VM here")
    turn.act(StartEngine())
    return _S.ENGINE_START


def _start_ended(turn: Turn, outcome: EngineStartEnded) -> StateName:
    match outcome.result:
        case StartResult.STARTED:
            turn.because(Code.STARTED, "the VM was started and holds its lease")
            return _S.ENGINE_STARTING
        case StartResult.LEASE_HELD:
            turn.because(Code.START_LOST_RACE, f"another host holds the lease: {outcome.detail}")
            return _S.ENGINE_DOWN
        case StartResult.FAILED:
            turn.because(
                Code.START_FAILED,
                f"start number {turn.state.retries} failed: {outcome.detail}",
            )
            return _S.ENGINE_DOWN
        case _:
            assert_never(outcome.result)


def _count_failed_start(turn: Turn) -> None:
    turn.state = replace(turn.state, retries=turn.state.retries + 1, last_failure_s=turn.now_s)


def _engine_starting(turn: Turn) -> StateName:
    if (name := _before(turn, _stopping, _global_maintenance, _vm_unknown)) is not None:
        return name
    if not _fresh(turn):
        return _S.ENGINE_STARTING
    engine = turn.observation.local.engine
    if turn.vm_up_here and engine.health is Health.GOOD:
        turn.because(Code.ENGINE_HEALTHY, "the VM is up and healthy")
        return _S.ENGINE_UP
    if not turn.vm_up_here:
        if engine.detail == DETAIL_ALREADY_LOCKED:
            turn.because(Code.LEASE_LOST_RACE, "another host took the lease, cleaning up here")
            return _S.ENGINE_FORCE_STOP
        if turn.vm is VmStatus.DOWN_UNEXPECTED:
            # It died before it was ever healthy: that start has failed.
            _count_failed_start(turn)
        return _gone(turn)
    if engine.detail == DETAIL_PAUSED and turn.observation.local.lease_held is False:
        # No CPU of it runs: an agent that ended in the middle of a start left it there, and
        # it would block every other start.
        turn.because(Code.VM_PAUSED, "the VM is paused and without its lease, ending it")
        return _S.ENGINE_FORCE_STOP
    overdue = turn.in_state_s >= turn.state.rules.timing.engine_starting
    if overdue and engine.health is Health.BAD:
        turn.because(
            Code.STARTING_TIMEOUT,
            f"not healthy {turn.in_state_s:.0f} s after its start, stopping it",
        )
        return _S.ENGINE_STOP
    turn.because(Code.ENGINE_BOOTING, f"the VM boots, {engine.reason or 'not healthy yet'}")
    return _S.ENGINE_STARTING


def _engine_up(turn: Turn) -> StateName:
    if (name := _before(turn, _stopping, _global_maintenance, _vm_unknown)) is not None:
        return name
    if not _fresh(turn):
        return turn.state.name
    local = turn.observation.local
    if not turn.vm_up_here:
        return _gone(turn)
    if local.engine.detail == DETAIL_MIGRATION_SOURCE:
        turn.because(Code.MIGRATING, "the VM is being migrated away")
        return _S.ENGINE_MIGRATING_AWAY
    if (other := turn.up_elsewhere()) is not None:
        if local.lease_held is False:
            turn.because(Code.VM_TWICE, f"{name_of(other)} runs the VM too, stopping it here")
            return _S.ENGINE_STOP
        # Ours holds the lease: whatever the other one claims, it is not the VM. And while
        # nobody told whether ours does, nothing is done to it: unknown is not "no".
        held = "but the lease is held here" if local.lease_held else "who holds it is not known"
        turn.because(Code.VM_TWICE_CLAIMED, f"{name_of(other)} says that it runs the VM, {held}")
    if local.lease_held is False:
        turn.because(
            Code.VM_UNPROTECTED,
            "the VM runs here without its lease: nothing keeps another host from starting it; "
            "was it started or suspended by hand?",
        )
    _switch_on_again(turn)
    if (name := _move(turn)) is not None:
        return name
    return _judge_health(turn)


def _switch_on_again(turn: Turn) -> None:
    """A host that was switched off is switched on again by the one that runs its VM now."""
    state, timing = turn.state, turn.state.rules.timing
    if not state.rules.fence_power_on or state.switching_on is not None:
        return
    last: dict[int, FenceRecord] = {}
    for record in turn.observation.fence_log or ():
        # Found off, and not by us: whoever switched it off may not want it on.
        if record.step is not FenceStep.DEAD or record.ordered:
            last[record.target] = record
    alive = {p.host_id for p in (*turn.live, *turn.uncertain)} | {turn.observation.local.host_id}
    for target, record in last.items():
        tried_s = state.switched_on_s.get(target, NEVER_S)
        if (
            record.step is FenceStep.DEAD
            and target not in alive
            and target in turn.observation.fence_devices
            and turn.now_s - record.at_s < SWITCH_ON_WITHIN_S
            and turn.now_s - tried_s >= timing.power_on_retry
        ):
            turn.because(
                Code.POWER_ON_ORDERED, f"host {target} was switched off, switching it on again"
            )
            turn.actions.append(PowerOnHost(target))
            turn.state = replace(state, switching_on=target)
            return


def _judge_health(turn: Turn) -> StateName:
    engine = turn.observation.local.engine
    if engine.health is Health.BAD:
        if turn.state.name is not _S.ENGINE_UP_BAD_HEALTH:
            turn.because(
                Code.ENGINE_BAD_HEALTH, f"the VM is up, but {engine.reason or 'unhealthy'}"
            )
            return _S.ENGINE_UP_BAD_HEALTH
        grace_s = turn.state.rules.timing.bad_health
        if turn.in_state_s >= grace_s:
            turn.because(
                Code.BAD_HEALTH_TIMEOUT, f"unhealthy for {turn.in_state_s:.0f} s, restarting"
            )
            return _S.ENGINE_STOP
        turn.because(
            Code.ENGINE_BAD_HEALTH,
            f"unhealthy ({engine.reason or 'no reason'}), "
            f"stopping it in {grace_s - turn.in_state_s:.0f} s",
        )
        return _S.ENGINE_UP_BAD_HEALTH
    if engine.health is Health.GOOD:
        turn.because(Code.ENGINE_HEALTHY, "the VM is up and healthy here")
        return _S.ENGINE_UP
    turn.because(Code.ENGINE_HEALTH_UNKNOWN, "the VM is up here, its health is not known now")
    return turn.state.name


def _engine_stop(turn: Turn) -> StateName:
    if (
        name := _before(turn, _stopping, _global_maintenance, _local_maintenance, _vm_unknown)
    ) is not None:
        return name
    outcome = turn.take(EngineStopEnded)
    if outcome is not None and not outcome.ok:
        turn.because(Code.STOP_FAILED, f"the guest was not asked to shut down: {outcome.detail}")
        return _S.REINITIALIZE_FSM
    if not turn.sample_is_stale and not turn.vm_up_here:
        turn.because(Code.VM_STOPPED, "the VM has stopped")
        return _S.ENGINE_DOWN
    if not turn.sample_is_stale and turn.observation.local.engine.detail == DETAIL_PAUSED:
        turn.because(Code.VM_PAUSED, "the VM is paused and cannot shut down, ending it")
        return _S.ENGINE_FORCE_STOP
    grace_s = turn.state.rules.timing.stop_grace
    if turn.in_state_s >= grace_s and not turn.state.acting:
        turn.because(Code.STOP_TIMEOUT, f"not down after {grace_s:.0f} s, ending it")
        return _S.ENGINE_FORCE_STOP
    if not turn.state.stop_asked and not turn.state.acting:
        turn.state = replace(turn.state, stop_asked=True)
        turn.because(Code.STOP_REQUESTED, "asking the guest to shut down")
        turn.act(ShutdownEngine())
        return _S.ENGINE_STOP
    turn.because(Code.STOP_WAITING, f"shutting down, {grace_s - turn.in_state_s:.0f} s left")
    return _S.ENGINE_STOP


def _engine_force_stop(turn: Turn) -> StateName:
    if (outcome := turn.take(EngineStopEnded)) is not None:
        if outcome.ok:
            turn.because(Code.VM_STOPPED, "the VM's process is gone")
            return _S.ENGINE_DOWN
        turn.because(Code.STOP_FAILED, f"the VM could not be ended: {outcome.detail}")
        return _S.REINITIALIZE_FSM
    if turn.state.acting:
        turn.because(Code.STOP_WAITING, "ending the VM")
        return _S.ENGINE_FORCE_STOP
    if (
        name := _before(turn, _stopping, _global_maintenance, _local_maintenance, _vm_unknown)
    ) is not None:
        return name
    turn.because(Code.STOP_REQUESTED, "ending the VM's process")
    turn.act(PowerOffEngine())
    return _S.ENGINE_FORCE_STOP


def _engine_maybe_away(turn: Turn) -> StateName:
    if (name := _usual(turn)) is not None:
        return name
    if turn.vm_up_here:
        turn.because(Code.VM_FOUND_HERE, "the VM runs here again")
        return _S.ENGINE_STARTING
    if (up := turn.up_elsewhere()) is not None:
        turn.because(Code.UP_ELSEWHERE, f"the VM runs on {name_of(up)}")
        return _S.ENGINE_DOWN
    left_s = turn.state.rules.timing.maybe_away - turn.in_state_s
    if left_s <= 0:
        turn.because(Code.AWAY_TIMEOUT, "the VM did not show up on another host")
        return _S.ENGINE_UNEXPECTEDLY_DOWN
    turn.because(Code.AWAY_WAITING, f"the VM left, {left_s:.0f} s for it to show up elsewhere")
    return _S.ENGINE_MAYBE_AWAY


def _engine_unexpectedly_down(turn: Turn) -> StateName:
    if (name := _usual(turn)) is not None:
        return name
    if turn.vm_up_here:
        turn.because(Code.VM_FOUND_HERE, "the VM runs here again")
        return _S.ENGINE_STARTING
    left_s = turn.state.rules.timing.unexpected_down - turn.in_state_s
    if left_s <= 0:
        turn.because(Code.UNEXPECTED_DOWN_OVER, "long enough since the VM died here")
        return _S.ENGINE_DOWN
    if _nobody_else_can(turn):
        turn.because(Code.LAST_HOST, "no other live host can run the VM: not waiting for nobody")
        return _S.ENGINE_DOWN
    turn.because(
        Code.UNEXPECTED_DOWN_WAITING,
        f"the VM died here: another host should take it, score 0 for {left_s:.0f} s",
    )
    return _S.ENGINE_UNEXPECTEDLY_DOWN


def _engine_migrating_away(turn: Turn) -> StateName:
    if (outcome := turn.take(EngineMigrationEnded)) is not None:
        if outcome.ok:
            turn.because(Code.MIGRATED, f"the VM runs on host {outcome.target} now")
            return _S.ENGINE_DOWN
        turn.because(Code.MIGRATION_FAILED, f"the migration failed: {outcome.detail}")
        return _S.REINITIALIZE_FSM
    if turn.state.acting:
        turn.because(Code.MIGRATING, f"migrating for {turn.in_state_s:.0f} s")
        return _S.ENGINE_MIGRATING_AWAY
    if (name := _before(turn, _stopping, _global_maintenance, _vm_unknown)) is not None:
        return name
    if not turn.vm_up_here:
        turn.because(Code.VM_GONE, "the VM has left")
        return _S.ENGINE_MAYBE_AWAY
    if turn.observation.local.engine.detail != DETAIL_MIGRATION_SOURCE:
        turn.because(Code.MIGRATION_FAILED, "the migration is over and the VM is still here")
        return _S.REINITIALIZE_FSM
    turn.because(Code.MIGRATING, "somebody migrates the VM away")
    return _S.ENGINE_MIGRATING_AWAY


def _in_local_maintenance(turn: Turn) -> StateName:
    if (name := _before(turn, _stopping, _global_maintenance, _vm_unknown)) is not None:
        return name
    if turn.observation.local.maintenance and not turn.vm_up_here:
        turn.because(Code.LOCAL_MAINTENANCE, "this host is in local maintenance")
        return _S.LOCAL_MAINTENANCE
    if turn.observation.local.maintenance:
        turn.because(Code.VM_FOUND_HERE, "the VM runs here in spite of local maintenance")
    else:
        turn.because(Code.LOCAL_MAINTENANCE_OVER, "local maintenance is over")
    return _S.REINITIALIZE_FSM


def _in_global_maintenance(turn: Turn) -> StateName:
    if (name := _before(turn, _stopping, _global_maintenance, _local_maintenance)) is not None:
        return name
    turn.because(Code.GLOBAL_MAINTENANCE_OVER, "global maintenance is over")
    return _S.REINITIALIZE_FSM


def _in_unknown_local_vm_state(turn: Turn) -> StateName:
    if (name := _usual(turn)) is not None:
        return name
    turn.because(Code.LOCAL_VM_KNOWN, "the state of the VM here is known again")
    return _S.REINITIALIZE_FSM


def _agent_stopped(turn: Turn) -> StateName:
    turn.because(Code.STOPPING, "the agent has ended its work")
    return _S.AGENT_STOPPED


_HANDLERS: Mapping[StateName, Callable[[Turn], StateName]] = {
    _S.REINITIALIZE_FSM: _reinitialize,
    _S.ENGINE_DOWN: _engine_down,
    _S.ENGINE_START: _engine_start,
    _S.ENGINE_STARTING: _engine_starting,
    _S.ENGINE_UP: _engine_up,
    _S.ENGINE_UP_BAD_HEALTH: _engine_up,
    _S.ENGINE_STOP: _engine_stop,
    _S.ENGINE_FORCE_STOP: _engine_force_stop,
    _S.ENGINE_MAYBE_AWAY: _engine_maybe_away,
    _S.ENGINE_UNEXPECTEDLY_DOWN: _engine_unexpectedly_down,
    _S.ENGINE_MIGRATING_AWAY: _engine_migrating_away,
    _S.LOCAL_MAINTENANCE: _in_local_maintenance,
    _S.GLOBAL_MAINTENANCE: _in_global_maintenance,
    _S.UNKNOWN_LOCAL_VM_STATE: _in_unknown_local_vm_state,
    _S.AGENT_STOPPED: _agent_stopped,
}


# --- questions that several states ask ------------------------------------------------------


def _gone(turn: Turn) -> StateName:
    """The VM is not up here any more: died, or gone in a way that may be a move."""
    engine = turn.observation.local.engine
    if engine.vm is VmStatus.DOWN_UNEXPECTED:
        turn.because(Code.VM_DIED, f"the VM died: {engine.detail or 'unexpectedly'}")
        return _S.ENGINE_UNEXPECTEDLY_DOWN
    turn.because(Code.VM_GONE, f"the VM is gone from here: {engine.detail or engine.vm.value}")
    return _S.ENGINE_MAYBE_AWAY


def _own(turn: Turn) -> placement.Candidate:
    return placement.Candidate(
        turn.observation.local.host_id, _score(turn).value, turn.state.last_ran
    )


def _nobody_else_can(turn: Turn) -> bool:
    """No other live host scores above 0; known for sure only when nothing is uncertain."""
    looked_s = _looked_s(turn)
    return (
        looked_s >= turn.state.rules.timing.suspect_after
        and not turn.uncertain
        and not others(turn)
    )


def _looked_s(turn: Turn) -> float:
    """How long this host has read the whiteboard without a gap."""
    since_s = turn.observation.storage_good_since_s
    return 0.0 if since_s is None else turn.now_s - since_s


def _may_start_here(turn: Turn) -> bool:
    """Whether it is this host's turn to start the VM; says why when it is not."""
    state, timing = turn.state, turn.state.rules.timing
    if turn.observation.storage_good_since_s is None:
        turn.because(Code.STORAGE_UNREADABLE, "the whiteboard cannot be read: nothing is known")
        return False
    if not turn.observation.lockspace_joined:
        turn.because(Code.LOCKSPACE_NOT_JOINED, "this host has not joined the lockspace yet")
        return False
    if _looked_s(turn) < timing.suspect_after + timing.beat or turn.uncertain:
        turn.because(Code.NOT_ENOUGH_DATA, "not enough seen yet to know which hosts live")
        return False
    busy = next((p for p in turn.live if p.state in _BUSY_STATES), None)
    if busy is not None:
        turn.because(Code.BUSY_ELSEWHERE, f"{name_of(busy)} is in {busy.state}")
        return False
    if state.retries > START_RETRIES_MAX:
        left_s = timing.retry_expiry - (turn.now_s - state.last_failure_s)
        turn.because(
            Code.RETRIES_EXHAUSTED,
            f"{state.retries} failed starts here, pausing for {left_s:.0f} s",
        )
        return False
    return _is_our_turn(turn)


def _is_our_turn(turn: Turn) -> bool:
    """Whether every better host has had its time (takeover_follow each).

    They are not waited for any longer: what keeps a live host from its work for so long
    must not keep the VM down. Equal hosts are ordered later, by `_first_in_line`.
    """
    own, candidates = _own(turn), others(turn)
    _, waited_s = _queue(turn, [*candidates, own])
    better = [c for c in placement.ranked(candidates) if c.score > own.score]
    if waited_s >= len(better) * turn.state.rules.timing.takeover_follow:
        return True
    best = better[0]
    turn.because(Code.BETTER_HOST, f"{best.title} is better: {best.score} points, {own.score} here")
    return False


def _first_in_line(turn: Turn) -> bool:
    """Whether the hosts that come first have left the lease to us (tie_follow each).

    Counted from when the lease could be had: after a long wait for a dead owner all hosts
    see it come free at once and would race for it.
    """
    state = turn.state
    since_s = turn.now_s if state.startable_since_s is None else state.startable_since_s
    turn.state = replace(state, startable_since_s=since_s)
    place, waited_s = _queue(turn, [*others(turn), _own(turn)])
    if min(waited_s, turn.now_s - since_s) >= place * state.rules.timing.tie_follow:
        return True
    turn.because(Code.EQUAL_HOST_FIRST, f"{place} equally good host(s) may start it first")
    return False


def _queue(turn: Turn, candidates: list[placement.Candidate]) -> tuple[int, float]:
    """How many candidates come before this host, and for how long they have had the chance.

    Counted anew when other hosts come first: one that has only just become able to start
    the VM gets its chance as well. And not from before EngineDown was entered: after a
    global maintenance all hosts enter it at once, with a VM that has long been missing.
    """
    own_id = turn.observation.local.host_id
    ahead = placement.ahead(candidates, own_id)
    if ahead != turn.state.ahead:
        turn.state = replace(turn.state, ahead=ahead, ahead_since_s=turn.now_s)
    missing_since_s = turn.state.missing_since_s
    since_s = turn.now_s if missing_since_s is None else missing_since_s
    waited_s = min(turn.now_s - max(since_s, turn.state.ahead_since_s), turn.in_state_s)
    return len(ahead), waited_s


def _lease_allows(turn: Turn) -> bool:
    """Whether the engine lease can be had now; asks, takes over from a dead owner, or waits."""
    state, timing = turn.state, turn.state.rules.timing
    lease = state.lease
    freed_s = None if state.takeover is None else state.takeover.freed_s
    is_old = lease is None or turn.now_s - lease.asked_s >= 2 * timing.beat
    if is_old and not state.asking_lease and turn.now_s != freed_s:
        turn.actions.append(AskLease())
        turn.state = state = replace(state, asking_lease=True)
    if freed_s is not None and (lease is None or lease.asked_s <= freed_s):
        # What is known of the lease is of the time before: nothing is freed once more for it.
        assert state.takeover is not None
        turn.pursuing = True
        turn.because(Code.HOST_ID_FREED, f"the id of host {state.takeover.host_id} is freed")
        return True
    if lease is None or (
        state.missing_since_s is not None and lease.asked_s < state.missing_since_s
    ):
        turn.because(Code.LEASE_ASKED, "asking who owns the engine lease")
        return False
    if not lease.known:
        # One question without an answer ends nothing that has begun.
        turn.pursuing = state.takeover is not None
        turn.because(Code.LEASE_UNKNOWN, f"who owns the engine lease is not known: {lease.detail}")
        return False
    if lease.owner is None:
        turn.because(Code.LEASE_FREE, "the engine lease is free")
        return True
    if lease.owner == turn.observation.local.host_id:
        turn.because(Code.LEASE_FREE, "the engine lease is this host's own")
        return True
    if (
        lease.standing in (Standing.DEAD, Standing.FREE)
        or lease.current_generation > lease.owner_generation
    ):
        turn.because(
            Code.LEASE_OWNER_GONE,
            f"host {lease.owner} took the engine lease, but is {_standing(lease)}",
        )
        return True
    return _wait_for_owner(turn, lease)


def _standing(lease: LeaseAnswer) -> str:
    if lease.current_generation > lease.owner_generation:
        return "another generation now"
    return lease.standing.value


def _wait_for_owner(turn: Turn, lease: LeaseAnswer) -> bool:
    """The lease is owned: by a live host (wait), by a silent one (its power may prove it dead)."""
    state, timing = turn.state, turn.state.rules.timing
    assert lease.owner is not None
    owner = next((p for p in turn.live if p.host_id == lease.owner), None)
    if owner is not None:
        turn.because(Code.LEASE_OWNER_LIVE, f"{name_of(owner)} lives and owns the engine lease")
        return False
    place, waited_s = _queue(turn, [*others(turn), _own(turn)])
    state = turn.state
    if waited_s < place * timing.takeover_follow:
        turn.because(
            Code.TAKEOVER_TURN, f"{place} host(s) may take over from host {lease.owner} first"
        )
        return False
    if lease.owner not in turn.observation.fence_devices:
        turn.because(
            Code.LEASE_WAIT, _countdown(turn, lease, "no fence device is configured for it")
        )
        return False
    current = state.takeover
    if current is None:
        current = Takeover(lease.owner, turn.now_s)
    elif current.host_id != lease.owner:
        # The fence lease is one for all hosts; what was read of the other host is not.
        current = Takeover(
            lease.owner,
            turn.now_s,
            fence_since_s=current.fence_since_s,
            taking_fence=current.taking_fence,
        )
    current = takeover.with_lease(current, lease)
    current, actions, reasons = takeover.step(
        current, _evidence(turn, lease), turn.now_s, state.rules
    )
    turn.state = replace(state, takeover=current)
    turn.pursuing = True
    turn.actions.extend(actions)
    turn.reasons.extend(reasons)
    if not current.offs and not current.freeing and not current.switching_off:
        turn.because(Code.LEASE_WAIT, _countdown(turn, lease, "its death is not proven"))
    return False


def _evidence(turn: Turn, lease: LeaseAnswer) -> Evidence:
    """What is known in this beat of the silent owner of the lease."""
    observation = turn.observation
    peer = next((p for p in observation.peers if p.host_id == lease.owner), None)
    seen = turn.state.seen.get(lease.owner) if lease.owner is not None else None
    return Evidence(
        lease=lease,
        peer=peer,
        slot_since_s=None if seen is None else seen.since_s,
        looked_since_s=observation.storage_good_since_s,
        fence_lease_held=observation.fence_lease_held,
        global_maintenance=observation.global_maintenance,
        fence_log=observation.fence_log,
    )


def _countdown(turn: Turn, lease: LeaseAnswer, why: str) -> str:
    if lease.dead_in_s is None:
        return f"host {lease.owner} is silent and owns the engine lease; {why}"
    left_s = max(0.0, lease.dead_in_s - (turn.now_s - lease.asked_s))
    return f"host {lease.owner} is silent and owns the engine lease; {why}: free in {left_s:.0f} s"


def _move(turn: Turn) -> StateName | None:
    """Whether the VM should be migrated: this host drains, or another is better for long enough."""
    state, rules = turn.state, turn.state.rules
    candidates = placement.ranked(others(turn))
    best = candidates[0] if candidates else None
    draining = turn.observation.local.maintenance
    if draining:
        if best is None:
            turn.because(
                Code.DRAIN_WAITING, "local maintenance: no other live host can take the VM"
            )
            return None
    else:
        gap = 0 if best is None else best.score - _own(turn).score
        if best is None or gap < rules.move_threshold:
            turn.state = replace(state, better_since_s=None)
            return None
        since_s = turn.now_s if state.better_since_s is None else state.better_since_s
        turn.state = state = replace(state, better_since_s=since_s)
        left_s = rules.timing.move_dwell - (turn.now_s - since_s)
        if left_s > 0:
            turn.because(
                Code.MOVE_DWELL,
                f"{best.title} is {gap} points better, moving there in {left_s:.0f} s",
            )
            return None
    if not turn.observation.migration_possible:
        turn.because(
            Code.MOVE_IMPOSSIBLE,
            f"would move to {best.title}, but libvirt.migration-uri is not set",
        )
        return None
    if turn.now_s < state.move_not_before_s:
        left_s = state.move_not_before_s - turn.now_s
        turn.because(Code.MOVE_DWELL, f"the last migration failed, next try in {left_s:.0f} s")
        return None
    turn.because(Code.MOVE_STARTED, f"migrating the VM to {best.title}")
    turn.act(MigrateEngine(best.host_id))
    turn.state = replace(turn.state, moving_to=best.host_id)
    return _S.ENGINE_MIGRATING_AWAY

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The state machine of one VM.

Each host runs it for itself, and the published state shows the others what that host is about to do
with the VM. A state that acted on a guess could start a second copy or end a healthy one, so each
state acts only on what was seen, and says why it stays or leaves.

Rules of this file:

1. A state is a function. It returns the next state's name, or stays; it may emit actions
   and always says why. Within one beat the machine walks on until a state stays, at most
   once through every state.
2. An action that starts, stops or moves the VM is emitted once; until its outcome came
   (`acting`) no other such action is. A sample of the VM older than that outcome is stale,
   and nothing is concluded from it.
3. Before any state: the agent is asked to end, global maintenance, a whiteboard newer than
   this version, an unknown local VM, local maintenance; in this order. Where a VM runs
   here, local maintenance does not leave it alone: EngineUp drains it first.
4. Nothing is started while anything needed for it is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import assert_never

from scoring.decision import CancelMigration, Code, PowerOffVm, ShutDownVm, StartVm
from scoring.hosts.fence_ask import reached_by
from scoring.hosts.turn import name_of
from scoring.observation import StartResult, VmMigrationEnded, VmStartEnded, VmStopEnded
from scoring.vm import drain, gates, isolation, migration, storage_lost, unstoppable
from scoring.vm.missing import may_start
from scoring.vm.move import move
from scoring.vm.pause import is_paused, left_alone, must_end
from scoring.vm.room import secure
from scoring.vm.start import (
    first_in_line,
    lease_allows,
    may_start_here,
    nobody_else_can,
    of_locked_image,
)
from scoring.vm.state import TRANSITIONS, StateName
from scoring.vm.turn import VmTurn, entered
from scoring.vm_facts import (
    DETAIL_ALREADY_LOCKED,
    DETAIL_MIGRATION_SOURCE,
    ENGINE,
    Health,
    Pause,
    VmStatus,
    Want,
)

_S = StateName


def walk(turn: VmTurn) -> None:
    """Walk on until a state stays, at most once through every state."""
    visited: set[StateName] = set()
    while turn.state.name not in visited:
        before = turn.state.name
        visited.add(before)
        after = _HANDLERS[before](turn)
        if after is not before:
            assert after in TRANSITIONS[before], f"{before} -> {after} is no transition"
            turn.state = entered(turn, after)


def _fresh(turn: VmTurn) -> bool:
    """Whether the engine sample may be judged; says so when not."""
    if turn.sample_is_stale:
        turn.because(Code.AWAITING_SAMPLE, "waiting for the VM's state after the last action")
        return False
    return True


# --- the states, in the order of a life -----------------------------------------------------


def _reinitialize(turn: VmTurn) -> StateName:
    if (name := gates.usual(turn)) is not None:
        return name
    if turn.vm_up_here:
        turn.because(Code.VM_FOUND_HERE, "the VM runs here")
        return _S.ENGINE_STARTING
    turn.because(Code.VM_NOT_HERE, "the VM does not run here")
    return _S.ENGINE_DOWN


def _engine_down(turn: VmTurn) -> StateName:
    """Stays while the VM runs elsewhere, while too little is known, while a better host is
    there or the lease is not free; otherwise EngineStart."""
    if (name := gates.usual(turn)) is not None:
        return name
    if not _fresh(turn):
        return _S.ENGINE_DOWN
    if turn.vm_up_here:
        turn.because(Code.VM_FOUND_HERE, "the VM runs here")
        return _S.ENGINE_STARTING
    if (up := turn.up_elsewhere()) is not None:
        turn.because(Code.UP_ELSEWHERE, f"the VM runs on {name_of(up)}")
        return _S.ENGINE_DOWN
    if not (_engine_may_start(turn) if turn.number == ENGINE else may_start(turn)):
        return _S.ENGINE_DOWN
    turn.start_allowed = True
    return _S.ENGINE_START


def _engine_may_start(turn: VmTurn) -> bool:
    if _is_wanted_down(turn):
        return False
    if not (may_start_here(turn) and lease_allows(turn)):
        turn.state = replace(turn.state, startable_since_s=None)
        return False
    return first_in_line(turn) and secure(turn, turn.observation.local.host_id)


def _is_wanted_down(turn: VmTurn) -> bool:
    """Whether an administrator wants the VM down, by the registry; says so."""
    v = turn.spec
    if v is None or v.want is not Want.DOWN:
        return False
    turn.because(Code.WANTED_DOWN, f"{v.name} is wanted down: ha-agent vm start {v.name}")
    return True


def _engine_start(turn: VmTurn) -> StateName:
    if (outcome := turn.take(VmStartEnded)) is not None:
        return _start_ended(turn, outcome)
    if turn.state.acting:
        # Leaving now would forget that a start is under way.
        turn.because(Code.STARTING, f"starting the VM for {turn.in_state_s:.0f} s")
        return _S.ENGINE_START
    if (name := gates.usual(turn)) is not None:
        return name
    if not turn.start_allowed:
        # What EngineDown found in an earlier beat allows nothing now.
        turn.because(Code.START_FAILED, "the start ended without a result, looking anew")
        return _S.ENGINE_DOWN
    turn.because(Code.STARTING, "starting the VM here")
    turn.act(StartVm())
    return _S.ENGINE_START


def _start_ended(turn: VmTurn, outcome: VmStartEnded) -> StateName:
    match outcome.result:
        case StartResult.STARTED:
            turn.because(Code.STARTED, "the VM was started and holds its lease")
            return _S.ENGINE_STARTING
        case StartResult.LEASE_HELD:
            turn.because(Code.START_LOST_RACE, f"another host holds the lease: {outcome.detail}")
            return _S.ENGINE_DOWN
        case StartResult.IMAGE_LOCKED:
            turn.because(Code.IMAGE_LOCKED, of_locked_image(turn))
            return _S.ENGINE_DOWN
        case StartResult.FAILED:
            text = f"start number {turn.state.retries} failed: {outcome.detail}"
            turn.because(Code.START_FAILED, text)
            return _S.ENGINE_DOWN
        case _:
            assert_never(outcome.result)


def _count_failed_start(turn: VmTurn) -> None:
    engine = turn.here.report
    turn.state = replace(
        turn.state,
        retries=turn.state.retries + 1,
        last_failure_s=turn.now_s,
        last_failure=engine.reason or engine.detail,
    )


def _engine_starting(turn: VmTurn) -> StateName:
    if (name := gates.while_up(turn)) is not None:
        return name
    if not _fresh(turn):
        return _S.ENGINE_STARTING
    engine = turn.here.report
    if turn.vm_up_here and engine.health is Health.GOOD:
        turn.because(Code.ENGINE_HEALTHY, "the VM is up and healthy")
        return _S.ENGINE_UP
    if turn.vm_up_here and engine.detail == DETAIL_MIGRATION_SOURCE:
        turn.because(Code.MIGRATING, "the VM is being migrated away")
        return _S.ENGINE_MIGRATING_AWAY
    if not turn.vm_up_here:
        if engine.detail == DETAIL_ALREADY_LOCKED:
            turn.because(Code.LEASE_LOST_RACE, "another host took the lease, cleaning up here")
            return _S.ENGINE_FORCE_STOP
        if turn.vm is VmStatus.DOWN_UNEXPECTED:
            # It died before it was ever healthy: that start has failed.
            _count_failed_start(turn)
        return _gone(turn)
    if must_end(turn) or storage_lost.ends(turn):
        return _S.ENGINE_FORCE_STOP
    if _is_wanted_down(turn):
        return _S.ENGINE_STOP
    if left_alone(turn):
        return _S.ENGINE_STARTING
    if unstoppable.is_retried(turn):
        turn.because(Code.STOP_TIMEOUT, "the VM's process could not be ended, ending it once more")
        return _S.ENGINE_FORCE_STOP
    if (name := _given_away(turn)) is not None:
        return name
    overdue = turn.in_state_s >= (turn.bad_health_s if is_paused(turn) else turn.starting_s)
    if overdue and engine.health is Health.BAD:
        if _never_healthy(turn):
            return _S.ENGINE_UP
        turn.because(
            Code.STARTING_TIMEOUT,
            f"not healthy {turn.in_state_s:.0f} s after its start ({_cause(turn)}), stopping it",
        )
        return _S.ENGINE_STOP
    turn.because(Code.ENGINE_BOOTING, f"the VM boots, {engine.reason or 'not healthy yet'}")
    return _S.ENGINE_STARTING


def _engine_up(turn: VmTurn) -> StateName:
    if (name := gates.while_up(turn)) is not None:
        return name
    if not _fresh(turn):
        return turn.state.name
    local = turn.observation.local
    if not turn.vm_up_here:
        return _gone(turn)
    if turn.here.report.detail == DETAIL_MIGRATION_SOURCE:
        turn.because(Code.MIGRATING, "the VM is being migrated away")
        return _S.ENGINE_MIGRATING_AWAY
    if must_end(turn) or _is_wanted_down(turn) or storage_lost.ends(turn):
        return _S.ENGINE_STOP
    if (other := turn.up_elsewhere()) is not None:
        if turn.here.lease_held is False and not is_paused(turn):
            turn.because(Code.VM_TWICE, f"{name_of(other)} runs the VM too, stopping it here")
            return _S.ENGINE_STOP
        # Ours holds the lease: whatever the other one claims, it is not the VM. And while
        # nobody knows whether ours does, nothing is done to it: unknown is not "no".
        # Nor does a word alone end what is paused, and gave its lease back for that.
        held = "but the lease is held here" if turn.here.lease_held else "who holds it is not known"
        if turn.here.lease_held is False and turn.here.domain.outdated is False:
            held = "but no other host has held the lease since it was paused here"
        turn.because(Code.VM_TWICE_CLAIMED, f"{name_of(other)} says that it runs the VM, {held}")
    if turn.here.lease_held is False and not is_paused(turn):
        turn.because(
            Code.VM_UNPROTECTED,
            "the VM runs here without its lease: nothing keeps another host from starting it; "
            "was it started or suspended by hand?",
        )
    turn.wants_hosts_back = local.shutdown is None
    if left_alone(turn):
        return turn.state.name
    if (name := _given_away(turn)) is not None:
        return name
    if local.shutdown is None and (name := move(turn)) is not None:
        return name
    return _judge_health(turn)


def _given_away(turn: VmTurn) -> StateName | None:
    """The VM leaves this host: it is going down, or nobody reaches the VM here."""
    if turn.observation.local.shutdown is not None:
        return drain.leave(turn)
    return isolation.act(turn)


def _judge_health(turn: VmTurn) -> StateName:
    engine = turn.here.report
    if engine.health is Health.BAD:
        if turn.state.name is not _S.ENGINE_UP_BAD_HEALTH:
            turn.because(
                Code.ENGINE_BAD_HEALTH, f"the VM is up, but {engine.reason or 'unhealthy'}"
            )
            return _S.ENGINE_UP_BAD_HEALTH
        if _never_healthy(turn):
            # What was never seen to work proves nothing by failing: the check itself may be wrong.
            turn.because(
                Code.NEVER_HEALTHY,
                f"the VM was never healthy since it was set up ({_cause(turn)}): it is left "
                "running; is the health check right ([health] in the configuration)?",
            )
            turn.state = replace(turn.state, since_s=turn.now_s)
            return _S.ENGINE_UP_BAD_HEALTH
        if turn.number == ENGINE and (
            who := reached_by(turn.host, turn.observation.local.host_id, turn.state.last_ran)
        ):
            turn.because(
                Code.SICK_BUT_REACHED,
                f"unhealthy by this host's own check ({_cause(turn)}), but {', '.join(who)} had an "
                "answer of the VM: it is left running",
            )
            turn.state = replace(turn.state, since_s=turn.now_s)
            return _S.ENGINE_UP_BAD_HEALTH
        grace_s = turn.bad_health_s
        if turn.in_state_s >= grace_s:
            turn.because(
                Code.BAD_HEALTH_TIMEOUT,
                f"unhealthy for {turn.in_state_s:.0f} s ({_cause(turn)}), restarting",
            )
            return _S.ENGINE_STOP
        turn.because(
            Code.ENGINE_BAD_HEALTH,
            f"unhealthy ({_cause(turn)}), stopping it in {grace_s - turn.in_state_s:.0f} s",
        )
        return _S.ENGINE_UP_BAD_HEALTH
    if engine.health is Health.GOOD:
        turn.because(Code.ENGINE_HEALTHY, "the VM is up and healthy here")
        return _S.ENGINE_UP
    turn.because(Code.ENGINE_HEALTH_UNKNOWN, "the VM is up here, its health is not known now")
    return turn.state.name


def _engine_stop(turn: VmTurn) -> StateName:
    if (name := gates.while_stopping(turn)) is not None:
        return name
    outcome = turn.take(VmStopEnded)
    if outcome is not None and not outcome.ok:
        turn.because(Code.STOP_FAILED, f"the guest was not asked to shut down: {outcome.detail}")
        return _S.REINITIALIZE_FSM
    if not turn.sample_is_stale and not turn.vm_up_here:
        turn.because(Code.VM_STOPPED, "the VM has stopped")
        return _S.ENGINE_DOWN
    if not turn.sample_is_stale and (must_end(turn) or storage_lost.ends(turn)):
        return _S.ENGINE_FORCE_STOP
    if not turn.sample_is_stale and left_alone(turn):
        return _S.ENGINE_STOP
    if not turn.sample_is_stale and is_paused(turn) and turn.here.domain.pause:
        turn.because(Code.VM_PAUSED, "the VM is paused and cannot shut down, ending it")
        if turn.here.domain.pause is Pause.IO_ERROR:
            # Another host may have a better way to the disk: this one comes after its equals.
            _count_failed_start(turn)
        return _S.ENGINE_FORCE_STOP
    if isolation.is_over(turn):
        turn.because(Code.ISOLATION_OVER, "the VM can be reached here again: it is left running")
        return _S.REINITIALIZE_FSM
    grace_s = drain.stop_grace_s(turn)
    if turn.in_state_s >= grace_s and not turn.state.acting:
        turn.because(Code.STOP_TIMEOUT, f"not down after {grace_s:.0f} s, ending it")
        return _S.ENGINE_FORCE_STOP
    if not turn.state.stop_asked and not turn.state.acting:
        turn.state = replace(turn.state, stop_asked=True)
        turn.because(Code.STOP_REQUESTED, "asking the guest to shut down")
        turn.act(ShutDownVm())
        return _S.ENGINE_STOP
    turn.because(Code.STOP_WAITING, f"shutting down, {grace_s - turn.in_state_s:.0f} s left")
    return _S.ENGINE_STOP


def _engine_force_stop(turn: VmTurn) -> StateName:
    if (outcome := turn.take(VmStopEnded)) is not None:
        if outcome.ok:
            turn.because(Code.VM_STOPPED, "the VM's process is gone")
            return _S.ENGINE_DOWN
        turn.because(Code.STOP_FAILED, f"the VM could not be ended: {outcome.detail}")
        return _S.REINITIALIZE_FSM
    if turn.state.acting:
        turn.because(Code.STOP_WAITING, "ending the VM")
        return _S.ENGINE_FORCE_STOP
    if (name := gates.while_stopping(turn)) is not None:
        return name
    turn.because(Code.STOP_REQUESTED, "ending the VM's process")
    turn.act(PowerOffVm())
    return _S.ENGINE_FORCE_STOP


def _engine_maybe_away(turn: VmTurn) -> StateName:
    if (name := gates.usual(turn)) is not None:
        return name
    if turn.vm_up_here:
        turn.because(Code.VM_FOUND_HERE, "the VM runs here again")
        return _S.ENGINE_STARTING
    if (up := turn.up_elsewhere()) is not None:
        turn.because(Code.UP_ELSEWHERE, f"the VM runs on {name_of(up)}")
        return _S.ENGINE_DOWN
    left_s = turn.rules.timing.maybe_away - turn.in_state_s
    if left_s <= 0:
        turn.because(Code.AWAY_TIMEOUT, "the VM did not show up on another host")
        return _S.ENGINE_UNEXPECTEDLY_DOWN
    turn.because(Code.AWAY_WAITING, f"the VM left, {left_s:.0f} s for it to show up elsewhere")
    return _S.ENGINE_MAYBE_AWAY


def _engine_unexpectedly_down(turn: VmTurn) -> StateName:
    if (name := gates.usual(turn)) is not None:
        return name
    if turn.vm_up_here:
        turn.because(Code.VM_FOUND_HERE, "the VM runs here again")
        return _S.ENGINE_STARTING
    left_s = turn.rules.timing.unexpected_down - turn.in_state_s
    if left_s <= 0:
        turn.because(Code.UNEXPECTED_DOWN_OVER, "long enough since the VM died here")
        return _S.ENGINE_DOWN
    if nobody_else_can(turn):
        turn.because(Code.LAST_HOST, "no other live host can run the VM: not waiting for nobody")
        return _S.ENGINE_DOWN
    turn.because(
        Code.UNEXPECTED_DOWN_WAITING,
        f"the VM died here: another host should take it, score 0 for {left_s:.0f} s",
    )
    return _S.ENGINE_UNEXPECTEDLY_DOWN


def _engine_migrating_away(turn: VmTurn) -> StateName:
    if (outcome := turn.take(VmMigrationEnded)) is not None:
        if outcome.ok:
            turn.because(Code.MIGRATED, f"the VM runs on host {outcome.target} now")
            return _S.ENGINE_DOWN
        turn.because(Code.MIGRATION_FAILED, f"the migration failed: {outcome.detail}")
        return _S.REINITIALIZE_FSM
    if turn.state.acting:
        turn.because(Code.MIGRATING, f"migrating for {turn.in_state_s:.0f} s")
        if drain.move_left_s(turn) <= 0 and not gates.holds_still(turn):
            migration.cancel(turn, drain.NO_MORE_TIME, CancelMigration("the shutdown of this host"))
        return _S.ENGINE_MIGRATING_AWAY
    if (name := gates.while_up(turn)) is not None:
        return name
    if not turn.vm_up_here:
        turn.because(Code.VM_GONE, "the VM has left")
        return _S.ENGINE_MAYBE_AWAY
    if turn.here.report.detail != DETAIL_MIGRATION_SOURCE:
        turn.because(Code.MIGRATION_FAILED, "the migration is over and the VM is still here")
        return _S.REINITIALIZE_FSM
    migration.watch_over(turn)
    return _S.ENGINE_MIGRATING_AWAY


def _in_local_maintenance(turn: VmTurn) -> StateName:
    if (name := gates.while_up(turn)) is not None:
        return name
    if turn.observation.local.maintenance and not turn.vm_up_here:
        gates.kept_out(turn)
        return _S.LOCAL_MAINTENANCE
    if turn.observation.local.maintenance:
        turn.because(Code.VM_FOUND_HERE, "the VM runs here in spite of local maintenance")
    else:
        turn.because(Code.LOCAL_MAINTENANCE_OVER, "local maintenance is over")
    return _S.REINITIALIZE_FSM


def _in_global_maintenance(turn: VmTurn) -> StateName:
    if (name := gates.in_global_maintenance(turn)) is not None:
        return name
    turn.because(Code.GLOBAL_MAINTENANCE_OVER, "global maintenance is over")
    return _S.REINITIALIZE_FSM


def _in_unknown_local_vm_state(turn: VmTurn) -> StateName:
    if (name := gates.usual(turn)) is not None:
        return name
    turn.because(Code.LOCAL_VM_KNOWN, "the state of the VM here is known again")
    return _S.REINITIALIZE_FSM


def _agent_stopped(turn: VmTurn) -> StateName:
    turn.because(Code.STOPPING, "the agent has ended its work")
    return _S.AGENT_STOPPED


_HANDLERS: Mapping[StateName, Callable[[VmTurn], StateName]] = {
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


def _never_healthy(turn: VmTurn) -> bool:
    """The check has never been seen to work, and the VM may well; a paused one surely does not."""
    return not turn.here.healthy_before and not is_paused(turn)


def _cause(turn: VmTurn) -> str:
    """What the health check found last."""
    return turn.here.report.reason or "no reason"


def _gone(turn: VmTurn) -> StateName:
    """The VM is not up here any more: died, or gone in a way that may be a move."""
    engine = turn.here.report
    if engine.vm is VmStatus.DOWN_UNEXPECTED:
        turn.because(Code.VM_DIED, f"the VM died: {engine.detail or 'unexpectedly'}")
        return _S.ENGINE_UNEXPECTEDLY_DOWN
    turn.because(Code.VM_GONE, f"the VM is gone from here: {engine.detail or engine.vm.value}")
    return _S.ENGINE_MAYBE_AWAY

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The state machine of one VM.

Each host runs its own machine for the VM, and the published state shows the other hosts what this
one is about to do with it. A state that acted on a guess could start a second copy or end a healthy
one. So each state acts only on what was observed, and gives the reason why it stays or leaves.

Rules of this file:

1. A state is a function that returns the name of the next state, or its own to stay. It may emit
   actions, and always gives a reason. Within one beat the machine goes on until a state stays, and
   enters no state twice.
2. An action that starts, stops or moves the VM is emitted once. Until its outcome has come
   (`acting`) no other such action is emitted. A sample of the VM that is older than that outcome is
   stale, and no state judges by it.
3. The checks of scoring/vm/gates.py come before each state. A VM that is up here in local
   maintenance is not simply left: EngineUp drains it first.
4. No VM is started while anything that the start depends on is unknown.

The table of the states is TRANSITIONS in scoring/vm/state.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import assert_never

from scoring.decision import CancelMigration, Code, PowerOffVm, ShutDownVm, StartVm
from scoring.hosts.turn import name_of
from scoring.observation import StartResult, VmMigrationEnded, VmStartEnded, VmStopEnded
from scoring.vm import drain, gates, health, isolation, migration, storage_lost, unstoppable
from scoring.vm.missing import may_start
from scoring.vm.move import move
from scoring.vm.pause import is_paused, left_alone, must_end
from scoring.vm.room import secure
from scoring.vm.start import (
    first_in_line,
    lease_allows,
    locked_image_text,
    may_start_here,
    nobody_else_can,
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
    """Run the machine until a state stays; no state is entered twice."""
    visited: set[StateName] = set()
    while turn.state.name not in visited:
        before = turn.state.name
        visited.add(before)
        after = _HANDLERS[before](turn)
        if after is not before:
            assert after in TRANSITIONS[before], f"{before} -> {after} is no transition"
            turn.state = entered(turn, after)


def _fresh(turn: VmTurn) -> bool:
    """Whether the sample of the VM may be used; adds a reason when not."""
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
    """Goes to EngineStart; stays while the VM runs elsewhere, too little is known, a better host
    exists, or the lease is not free."""
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
    """Whether this host starts the engine now; adds the reason when not."""
    if _is_wanted_down(turn):
        return False
    if not (may_start_here(turn) and lease_allows(turn)):
        turn.state = replace(turn.state, startable_since_s=None)
        return False
    return first_in_line(turn) and secure(turn, turn.observation.local.host_id)


def _is_wanted_down(turn: VmTurn) -> bool:
    """Whether the registry has it that an administrator wants the VM down; adds the reason."""
    v = turn.spec
    if v is None or v.want is not Want.DOWN:
        return False
    turn.because(Code.WANTED_DOWN, f"{v.name} is wanted down: ha-agent vm start {v.name}")
    return True


def _engine_start(turn: VmTurn) -> StateName:
    if (outcome := turn.take(VmStartEnded)) is not None:
        return _start_ended(turn, outcome)
    if turn.state.acting:
        # The start is under way; its outcome must be handled in this state.
        turn.because(Code.STARTING, f"starting the VM for {turn.in_state_s:.0f} s")
        return _S.ENGINE_START
    if (name := gates.usual(turn)) is not None:
        return name
    if not turn.start_allowed:
        # EngineDown allows a start for its own beat alone.
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
            turn.because(Code.IMAGE_LOCKED, locked_image_text(turn))
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
            # The VM died before it was healthy: this counts as a failed start.
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
        if health.may_be_well(turn):
            return _S.ENGINE_UP
        why = f"not healthy {turn.in_state_s:.0f} s after its start ({health.cause(turn)})"
        turn.because(Code.STARTING_TIMEOUT, f"{why}, stopping it")
        # The cause may be this host: another one should try it.
        _count_failed_start(turn)
        turn.state = replace(turn.state, sick=True)
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
        # The process here holds the lease, so what the other host reports is not the VM. While it
        # is not known whether it does, the VM is not stopped: unknown is not "no". A paused VM has
        # given its lease back; another host's report alone does not end it either.
        held = "but the lease is held here" if turn.here.lease_held else "who holds it is not known"
        if turn.here.lease_held is False and turn.here.domain.outdated is False:
            held = "but no other host has held the lease since it was paused here"
        turn.because(Code.VM_TWICE_CLAIMED, f"{name_of(other)} says that it runs the VM, {held}")
    if turn.here.lease_held is False and not is_paused(turn):
        why = "was it started or suspended by hand?"
        if turn.observation.lockspace_joined is False:
            why = "this host's id is not in the lockspace: if the VM had its lease, sanlock ends it"
        turn.because(
            Code.VM_UNPROTECTED,
            "the VM runs here without its lease: nothing keeps another host from starting it; "
            + why,
        )
    turn.wants_hosts_back = local.shutdown is None
    if left_alone(turn):
        return turn.state.name
    if (name := _given_away(turn)) is not None:
        return name
    if local.shutdown is None and (name := move(turn)) is not None:
        return name
    return health.judge(turn)


def _given_away(turn: VmTurn) -> StateName | None:
    """The next state if the VM leaves this host, since the host shuts down or nobody reaches the VM
    here; None: it does not leave."""
    if turn.observation.local.shutdown is not None:
        return drain.leave(turn)
    return isolation.act(turn)


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
            # Another host may have a working way to the disk: with the penalty of a failed start
            # this host comes after its equals.
            _count_failed_start(turn)
        return _S.ENGINE_FORCE_STOP
    if isolation.is_over(turn):
        turn.because(Code.ISOLATION_OVER, "the VM can be reached here again: it is left running")
        return _S.REINITIALIZE_FSM
    if why := health.is_over(turn):
        turn.because(Code.HEALTHY_AGAIN, f"{why}: the VM is left running")
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
            turn.because(Code.MIGRATED, f"the VM runs on {turn.host.title(outcome.target)} now")
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


# --- a question that several states ask ----------------------------------------------------


def _gone(turn: VmTurn) -> StateName:
    """The next state when the VM is not up here any more: it has died, or may have moved."""
    engine = turn.here.report
    if engine.vm is VmStatus.DOWN_UNEXPECTED:
        turn.because(Code.VM_DIED, f"the VM died: {engine.detail or 'unexpectedly'}")
        return _S.ENGINE_UNEXPECTEDLY_DOWN
    turn.because(Code.VM_GONE, f"the VM is gone from here: {engine.detail or engine.vm.value}")
    return _S.ENGINE_MAYBE_AWAY

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides what the health of a VM that is up means: whether it stays, is watched or is restarted.

A restart is an outage, so a bad health check must not lead to one at once: the check itself may be
wrong, or only this host may see the VM as sick. Without a restart, however, a VM that really hangs
would stay down for its users for ever.

Rules of this file:

1. An unhealthy VM is stopped after `bad_health`.
2. If the check has never passed, its failure proves nothing, and the VM is left running.
3. If a host outside has reached the VM lately, it is left running.
4. If the health is unknown, the state stays, and that time does not count: neither as sick nor as
   slow to boot.
5. A guest that was asked to shut down for this, and is healthy or reached again, is left running.
6. All of this holds as well while the VM counts as starting: an agent that was started anew, or
   that had no answer of libvirt for a moment, takes a VM that has run for days for one that boots.
"""

from __future__ import annotations

from dataclasses import replace

from scoring.decision import Code
from scoring.hosts.fence_ask import reached_by
from scoring.vm.pause import is_paused
from scoring.vm.state import StateName
from scoring.vm.turn import VmTurn
from scoring.vm_facts import Health

_S = StateName
#: The states in which a VM that does not become healthy is stopped.
_UNTIL_HEALTHY = (_S.ENGINE_STARTING, _S.ENGINE_UP_BAD_HEALTH)


def judge(turn: VmTurn) -> StateName:
    """The next state of a VM that is up here, by its health; always adds the reason."""
    report = turn.here.report
    if report.health is Health.GOOD:
        turn.because(Code.ENGINE_HEALTHY, "the VM is up and healthy here")
        return _S.ENGINE_UP
    if report.health is Health.UNKNOWN:
        turn.because(Code.ENGINE_HEALTH_UNKNOWN, "the VM is up here, its health is not known now")
        return turn.state.name
    if turn.state.name is not _S.ENGINE_UP_BAD_HEALTH:
        turn.because(Code.ENGINE_BAD_HEALTH, f"the VM is up, but {report.reason or 'unhealthy'}")
        return _S.ENGINE_UP_BAD_HEALTH
    if _is_left_running(turn):
        turn.state = replace(turn.state, since_s=turn.now_s)
        return _S.ENGINE_UP_BAD_HEALTH
    grace_s = turn.bad_health_s
    if turn.in_state_s >= grace_s:
        text = f"unhealthy for {turn.in_state_s:.0f} s ({cause(turn)}), restarting"
        turn.because(Code.BAD_HEALTH_TIMEOUT, text)
        turn.state = replace(turn.state, sick=True)
        return _S.ENGINE_STOP
    text = f"unhealthy ({cause(turn)}), stopping it in {grace_s - turn.in_state_s:.0f} s"
    turn.because(Code.ENGINE_BAD_HEALTH, text)
    return _S.ENGINE_UP_BAD_HEALTH


def look_at_unknown(turn: VmTurn) -> None:
    """Update since when the health is unknown, and leave that time out of what counts (rule 4)."""
    state, now_s = turn.state, turn.now_s
    unknown = turn.vm_up_here and turn.here.report.health is Health.UNKNOWN
    if unknown and state.unjudged_since_s is None:
        turn.state = replace(state, unjudged_since_s=now_s)
    elif not unknown and state.unjudged_since_s is not None:
        since_s = state.since_s
        if state.name in _UNTIL_HEALTHY and since_s is not None:
            since_s += now_s - max(since_s, state.unjudged_since_s)
        turn.state = replace(state, unjudged_since_s=None, since_s=since_s)


def _is_left_running(turn: VmTurn) -> bool:
    """Whether the failing check is no reason to stop the VM (rules 2 and 3); adds the reason."""
    if has_never_passed(turn):
        turn.because(
            Code.NEVER_HEALTHY,
            f"the VM was never healthy since it was set up ({cause(turn)}): it is left "
            "running; is the health check right ([health] in the configuration)?",
        )
        return True
    who = reached(turn)
    if who:
        turn.because(
            Code.SICK_BUT_REACHED,
            f"unhealthy by this host's own check ({cause(turn)}), but {', '.join(who)} had an "
            "answer of the VM: it is left running",
        )
    return bool(who)


def has_never_passed(turn: VmTurn) -> bool:
    """Whether the health check has never passed, so that the VM may be well in spite of it. A VM
    that is paused is surely not well."""
    return not turn.here.healthy_before and not is_paused(turn)


def is_over(turn: VmTurn) -> str:
    """Why the reason for which the guest was asked to shut down, its health, is gone (rule 5), for
    the log; "": it is not, or the guest was asked for another reason."""
    if not (turn.state.sick and turn.may_stay_up):
        return ""
    if turn.here.report.health is Health.GOOD:
        return "the VM is healthy again"
    if who := reached(turn):
        return f"{', '.join(who)} reached the VM, though its own check fails"
    return ""


def may_be_well(turn: VmTurn) -> bool:
    """Whether the VM may be well although its check fails (rules 2 and 3)."""
    return has_never_passed(turn) or bool(reached(turn))


def reached(turn: VmTurn) -> tuple[str, ...]:
    """The hosts outside that have reached the VM here lately, as its users do."""
    own_id = turn.observation.local.host_id
    return reached_by(turn.host, own_id, turn.state.last_ran, turn.number)


def cause(turn: VmTurn) -> str:
    """The last finding of the health check, for people."""
    return turn.here.report.reason or "no reason"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks the other hosts to switch this host off when a sick VM's process cannot be ended here.

Only the loss of power ends a QEMU that hangs in the kernel, and only its own host can know that. If
the host did not ask, the VM would stay down for as long as the process hangs. This file decides
whether this host asks; what the other hosts do then, and the rules, are in
scoring/hosts/fence_ask.py.

This host does not ask while another protected VM, the engine among them, is well here: that VM is
first moved away, live. A VM that fails its own check counts as well where the failure proves
nothing: outsiders reach the VM, or the check has never passed.
"""

from __future__ import annotations

from dataclasses import replace

from scoring.decision import Code
from scoring.hosts.fence_ask import reached_by
from scoring.vm.state import StateName
from scoring.vm.turn import VmTurn
from scoring.vm_facts import DETAIL_PAUSED, Health, VmHere, VmStatus, Want, called, is_well

#: The pause before ending the VM's process is tried again.
STOP_RETRY_S = 15.0
#: The states in which this host does not ask (rule 4; nor does an agent that ends).
_NOT_ASKING = frozenset(
    {StateName.GLOBAL_MAINTENANCE, StateName.LOCAL_MAINTENANCE, StateName.AGENT_STOPPED}
)


def look_at_stops(turn: VmTurn) -> None:
    """Forget the failed stops of a VM that is healthy again or has ended."""
    engine = turn.here.report
    is_over = engine.health is Health.GOOD or engine.vm not in (VmStatus.UP, VmStatus.UNKNOWN)
    if is_over and turn.state.unstopped_since_s is not None:
        turn.state = replace(turn.state, unstopped_since_s=None)


def is_retried(turn: VmTurn) -> bool:
    """Whether ending the process of a sick VM, which has failed, is to be tried again now."""
    return (
        turn.state.unstopped_since_s is not None
        and turn.here.report.health is Health.BAD
        and turn.now_s - turn.state.acted_s >= STOP_RETRY_S
    )


def leaves_for(turn: VmTurn) -> str:
    """The sick VM because of which this one has to leave the host, so that the host can be switched
    off; empty: there is none."""
    several, patience_s = turn.several, turn.rules.timing.force_stop_patience
    if several is None or patience_s <= 0:
        return ""
    since_s = several.unstopped_since_s
    sick = (n for n in sorted(since_s) if turn.now_s - since_s[n] >= patience_s)
    return next((called(n, turn.observation.specs) for n in sick if n != turn.number), "")


def ask(turn: VmTurn) -> None:
    """Ask the other hosts to switch this one off, or end that request."""
    since_s = turn.state.unstopped_since_s
    if since_s is None or not _has_to_ask(turn, since_s):
        if turn.state.asks_off:
            turn.state = replace(turn.state, asks_off=False)
        return
    well = _well_here(turn)
    if well:
        turn.state = replace(turn.state, asks_off=False)
        text = (
            f"{turn.called} is sick, and ending its process has failed for "
            f"{turn.now_s - since_s:.0f} s; "
            f"{', '.join(well)} must leave this host before it may be switched off"
        )
        turn.reasons.insert(0, turn.reason(Code.FENCE_HELD_BACK, text))
        return
    turn.state = replace(turn.state, asks_off=True)
    text = (
        f"{turn.called} is sick, and ending its process has failed for "
        f"{turn.now_s - since_s:.0f} s: the other hosts are asked to switch this host off"
    )
    # At the front: the last reason must be that of the state in which the beat ended.
    turn.reasons.insert(0, turn.reason(Code.FENCE_ASKED, text))


def _well_here(turn: VmTurn) -> list[str]:
    """The names of the other protected VMs that are not known to be sick here."""
    return [
        called(vm.number, turn.observation.specs)
        for vm in turn.observation.local.vms
        if vm.number != turn.number and (is_well(vm.report) or _may_be_well(turn, vm))
    ]


def _may_be_well(turn: VmTurn, vm: VmHere) -> bool:
    """Whether a VM that is sick by its own check may be well in spite of it (rules 2 and 3 of
    scoring/vm/health.py): then it is not stopped for that."""
    if vm.report.vm is not VmStatus.UP or vm.report.detail == DETAIL_PAUSED:
        return False
    own_id = turn.observation.local.host_id
    return not vm.healthy_before or bool(reached_by(turn.host, own_id, vm.last_ran, vm.number))


def _has_to_ask(turn: VmTurn, since_s: float) -> bool:
    """Whether ending the sick VM has failed for long enough, and no rule forbids to ask."""
    local, patience_s = turn.observation.local, turn.rules.timing.force_stop_patience
    return (
        0 < patience_s <= turn.now_s - since_s
        and (turn.here.report.vm, turn.here.report.health) == (VmStatus.UP, Health.BAD)
        and (turn.spec is None or turn.spec.want is Want.UP)
        and turn.here.lease_held is not False
        and turn.observation.global_maintenance is False
        and not local.maintenance
        and turn.state.name not in _NOT_ASKING
        and not reached_by(turn.host, local.host_id, turn.state.last_ran, turn.number)
    )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ends the VM here when this host alone has lost the storage.

A VM without its disks is sick, and no other host may start it while its process may live. A host
that ends the process itself lets another host run the VM long before sanlock's time is over. The
rules are in scoring/hosts/storage_lost.py.
"""

from __future__ import annotations

from dataclasses import replace

from scoring.decision import Code
from scoring.hosts.storage_lost import host_with_storage
from scoring.vm.turn import VmTurn
from scoring.vm_facts import Health, Pause, VmStatus


def ends(turn: VmTurn) -> bool:
    """Whether the VM here is to be ended because the storage is lost here (rule 4 of
    scoring/hosts/storage_lost.py); adds the reason."""
    is_sick = turn.here.report.health is Health.BAD
    if not is_sick and turn.here.domain.pause is not Pause.IO_ERROR:
        return False
    who = host_with_storage(turn.host)
    if not who:
        return False
    turn.because(
        Code.STORAGE_LOST,
        f"this host has lost the storage, {who} has it, and the VM is sick: ending its process "
        "so that another host may run it",
    )
    if turn.state.given_up_since_s is None:
        turn.state = replace(turn.state, given_up_since_s=turn.now_s)
    return True


def look_at_given_up(turn: VmTurn) -> None:
    """Forget that the VM is being ended when the storage is back, the VM is well, or no process of
    it is left."""
    if turn.state.given_up_since_s is None:
        return
    report, lost_s = turn.here.report, turn.observation.local.storage_lost_since_s
    is_left = report.vm in (VmStatus.UP, VmStatus.UNKNOWN)
    if lost_s is None or report.health is Health.GOOD or not is_left:
        turn.state = replace(turn.state, given_up_since_s=None)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM here is ended, since this host alone has lost the storage: why, and by which rules, is in
scoring/hosts/storage_lost.py."""

from __future__ import annotations

from scoring.decision import Code
from scoring.hosts.storage_lost import who_has_it
from scoring.vm.turn import VmTurn
from scoring.vm_facts import Health, Pause


def ends(turn: VmTurn) -> bool:
    """Whether the VM here is to be ended for it; says so (rule 4 there)."""
    is_sick = turn.here.report.health is Health.BAD
    if not is_sick and turn.here.domain.pause is not Pause.IO_ERROR:
        return False
    who = who_has_it(turn.host)
    if who:
        turn.because(
            Code.STORAGE_LOST,
            f"this host has lost the storage, {who} has it, and the VM is sick: ending its process "
            "so that another host may run it",
        )
    return bool(who)

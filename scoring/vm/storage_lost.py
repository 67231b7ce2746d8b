# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ends the VM here when this host alone has lost the storage. The reason and the rules are in
scoring/hosts/storage_lost.py."""

from __future__ import annotations

from scoring.decision import Code
from scoring.hosts.storage_lost import host_with_storage
from scoring.vm.turn import VmTurn
from scoring.vm_facts import Health, Pause


def ends(turn: VmTurn) -> bool:
    """Whether the VM here is to be ended for that (rule 4 there); adds the reason."""
    is_sick = turn.here.report.health is Health.BAD
    if not is_sick and turn.here.domain.pause is not Pause.IO_ERROR:
        return False
    who = host_with_storage(turn.host)
    if who:
        turn.because(
            Code.STORAGE_LOST,
            f"this host has lost the storage, {who} has it, and the VM is sick: ending its process "
            "so that another host may run it",
        )
    return bool(who)

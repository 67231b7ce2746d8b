# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM that is up and whose CPUs stand still: who paused it decides what becomes of it.

A paused guest is all there: its memory is in the process, and goes on where it was. Ending the
process throws that memory away, so it needs a reason of its own, not merely "it is paused". Only
one thing makes the memory worthless: the VM has run on another host meanwhile, and its disks are
newer than it. libvirt gives the lease back when a VM is paused, and takes it again when it is
resumed, whoever had it in between; so that is looked at here, and not left to the lease.

1. Not one instruction of the guest was executed, and the lease is not held: a start that was cut
   short. It is ended at once, for it is in the way of every other start.
2. Another host has held the lease since: the memory is outdated. It is ended at once.
3. Somebody paused it, or libvirt for a snapshot, a dump or a save: it is left alone for as long as
   that takes, and the state's own time does not run.
4. An I/O error, a watchdog, a migration that broke off, the guest itself, or nobody knows: it
   counts as bad health, and is ended after `bad_health`. The disks are as they are after a power
   cut. An I/O error counts as a failed start too, so that an equal host comes first: it may well
   be this host's way to the disk.
"""

from __future__ import annotations

from dataclasses import replace

from scoring.decision import Code
from scoring.vm.turn import VmTurn
from scoring.vm_facts import DETAIL_PAUSED, PAUSED_ON_PURPOSE, Pause


def is_paused(turn: VmTurn) -> bool:
    """Whether the VM is up here and its CPUs stand still."""
    return turn.vm_up_here and turn.here.report.detail == DETAIL_PAUSED


def is_paused_on_purpose(turn: VmTurn) -> bool:
    """Rule 3."""
    return is_paused(turn) and turn.here.domain.pause in PAUSED_ON_PURPOSE


def must_end(turn: VmTurn) -> bool:
    """Rules 1 and 2; says which. Never while the lease is held here, or nobody knows whether."""
    if not is_paused(turn) or turn.here.lease_held is not False:
        return False
    if turn.here.domain.pause is Pause.NEVER_RAN:
        turn.because(Code.VM_PAUSED, "the VM is paused, never ran and has no lease, ending it")
        return True
    if turn.here.domain.outdated:
        turn.because(
            Code.VM_OUTDATED,
            "the VM is paused here and has run on another host since: its memory is older than "
            "its disks, ending it",
        )
        return True
    return False


def left_alone(turn: VmTurn) -> bool:
    """Rule 3; says so, and stops the state's clock: what is resumed has its whole time again."""
    if not is_paused_on_purpose(turn):
        return False
    why = turn.here.report.reason or "paused"
    if turn.here.domain.pause is Pause.USER:
        text = f"the VM is {why}; it is left alone until it is resumed (virsh resume)"
        turn.because(Code.VM_PAUSED, text)
    else:
        turn.because(
            Code.VM_PAUSED_BRIEFLY, f"the VM is {why}; it is left alone until that is over"
        )
    turn.state = replace(turn.state, since_s=turn.now_s, better_since_s=None)
    return True

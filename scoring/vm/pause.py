# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides what to do with a VM that is up and paused; that depends on why it was paused.

The memory of a paused guest is still in its process, and the guest can go on where it was. Ending
the process destroys that memory, so it needs a better reason than the pause itself. The memory is
worthless only if the VM has run on another host since, so that its disks are newer. libvirt gives
the lease back when a VM is paused and takes it again when the VM is resumed, even if another host
had it in between. So the lease does not prevent that case, and it is checked here.

Rules of this file:

1. If the guest has not executed one instruction and the lease is not held, a start was interrupted.
   The process is ended at once, since it prevents every other start.
2. If another host has held the lease since the pause, the memory is outdated. The process is ended
   at once.
3. If a person paused the VM, or libvirt did for a snapshot, a dump or a save, the VM is left alone
   for as long as that takes, and the time in the state does not count.
4. In all other cases (an I/O error, a watchdog, a migration that broke off, the guest itself, or an
   unknown cause) the VM counts as unhealthy, and is ended after `bad_health`. Its disks are then as
   after a power cut. An I/O error also counts as a failed start, so that an equal host comes first:
   this host's way to the disk may be broken.
"""

from __future__ import annotations

from dataclasses import replace

from scoring.decision import Code
from scoring.vm.turn import VmTurn
from scoring.vm_facts import DETAIL_PAUSED, PAUSED_ON_PURPOSE, Pause


def is_paused(turn: VmTurn) -> bool:
    """Whether the VM is up here and its CPUs are stopped."""
    return turn.vm_up_here and turn.here.report.detail == DETAIL_PAUSED


def is_paused_on_purpose(turn: VmTurn) -> bool:
    """Whether the VM is paused for a person's request (rule 3)."""
    return is_paused(turn) and turn.here.domain.pause in PAUSED_ON_PURPOSE


def must_end(turn: VmTurn) -> bool:
    """Whether the paused VM is ended at once (rules 1 and 2); adds the reason. Never while the
    lease is held here, or while it is not known whether it is."""
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
    """Whether the paused VM is left alone (rule 3); adds the reason, and restarts the time in the
    state, so that a resumed VM has the whole time again."""
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

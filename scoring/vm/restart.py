# SPDX-License-Identifier: LGPL-2.1-or-later
"""A drain by an ordered stop here and a start on another host: `maintenance local --restart`.

Some storages allow no live migration, and so do some devices and CPUs. Then a host is emptied only
by an outage of the VM, which nobody but a person may decide. This file is for the host whose
administrator has.

Rules of this file:

1. Only what cannot be migrated is stopped: a VM that a host can take live is moved there.
2. Before the stop a live host must be able to start the VM: by its own word it is fit, and has the
   room. Where none is, nothing is stopped.
3. One VM after the other: the next is stopped when those before it run elsewhere, since only then
   is it known what room they have left.
4. The stop is that of EngineStop: the guest is asked, and ended where it does not obey. Its lease
   ends with its process, so no other host can start it before. This host does not: it is in local
   maintenance.
"""

from __future__ import annotations

from scoring.decision import Code
from scoring.vm.placement import Candidate
from scoring.vm.state import StateName
from scoring.vm.turn import VmTurn


def stop_for_start_elsewhere(turn: VmTurn, best: Candidate, why: str) -> StateName | None:
    """What becomes of the VM, which is up here and cannot be migrated for `why`: it is stopped, for
    `best` can start it. None: it stays a little longer."""
    assert turn.vm_up_here and turn.observation.local.may_restart
    several = turn.several
    if several is not None:
        first = several.between_hosts(turn.number)
        if first:
            names = ", ".join(first)
            text = f"local maintenance with --restart: {names} must run elsewhere first"
            turn.because(Code.DRAIN_RESTART, text)
            return None
        several.stopping.add(turn.number)
    turn.because(
        Code.DRAIN_RESTART,
        f"local maintenance with --restart: the VM cannot be migrated ({why}); it is stopped here "
        f"in order, and {best.title} can start it",
    )
    return StateName.ENGINE_STOP

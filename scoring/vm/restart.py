# SPDX-License-Identifier: LGPL-2.1-or-later
"""`maintenance local --restart`: a VM that cannot be migrated is stopped and started elsewhere.

Some storages, devices and CPUs allow no live migration. Then a host can be drained only with an
outage of the VM, which a person has to decide. This file does it when the administrator has said so
with `--restart`.

Rules of this file:

1. A VM is stopped only if it cannot be migrated: if a host can take it live, it moves there.
2. Before the stop, a live host must be able to start the VM: it publishes that it is fit and has
   the memory. If there is no such host, the VM is not stopped.
3. The VMs are stopped one after the other: the next one only when the earlier ones run elsewhere,
   since only then the memory that is left there is known.
4. The stop is that of EngineStop: the guest is asked, and its process is ended if it does not shut
   down. The lease ends with the process, so no other host can start the VM before. This host does
   not start it again, since it is in local maintenance.
"""

from __future__ import annotations

from scoring.decision import Code
from scoring.vm.placement import Candidate
from scoring.vm.state import StateName
from scoring.vm.turn import VmTurn


def stop_for_start_elsewhere(turn: VmTurn, best: Candidate, why: str) -> StateName | None:
    """Stop the VM, which is up here and cannot be migrated for `why`, so that `best` can start it:
    the next state. None: another VM has to be started elsewhere first."""
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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The checks that come before every state of a VM: whether anything may be done to the VM here.

Maintenance, an agent that ends and an unknown VM forbid the same things in every state. If each
state checked them itself, one forgotten check would start a VM in global maintenance.

The checks, in this order; the first one that applies decides: the agent is asked to end, global
maintenance, a whiteboard newer than this version, an unknown local VM, local maintenance.
"""

from __future__ import annotations

from collections.abc import Callable

from scoring.decision import Code
from scoring.vm.state import StateName
from scoring.vm.turn import VmTurn
from scoring.vm_facts import VmStatus

_S = StateName


def stopping(turn: VmTurn) -> StateName | None:
    if turn.observation.stopping:
        turn.because(Code.STOPPING, "the agent was asked to end; the VM stays as it is")
        return _S.AGENT_STOPPED
    return None


def global_maintenance(turn: VmTurn) -> StateName | None:
    """GlobalMaintenance while it is set. The state stays while it is not known, or while a slot is
    of a newer version."""
    if turn.observation.global_maintenance:
        turn.because(Code.GLOBAL_MAINTENANCE, "global maintenance: nothing starts, stops or moves")
        return _S.GLOBAL_MAINTENANCE
    if turn.observation.newer_versions:
        hosts = ", ".join(map(str, turn.observation.newer_versions))
        turn.because(
            Code.NEWER_METADATA,
            f"host(s) {hosts} write a newer whiteboard than this version reads: upgrade this host",
        )
        return turn.state.name
    if turn.observation.global_maintenance is None:
        turn.because(
            Code.GLOBAL_MAINTENANCE_UNKNOWN,
            "whether global maintenance is set could not be read yet: holding still",
        )
        return turn.state.name
    return None


def holds_still(turn: VmTurn) -> bool:
    """Whether nothing may be begun here, not even the cancellation of a migration."""
    allowed = turn.cluster_allows and not turn.observation.stopping
    return not allowed or turn.vm is VmStatus.UNKNOWN


def vm_unknown(turn: VmTurn) -> StateName | None:
    if turn.vm is VmStatus.UNKNOWN:
        reason = turn.here.report.reason or "no answer"
        turn.because(Code.LOCAL_VM_UNKNOWN, f"the state of the VM here is unknown: {reason}")
        return _S.UNKNOWN_LOCAL_VM_STATE
    return None


def local_maintenance(turn: VmTurn) -> StateName | None:
    if turn.observation.local.maintenance and not turn.vm_up_here:
        kept_out(turn)
        return _S.LOCAL_MAINTENANCE
    return None


def kept_out(turn: VmTurn) -> None:
    """Add the reason why this host does not start the VM."""
    if turn.observation.local.shutdown is not None:
        turn.because(Code.HOST_SHUTDOWN, "this host is shutting down and does not run the VM")
    else:
        turn.because(Code.LOCAL_MAINTENANCE, "this host is in local maintenance")


def usual(turn: VmTurn) -> StateName | None:
    """All checks, in their order."""
    return _first(turn, stopping, global_maintenance, vm_unknown, local_maintenance)


def while_up(turn: VmTurn) -> StateName | None:
    """The checks for a VM that may be up here: without local maintenance, which drains it first."""
    return _first(turn, stopping, global_maintenance, vm_unknown)


def while_stopping(turn: VmTurn) -> StateName | None:
    """The checks for a VM that is being stopped: local maintenance applies even if the state of the
    VM is unknown."""
    return _first(turn, stopping, global_maintenance, local_maintenance, vm_unknown)


def in_global_maintenance(turn: VmTurn) -> StateName | None:
    """The checks for GlobalMaintenance: an unknown VM does not end that state."""
    return _first(turn, stopping, global_maintenance, local_maintenance)


def _first(turn: VmTurn, *checks: Callable[[VmTurn], StateName | None]) -> StateName | None:
    """The state by the first check that applies; None: none does."""
    for check in checks:
        name = check(turn)
        if name is not None:
            return name
    return None

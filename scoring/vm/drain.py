# SPDX-License-Identifier: LGPL-2.1-or-later
"""Moves the VM away from a host that shuts down.

A reboot of a host is planned, and a planned event must cost the users nothing. If the daemons
simply ended, libvirt would shut the VM down minutes later, or the VM would be killed with its host,
and the other hosts would have to treat that host as dead. So the host is drained first, as for
local maintenance. But local maintenance may wait for a target without limit; a host that shuts
down, perhaps on the battery of a UPS, may not.

Rules of this file:

1. The VM is migrated to the best host that can take it; each host is tried once.
2. If no host can take it, the guest is shut down in order. That frees the VM's lease, and another
   host can start it at once. If the host were simply switched off, the others would first have to
   prove it dead.
3. A host that lives but cannot take the VM yet, since it boots or joins the lockspace, is waited
   for, TARGET_PATIENCE_S at most. Before it has joined it writes no slot, but its answers over the
   network show that it lives. A host that shuts down itself is not waited for: when all hosts shut
   down together, none waits for another.
4. In global maintenance nothing is moved or stopped, as everywhere.
"""

from __future__ import annotations

from scoring.decision import Code
from scoring.observation import HostShutdown, OnHostShutdown
from scoring.vm.move import can_migrate, failures
from scoring.vm.pause import is_paused
from scoring.vm.room import secure
from scoring.vm.state import StateName
from scoring.vm.targets import targets
from scoring.vm.turn import VmTurn, begin_move

#: A host that has just booted joins the lockspace in 21 s at io_timeout 10, and can take a VM some
#: seconds later. Shutting the VM down and booting it again would take longer.
TARGET_PATIENCE_S = 45.0
NO_MORE_TIME = "this host is shutting down and cannot wait for it any longer"


def leave(turn: VmTurn) -> StateName | None:
    """Migrate or stop the VM, which is up on this host that shuts down: the next state. None: it
    stays for now, until a target is ready."""
    shutdown = turn.observation.local.shutdown
    assert shutdown is not None and turn.vm_up_here
    if shutdown.way is OnHostShutdown.SHUTDOWN:
        return _stop(turn, "vm.on-host-shutdown says so")
    if is_paused(turn):
        # A VM that a person has paused is left alone before this (scoring/vm/pause.py, rule 3).
        return _stop(turn, "it is paused, and would be so at any other host")
    if not can_migrate(turn):
        return _stop(turn, "it cannot move, since libvirt.migration-uri is not set")
    if move_left_s(turn) <= 0:
        limit_s = turn.rules.timing.host_shutdown_move
        return _stop(turn, f"it could not be moved in {limit_s:g} s (timing.host-shutdown-move)")
    tried = _tried(turn, shutdown)
    best = next((c for c in targets(turn) if c.host_id not in tried), None)
    if best is not None:
        if not secure(turn, best.host_id):
            return None
        turn.because(
            Code.MOVE_STARTED, f"this host is shutting down, migrating the VM to {best.title}"
        )
        begin_move(turn, best.host_id)
        return StateName.ENGINE_MIGRATING_AWAY
    left_s = shutdown.since_s + TARGET_PATIENCE_S - turn.now_s
    if left_s > 0 and _somebody_may_come(turn, tried):
        turn.because(
            Code.DRAIN_WAITING,
            "this host is shutting down, and no other host can take the VM yet: "
            f"waiting for one, {left_s:.0f} s at most",
        )
        return None
    if tried:
        why = failures(turn, sorted(tried))
        return _stop(turn, f"its migration failed to each host that could take it{why}")
    return _stop(turn, "no other live host can take it")


def move_left_s(turn: VmTurn) -> float:
    """How long a move of the VM may still take; infinite where this host does not shut down."""
    shutdown = turn.observation.local.shutdown
    if shutdown is None:
        return float("inf")
    return shutdown.since_s + turn.rules.timing.host_shutdown_move - turn.now_s


def stop_grace_s(turn: VmTurn) -> float:
    """How long the guest has to shut down before its process is ended. A shutdown of the host, or
    an isolated VM, sets a shorter limit than the VM's own."""
    timing = turn.rules.timing
    own_s = None if turn.spec is None else turn.spec.stop_grace_s
    grace_s = timing.stop_grace if own_s is None else own_s
    if turn.observation.local.shutdown is not None:
        grace_s = min(grace_s, timing.host_shutdown_grace)
    if turn.state.isolated:
        grace_s = min(grace_s, timing.isolation_grace)
    return grace_s


def _stop(turn: VmTurn, why: str) -> StateName:
    turn.because(Code.DRAIN_STOP, f"this host is shutting down, and the VM with it: {why}")
    return StateName.ENGINE_STOP


def _tried(turn: VmTurn, shutdown: HostShutdown) -> frozenset[int]:
    """The hosts to which the VM could not be migrated since the shutdown began."""
    failed_s = turn.state.move_failed_s
    return frozenset(host for host, at_s in failed_s.items() if at_s >= shutdown.since_s)


def _somebody_may_come(turn: VmTurn, tried: frozenset[int]) -> bool:
    """Whether a live host may be able to take the VM in a moment (rule 3)."""
    timing, seen = turn.rules.timing, (*turn.live, *turn.uncertain)
    if any(not p.maintenance and not p.stopped and p.host_id not in tried for p in seen):
        return True
    # The slot of a host that boots is still that of its last boot; its answers are new.
    answered_s = turn.now_s - timing.suspect_after - 2 * timing.beat
    return any(
        p.heartbeat_s is not None and p.heartbeat_s >= answered_s and p not in seen
        for p in turn.observation.peers
    )

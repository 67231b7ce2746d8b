# SPDX-License-Identifier: LGPL-2.1-or-later
"""Should the VM move? Out of a host in local maintenance, or to one that is better for long."""

from __future__ import annotations

from dataclasses import replace

from scoring import placement
from scoring.decision import Code
from scoring.state import StateName
from scoring.turn import Turn, begin_move, is_short_of_memory, others, own


def move(turn: Turn) -> StateName | None:
    """Whether the VM should be migrated: this host drains, or another is better for long enough."""
    state, rules = turn.state, turn.state.rules
    candidates = targets(turn)
    best: placement.Candidate | None
    draining = turn.observation.local.maintenance
    if draining:
        if not candidates:
            turn.because(
                Code.DRAIN_WAITING, "local maintenance: no other live host can take the VM"
            )
            return None
        # The best one that did not fail just now; all of them did: the best one, later.
        best = next((c for c in candidates if not pause_s(turn, c.host_id)), candidates[0])
    else:
        best = candidates[0] if candidates else None
        gap = 0 if best is None else best.score - own(turn).score
        if best is None or gap < rules.move_threshold:
            turn.state = replace(state, better_since_s=None)
            return None
        since_s = turn.now_s if state.better_since_s is None else state.better_since_s
        turn.state = state = replace(state, better_since_s=since_s)
        left_s = rules.timing.move_dwell - (turn.now_s - since_s)
        if left_s > 0:
            turn.because(
                Code.MOVE_DWELL,
                f"{best.title} is {gap} points better, moving there in {left_s:.0f} s",
            )
            return None
    if not turn.observation.migration_possible:
        turn.because(
            Code.MOVE_IMPOSSIBLE,
            f"would move to {best.title}, but libvirt.migration-uri is not set",
        )
        return None
    left_s = pause_s(turn, best.host_id)
    if left_s:
        turn.because(Code.MOVE_DWELL, f"the last migration failed, next try in {left_s:.0f} s")
        return None
    turn.because(Code.MOVE_STARTED, f"migrating the VM to {best.title}")
    begin_move(turn, best.host_id)
    return StateName.ENGINE_MIGRATING_AWAY


def targets(turn: Turn) -> list[placement.Candidate]:
    """The hosts that the VM may be migrated to, the best first: those that may run it and say
    that they have the memory. Those that answer over the network come before all others: a slot
    alone does not take a VM. Where nobody answers it may be this host's own network, or nobody is
    asked."""
    short = {peer.host_id for peer in turn.live if is_short_of_memory(turn, peer)}
    answer = {
        peer.host_id
        for peer in turn.live
        if peer.heartbeat_s is not None and peer.unanswered_since_s is None
    }
    ranked = placement.ranked([c for c in others(turn) if c.host_id not in short])
    return sorted(ranked, key=lambda c: c.host_id not in answer)


def pause_s(turn: Turn, target: int) -> float:
    """How long a host is left alone after a move there failed; 0: not at all."""
    failed_s = turn.state.move_failed_s.get(target)
    if failed_s is None:
        return 0.0
    return max(0.0, failed_s + turn.state.rules.timing.migrate_retry - turn.now_s)

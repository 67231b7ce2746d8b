# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hosts that a VM may be migrated to."""

from __future__ import annotations

from scoring.vm import placement
from scoring.vm.turn import VmTurn, is_short_of_memory, others
from scoring.vm_facts import ENGINE


def targets(turn: VmTurn) -> list[placement.Candidate]:
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
    if turn.number == ENGINE:
        ranked = placement.ranked([c for c in others(turn) if c.host_id not in short])
    else:
        assert turn.several is not None and turn.spec is not None
        ranked = turn.several.takers(turn.spec)
    return sorted(ranked, key=lambda c: c.host_id not in answer)

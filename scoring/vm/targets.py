# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds the hosts to which a VM may be migrated.

A drain, an order, an isolated VM and a better host all need a target. If each chose one itself, one
of them would send the VM to a host that has no memory or does not answer.
"""

from __future__ import annotations

from scoring.vm import placement
from scoring.vm.turn import VmTurn, is_short_of_memory, others
from scoring.vm_facts import ENGINE


def targets(turn: VmTurn) -> list[placement.Candidate]:
    """The hosts to which the VM may be migrated, the best first: those that may run it and have the
    memory by their own report. Hosts that answer over the network come before the others, since a
    migration needs the network. Hosts that do not answer are kept: the fault may be in this host's
    own network, or the cluster has no key and asks no host."""
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

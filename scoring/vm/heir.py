# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds the hosts whose heir this host is, which it therefore watches closely.

Seconds pass between the death of a host and its suspicion. Reading the power harms nobody, so it
need not wait for the suspicion. But a fence device bears few sessions; so only one host reads
early: the heir, which would take over, and whose readings count once the host is suspected.

Rules of this file:

1. The engine's heir is the host that would start it. The heir of a host with other VMs is the host
   that comes first in pursuing it (scoring/vm/several.py).
2. A host that could not take over now watches no other. A host without a fence device is not
   watched, since its power cannot be read.
"""

from __future__ import annotations

from scoring.observation import PeerReport
from scoring.vm import placement
from scoring.vm.turn import VmTurn, others, own
from scoring.vm_facts import ENGINE, VmStatus


def watched(turn: VmTurn) -> tuple[int, ...]:
    """The ids of the hosts whose heir this host is, the engine's host first. `turn`: the engine's
    turn."""
    observation, several = turn.observation, turn.several
    local = observation.local
    if (
        not turn.cluster_allows
        or observation.lockspace_joined is not True
        or not turn.host.can_record
        or observation.stopping
        or local.maintenance
        or local.shutdown is not None
    ):
        return ()
    found: list[int] = []
    owner = turn.up_elsewhere()
    if owner is not None and owner.host_id in observation.fence_devices and _starts(turn, owner):
        found.append(owner.host_id)
    if several is not None:
        found += [
            peer.host_id
            for peer in turn.live
            if peer.host_id not in found
            and peer.host_id in observation.fence_devices
            and any(n != ENGINE and its.report.vm is VmStatus.UP for n, its in peer.vms.items())
            and several.fences_first(peer.host_id)
        ]
    return tuple(found)


def _starts(turn: VmTurn, owner: PeerReport) -> bool:
    """Whether this host would start the engine if `owner` died."""
    mine = own(turn)
    heirs = [each for each in others(turn) if each.host_id != owner.host_id]
    return mine.score > 0 and not placement.ahead([*heirs, mine], mine.host_id)

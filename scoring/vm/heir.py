# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which hosts this one would take over from first, and therefore watches closely.

Between the death of a host and its suspicion pass seconds in which nothing is asked. Asking harms
nobody, so the heir need not wait for that. But a fence device bears few sessions: one host alone
asks early, the one that would act, and so its readings count when the host is suspected.

Rules of this file:

1. The engine's heir is the host that would start it; the heir of a host with other VMs is the one
   that comes first in pursuing it (scoring/vm/several.py).
2. Nobody is watched by a host that could not take over now, nor where there is no fence device:
   without a reading nothing is gained.
"""

from __future__ import annotations

from scoring.observation import PeerReport
from scoring.vm import placement
from scoring.vm.turn import VmTurn, others, own
from scoring.vm_facts import ENGINE, VmStatus


def watched(turn: VmTurn) -> tuple[int, ...]:
    """The hosts whose heir this host is, the engine's host first. `turn`: the engine's."""
    observation, several = turn.observation, turn.several
    local = observation.local
    if (
        not turn.cluster_allows
        or observation.lockspace_joined is not True
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
    """Whether this host is the one that starts the engine when its present host is gone."""
    mine = own(turn)
    heirs = [each for each in others(turn) if each.host_id != owner.host_id]
    return mine.score > 0 and not placement.ahead([*heirs, mine], mine.host_id)

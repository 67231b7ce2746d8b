# SPDX-License-Identifier: LGPL-2.1-or-later
"""The readings of a host's power that begin before the host is suspected.

A dead host is suspected after suspect_after, and two readings of its power need another second. The
first sign that something is wrong comes much earlier: a question over the network that is not
answered for half a second, or a slot that does not change when it should. It is a weak sign, and a
lost packet looks the same. So it begins what harms nobody, and nothing else.

    T+0.6   a sign of life is overdue: its power is asked
    T+0.7   "off": the fence lease is taken
    T+1.7   "off" again, under the fence lease: proven
    T+2     its slot has missed two beats: its host id is freed
    T+3     suspect_after: the VM is started

Rules of this file:

1. Only the heir asks early (scoring/vm/heir.py), and only of one host at a time.
2. Nobody is switched off on this ground: that needs silence for fence_after.
3. No VM is started on this ground: that needs the host to be suspected.
4. An alarm that was false costs EARLY_PAUSE_S without another one for that host, so that a link
   that loses packets does not have the device asked all the time. What it has found is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scoring.decision import AskLease
from scoring.hosts import fencing, takeover
from scoring.hosts.turn import HostTurn
from scoring.observation import LeaseAnswer, PeerReport
from scoring.vm_facts import ENGINE, VmStatus

#: After a false alarm a host is not asked early again for so long, in seconds.
EARLY_PAUSE_S = 3.0


def pursue(turn: HostTurn, watched: Sequence[int]) -> None:
    """Read the power of a live host that is overdue with a sign of life. `watched`: the hosts whose
    heir this one is."""
    state = turn.state
    current = state.takeover
    overdue = [
        peer
        for peer in turn.live
        if peer.host_id in watched
        and peer.overdue_since_s is not None
        and _may_be_asked(turn, peer)
    ]
    if not overdue:
        if current is not None and current.is_early:
            over_s = {**state.early_over_s, current.host_id: turn.now_s}
            turn.state = replace(
                state, takeover=replace(current, is_early=False), early_over_s=over_s
            )
        return
    pursued = None if current is None else current.host_id
    peer = next((each for each in overdue if each.host_id == pursued), overdue[0])
    current = replace(fencing.begun(turn, peer.host_id), is_early=True)
    if current.freed_s is not None:
        # The rest waits for the suspicion.
        turn.state, turn.pursued = replace(state, takeover=current), True
        return
    lease = current.lease or LeaseAnswer(False, turn.now_s)
    evidence = fencing.evidence_of(turn, peer.host_id, lease)
    was_asking = current.asking_power
    current, actions, reasons = takeover.step(current, evidence, turn.now_s, turn.rules)
    if current.asking_power and not was_asking and current.lease is None:
        # A host id is freed only where it is known to own a lease.
        turn.actions.append(AskLease(_vm_at(peer)))
    turn.actions.extend(actions)
    turn.reasons.extend(replace(reason, vm=0) for reason in reasons)
    turn.state, turn.pursued = replace(state, takeover=current), True


def _may_be_asked(turn: HostTurn, peer: PeerReport) -> bool:
    over_s = turn.state.early_over_s.get(peer.host_id)
    return not peer.stopped and (over_s is None or turn.now_s - over_s >= EARLY_PAUSE_S)


def _vm_at(peer: PeerReport) -> int:
    """A VM that is up there; its lease is that host's."""
    return min(
        (number for number, its in peer.vms.items() if its.report.vm is VmStatus.UP),
        default=ENGINE,
    )

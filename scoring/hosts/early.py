# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads a host's power before the host is suspected.

A dead host is suspected only after suspect_after, and two readings of its power take another
second. The first sign that something is wrong comes much earlier: a question over the network is
not answered for half a second, or a slot does not change when it should. A lost packet gives the
same sign. So only the harmless part of a takeover begins on it: reading the power.

    T+0.6   a sign of life is overdue: its power is asked
    T+0.7   "off": the fence lease is taken
    T+1.7   "off" again, under the fence lease: proven
    T+2     its slot has missed two beats: its host id is freed
    T+3     suspect_after: the VM is started

Rules of this file:

1. Only the heir asks early (scoring/vm/heir.py), and only of one host at a time.
2. An overdue sign of life is no reason to switch a host off: that needs silence for fence_after.
3. It is no reason to start a VM: that needs the host to be suspected.
4. After a false alarm the host is not asked early again for EARLY_PAUSE_S, and its readings are
   forgotten. Otherwise a link that loses packets would have the fence device asked all the time.
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
    """Begin a takeover from a live host whose sign of life is overdue. `watched`: the hosts whose
    heir this host is."""
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
        # The host id is freed. A start has to wait until the host is suspected.
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
    """The number of a VM that is up on the peer, whose lease the peer therefore owns."""
    return min(
        (number for number, its in peer.vms.items() if its.report.vm is VmStatus.UP),
        default=ENGINE,
    )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Judges all hosts once a beat, before anything is decided: which live, which are silent, which
one asks to be switched off.

Every later part of the decision uses this result. If each part judged the hosts itself, one could
start a VM because a host is silent while another part still counts that host as a standby.
"""

from __future__ import annotations

from dataclasses import replace

from scoring.hosts import fence_ask
from scoring.hosts.liveness import Liveness, liveness
from scoring.hosts.liveness import look as last_changes
from scoring.hosts.state import HostState
from scoring.hosts.turn import HostTurn
from scoring.observation import Observation, PeerReport
from scoring.rules import Rules


def look(state: HostState, rules: Rules, observation: Observation, now_s: float) -> HostTurn:
    """A turn with the hosts that live. While this host cannot read the whiteboard, no host counts
    as live."""
    if observation.storage_good_since_s is None:
        return HostTurn(rules, replace(state, seen={}), observation, now_s)
    seen = last_changes(state.seen, observation.peers, now_s)
    by_liveness: dict[Liveness, list[PeerReport]] = {kind: [] for kind in Liveness}
    for peer in observation.peers:
        kind = liveness(seen[peer.host_id], now_s, rules.timing.suspect_after)
        by_liveness[kind].append(peer)
    live = tuple(by_liveness[Liveness.LIVE])
    return HostTurn(
        rules,
        replace(state, seen=seen),
        observation,
        now_s,
        live,
        tuple(by_liveness[Liveness.UNCERTAIN]),
        fence_ask.asking(live, rules, observation.specs),
    )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""One turn of the decision about hosts: its input, what was found out, and its output.

The turn is made for one call of `decide` and then thrown away, so that the parts of a decision
share what they found without passing it through each call, and nothing of it can leak into the next
beat. The turn of each VM (scoring/vm/turn.py) stands on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scoring.decision import Action, Code, Reason
from scoring.hosts.state import HostState
from scoring.observation import Observation, PeerReport
from scoring.rules import Rules


@dataclass(slots=True)
class HostTurn:
    """One call of `decide`: its inputs, and what is emitted, in order.

    `asking`: the live host that is to be switched off by its own word
    (scoring/hosts/fence_ask.py); it does not count as one that runs a VM, nor as one that may.
    `pursued`: the takeover was gone on with. Thrown away when `decide` returns; `state` is
    replaced, never changed.
    """

    rules: Rules
    state: HostState
    observation: Observation
    now_s: float
    live: tuple[PeerReport, ...] = ()
    uncertain: tuple[PeerReport, ...] = ()
    asking: PeerReport | None = None
    pursued: bool = False
    actions: list[Action] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)

    def because(self, code: Code, text: str) -> None:
        self.reasons.append(Reason(code, text))

    @property
    def cluster_allows(self) -> bool:
        """The cluster's slot was read and lets anything be begun, and this version reads all."""
        seen = self.observation
        return seen.global_maintenance is False and not seen.newer_versions


def name_of(peer: PeerReport) -> str:
    return f"{peer.hostname or 'host'} (id {peer.host_id})"

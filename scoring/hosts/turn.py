# SPDX-License-Identifier: LGPL-2.1-or-later
"""The working data of one decision about hosts: its input, its findings and its output.

The parts of a decision share their findings through this value instead of passing them through each
call. It is made for one call of `decide` and then discarded, so that no finding of one beat can
enter the next one. The turn of each VM (scoring/vm/turn.py) contains it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from scoring.decision import Action, Code, Reason
from scoring.hosts.state import HostState
from scoring.observation import Observation, PeerReport
from scoring.rules import Rules
from scoring.vm_facts import EngineStatus, is_well

#: For how many `suspect_after` its own writes may fail before a host leaves others to pursue the
#: dead: 7.5 s by default.
UNWRITTEN_SUSPICIONS = 2.5


@dataclass(slots=True)
class HostTurn:
    """One call of `decide`: its input, and its actions and reasons in their order.

    `live`, `uncertain`: the hosts by their liveness; the others are silent. `asking`: the live host
    that asks to be switched off (scoring/hosts/fence_ask.py); it does not count as a host that may
    run a VM, and a sick VM does not count as up there. `pursued`: the takeover took a step in this
    beat. `state` is
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

    def title(self, host_id: int) -> str:
        """A host for people, with its name where its slot says it, however old that is."""
        return title_of(host_id, self.observation.peers)

    def is_given_up(self, peer: PeerReport, report: EngineStatus) -> bool:
        """Whether a VM is no longer counted upon where a host says that it is up."""
        return peer is self.asking and not is_well(report)

    @property
    def unwritten_s(self) -> float:
        """For how long this host has not been able to write its own slot, in seconds."""
        since_s = self.observation.local.unwritten_since_s
        return 0.0 if since_s is None else self.now_s - since_s

    @property
    def can_record(self) -> bool:
        """Whether this host can write the whiteboard: without a record in the fence log it may
        neither switch a host off nor free an id. On Gluster no write is answered until its bricks
        miss a host that died in the middle of one, 4.6 s with a beat before it (record 98): the
        readings of its death must not be thrown away for that."""
        return self.unwritten_s < UNWRITTEN_SUSPICIONS * self.rules.timing.suspect_after

    @property
    def cluster_allows(self) -> bool:
        """Whether anything may be begun: global maintenance is known not to be set, and this
        version can read every slot."""
        seen = self.observation
        return seen.global_maintenance is False and not seen.newer_versions


def name_of(peer: PeerReport) -> str:
    """A host for people."""
    return f"{peer.hostname or 'host'} (id {peer.host_id})"


def title_of(host_id: int, peers: Iterable[PeerReport]) -> str:
    """A host for people, by its id: with its name where one of `peers` is that host and has one."""
    peer = next((each for each in peers if each.host_id == host_id), None)
    return f"host {host_id}" if peer is None or not peer.hostname else name_of(peer)

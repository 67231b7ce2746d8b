# SPDX-License-Identifier: LGPL-2.1-or-later
"""A living host that is switched off because its VM is sick and nobody on it can end it.

A QEMU that hangs in the kernel outlives every signal, and its lease lives as long as it does: its
host stops it again and again, and no other host may start the VM. Only the loss of power ends such
a process, and only its own host can know that it is so. So that host asks the others for it.

Rules of this file:

1. Nobody asks but the host itself, in its own slot, which must be signed with the cluster's key
   (broker/whiteboard/lines.py). Its agent does: the VM's health is bad, and ending it has failed
   for `force_stop_patience`. Where the agent is dead, its broker says since when, and since when
   the VM's health has been bad; when both have been so for `agent_dead_after` (and no start may
   take as long), the others take that for the same.
2. What outsiders reach is not sick: one live host that had an answer of the VM within
   `isolation_after` forbids it, whatever the host itself says.
3. Unknown is not sick: a host whose libvirt does not answer, or whose health check says nothing,
   does not ask.
4. A host in maintenance, global or its own, or that shuts down, neither asks nor is switched off.
5. The ask stands in for the silence of the host, and for nothing else: all other preconditions of
   switching off hold as ever (`evidence.may_power_off`).
6. What is well is never stopped for it: while another protected VM on that host is up and not
   known to be sick, nobody switches it off. Its agent moves such VMs away first, live.
7. It holds for the moment. Withdrawn, or its host no longer live, it is not there: what is under
   way for it is withdrawn (`last_look`), and a host that falls silent is an ordinary silent host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from scoring.hosts.turn import HostTurn, name_of
from scoring.observation import FenceAsk, PeerReport
from scoring.rules import Rules
from scoring.vm_facts import ENGINE, OutsideView


def asking(live: Iterable[PeerReport], rules: Rules) -> PeerReport | None:
    """The live host that is to be switched off by its own word; None: none, or more than one, which
    is a fault of all."""
    found = [peer for peer in live if is_asked(peer.fence_ask, rules)]
    return found[0] if len(found) == 1 else None


def is_asked(given: FenceAsk | None, rules: Rules) -> bool:
    """Whether what a host says of its VM amounts to asking to be switched off (rule 1)."""
    if given is None:
        return False
    if given.unstopped_s is not None:
        return True
    timing = rules.timing
    if given.agent_dead_s is None or given.bad_s is None or timing.agent_dead_after == 0:
        return False
    bad_after_s = max(timing.agent_dead_after, timing.engine_starting, timing.bad_health)
    return given.agent_dead_s >= timing.agent_dead_after and given.bad_s >= bad_after_s


def in_words(given: FenceAsk) -> str:
    """Why a host is to be switched off by its own word."""
    if given.unstopped_s is not None:
        return f"its VM is sick, and could not be ended for {given.unstopped_s:.0f} s"
    return f"its agent is dead for {given.agent_dead_s:.0f} s, its VM sick for {given.bad_s:.0f} s"


def reached_by(turn: HostTurn, owner: int, stay: int) -> tuple[str, ...]:
    """Who has had an answer of the VM there of late, asked as its users do (rule 2)."""
    newest_s = turn.now_s - turn.rules.timing.isolation_after
    return tuple(who for who, good_s in _answers(turn, owner, stay) if good_s > newest_s)


def reached_s(turn: HostTurn, owner: int, stay: int) -> float | None:
    """When the last question was asked that the VM there answered, asked as its users do; None:
    none was."""
    return max((good_s for _, good_s in _answers(turn, owner, stay)), default=None)


def _answers(turn: HostTurn, owner: int, stay: int) -> Iterator[tuple[str, float]]:
    """Who had an answer of the VM in that place, and when its question was asked."""
    for who, view in _views(turn):
        if (view.owner, view.stay) == (owner, stay) and view.good_s is not None:
            yield who, view.good_s


def _views(turn: HostTurn) -> Iterator[tuple[str, OutsideView]]:
    if (own := turn.observation.local.engine.outside) is not None:
        yield "this host", own
    for peer in turn.live:
        if (its := peer.reached.get(ENGINE)) is not None:
            yield name_of(peer), its

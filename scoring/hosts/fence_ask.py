# SPDX-License-Identifier: LGPL-2.1-or-later
"""A live host asks the others to switch it off, since its VM is sick and cannot be ended.

A QEMU that hangs in the kernel survives every signal, and it keeps the VM's lease as long as it
exists. Its host tries to stop it again and again, and no other host may start the VM. Only the loss
of power ends such a process, and only its own host can know that; so that host asks the others.

Rules of this file:

1. Only the host itself asks, in its own slot, which must be signed with the cluster key
   (broker/whiteboard/lines.py). Its agent asks when the VM's health is bad and ending the VM has
   failed for `force_stop_patience`. When the agent is dead, the broker publishes since when, and
   since when the VM's health has been bad. If both have lasted for `agent_dead_after`, and longer
   than a start may take, the other hosts take that as the same request.
2. A VM that outsiders reach is not sick: if one live host has had an answer of the VM within
   `isolation_after`, nobody switches the host off, whatever the host itself says.
3. Unknown is not sick: a host whose libvirt does not answer, or whose health check has no result,
   does not ask.
4. A host in global or local maintenance, or one that shuts down, neither asks nor is switched off.
5. The request replaces the silence of the host, and nothing else: all other preconditions of
   switching off must hold (`evidence.may_power_off`).
6. A VM that is well is never stopped for this: while another protected VM on that host is up and
   not known to be sick, nobody switches the host off. Its agent first moves such VMs away, live.
7. The request is valid only while it is published by a live host. When it is withdrawn, an order
   that is under way is withdrawn as well (`last_look`). A host that falls silent is treated as any
   silent host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from scoring.hosts.turn import HostTurn, name_of
from scoring.observation import FenceAsk, PeerReport
from scoring.rules import Rules
from scoring.vm_facts import ENGINE, OutsideView


def asking(live: Iterable[PeerReport], rules: Rules) -> PeerReport | None:
    """The live host that asks to be switched off. None: no host asks, or several do: then the fault
    is one that all hosts have."""
    found = [peer for peer in live if is_asked(peer.fence_ask, rules)]
    return found[0] if len(found) == 1 else None


def is_asked(given: FenceAsk | None, rules: Rules) -> bool:
    """Whether what a host publishes counts as the request to switch it off (rule 1)."""
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
    """Why the host asks to be switched off, as a sentence."""
    if given.unstopped_s is not None:
        return f"its VM is sick, and could not be ended for {given.unstopped_s:.0f} s"
    return f"its agent is dead for {given.agent_dead_s:.0f} s, its VM sick for {given.bad_s:.0f} s"


def reached_by(turn: HostTurn, owner: int, stay: int) -> tuple[str, ...]:
    """The hosts that have reached the engine on `owner` lately, as its users do (rule 2)."""
    oldest_s = turn.now_s - turn.rules.timing.isolation_after
    return tuple(who for who, good_s in _last_answers(turn, owner, stay) if good_s > oldest_s)


def reached_s(turn: HostTurn, owner: int, stay: int) -> float | None:
    """When the last question was asked, as users ask, that the engine on `owner` answered; None:
    it has answered none."""
    return max((good_s for _, good_s in _last_answers(turn, owner, stay)), default=None)


def _last_answers(turn: HostTurn, owner: int, stay: int) -> Iterator[tuple[str, float]]:
    """Each host that has reached the engine on `owner` in this stay, and when it last asked with
    success."""
    for who, view in _outside_views(turn):
        if (view.owner, view.stay) == (owner, stay) and view.good_s is not None:
            yield who, view.good_s


def _outside_views(turn: HostTurn) -> Iterator[tuple[str, OutsideView]]:
    """Each host that asks the engine from outside, with what it sees."""
    if (own := turn.observation.local.engine.outside) is not None:
        yield "this host", own
    for peer in turn.live:
        if (its := peer.reached.get(ENGINE)) is not None:
            yield name_of(peer), its

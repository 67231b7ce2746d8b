# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides which questions for a heartbeat are answered: those that a member has just asked. Pure.

The port for heartbeats receives datagrams from everybody, and the answers decide whether a host
is switched off. So whatever arrives here must cost little and must not displace a member's
question: neither garbage, nor a recorded question that is sent again, nor a flood of both.

Rules of this file:

1. The checks are made in this order: length and first line; the address; the MAC; host ids; whether
   it was asked before; how many this member has asked in this second. A datagram that fails is
   dropped without an answer and counted by its reason.
2. An address is known if a member publishes it as a number, or has asked from it. From all
   others STRANGERS_PER_S datagrams in a second are checked, for a member whose address was
   never seen; the rest is dropped before any work.
3. A check that uses up a member's share comes after its MAC: nobody else can use it up.
4. A question is answered once. For each of the last BOOTS_MAX boots of a member the question
   numbers of the last WINDOW_S are remembered; older questions count as replays. Right after the
   start of the broker nothing is remembered: a replay then gets one answer, which proves nothing.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from broker.config.addresses import split
from broker.config.cluster_key import ClusterKey
from broker.peers.datagram import BadDatagram, Question, looks_like_a_question, question_of
from broker.peers.heartbeat import Fault

#: Answers to one member in a second; a beat of 0.1 s and four addresses make 40 questions.
ANSWERS_PER_S = 50
#: How many datagrams from unknown addresses are checked in a second.
STRANGERS_PER_S = 100
#: Two questions of a host may arrive in the wrong order within this time.
WINDOW_S = 5.0
BOOTS_MAX = 64
#: How many addresses are remembered beside the published ones: a few for each of 2000 members.
PROVEN_MAX = 4096


class Refusal(StrEnum):
    """Why a question is not answered. The values are stable: they go into JSON and metrics.

    STRANGER: from an unknown address, and above the limit or not signed with the cluster key.
    BEFORE_RESTART: a replay from an earlier boot of the host that asks. REFLECTED: an answer, or a
    question of this very host. WRONG_HOST: meant for another host. TOO_MANY: this member asks more
    often than ANSWERS_PER_S."""

    UNREADABLE = "unreadable"
    REFLECTED = "reflected"
    STRANGER = "stranger"
    WRONG_MAC = "wrong-mac"
    WRONG_HOST = "wrong-host"
    REPLAYED = "replayed"
    BEFORE_RESTART = "before-restart"
    TOO_MANY = "too-many"


_OF_FAULT = {
    Fault.UNREADABLE: Refusal.UNREADABLE,
    Fault.REFLECTED: Refusal.REFLECTED,
    Fault.WRONG_MAC: Refusal.WRONG_MAC,
}


@dataclass(slots=True)
class _Turns:
    """A share per second; one second's share may be used at once."""

    per_s: int
    left: float
    since_s: float

    def take(self, now_s: float) -> bool:
        """Use one up; False: there is none left."""
        self.left = min(self.per_s, self.left + (now_s - self.since_s) * self.per_s)
        self.since_s = now_s
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


@dataclass(slots=True)
class _Boot:
    """The questions of one boot of a member. `newest`: the highest number so far."""

    newest: int = 0
    seen: set[int] = field(default_factory=set)

    def is_new(self, number: int) -> bool:
        return number > self.newest - int(WINDOW_S * 1e9) and number not in self.seen

    def take(self, number: int) -> None:
        self.newest = max(self.newest, number)
        self.seen.add(number)
        if len(self.seen) > ANSWERS_PER_S * WINDOW_S:
            oldest = self.newest - int(WINDOW_S * 1e9)
            self.seen = {other for other in self.seen if other > oldest}


@dataclass(slots=True)
class _Member:
    """The memory about a member. `boots`: in the order of their last questions."""

    turns: _Turns
    boots: OrderedDict[str, _Boot] = field(default_factory=OrderedDict)


class QuestionGate:
    """The gate of one host. `answered`, `refused`: counted since the broker's start; `refused_of`:
    by host, for addresses that belong to one host only."""

    def __init__(self, host_id: int) -> None:
        self.answered = 0
        #: The number of datagrams that the kernel dropped.
        self.dropped: Callable[[], int] = lambda: 0
        self.refused: Counter[Refusal] = Counter()
        self.refused_of: dict[int, Counter[Refusal]] = {}
        self._host_id = host_id
        self._published: Mapping[int, tuple[str, ...]] = {}
        #: The address as the kernel writes it, and whose it is.
        self._known: dict[str, int] = {}
        self._proven: OrderedDict[str, int] = OrderedDict()
        self._members: dict[int, _Member] = {}
        self._strangers = _Turns(STRANGERS_PER_S, STRANGERS_PER_S, 0.0)

    def members(self, published: Mapping[int, tuple[str, ...]]) -> None:
        """Take in the addresses that the hosts publish, `host:port` each; the addresses of names
        are learnt when they ask."""
        if published == self._published:
            return
        self._published = dict(published)
        self._known = {}
        for host_id, addresses in published.items():
            for address in addresses:
                number = as_number(split(address)[0])
                if number:
                    self._known[number] = host_id

    def admit(self, key: ClusterKey, raw: bytes, source: str, now_s: float) -> Question | Refusal:
        """The question that is to be answered; or why it is not. `source`: the address from which
        it came, as the kernel writes it."""
        found = self._look(key, raw, source, now_s)
        if isinstance(found, Refusal):
            self.refused[found] += 1
            host_id = self.host_at(source)
            if host_id is not None:
                self.refused_of.setdefault(host_id, Counter())[found] += 1
        else:
            self.answered += 1
        return found

    def refusals_of(self, host_id: int) -> dict[str, int]:
        """How many datagrams from the addresses of a host were refused, by reason."""
        return {why.value: count for why, count in sorted(self.refused_of.get(host_id, {}).items())}

    def host_at(self, source: str) -> int | None:
        """The host that is known to ask from that address."""
        return self._known.get(source) or self._proven.get(source)

    def _look(self, key: ClusterKey, raw: bytes, source: str, now_s: float) -> Question | Refusal:
        fault = looks_like_a_question(raw)
        if fault is not None:
            return _OF_FAULT[fault]
        is_known = self.host_at(source) is not None
        if not is_known and not self._strangers.take(now_s):
            return Refusal.STRANGER
        try:
            question = question_of(key, raw)
        except BadDatagram as error:
            is_stranger = error.fault is Fault.WRONG_MAC and not is_known
            return Refusal.STRANGER if is_stranger else _OF_FAULT[error.fault]
        if question.asker == self._host_id:
            return Refusal.REFLECTED
        if question.asked != self._host_id:
            return Refusal.WRONG_HOST
        return self._turn(question, source, now_s)

    def _turn(self, question: Question, source: str, now_s: float) -> Question | Refusal:
        """Check a question that a member has signed for this host."""
        member = self._members.get(question.asker)
        if member is None:
            turns = _Turns(ANSWERS_PER_S, ANSWERS_PER_S, now_s)
            member = self._members[question.asker] = _Member(turns)
        boot = member.boots.get(question.boot_id)
        if boot is not None and not boot.is_new(question.number):
            is_last = next(reversed(member.boots)) == question.boot_id
            return Refusal.REPLAYED if is_last else Refusal.BEFORE_RESTART
        if not member.turns.take(now_s):
            return Refusal.TOO_MANY
        if boot is None:
            boot = member.boots[question.boot_id] = _Boot()
        boot.take(question.number)
        member.boots.move_to_end(question.boot_id)
        while len(member.boots) > BOOTS_MAX:
            member.boots.popitem(last=False)
        if source not in self._known:
            self._proven[source] = question.asker
            self._proven.move_to_end(source)
            while len(self._proven) > PROVEN_MAX:
                self._proven.popitem(last=False)
        return question


def as_number(host: str) -> str:
    """An address as the kernel writes it; empty where it is a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks the other brokers for a sign of life over the network.

Rules of this file:

1. Each peer has a task of its own that asks all its addresses at once, and not again before
   all of them have answered or are given up: nothing piles up, and the beat never waits.
   It asks the peer's port for heartbeats; the peer's listener too while that port does not answer
   or none is published, as hosts of earlier versions do.
2. A good answer counts from the moment of its question: the peer lived after that.
3. A peer whose slot changes is asked every STEADY_S, in a large cluster less often: APART_S
   lie between two questions to two such peers. One whose slot has just fallen silent is asked at
   once and then every beat, so that the network's answer is as fast as the suspicion.
4. A question that this host itself was too slow to judge (it stood still) proves nothing.
5. A peer that this host watches closely is asked every QUICK_S besides. One that leaves these
   questions unanswered for OVERDUE_S is overdue, which is a sign and no proof: what counts as
   unanswered stays as it is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Container, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from broker.config.cluster_key import ClusterKey
from broker.daemon.errors import why
from broker.peers.datagram import Question, heard_in, question_bytes
from broker.peers.heartbeat import Fault, Heartbeat, heard, new_nonce
from broker.whiteboard.lines import Ways
from scoring.storage_word import StorageWord
from scoring.vm_facts import VmStatus

#: The interval of questions to a peer that is not suspected.
STEADY_S = 10.0
#: Least time between questions to two peers that are not suspected, on average.
APART_S = 0.2
#: An answer that takes longer is ignored.
QUESTION_S = 1.0
#: The interval of questions to a peer that is watched closely, and of how many at most it is.
QUICK_S = 0.25
QUICK_PEERS_MAX = 8
#: A peer that is watched closely is overdue with its answer after so long.
OVERDUE_S = 0.5
#: A host whose slot was acknowledged no longer ago has the storage, milliseconds.
WRITES_MS = 3000
_LATE = f"no answer within {QUESTION_S:.0f} s"
#: A question may be over so much later than planned; else this host stood still.
STALL_S = 1.0
#: A peer that has not answered for so many steady questions is reported: two may be lost, and the
#: third is given up by then.
TROUBLE_QUESTIONS = 2.5
#: A fraction that spreads neighbouring host ids evenly (the golden ratio's).
_SPREAD = 0.6180339887


def steady_s(peers: int) -> float:
    """The interval of questions to a peer that is not suspected, among so many."""
    return max(STEADY_S, peers * APART_S)


class Word(StrEnum):
    """The state of a peer on the network. The values are stable: they go into JSON."""

    NO_KEY = "no-key"
    NOT_ADVERTISED = "not-advertised"
    NOT_ASKED = "not-asked"
    ANSWERED = "answered"
    UNANSWERED = "unanswered"


class Trouble(StrEnum):
    """What is wrong with the network's answers of a host whose slot is written: they would be
    missed if that host's storage hung. The values are stable: they go into JSON and metrics.

    UNANSWERED: it answers no question. PORT_SILENT: its listener does, its port for heartbeats
    does not."""

    UNANSWERED = "heartbeat-unanswered"
    PORT_SILENT = "heartbeat-port-silent"


class Transport(Protocol):
    """Port to the network. An address is `host:port`. Neither question has a deadline of its own:
    it is cancelled after QUESTION_S."""

    async def ask_port(self, address: str, question: bytes, take: Callable[[bytes], bool]) -> None:
        """Send a datagram to a port for heartbeats, and give each reply from there to
        `take` until it says that this one is the answer; OSError where there will be none."""

    async def ask_listener(self, address: str, nonce: str) -> bytes:
        """The listener's answer to this nonce; OSError where there is no good one."""


@dataclass(slots=True)
class Pulse:
    """The state of one peer on the network; times are this host's monotonic clock.

    `heartbeat_s`, `unanswered_since_s`: see PeerReport. `vm`: the VM's status there, by the last
    good answer. `problem`: why the last badly answered question was so. `faults`: bad answers so
    far. `said`: the last good answer, which came at `heard_s`.
    `overdue_since_s`: when the first of the questions was asked that a peer that is watched closely
    has left unanswered since; None: it is not overdue. `slot`: the timestamp of its last slot that
    the storage acknowledged, and when that was at the latest; None: it did not say.
    `port_silent_since_s`: the first question since its port for heartbeats last answered; None
    while it answers or there is none. `port_problem`: the problem of that port's last question.
    `refused_s`: when the last question was asked that the kernel there refused, since nobody
    listens: the machine lives, and its broker does not. `word`: see PeerReport.
    """

    ways: Ways = field(default_factory=Ways)
    heartbeat_s: float | None = None
    vm: VmStatus | None = None
    unanswered_since_s: float | None = None
    problem: str = ""
    faults: Counter[Fault] = field(default_factory=Counter)
    said: Heartbeat | None = None
    heard_s: float = 0.0
    port_silent_since_s: float | None = None
    port_problem: str = ""
    port_answers: bool = False
    interval_s: float = STEADY_S
    due_s: float = 0.0
    turn: asyncio.Future[None] | None = None
    task: asyncio.Task[None] | None = None
    overdue_since_s: float | None = None
    slot: tuple[int, float] | None = None
    quick: asyncio.Task[None] | None = None
    refused_s: float | None = None
    word: StorageWord | None = None

    def hurry(self) -> None:
        """Check again whether the next question is due."""
        if self.turn is not None and not self.turn.done():
            self.turn.set_result(None)

    @property
    def bad_answers(self) -> dict[str, int]:
        """The number of bad answers, by fault."""
        return {fault.value: count for fault, count in sorted(self.faults.items())}


class Heartbeats:
    """Asks for one host. `key` None: nothing is asked. `boot_id`: of the host's present boot.

    `on_change`: called when the answers of a peer begin or end. `on_missed`: called with a peer
    that is watched closely and has not answered the question before.
    """

    def __init__(self, host_id: int, key: ClusterKey | None, transport: Transport | None) -> None:
        self.host_id = host_id
        self.key = key
        self.boot_id = ""
        self.pulses: dict[int, Pulse] = {}
        self.on_change: Callable[[], None] = lambda: None
        self.on_missed: Callable[[int], None] = lambda host: None
        self._transport = transport
        self._number = 0
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Ask for ever; return at once where there is no key or no transport."""
        if self.key is None or self._transport is None:
            return
        async with asyncio.TaskGroup() as self._group:
            await asyncio.Event().wait()

    def times(self, host_id: int) -> tuple[float | None, float | None]:
        """`heartbeat_s` and `unanswered_since_s` of a peer."""
        pulse = self.pulses.get(host_id)
        return (None, None) if pulse is None else (pulse.heartbeat_s, pulse.unanswered_since_s)

    def heard(self, host_id: int, now_s: float, fresh_s: float) -> VmStatus | None:
        """The VM's status on a peer, by an answer to a question that is no older than `fresh_s`;
        None: there is none."""
        pulse = self.pulses.get(host_id)
        if pulse is None or pulse.heartbeat_s is None or pulse.unanswered_since_s is not None:
            return None
        return pulse.vm if now_s - pulse.heartbeat_s <= fresh_s else None

    def heard_within(self, fresh_s: float, now_s: float) -> list[int]:
        """The peers that have answered a question that is no older than `fresh_s`."""
        return [
            host
            for host, pulse in self.pulses.items()
            if pulse.unanswered_since_s is None
            and pulse.heartbeat_s is not None
            and now_s - pulse.heartbeat_s <= fresh_s
        ]

    def boot_heard(self, host_id: int) -> str:
        """The boot that a peer named in its last good answer; "": there was none."""
        pulse = self.pulses.get(host_id)
        return "" if pulse is None or pulse.said is None else pulse.said.boot_id

    def word(self, host_id: int) -> Word:
        """The result of the last question to a peer."""
        pulse = self.pulses.get(host_id)
        if self.key is None:
            return Word.NO_KEY
        if pulse is None or not pulse.ways:
            return Word.NOT_ADVERTISED
        if pulse.unanswered_since_s is not None:
            return Word.UNANSWERED
        return Word.NOT_ASKED if pulse.heartbeat_s is None else Word.ANSWERED

    def trouble(self, host_id: int, now_s: float) -> Trouble | None:
        """What is wrong with the answers of a peer whose slot is written; None: nothing that three
        questions in a row have shown."""
        pulse = self.pulses.get(host_id)
        if pulse is None or self.word(host_id) in (Word.NO_KEY, Word.NOT_ADVERTISED):
            return None
        shown_s = now_s - TROUBLE_QUESTIONS * steady_s(len(self.pulses))
        for since_s, trouble in (
            (pulse.unanswered_since_s, Trouble.UNANSWERED),
            (pulse.port_silent_since_s, Trouble.PORT_SILENT),
        ):
            if since_s is not None and since_s <= shown_s:
                return trouble
        return None

    def look(
        self,
        advertised: Mapping[int, Ways | None],
        quiet: Container[int],
        beat_s: float,
        now_s: float,
    ) -> None:
        """Set whom to ask, and where; None: as before. `quiet`: hosts whose slots stand still."""
        for host_id in [host for host in self.pulses if host not in advertised]:
            gone = self.pulses.pop(host_id)
            for task in (gone.task, gone.quick):
                if task is not None:
                    task.cancel()
        between_s = steady_s(len(advertised))
        for host_id, ways in advertised.items():
            pulse = self.pulses.get(host_id)
            if pulse is None:
                part = (self.host_id + 1) * host_id * _SPREAD % 1.0
                pulse = self.pulses[host_id] = Pulse(due_s=now_s + part * between_s)
            if ways is not None:
                pulse.ways = ways
            is_quiet = host_id in quiet
            interval_s = beat_s if is_quiet else between_s
            if is_quiet and interval_s < pulse.interval_s:
                pulse.due_s = min(pulse.due_s, now_s)
                pulse.hurry()
            pulse.interval_s = interval_s
            if pulse.task is None and self._group is not None:
                self._start(host_id, pulse)

    def watch(self, hosts: Sequence[int]) -> None:
        """Set which peers are watched closely, the first of them at most QUICK_PEERS_MAX."""
        watched = hosts[:QUICK_PEERS_MAX]
        for host_id, pulse in self.pulses.items():
            if host_id not in watched:
                if pulse.quick is not None:
                    pulse.quick.cancel()
                    pulse.quick, pulse.overdue_since_s = None, None
            elif pulse.quick is None and self._group is not None:
                pulse.quick = self._group.create_task(
                    self._ask_quickly(host_id, pulse), name=f"quick questions to host {host_id}"
                )

    def overdue_since_s(self, host_id: int) -> float | None:
        """Since when a peer that is watched closely is overdue with its answer; None: it is not."""
        pulse = self.pulses.get(host_id)
        return None if pulse is None else pulse.overdue_since_s

    def refused_s(self, host_id: int) -> float | None:
        """When the last question was asked that a peer's kernel refused; None: none was."""
        pulse = self.pulses.get(host_id)
        return None if pulse is None else pulse.refused_s

    def storage_word(self, host_id: int) -> StorageWord | None:
        """What a peer says of the storage; None: nothing, or it does not answer any more."""
        pulse = self.pulses.get(host_id)
        return None if pulse is None or pulse.unanswered_since_s is not None else pulse.word

    def written_s(self, host_id: int, timestamp: int) -> float | None:
        """When the storage acknowledged a peer's slot with that timestamp, by that peer's word, at
        the latest; None: it did not say."""
        pulse = self.pulses.get(host_id)
        if pulse is None or pulse.slot is None or pulse.slot[0] != timestamp:
            return None
        return pulse.slot[1]

    async def _ask_quickly(self, host_id: int, pulse: Pulse) -> None:
        clock = asyncio.get_running_loop().time
        since_s = due_s = clock()
        async with asyncio.TaskGroup() as group:
            while True:
                now_s = clock()
                if now_s - due_s > QUICK_S:
                    # This host stood still: what came meanwhile is not judged yet.
                    since_s = now_s
                if pulse.heartbeat_s is not None and pulse.heartbeat_s < due_s - QUICK_S:
                    self.on_missed(host_id)
                if pulse.heartbeat_s is not None and pulse.overdue_since_s is None:
                    unanswered_s = max(since_s, pulse.heartbeat_s + QUICK_S)
                    if now_s - unanswered_s >= OVERDUE_S:
                        pulse.overdue_since_s = unanswered_s
                        # The next question that counts is not put off either.
                        pulse.due_s = min(pulse.due_s, now_s)
                        pulse.hurry()
                        self.on_change()
                for address in pulse.ways.ports:
                    group.create_task(self._ask_port(host_id, pulse, address, now_s))
                due_s = now_s + QUICK_S
                await asyncio.sleep(due_s - clock())

    def _start(self, host_id: int, pulse: Pulse) -> None:
        assert self._group is not None
        pulse.task = self._group.create_task(
            self._ask_for_ever(host_id, pulse), name=f"heartbeat of host {host_id}"
        )

    async def _ask_for_ever(self, host_id: int, pulse: Pulse) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await _until_due(pulse)
            planned_s, asked_s = pulse.due_s, clock()
            pulse.due_s = asked_s + pulse.interval_s
            if not pulse.ways or await self._ask(host_id, pulse, asked_s):
                continue
            if clock() - planned_s > QUESTION_S + STALL_S:
                pulse.unanswered_since_s = pulse.port_silent_since_s = None
            elif pulse.unanswered_since_s is None:
                pulse.unanswered_since_s = asked_s
                self.on_change()

    async def _ask(self, host_id: int, pulse: Pulse, asked_s: float) -> bool:
        """Ask at all addresses; returns whether one of them answered well."""
        ports = pulse.ways.ports
        listeners = () if ports and pulse.port_answers else pulse.ways.listeners
        asked: list[Coroutine[Any, Any, str]] = [
            *(self._ask_port(host_id, pulse, address, asked_s) for address in ports),
            *(self._ask_listener(host_id, pulse, address, asked_s) for address in listeners),
        ]
        if len(asked) == 1:
            problems = [await asked[0]]
        else:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(each) for each in asked]
            problems = [task.result() for task in tasks]
        at_ports = problems[: len(ports)]
        pulse.port_answers = "" in at_ports
        pulse.port_problem = "" if pulse.port_answers else "".join(at_ports[-1:])
        # A listener's answer says more than a silent port: for example, that the key is another.
        pulse.problem = next(filter(None, reversed(problems)), pulse.problem)
        if pulse.port_answers or not ports:
            pulse.port_silent_since_s = None
        elif pulse.port_silent_since_s is None:
            pulse.port_silent_since_s = asked_s
        return "" in problems

    async def _ask_port(self, host_id: int, pulse: Pulse, address: str, asked_s: float) -> str:
        """Why there was no answer; empty: there was."""
        assert self.key is not None and self._transport is not None
        # No two questions of a boot have the same number, even if the clock jumps.
        self._number = max(self._number + 1, int(asyncio.get_running_loop().time() * 1e9))
        question = Question(self.host_id, host_id, self.boot_id, self._number, new_nonce())
        key, wrong = self.key, ""

        def take(raw: bytes) -> bool:
            nonlocal wrong
            answer = heard_in(key, raw, question)
            if isinstance(answer, Fault):
                pulse.faults[answer] += 1
                wrong = answer.value
                return False
            self._heard(pulse, answer, asked_s)
            return True

        try:
            async with asyncio.timeout(QUESTION_S):
                await self._transport.ask_port(address, question_bytes(key, question), take)
        except TimeoutError:
            return f"{address}/udp: {wrong or _LATE}"
        except OSError as error:
            if isinstance(error, ConnectionRefusedError):
                pulse.refused_s = asked_s
            return f"{address}/udp: {wrong or why(error)}"
        return ""

    async def _ask_listener(self, host_id: int, pulse: Pulse, address: str, asked_s: float) -> str:
        """Ask a listener; returns why there was no answer, empty: there was one."""
        assert self.key is not None and self._transport is not None
        nonce = new_nonce()
        try:
            async with asyncio.timeout(QUESTION_S):
                raw = await self._transport.ask_listener(address, nonce)
        except TimeoutError:
            return f"{address}: {_LATE}"
        except OSError as error:
            return f"{address}: {why(error)}"
        answer = heard(self.key, raw, host_id, nonce)
        if isinstance(answer, Fault):
            pulse.faults[answer] += 1
            return f"{address}: {answer}"
        self._heard(pulse, answer, asked_s)
        return ""

    def _heard(self, pulse: Pulse, answer: Heartbeat, asked_s: float) -> None:
        """Take in a good answer to a question that was asked at `asked_s`."""
        pulse.said, pulse.heard_s = answer, asyncio.get_running_loop().time()
        was_silent = pulse.unanswered_since_s is not None or pulse.overdue_since_s is not None
        pulse.heartbeat_s = max(asked_s, pulse.heartbeat_s or asked_s)
        pulse.unanswered_since_s = pulse.overdue_since_s = None
        pulse.vm = answer.vm
        pulse.word = _word(answer, asked_s)
        if answer.written_ago_ms is not None:
            written_s = pulse.heard_s - answer.written_ago_ms / 1000.0
            if pulse.slot is not None and pulse.slot[0] == answer.written:
                written_s = min(written_s, pulse.slot[1])
            pulse.slot = answer.written, written_s
        if was_silent:
            self.on_change()


def _word(answer: Heartbeat, asked_s: float) -> StorageWord | None:
    """What an answer says of the storage; None: nothing, which is so over HTTP."""
    ago_ms = answer.written_ago_ms
    if answer.lost_ms is None and ago_ms is None:
        return None
    lost_s = None if answer.lost_ms is None else answer.lost_ms / 1000.0
    writes = lost_s is None and ago_ms is not None and ago_ms <= WRITES_MS
    return StorageWord(asked_s, lost_s, answer.empty, writes, answer.global_maintenance)


async def _until_due(pulse: Pulse) -> None:
    """Wait for the next question's time, which may be brought forward meanwhile."""
    loop = asyncio.get_running_loop()
    while loop.time() < pulse.due_s:
        pulse.turn = loop.create_future()
        timer = loop.call_at(pulse.due_s, pulse.hurry)
        try:
            await pulse.turn
        finally:
            timer.cancel()

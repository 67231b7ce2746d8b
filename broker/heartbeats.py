# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asking the other brokers for a sign of life over the network.

Rules of this file:

1. Each peer has a task of its own that asks all its addresses at once, and not again before
   all of them have answered or are given up: nothing piles up, and the beat never waits.
2. A good answer counts from the moment the question was asked: the peer lived after that.
3. A peer whose slot changes is asked every STEADY_S, in a large cluster more seldom: APART_S
   lie between two questions to two of them. One whose slot has just fallen silent is asked at
   once and then every beat, so that the network's word is as quick as the suspicion.
4. A question that this host itself was too slow to judge (it stood still) says nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from broker.cluster_key import ClusterKey
from broker.heartbeat import Fault, Heartbeat, heard, new_nonce
from scoring.observation import VmStatus

#: Between two questions to a peer of whom nothing is feared.
STEADY_S = 10.0
#: Between two questions to two peers of whom nothing is feared, on average, at the least.
APART_S = 0.2
#: An answer that takes longer is none.
QUESTION_S = 1.0
#: So much later than planned a question may be over; else this host stood still.
STALL_S = 1.0
#: A fraction that spreads neighbouring host ids evenly (the golden ratio's).
_SPREAD = 0.6180339887


def steady_s(peers: int) -> float:
    """Seconds between two questions to a peer of whom nothing is feared, among so many."""
    return max(STEADY_S, peers * APART_S)


class Word(StrEnum):
    """What the network says of a peer. The values are stable: they go into JSON."""

    NO_KEY = "no-key"
    NOT_ADVERTISED = "not-advertised"
    NOT_ASKED = "not-asked"
    ANSWERED = "answered"
    UNANSWERED = "unanswered"


class Transport(Protocol):
    """Port to the network."""

    async def ask(self, address: str, nonce: str) -> bytes:
        """What the broker at `host:port` answers to this nonce; OSError where nothing good.

        Has no deadline of its own: it is cancelled after QUESTION_S.
        """


@dataclass(slots=True)
class Pulse:
    """What the network tells of one peer; times are this host's monotonic clock.

    `heartbeat_s`, `unanswered_since_s`: see PeerReport. `vm`: what the last good answer says of
    the VM there. `problem`: what became of the last question that was not answered well.
    `faults`: bad answers so far. `said`: the last good answer, which had come at `heard_s`.
    """

    addresses: tuple[str, ...] = ()
    heartbeat_s: float | None = None
    vm: VmStatus | None = None
    unanswered_since_s: float | None = None
    problem: str = ""
    faults: Counter[Fault] = field(default_factory=Counter)
    said: Heartbeat | None = None
    heard_s: float = 0.0
    interval_s: float = STEADY_S
    due_s: float = 0.0
    turn: asyncio.Future[None] | None = None
    task: asyncio.Task[None] | None = None

    def hurry(self) -> None:
        """Look again whether the next question is due."""
        if self.turn is not None and not self.turn.done():
            self.turn.set_result(None)

    @property
    def bad_answers(self) -> dict[str, int]:
        """How many, by what was wrong with them."""
        return {fault.value: count for fault, count in sorted(self.faults.items())}


class Heartbeats:
    """The asker of one host. `key` None: nothing is asked.

    `on_change`: called when the answers of a peer begin or end.
    """

    def __init__(self, host_id: int, key: ClusterKey | None, transport: Transport | None) -> None:
        self.host_id = host_id
        self.key = key
        self.pulses: dict[int, Pulse] = {}
        self.on_change: Callable[[], None] = lambda: None
        self._transport = transport
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Ask for ever; with nothing to ask with, end at once."""
        if self.key is None or self._transport is None:
            return
        async with asyncio.TaskGroup() as self._group:
            await asyncio.Event().wait()

    def times(self, host_id: int) -> tuple[float | None, float | None]:
        """`heartbeat_s` and `unanswered_since_s` of a peer."""
        pulse = self.pulses.get(host_id)
        return (None, None) if pulse is None else (pulse.heartbeat_s, pulse.unanswered_since_s)

    def heard(self, host_id: int, now_s: float, fresh_s: float) -> VmStatus | None:
        """What a peer says of the VM on itself, in answer to a question that is no older than
        `fresh_s`; None: nothing."""
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

    def word(self, host_id: int) -> Word:
        """What became of the last question to a peer."""
        pulse = self.pulses.get(host_id)
        if self.key is None:
            return Word.NO_KEY
        if pulse is None or not pulse.addresses:
            return Word.NOT_ADVERTISED
        if pulse.unanswered_since_s is not None:
            return Word.UNANSWERED
        return Word.NOT_ASKED if pulse.heartbeat_s is None else Word.ANSWERED

    def look(
        self,
        advertised: Mapping[int, tuple[str, ...] | None],
        quiet: Container[int],
        beat_s: float,
        now_s: float,
    ) -> None:
        """Whom to ask, and where; None: as before. `quiet`: hosts whose slots stand still."""
        for host_id in [host for host in self.pulses if host not in advertised]:
            task = self.pulses.pop(host_id).task
            if task is not None:
                task.cancel()
        between_s = steady_s(len(advertised))
        for host_id, addresses in advertised.items():
            pulse = self.pulses.get(host_id)
            if pulse is None:
                part = (self.host_id + 1) * host_id * _SPREAD % 1.0
                pulse = self.pulses[host_id] = Pulse(due_s=now_s + part * between_s)
            if addresses is not None:
                pulse.addresses = addresses
            is_quiet = host_id in quiet
            interval_s = beat_s if is_quiet else between_s
            if is_quiet and interval_s < pulse.interval_s:
                pulse.due_s = min(pulse.due_s, now_s)
                pulse.hurry()
            pulse.interval_s = interval_s
            if pulse.task is None and self._group is not None:
                self._start(host_id, pulse)

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
            if not pulse.addresses or await self._ask(host_id, pulse, asked_s):
                continue
            if clock() - planned_s > QUESTION_S + STALL_S:
                pulse.unanswered_since_s = None
            elif pulse.unanswered_since_s is None:
                pulse.unanswered_since_s = asked_s
                self.on_change()

    async def _ask(self, host_id: int, pulse: Pulse, asked_s: float) -> bool:
        """Ask at all addresses; whether one of them answered well."""
        if len(pulse.addresses) == 1:
            return await self._ask_at(host_id, pulse, pulse.addresses[0], asked_s)
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(self._ask_at(host_id, pulse, address, asked_s))
                for address in pulse.addresses
            ]
        return any(task.result() for task in asked)

    async def _ask_at(self, host_id: int, pulse: Pulse, address: str, asked_s: float) -> bool:
        assert self.key is not None and self._transport is not None
        nonce = new_nonce()
        try:
            async with asyncio.timeout(QUESTION_S):
                raw = await self._transport.ask(address, nonce)
        except TimeoutError:
            pulse.problem = f"{address}: no answer within {QUESTION_S:.0f} s"
            return False
        except OSError as error:
            pulse.problem = f"{address}: {error.strerror or error}"
            return False
        answer = heard(self.key, raw, host_id, nonce)
        if isinstance(answer, Fault):
            pulse.faults[answer] += 1
            pulse.problem = f"{address}: {answer}"
            return False
        pulse.said, pulse.heard_s = answer, asyncio.get_running_loop().time()
        was_silent = pulse.unanswered_since_s is not None
        pulse.heartbeat_s, pulse.unanswered_since_s = asked_s, None
        pulse.vm = answer.vm
        if was_silent:
            self.on_change()
        return True


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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What heartbeats cost: one question and its answer, both sides in one process over loopback, at
the port for heartbeats and at the listener, as it was before; what that is for a host of a
cluster; and what garbage costs. `python -m tests.bench heartbeat`."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.config.cluster_key import ClusterKey
from broker.peers.asker import steady_s
from broker.peers.datagram import DATAGRAM_BYTES, Question, heard_in, question_bytes
from broker.peers.heartbeat import Heartbeat, heard, new_nonce
from broker.peers.heartbeat_port import HeartbeatPort, NetworkTransport
from broker.peers.question_gate import QuestionGate
from tests.fakes.broker import make_broker
from tests.fakes.listener import Listener
from tests.fakes.slot_store import MemoryVolume

from .figure import Figure

KEY = ClusterKey(b"k" * 32)
ROUNDS = 5
QUESTIONS = 400
#: Datagrams that the gate is shown, and a second's worth of a flood.
DATAGRAMS = 5000
FLOOD_PER_S = 2000
OWN, ASKER = 1, 2


def measure() -> Iterator[Figure]:
    """All of it, in some seconds."""
    with TemporaryDirectory() as folder:
        at_port, at_listener = asyncio.run(_exchanges(Path(folder)))
    yield Figure("heartbeat at the port, both sides", "µs", at_port, 400.0)
    yield Figure("heartbeat at the listener, both sides", "µs", at_listener)
    for hosts in (3, 100):
        a_second = (hosts - 1) / steady_s(hosts - 1)
        for where, found, target in (
            ("port", at_port, 0.5),
            ("listener", at_listener, None),
        ):
            values = [each * a_second / 1e4 for each in found]
            name = f"heartbeats of a host, {hosts} hosts, at the {where}"
            yield Figure(name, "% CPU", values, target)
    for name, values in _refused().items():
        yield Figure(f"{FLOOD_PER_S} datagrams a second, {name}", "% CPU", values, 15.0)


async def _exchanges(folder: Path) -> tuple[list[float], list[float]]:
    """µs of CPU for a question and its answer, at the port and at the listener."""
    broker = make_broker(folder, MemoryVolume())
    broker.heartbeats.key = KEY
    # A second passes between two questions: the limit of a member is not what is measured.
    seconds = itertools.count()
    port = HeartbeatPort(
        lambda datagram, source: broker.sign_of_life.answer(datagram, source, float(next(seconds)))
    )
    listener = Listener(broker)
    await port.start([("127.0.0.1", 0)])
    await listener.start([("127.0.0.1", 0)])
    transport = NetworkTransport()

    async def ask_port(number: int) -> None:
        question = Question(ASKER, OWN, "boot", number, new_nonce())
        heard_at: list[Heartbeat] = []

        def take(raw: bytes) -> bool:
            answer = heard_in(KEY, raw, question)
            assert isinstance(answer, Heartbeat)
            heard_at.append(answer)
            return True

        address = f"127.0.0.1:{port.ports[0]}"
        await transport.ask_port(address, question_bytes(KEY, question), take)
        assert heard_at

    async def ask_listener(number: int) -> None:
        nonce = new_nonce()
        raw = await transport.ask_listener(f"127.0.0.1:{listener.ports[0]}", nonce)
        assert isinstance(heard(KEY, raw, OWN, nonce), Heartbeat)

    found: dict[Callable[[int], Awaitable[None]], list[float]] = {ask_port: [], ask_listener: []}
    number = 0
    for _ in range(ROUNDS):
        for ask, values in found.items():
            began_s = time.process_time()
            for _ in range(QUESTIONS):
                number += 1
                await ask(number)
            values.append(1e6 * (time.process_time() - began_s) / QUESTIONS)
    port.close()
    await listener.close()
    return found[ask_port], found[ask_listener]


def _refused() -> dict[str, list[float]]:
    """% of a CPU that the gate needs for a flood, without what the kernel and asyncio need to
    bring it there."""
    gate = QuestionGate(OWN)
    gate.members({ASKER: ("192.0.2.2:8766",)})
    replay = question_bytes(KEY, Question(ASKER, OWN, "boot", 1, new_nonce()))
    forged = question_bytes(ClusterKey(b"x" * 32), Question(ASKER, OWN, "boot", 1, new_nonce()))
    kinds = {
        "garbage": (b"x" * DATAGRAM_BYTES, "192.0.2.2"),
        "forged from a member": (forged, "192.0.2.2"),
        "forged from a stranger": (forged, "203.0.113.9"),
        "replayed": (replay, "192.0.2.2"),
    }
    found: dict[str, list[float]] = {}
    for name, (raw, source) in kinds.items():
        for _ in range(ROUNDS):
            began_s = time.process_time()
            for _ in range(DATAGRAMS):
                gate.admit(KEY, raw, source, 0.0)
            each_s = (time.process_time() - began_s) / DATAGRAMS
            found.setdefault(name, []).append(100.0 * each_s * FLOOD_PER_S)
    return found

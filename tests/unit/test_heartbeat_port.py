# SPDX-License-Identifier: LGPL-2.1-or-later
"""Heartbeats on the real network, over loopback at ports that the kernel chooses."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from broker.api.bounded_server import Limits
from broker.broker import Broker
from broker.config.cluster_key import ClusterKey
from broker.peers import asker, heartbeat_port, transport
from broker.peers.asker import Heartbeats, Word
from broker.peers.datagram import (
    DATAGRAM_BYTES,
    Question,
    answer_bytes,
    heard_in,
    question_bytes,
    question_of,
)
from broker.peers.heartbeat import Fault, Heartbeat, new_nonce
from broker.peers.heartbeat_port import DATAGRAMS_MAX, HeartbeatPort, NetworkTransport
from broker.peers.question_gate import Refusal
from broker.peers.refusal_log import REMEMBERED_MAX, RefusalLog
from broker.whiteboard.lines import Ways
from scoring.vm_facts import VmStatus
from tests.fakes.broker import make_broker
from tests.fakes.listener import Listener
from tests.fakes.slot_store import MemoryVolume
from tests.fakes.waiting import PATIENCE_S

KEY, OTHER_KEY = ClusterKey(b"k" * 32), ClusterKey(b"x" * 32)
UP = VmStatus.UP
ENOUGH_S = PATIENCE_S


def question(number: int, asked: int = 1, asker: int = 2) -> Question:
    return Question(asker, asked, "boot", number, new_nonce())


def served(
    tmp_path: Path,
    test: Callable[[Broker, int], Awaitable[None]],
    host: str = "127.0.0.1",
    key: ClusterKey | None = KEY,
) -> None:
    """Host 1's port, as broker/main.py makes it."""

    async def main() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        broker.heartbeats.key = key
        clock = asyncio.get_running_loop().time
        port = HeartbeatPort(
            lambda datagram, source: broker.sign_of_life.answer(datagram, source, clock())
        )
        broker.gate.dropped = lambda: port.dropped
        try:
            await port.start([(host, 0)])
            async with asyncio.timeout(ENOUGH_S):
                await test(broker, port.ports[0])
        finally:
            port.close()

    asyncio.run(main())


class Client(asyncio.DatagramProtocol):
    """A socket that sends anything, and keeps what comes back."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.got.put_nowait(data)


@asynccontextmanager
async def client(port: int) -> AsyncIterator[tuple[asyncio.DatagramTransport, Client]]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        Client, remote_addr=("127.0.0.1", port)
    )
    try:
        yield transport, protocol
    finally:
        transport.abort()


async def answered(transport: NetworkTransport, address: str, asked: Question) -> Heartbeat | Fault:
    """The first datagram that comes back."""
    heard = []

    def take(raw: bytes) -> bool:
        heard.append(heard_in(KEY, raw, asked))
        return True

    await transport.ask_port(address, question_bytes(KEY, asked), take)
    return heard[0]


def test_to_answer_and_to_ask_needs_no_thread(tmp_path: Path) -> None:
    async def test(broker: Broker, port: int) -> None:
        await answered(NetworkTransport(), f"127.0.0.1:{port}", question(1))
        names = {thread.name for thread in threading.enumerate()}
        assert not {name for name in names if name.startswith("asyncio_")}

    before = threading.active_count()
    served(tmp_path, test)
    assert threading.active_count() == before


def test_what_is_no_question_takes_no_place_in_the_queue(tmp_path: Path) -> None:
    """Some datagrams of 60 KB, sent while the broker is busy, would fill it."""

    async def test(broker: Broker, port: int) -> None:
        asked = question(1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(200):
                stranger.sendto(b"ha-a" + b"x" * 60_000, ("127.0.0.1", port))
            stranger.sendto(question_bytes(KEY, asked), ("127.0.0.1", port))
            stranger.setblocking(False)
            raw = await asyncio.get_running_loop().sock_recv(stranger, DATAGRAM_BYTES)
        assert isinstance(heard_in(KEY, raw, asked), Heartbeat)
        assert broker.gate.dropped() == 200 and not broker.gate.refused

    served(tmp_path, test)


def test_a_kernel_that_takes_no_filter_costs_no_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(sock: socket.socket, payload_bytes: int, first: bytes) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(heartbeat_port, "accept_only", refuses)

    async def test(broker: Broker, port: int) -> None:
        asked = await answered(NetworkTransport(), f"127.0.0.1:{port}", question(1))
        assert isinstance(asked, Heartbeat)

    served(tmp_path, test)


@pytest.mark.usefixtures("patient")
def test_a_name_can_be_listened_at(tmp_path: Path) -> None:
    async def test(broker: Broker, port: int) -> None:
        assert isinstance(
            await answered(NetworkTransport(), f"localhost:{port}", question(1)), Heartbeat
        )

    served(tmp_path, test, host="localhost")


def test_a_place_that_is_taken_is_named(tmp_path: Path) -> None:
    async def test(broker: Broker, port: int) -> None:
        with pytest.raises(OSError, match="in use") as raised:
            await HeartbeatPort(lambda datagram, source: None).start([("127.0.0.1", port)])
        assert raised.value.filename == f"127.0.0.1 port {port}"

    served(tmp_path, test)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_question_is_answered_with_a_signature(tmp_path: Path, host: str) -> None:
    async def test(broker: Broker, port: int) -> None:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        answer = await answered(NetworkTransport(), address, question(1))
        assert isinstance(answer, Heartbeat) and answer.host_id == 1
        assert broker.gate.answered == 1

    if host == "::1" and not _has_ipv6():
        pytest.skip("no IPv6 on loopback here")
    served(tmp_path, test, host)


def _has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


def test_nothing_but_a_new_question_is_answered(tmp_path: Path) -> None:
    """Garbage, a datagram that is too long and a replay get no answer."""

    async def test(broker: Broker, port: int) -> None:
        async with client(port) as (out, back):
            old = question(1)
            out.sendto(question_bytes(KEY, old))
            assert isinstance(heard_in(KEY, await back.got.get(), old), Heartbeat)
            for raw in (
                b"x",
                b"x" * DATAGRAM_BYTES,
                b"x" * 60_000,
                b"ha-a" + b"x" * (DATAGRAM_BYTES - 4),
                question_bytes(KEY, old),
                question_bytes(OTHER_KEY, question(2)),
                question_bytes(KEY, question(3, asked=9)),
                answer_bytes(KEY, old, Heartbeat(1, "boot", 1, UP, old.nonce)),
            ):
                out.sendto(raw)
            new = question(10)
            out.sendto(question_bytes(KEY, new))
            answer = await back.got.get()
            assert isinstance(heard_in(KEY, answer, new), Heartbeat)
            assert heard_in(KEY, answer, old) is Fault.REPLAYED
            assert back.got.empty()
        assert broker.gate.refused == {
            Refusal.UNREADABLE: 1,
            Refusal.REPLAYED: 1,
            Refusal.WRONG_MAC: 1,
            Refusal.WRONG_HOST: 1,
            Refusal.REFLECTED: 1,
        }
        assert broker.gate.dropped() == 3, "the rest was no question at first sight"

    served(tmp_path, test)


def test_a_member_is_answered_in_the_middle_of_a_flood(tmp_path: Path) -> None:
    async def test(broker: Broker, port: int) -> None:
        async with client(port) as (out, back):
            broker.gate.members({2: (f"127.0.0.1:{port}",)})
            replay = question_bytes(KEY, question(1))
            for number in range(1, 11):
                for _ in range(20):
                    out.sendto(replay)
                    out.sendto(b"ha-agent".ljust(DATAGRAM_BYTES))
                    out.sendto(b"x" * 9000)
                asked = question(number + 1)
                out.sendto(question_bytes(KEY, asked))
                answers = [await back.got.get() for _ in range(2 if number == 1 else 1)]
                assert isinstance(heard_in(KEY, answers[-1], asked), Heartbeat)
        assert broker.gate.answered == 11
        assert broker.gate.refused == {Refusal.REPLAYED: 199, Refusal.UNREADABLE: 200}
        assert broker.gate.dropped() == 200

    served(tmp_path, test)


def test_a_listener_without_a_place_left_costs_no_heartbeat(tmp_path: Path) -> None:
    """The case: 256 idle connections from 16 addresses, and nobody could ask the host any more."""

    async def test(broker: Broker, port: int) -> None:
        listener = Listener(broker)
        await listener.start([("127.0.0.1", 0)])
        idle = []
        try:
            for n in range(Limits().connections):
                place = (f"127.0.0.{2 + n % (Limits().connections // Limits().per_client)}", 0)
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", listener.ports[0], local_addr=place
                )
                idle.append(writer)
            transport = NetworkTransport()
            for number in range(1, 4):
                answer = await answered(transport, f"127.0.0.1:{port}", question(number))
                assert isinstance(answer, Heartbeat)
        finally:
            for writer in idle:
                writer.close()
            await listener.close()

    served(tmp_path, test)


def test_without_a_key_nothing_is_answered(tmp_path: Path) -> None:
    async def test(broker: Broker, port: int) -> None:
        assert (
            broker.sign_of_life.answer(question_bytes(KEY, question(1)), "127.0.0.1", 1.0) is None
        )

    served(tmp_path, test, key=None)


# --- asking -----------------------------------------------------------------------------------


@asynccontextmanager
async def played(*answers: Callable[[Question, bytes], bytes]) -> AsyncIterator[int]:
    """A host that sends all of these to each question."""

    class Host(asyncio.DatagramProtocol):
        transport: asyncio.DatagramTransport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.DatagramTransport, transport)

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            for answer in answers:
                self.transport.sendto(answer(question_of(KEY, data), data), addr)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Host, local_addr=("127.0.0.1", 0))
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.abort()


def life(asked: Question, raw: bytes) -> bytes:
    return answer_bytes(KEY, asked, Heartbeat(2, "boot", 1, UP, asked.nonce))


def reflected(asked: Question, raw: bytes) -> bytes:
    return raw


def garbage(asked: Question, raw: bytes) -> bytes:
    return b"garbage"


def another_host(asked: Question, raw: bytes) -> bytes:
    return answer_bytes(KEY, asked, Heartbeat(3, "boot", 1, UP, asked.nonce))


def stale(asked: Question, raw: bytes) -> bytes:
    return answer_bytes(KEY, question(1, asked=2, asker=1), Heartbeat(2, "boot", 1, UP, "0" * 32))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers on this host answers, however busy it is."""
    monkeypatch.setattr(asker, "QUESTION_S", PATIENCE_S)
    monkeypatch.setattr(transport, "NAME_DEADLINE_S", PATIENCE_S)


def ask(*answers: Callable[[Question, bytes], bytes]) -> Heartbeats:
    """Host 1 asks host 2, which answers so, once."""

    async def main() -> Heartbeats:
        heartbeats = Heartbeats(1, KEY, NetworkTransport())
        running = asyncio.ensure_future(heartbeats.run())
        async with asyncio.timeout(ENOUGH_S), played(*answers) as port:
            await asyncio.sleep(0)
            now_s = asyncio.get_running_loop().time()
            heartbeats.look({2: Ways((f"127.0.0.1:{port}",))}, {2}, 60.0, now_s)
            while heartbeats.word(2) is Word.NOT_ASKED:
                heartbeats.look({2: Ways((f"127.0.0.1:{port}",))}, {2}, 1.0, now_s)
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return heartbeats

    return asyncio.run(main())


@pytest.mark.usefixtures("patient")
def test_what_is_no_answer_is_counted_and_the_answer_behind_it_is_taken() -> None:
    """Who can forge the sender's address cannot keep the peer's own answer out."""
    heartbeats = ask(garbage, reflected, another_host, stale, life)
    assert heartbeats.word(2) is Word.ANSWERED
    assert heartbeats.pulses[2].bad_answers == {
        "reflected": 1,
        "replayed": 1,
        "unreadable": 1,
        "wrong-host": 1,
    }


@pytest.mark.usefixtures("patient")
def test_without_an_answer_among_them_there_is_none() -> None:
    heartbeats = ask(*[stale] * (DATAGRAMS_MAX + 5))
    assert heartbeats.word(2) is Word.UNANSWERED
    assert heartbeats.pulses[2].bad_answers == {"replayed": DATAGRAMS_MAX}
    assert heartbeats.pulses[2].problem.endswith("/udp: replayed")


def test_a_port_that_nobody_listens_at_is_said_at_once() -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(OSError, match="refused"):
            async with asyncio.timeout(ENOUGH_S):
                await NetworkTransport().ask_port(f"127.0.0.1:{port}", b"x", lambda raw: True)

    asyncio.run(main())


def test_each_question_has_a_socket_of_its_own_which_is_closed_with_it() -> None:
    """A late answer finds nobody, and nobody can send one who does not know the port."""

    async def main() -> None:
        seen: list[tuple[str, int]] = []
        loop = asyncio.get_running_loop()

        class Host(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
                seen.append(addr)

        host, _ = await loop.create_datagram_endpoint(Host, local_addr=("127.0.0.1", 0))
        port = host.get_extra_info("sockname")[1]
        transport = NetworkTransport()
        for _ in range(2):
            asking = asyncio.ensure_future(
                transport.ask_port(f"127.0.0.1:{port}", b"x", lambda raw: True)
            )
            before = len(seen)
            while len(seen) == before:
                await asyncio.sleep(0.001)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await asyncio.sleep(0)
            # The port is free again: it can be bound.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
                late.bind(("127.0.0.1", seen[-1][1]))
        host.abort()

    asyncio.run(main())


def test_a_refused_address_is_logged_once_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    refusals = RefusalLog()
    with caplog.at_level(logging.DEBUG, "ha-broker.heartbeat"):
        for _ in range(1000):
            refusals.refused("192.0.2.1", 3, Refusal.WRONG_MAC)
            refusals.refused("192.0.2.1", 3, Refusal.REPLAYED)
            refusals.refused("203.0.113.9", None, Refusal.STRANGER)
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("INFO", "datagrams from 192.0.2.1 (host 3) are not answered: wrong-mac"),
        ("INFO", "datagrams from 192.0.2.1 (host 3) are not answered: replayed"),
        ("DEBUG", "datagrams from 203.0.113.9 are not answered: stranger"),
    ]
    for n in range(3 * REMEMBERED_MAX):
        refusals.refused(f"192.0.2.{n}", None, Refusal.STRANGER)
    assert len(refusals._said) == REMEMBERED_MAX

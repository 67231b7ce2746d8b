# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker over TCP, on real sockets: what it answers, and what clients cannot do to it."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from broker.api import bounded_server
from broker.api.bounded_server import Limits, client_of
from broker.config.cluster_key import ClusterKey
from broker.daemon.name_lookup import NameLookup
from broker.main import StartError, run
from broker.peers.heartbeat import Fault, Heartbeat, heard, new_nonce
from broker.peers.heartbeat_port import NetworkTransport
from broker.peers.transport import Names
from tests.fakes.broker import make_broker
from tests.fakes.listener import Listener
from tests.fakes.slot_store import MemoryVolume
from tests.fakes.tcp import talk
from tests.fakes.waiting import until

KEY = ClusterKey(b"k" * 32)
NONCE = "0123456789abcdef" * 2


def served(
    tmp_path: Path,
    test: Callable[[Listener, int], Awaitable[None]],
    key: ClusterKey | None = KEY,
    host: str = "127.0.0.1",
) -> None:
    async def main() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        broker.heartbeats.key = key
        door = Listener(broker)
        try:
            await door.start([(host, 0)])
            await test(door, door.ports[0])
        finally:
            await door.close()
        await asyncio.sleep(0)
        assert not door.connections, "every connection is counted out again"

    asyncio.run(main())


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: ha\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_question_over_http_is_answered_with_a_signature(tmp_path: Path, host: str) -> None:
    async def test(door: Listener, port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        nonce = new_nonce()
        raw = await NetworkTransport().ask_listener(f"{shown}:{port}", nonce)
        assert isinstance(heard(KEY, raw, 1, nonce), Heartbeat)
        assert heard(KEY, raw, 1, new_nonce()) is Fault.REPLAYED
        assert json.loads(raw)["vm"] == "unknown"

    if host == "::1" and not _has_ipv6():
        pytest.skip("no IPv6 on loopback here")
    served(tmp_path, test, host=host)


def _has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


def test_without_a_key_there_is_no_heartbeat(tmp_path: Path) -> None:
    async def test(door: Listener, port: int) -> None:
        answer = await talk(port, get(f"/heartbeat?nonce={NONCE}"))
        assert answer.startswith(b"HTTP/1.1 404") and b"cluster-key" in answer
        with pytest.raises(ConnectionError, match="HTTP status 404"):
            await NetworkTransport().ask_listener(f"127.0.0.1:{port}", NONCE)

    served(tmp_path, test, key=None)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (get("/heartbeat"), 400),
        (get("/heartbeat?nonce=1234"), 400),
        (get(f"/heartbeat?nonce={NONCE}%0a"), 400),
        (get("/x"), 404),
        (get("/v1/status"), 404),
        (get(f"/heartbeat?nonce={NONCE}").replace(b"GET", b"PUT"), 405),
        (get("/" + "x" * bounded_server.LINE_BYTES_MAX), 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * bounded_server.LINE_BYTES_MAX + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\n" * 9, 400),
    ],
)
def test_other_requests_are_turned_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: bytes, status: int
) -> None:
    async def test(door: Listener, port: int) -> None:
        refusal = await talk(port, sent)
        assert b"Content-Type: application/problem+json" in refusal
        assert b"aiohttp" not in refusal and b"Python" not in refusal, "software and its version"
        assert (await talk(port, sent)).startswith(b"HTTP/1.%d %d" % (1, status)) or (
            await talk(port, sent)
        ).startswith(b"HTTP/1.0 %d" % status)
        assert (await talk(port, get(f"/heartbeat?nonce={NONCE}"))).startswith(b"HTTP/1.1 200")

    served(tmp_path, test)
    assert not [record for record in caplog.records if record.exc_info], "anybody can send it"


@pytest.mark.parametrize(
    "sent", [b"", b"GET /heartbeat HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\nX: y\r\nZ"]
)
def test_a_slow_client_is_dropped(tmp_path: Path, sent: bytes) -> None:
    async def test(door: Listener, port: int) -> None:
        door.limits = Limits(request_s=0.2)
        loop = asyncio.get_running_loop()
        # The door counts from when it takes the connection, which may be long before this goes on.
        began_s = loop.time()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def drip() -> None:
            writer.write(sent)
            while True:
                writer.write(b"x" if sent else b"")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        try:
            async with asyncio.timeout(5.0):
                while await reader.read(100):
                    pass
        except ConnectionResetError:
            pass
        dripping.cancel()
        assert loop.time() - began_s >= 0.15
        writer.close()

    served(tmp_path, test)


def test_one_client_cannot_take_all_places(tmp_path: Path) -> None:
    async def test(door: Listener, port: int) -> None:
        most = door.limits.per_client
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(most + 3)]
        await until(lambda: door.turned_away == 3)
        assert door.connections == {"127.0.0.1": most}
        for _, writer in held:
            writer.close()
        await until(lambda: not door.connections)
        assert (await talk(port, get(f"/heartbeat?nonce={NONCE}"))).startswith(b"HTTP/1.1 200")

    served(tmp_path, test)


def test_there_are_places_for_so_many_clients() -> None:
    door = bounded_server.BoundedServer(web.Application())
    most = door.limits.connections
    clients = [f"10.0.{n // 250}.{n % 250}" for n in range(most + 1)]
    assert [door.admits(client) for client in clients] == [True] * most + [False]
    door.left(clients[0])
    assert door.admits(clients[-1])


def test_who_is_idle_gives_way_the_longest_first_and_of_the_same_client_where_it_has_all() -> None:
    door = bounded_server.BoundedServer(web.Application(), Limits(connections=3, per_client=2))
    ended: list[str] = []

    def comes(key: str, client: str) -> bool:
        def end() -> None:
            ended.append(key)
            door.left(client)

        is_in = door.admits(client)
        if is_in:
            door.rests(key, client, end)
        return is_in

    assert comes("a1", "a") and comes("b1", "b") and comes("a2", "a") and not ended
    door.works("a1")
    assert comes("a3", "a") and ended == ["a2"]
    assert comes("c1", "c") and ended == ["a2", "b1"]
    door.works("a3")
    door.works("c1")
    assert not comes("d1", "d"), "all are worked for"
    assert door.connections == {"a": 2, "c": 1} and door.turned_away == 3


POST = b"POST /api/v1/orders HTTP/1.1\r\nHost: ha\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", True),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", True),
        (POST + b"Content-Length: 9\r\n\r\n{}", False),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nFFFF\r\n", False),
    ],
)
def test_a_body_that_is_none_costs_a_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: bytes, answered: bool
) -> None:
    """The body cannot be decoded, or its sender leaves in the middle of it."""

    async def test(door: Listener, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        if answered:
            async with asyncio.timeout(10.0):
                assert (await reader.read()).startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
        else:
            await asyncio.sleep(0.05)
            writer.transport.abort()
        writer.close()
        await asyncio.sleep(0.05)

    served(tmp_path, test)
    assert not [record for record in caplog.records if record.exc_info], "anybody can send it"


def test_a_connection_that_gives_way_before_it_was_looked_at_leaves_no_error(
    tmp_path: Path,
) -> None:
    """Each of them is ended by the next one, most of them in the moment in which they came, some
    with a request: under a flood the log was full of tracebacks of the library."""
    wrong: list[dict[str, object]] = []

    async def test(door: Listener, port: int) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: wrong.append(context))
        door.limits = Limits(per_client=1)
        for sent in (b"", get("/heartbeat"), b"nonsense\r\n\r\n"):
            socks = []
            for _ in range(20):
                sock = socket.create_connection(("127.0.0.1", port))
                sock.send(sent)
                socks.append(sock)
            # The connections end in the same turn of the loop as their data comes.
            for _ in range(50):
                await asyncio.sleep(0)
            for sock in socks:
                sock.close()
            await asyncio.sleep(0.01)
        gc.collect()

    served(tmp_path, test)
    assert [str(context.get("exception")) for context in wrong] == []


def test_an_ipv6_network_is_one_client() -> None:
    one, other = "2001:db8:1:2::1", "2001:db8:1:2:ffff::9%eth0"
    assert client_of(one) == client_of(other) == "2001:db8:1:2::/64"
    assert client_of("2001:db8:1:3::1") != client_of(one)
    assert client_of("::ffff:192.0.2.1") == client_of("192.0.2.1") == "192.0.2.1"


class Counting(asyncio.Protocol):
    """In front of the library's protocol: what it is given."""

    def __init__(self, inner: asyncio.Protocol, taken: list[bytes]) -> None:
        self._inner, self._taken = inner, taken

    def data_received(self, data: bytes) -> None:
        self._taken.append(data)
        self._inner.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)


@pytest.mark.parametrize("piece", [b"X: y\r\n", b"A" * 1500 + b": b\r\n"])
def test_a_request_is_bounded_before_any_library_keeps_it(tmp_path: Path, piece: bytes) -> None:
    """aiohttp 3.11 kept 2.5 GB of header lines of one connection."""
    taken: list[bytes] = []

    async def test(door: Listener, port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: door._idle)
        guest = next(key for key in door._idle if isinstance(key, bounded_server.Connection))
        guest._inner = Counting(guest._inner, taken)
        writer.write(b"GET / HTTP/1.1\r\n")
        for _ in range(200):
            try:
                writer.write(piece * 20)
                await writer.drain()
            except ConnectionError:
                break
        writer.transport.abort()
        await asyncio.sleep(0.05)

    served(tmp_path, test)
    assert sum(map(len, taken)) <= Limits().request_bytes


def test_the_loop_is_never_held_up_by_a_flood(tmp_path: Path) -> None:
    """The beat shares the loop: clients that ask as fast as they can delay it by little."""

    async def test(door: Listener, port: int) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + 1.0
        answers = 0

        async def flood() -> None:
            nonlocal answers
            while loop.time() < until_s:
                answers += (await talk(port, get(f"/heartbeat?nonce={NONCE}"))).startswith(
                    b"HTTP/1.1 200"
                )

        # Seconds of this thread's processor: other processes on a busy machine do not count.
        late_s = []

        async def beat() -> None:
            while loop.time() < until_s:
                before_s = time.thread_time()
                await asyncio.sleep(0.02)
                late_s.append(time.thread_time() - before_s)

        clients = [asyncio.create_task(flood()) for _ in range(12)]
        await beat()
        await asyncio.gather(*clients)
        assert answers, "and they are answered meanwhile"
        # The clients are in the same process; alone they would be no slower on two processors.
        assert sorted(late_s)[len(late_s) // 2] < 0.25

    served(tmp_path, test)


# --- the asker against servers that answer anything -----------------------------------------


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n", "HTTP status 302"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + b"x" * 99999, "no end"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 99999, "no HTTP|no end"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 9999, "no end"),
        (b"SSH-2.0-x\r\n", "no HTTP"),
        (b"", "no HTTP|closed"),
    ],
)
def test_bad_servers_are_an_error_and_bounded(answer: bytes, error: str) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(OSError, match=error):
                async with asyncio.timeout(5.0):
                    await NetworkTransport().ask_listener(f"127.0.0.1:{port}", NONCE)

    asyncio.run(main())


def test_a_name_s_address_is_kept_while_the_resolver_fails() -> None:
    answers: list[str | OSError] = ["192.0.2.1", OSError("no resolver"), "192.0.2.2"]

    class Resolver(NameLookup):
        async def addresses(self, name: str) -> list[str]:
            answer = answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return [answer]

    async def main() -> None:
        names = Names()
        names.lookup = Resolver("test")
        assert await names.find("host2") == "192.0.2.1"
        assert await names.find("host2") == "192.0.2.1"
        assert len(answers) == 2, "not looked up each time"
        for wanted in ("192.0.2.1", "192.0.2.2"):
            address, _ = names._known["host2"]
            names._known["host2"] = address, 0.0
            assert await names.find("host2") == wanted
        answers.append(OSError("no resolver"))
        with pytest.raises(OSError, match="host3"):
            await names.find("host3")
        assert await names.find("192.0.2.9") == "192.0.2.9"
        assert await names.find("fe80::1") == "fe80::1"

    asyncio.run(main())


def test_an_address_that_is_taken_is_a_start_error_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.main.check_storage", lambda config: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = make_broker(tmp_path, MemoryVolume()).config
        api = msgspec.structs.replace(config.api, listen=(f"127.0.0.1:{port}",))
        daemon = msgspec.structs.replace(config.daemon, secrets=str(tmp_path / "none"))
        config = msgspec.structs.replace(config, api=api, daemon=daemon)
        with pytest.raises(StartError, match=rf"^api.listen: 127.0.0.1 port {port}: ") as caught:
            asyncio.run(run("file", config))
    assert caught.value.code == 4

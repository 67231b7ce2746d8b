# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that meets strangers, as a process: what it passes on, and what it keeps away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from broker.api import front, front_process
from broker.api.dashboard import FILES
from broker.api.errors import Busy
from broker.api.front import FrontProcess, own_names
from broker.api.front_process import Pool, is_own
from broker.api.pages import application
from broker.broker import Broker
from tests.fakes.broker import make_broker
from tests.fakes.slot_store import MemoryVolume

TOKEN = "t" * 32


def served(
    tmp_path: Path, test: Callable[[FrontProcess, Broker, int], Awaitable[None]], tls: bool = False
) -> None:
    async def main() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        front = FrontProcess(broker, TOKEN)
        await front.start([("127.0.0.1", 0)])
        running = asyncio.create_task(front.run())
        try:
            async with asyncio.timeout(30.0):
                await front.ready.wait()
            await broker.beat(1.0)
            await test(front, broker, front.ports[0])
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            await front.close()

    asyncio.run(main())


async def ask(
    port: int, path: str, more: str = "", host: str = "localhost", verb: str = "GET"
) -> str:
    """Head and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"{verb} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n".encode()
    )
    async with asyncio.timeout(20.0):
        found = await reader.read()
    writer.close()
    return found.decode()


@pytest.mark.slow
def test_what_the_process_passes_on_and_what_it_keeps_away(tmp_path: Path) -> None:
    """One process, since a start of it takes a second."""

    async def test(front: FrontProcess, broker: Broker, port: int) -> None:
        answers = {}
        for path in ("/", "/metrics", "/api/v1/status", "/api/v1/events", "/api/v1/openapi.json"):
            answers[path] = await ask(port, path)
            assert answers[path].startswith("HTTP/1.1 200"), (path, answers[path][:200])
        for answer in answers.values():
            assert "\r\nServer:" not in answer
            assert "X-Content-Type-Options: nosniff" in answer
        assert '"host_id":1' in answers["/api/v1/status"]
        assert "ha_agent_api_connections 1.0" in answers["/metrics"]
        assert (await ask(port, "/v1/view")).startswith("HTTP/1.1 404")
        assert (await ask(port, "/api/v1/status", verb="PUT")).startswith("HTTP/1.1 405")
        # Another site's name in Host: somebody's browser was led here.
        assert (await ask(port, "/api/v1/status", host="evil.example")).startswith("HTTP/1.1 421")
        assert (await ask(port, "/", host="evil.example:8765")).startswith("HTTP/1.1 421")
        assert (await ask(port, "/metrics", host="prometheus-alias")).startswith("HTTP/1.1 200")
        # What a client says of itself in the words of the process is not passed on.
        forged = "X-Ha-Client: 192.0.2.1\r\nX-Ha-Open-Connections: 77\r\n"
        await asyncio.sleep(1.1)
        assert "api_connections 77" not in await ask(port, "/metrics", forged)

        await the_token(port, broker)
        await a_stream(port, broker)
        await another_life(front, port)

    served(tmp_path, test)


async def the_token(port: int, broker: Broker) -> None:
    """Wrong ones are bounded, and lock the right one out of nothing."""
    wrong = [await ask(port, "/api/v1/token", "Authorization: Bearer x\r\n") for _ in range(12)]
    assert [answer[9:12] for answer in wrong[:10]] == ["401"] * 10
    assert wrong[-1][9:12] == "429"
    right = f"Authorization: Bearer {TOKEN}\r\n"
    assert (await ask(port, "/api/v1/token", right))[9:12] == "200"
    body = '{"on":true,"reason":"work"}'
    more = f"{right}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"PUT /api/v1/maintenance/local HTTP/1.1\r\nHost: localhost\r\n{more}\r\n{body}".encode()
    )
    assert b" 200 " in await reader.readline()
    writer.close()
    assert broker.modes.is_set


async def a_stream(port: int, broker: Broker) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET /api/v1/events?status=yes HTTP/1.1\r\nHost: localhost\r\n"
        b"Accept: text/event-stream\r\n\r\n"
    )
    async with asyncio.timeout(10.0):
        await reader.readuntil(b"event: status")
        await broker.beat(2.0)
        await reader.readuntil(b"event: status")
    writer.close()


async def another_life(front: FrontProcess, port: int) -> None:
    """Kill the process, and wait for another one on the same sockets: the broker lives on."""
    process = front._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    async with asyncio.timeout(30.0):
        while not front.ready.is_set() or front._process is process:
            await asyncio.sleep(0.05)
    assert (await ask(port, "/api/v1/status"))[9:12] == "200"


def test_a_process_that_does_not_end_is_killed_though_its_owner_was_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker ends so; a process that went on would hold the sockets."""
    monkeypatch.setattr(front, "END_S", 0.05)

    async def run() -> int | None:
        process = await asyncio.create_subprocess_exec(
            "sleep", "600", stdin=asyncio.subprocess.PIPE
        )

        async def live() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await front._ended(process)

        life = asyncio.create_task(live())
        await asyncio.sleep(0)
        life.cancel()
        await asyncio.wait([life])
        code = process.returncode
        if code is None:
            process.kill()
            await process.wait()
        return code

    assert asyncio.run(run()) == -signal.SIGKILL


@pytest.mark.slow
def test_the_process_is_bounded_and_goes_first(tmp_path: Path) -> None:
    """Before the broker, and before QEMU: so the kernel sees it (proc(5))."""

    async def test(front: FrontProcess, broker: Broker, port: int) -> None:
        assert front._process is not None
        proc = Path("/proc", str(front._process.pid))
        limits = {
            line[:26].strip(): line[26:].split()[:2]
            for line in (proc / "limits").read_text().splitlines()
        }
        assert limits["Max open files"] == ["1024", "1024"]
        assert limits["Max data size"] == [str(512 * 2**20)] * 2
        assert int((proc / "oom_score_adj").read_text()) == 500
        own, its = (
            int(path.read_text().rpartition(")")[2].split()[16])
            for path in (Path("/proc/self/stat"), proc / "stat")
        )
        assert its == min(own + 10, 19), "it gives way to the beat"

    served(tmp_path, test)


def test_whatever_the_broker_answers_the_process_passes_on(tmp_path: Path) -> None:
    app = application(make_broker(tmp_path, MemoryVolume()))
    pages = set(FILES)
    asked = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    asked = {(method, path) for method, path in asked if path not in pages}
    assert asked == {(method, path) for method, path, _ in front_process._ROUTES}


def test_names_of_this_host(tmp_path: Path) -> None:
    config = make_broker(tmp_path, MemoryVolume()).config
    config = msgspec.structs.replace(
        config,
        host=msgspec.structs.replace(config.host, name="Host1.example.org"),
        api=msgspec.structs.replace(config.api, names=("ha.example.org",), advertise=("h1:8765",)),
    )
    names = own_names(config)
    assert names == {"localhost", "host1.example.org", "host1", "ha.example.org", "h1"}


@pytest.mark.parametrize(
    ("host", "own"),
    [
        (None, True),
        ("host1", True),
        ("HOST1.:8765", True),
        ("192.0.2.1:8765", True),
        ("[2001:db8::1]:8765", True),
        ("[::1]", True),
        ("host1.evil.example", False),
        ("evil.example:8765", False),
        ("", False),
        ("192.0.2.1.nip.io", False),
    ],
)
def test_whether_host_is_this_one(host: str | None, own: bool) -> None:
    assert is_own(host, frozenset({"host1"})) is own


def test_a_pool_gives_so_many_places_and_so_many_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_process, "WAIT_S", 0.01)

    async def run() -> None:
        pool = Pool(2, 5.0)
        async with pool.place(), pool.place():
            with pytest.raises(Busy):
                async with pool.place():
                    pass
        async with pool.place():
            pass
        async with pool.place():
            pass
        with pytest.raises(Busy):
            async with pool.place():
                pass

    asyncio.run(run())

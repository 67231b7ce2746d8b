# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent's link against a socket that answers anything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from broker.client import link as link_module
from broker.client.ask import BrokerDown, BrokerRefused
from broker.client.link import Link
from broker.wire.exchange import Report, View
from broker.wire.hosts import LocalOnWire
from broker.wire.problem import Problem
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.waiting import PATIENCE_S, until

REPORT = Report(3400, "EngineUp", (), (), 1)
VIEW = View(
    version=7,
    local=LocalOnWire(1, EngineStatus(VmStatus.UP, Health.GOOD, "up", None), 1.0),
    peers=(),
    storage_good_since_s=1.0,
    sweep=1,
    global_maintenance=False,
    newer_versions=(),
    lockspace_joined=True,
    system_uuids={},
    hostnames={},
)


def answer(status: int, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} Word", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


GOOD = answer(200, msgspec.json.encode(VIEW))


def against(
    tmp_path: Path,
    test: Callable[[Link], Awaitable[None]],
    *answers: bytes | None,
    close: bool = False,
    asked: list[bytes] | None = None,
) -> int:
    """Run `test` with a link to a server that gives these answers, one a request, the last
    one for ever; None: it says nothing. `asked`: gets the head of each request. Returns the number
    of connections made."""
    connections = 0
    serving: list[asyncio.Task[None]] = []
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        task = asyncio.current_task()
        assert task is not None
        serving.append(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                now = left.pop(0) if len(left) > 1 else left[0]
                if asked is not None:
                    asked.append(head)
                if now is not None:
                    writer.write(now)
                    await writer.drain()
                if close:
                    break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def main() -> None:
        path = str(tmp_path / "broker.sock")
        server = await asyncio.start_unix_server(serve, path)
        link = Link(path)
        try:
            await test(link)
        finally:
            await link.close()
            server.close()
            await asyncio.gather(*serving)

    asyncio.run(main())
    return connections


def test_one_connection_serves_many_beats(tmp_path: Path) -> None:
    async def test(link: Link) -> None:
        for _ in range(5):
            assert await link.exchange(REPORT) == VIEW

    assert against(tmp_path, test, GOOD) == 1


def test_what_is_held_back_does_not_hold_back_the_rest(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def test(link: Link) -> None:
        waiting = asyncio.create_task(link.exchange(REPORT, 7))
        await until(lambda: asked)
        assert await link.exchange(REPORT) == VIEW
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    assert against(tmp_path, test, None, GOOD, asked=asked) == 2


def test_a_broker_started_anew_is_no_failure(tmp_path: Path) -> None:
    async def test(link: Link) -> None:
        for _ in range(3):
            assert await link.exchange(REPORT) == VIEW
            await asyncio.sleep(0.02)

    assert against(tmp_path, test, GOOD, close=True) == 3


def test_nobody_there(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(BrokerDown, match=r"nobody\.sock"):
            await Link(str(tmp_path / "nobody.sock")).exchange(REPORT)

    asyncio.run(main())


def test_a_refusal_is_told_in_its_words(tmp_path: Path) -> None:
    async def test(link: Link) -> None:
        with pytest.raises(BrokerRefused, match="no: because"):
            await link.exchange(REPORT)
        assert await link.exchange(REPORT) == VIEW

    problem = answer(403, msgspec.json.encode(Problem("no", 403, "because")))
    assert against(tmp_path, test, problem, GOOD) == 1


@pytest.mark.parametrize(
    "bad",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\xff\xfe" * 200 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    ],
)
def test_garbage_is_a_broker_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: bytes
) -> None:
    monkeypatch.setattr(link_module, "LINK_TIMEOUT_S", 0.3)

    async def test(link: Link) -> None:
        with pytest.raises(BrokerDown):
            await link.exchange(REPORT)
        monkeypatch.setattr(link_module, "LINK_TIMEOUT_S", PATIENCE_S)
        assert await link.exchange(REPORT) == VIEW

    against(tmp_path, test, bad, GOOD)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"version": "x"}'])
def test_a_body_that_is_no_view_is_refused(tmp_path: Path, body: bytes) -> None:
    async def test(link: Link) -> None:
        with pytest.raises(BrokerRefused, match="does not fit"):
            await link.exchange(REPORT)

    against(tmp_path, test, answer(200, body))


def test_an_endless_body_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "ANSWER_BYTES_MAX", 100_000)

    async def test(link: Link) -> None:
        with pytest.raises(BrokerDown):
            await link.exchange(REPORT)

    against(tmp_path, test, answer(200, b" " * 300_000))


def test_silence_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LINK_TIMEOUT_S", 0.1)

    async def test(link: Link) -> None:
        with pytest.raises(BrokerDown, match="Timeout"):
            await link.exchange(REPORT)

    against(tmp_path, test, None)

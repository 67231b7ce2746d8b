# SPDX-License-Identifier: LGPL-2.1-or-later
"""What strangers do to a host, all of it at once, as a program:

`python -m tests.bench.attack ADDRESS TCP_PORT UDP_PORT SOURCE…`, SOURCES addresses of its own

IDLE connections that send nothing and are made again when they are dropped, FLOODS of header
lines, as many event streams as there may be, ASKERS that ask for what is dearest without a pause,
and PER_SECOND datagrams a second to the port for heartbeats, half of them garbage that looks like a
question, half one question that a member asked before. That one comes in hexadecimal on standard
input. Runs until standard input ends, then says in JSON what it has done.

It is the machine of the strangers: it gives way to everything else on this one (NICE).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from broker.api.event_stream import STREAMS_MAX, STREAMS_PER_CLIENT_MAX
from broker.peers.datagram import DATAGRAM_BYTES, QUESTION_BEGINS

IDLE, FLOODS, ASKERS = 256, 8, 16
#: Addresses: those of the idle ones, of the streams, and of the rest.
IDLE_FROM, STREAMS_FROM = 16, STREAMS_MAX // STREAMS_PER_CLIENT_MAX
SOURCES = IDLE_FROM + STREAMS_FROM + 8
PER_SECOND, BURST = 2000, 20
#: Header lines that a flood sends in one go.
LINES = 500
AGAIN_S, GIVE_UP_S, NICE = 0.05, 6.0, 19
DEAREST = ("/metrics", "/api/v1/status", "/api/v1/events", "/api/v1/history")


class Strangers:
    """All of them; `done`: how much of what they have done."""

    def __init__(self, address: str, port: int, heartbeat_port: int, sources: list[str]) -> None:
        self._target, self._heartbeats = (address, port), (address, heartbeat_port)
        self._idle_from = sources[:IDLE_FROM]
        self._streams_from = sources[IDLE_FROM : IDLE_FROM + STREAMS_FROM]
        self._rest_from = sources[IDLE_FROM + STREAMS_FROM :]
        self.done: Counter[str] = Counter()

    async def run(self, recorded: bytes) -> None:
        """For ever. `recorded`: the question that was asked before."""
        async with asyncio.TaskGroup() as group:
            for act, times in (
                (self._idle, IDLE),
                (self._flood, FLOODS),
                (self._stream, STREAMS_MAX),
                (self._ask, ASKERS),
            ):
                for number in range(times):
                    group.create_task(self._again(act, number))
            group.create_task(self._send(recorded))

    async def _again(self, act: Callable[[int], Awaitable[None]], number: int) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                await act(number)
            await asyncio.sleep(AGAIN_S)

    async def _open(self, source: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self._target, local_addr=(source, 0))

    async def _idle(self, number: int) -> None:
        reader, writer = await self._open(self._idle_from[number % IDLE_FROM])
        self.done["idle connections"] += 1
        try:
            await reader.read()
        finally:
            writer.close()

    async def _flood(self, number: int) -> None:
        reader, writer = await self._open(self._rest_from[number % len(self._rest_from)])
        writer.write(b"GET / HTTP/1.1\r\n")
        try:
            while not reader.at_eof():
                writer.write(b"X-%d: y\r\n" % number * LINES)
                self.done["header lines"] += LINES
                async with asyncio.timeout(GIVE_UP_S):
                    await writer.drain()
                await asyncio.sleep(0)
        finally:
            writer.transport.abort()

    async def _stream(self, number: int) -> None:
        reader, writer = await self._open(self._streams_from[number % STREAMS_FROM])
        writer.write(
            b"GET /api/v1/events?status=yes HTTP/1.1\r\nHost: localhost\r\n"
            b"Accept: text/event-stream\r\n\r\n"
        )
        try:
            while part := await reader.read(65536):
                self.done["statuses streamed"] += part.count(b"event: status")
        finally:
            writer.close()

    async def _ask(self, number: int) -> None:
        path = DEAREST[number % len(DEAREST)]
        reader, writer = await self._open(self._rest_from[number % len(self._rest_from)])
        try:
            while True:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                self.done[f"answers {head.split(maxsplit=2)[1].decode()}"] += 1
        finally:
            writer.close()

    async def _send(self, recorded: bytes) -> None:
        garbage = QUESTION_BEGINS.ljust(DATAGRAM_BYTES, b"x")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            due_s = time.monotonic()
            while True:
                for raw in (garbage, recorded) * (BURST // 2):
                    with contextlib.suppress(OSError):
                        sock.sendto(raw, self._heartbeats)
                        self.done["datagrams"] += 1
                due_s += BURST / PER_SECOND
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))


async def main() -> None:
    """Until standard input ends."""
    address, port, heartbeat_port, *sources = sys.argv[1:]
    os.nice(NICE)
    recorded = bytes.fromhex(sys.stdin.readline())
    strangers = Strangers(address, int(port), int(heartbeat_port), sources)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    them = asyncio.create_task(strangers.run(recorded))
    print("begun", flush=True)
    await ended.wait()
    them.cancel()
    await asyncio.gather(them, return_exceptions=True)
    print(json.dumps(strangers.done), flush=True)


if __name__ == "__main__":
    asyncio.run(main())

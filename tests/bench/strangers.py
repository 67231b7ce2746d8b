# SPDX-License-Identifier: LGPL-2.1-or-later
"""How late a broker's beats begin, and its loop wakes, while strangers do what they can over TCP
and write a forged slot a second: `python -m tests.bench strangers`.

At once, from a process of their own: 256 connections from 16 addresses that send nothing and are
made again when they are dropped; floods of header lines; 64 event streams; and clients that ask
for what is dearest as fast as they can. Once with the process that meets strangers, and once, for
comparison, with the same pages answered in the broker's own loop, as earlier versions did.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.api.event_stream import STREAMS_MAX, STREAMS_PER_CLIENT_MAX
from broker.api.front import FrontDoor
from broker.daemon.histogram import Histogram
from tests.fakes.broker import make_broker, report, up
from tests.fakes.hostile import Hostile
from tests.fakes.listener import Listener
from tests.fakes.slot_store import MemoryStore, MemoryVolume

from .figure import Figure

SETTLE_S, TICK_S = 3.0, 0.01
P99_MAX_MS = 50.0
HOSTS = 3
ADDRESSES, IDLE, FLOODS, ASKERS = 16, 256, 8, 16
#: Argument: the port.
STRANGERS = f"""
import asyncio, sys, itertools
port = int(sys.argv[1])

async def opened(kind, number):
    source = f"127.0.{{kind}}.{{number % {ADDRESSES} + 1}}"
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))

async def again(do, *arguments):
    while True:
        try:
            await do(*arguments)
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.05)

async def idle(number):
    reader, writer = await opened(1, number)
    await reader.read()
    writer.close()

async def flood(number):
    reader, writer = await opened(2, number)
    writer.write(b"GET / HTTP/1.1\\r\\n")
    try:
        while True:
            writer.write(b"X-%d: y\\r\\n" % number * 500)
            await asyncio.wait_for(writer.drain(), 6.0)
            if reader.at_eof():
                break
            await asyncio.sleep(0)
    except TimeoutError:
        pass
    writer.close()

async def stream(number):
    source = f"127.0.3.{{number // {STREAMS_PER_CLIENT_MAX} + 1}}"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    writer.write(b"GET /api/v1/events?status=yes HTTP/1.1\\r\\nHost: localhost\\r\\n"
                 b"Accept: text/event-stream\\r\\n\\r\\n")
    while await reader.read(65536):
        pass
    writer.close()

async def ask(number):
    path = (b"/metrics", b"/api/v1/status", b"/api/v1/events", b"/api/v1/history")[number % 4]
    reader, writer = await opened(4, number)
    try:
        while True:
            writer.write(b"GET %s HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n" % path)
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\\r\\n")[0])
            await reader.readexactly(length)
    finally:
        writer.close()

async def main():
    await asyncio.gather(
        *(again(idle, number) for number in range({IDLE})),
        *(again(flood, number) for number in range({FLOODS})),
        *(again(stream, number) for number in range({STREAMS_MAX})),
        *(again(ask, number) for number in range({ASKERS})),
    )

asyncio.run(main())
"""


def measure(minutes: float) -> Iterator[Figure]:
    """p99 of how late beats begin and the loop wakes, with the process of its own and without."""
    for is_apart, where in ((True, "a process of their own"), (False, "the broker's own loop")):
        beats_ms, wakes_ms, cpu = asyncio.run(_late(is_apart, 60.0 * minutes))
        target = P99_MAX_MS if is_apart else None
        yield Figure(f"beats, strangers in {where}", "", [float(len(beats_ms))])
        yield Figure(f"p99 of beat start, strangers in {where}", "ms", [_p99(beats_ms)], target)
        yield Figure(f"latest beat, strangers in {where}", "ms", [max(beats_ms)])
        yield Figure(f"p99 of the loop's wakes, strangers in {where}", "ms", [_p99(wakes_ms)])
        yield Figure(f"CPU of the broker, strangers in {where}", "%", [100 * cpu])


class Noted(Histogram):
    """Keeps every value."""

    def __init__(self) -> None:
        super().__init__()
        self.values_ms: list[float] = []

    def add(self, seconds: float) -> None:
        super().add(seconds)
        self.values_ms.append(1e3 * seconds)


def _p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


async def _late(is_apart: bool, run_s: float) -> tuple[list[float], list[float], float]:
    loop = asyncio.get_running_loop()
    with TemporaryDirectory() as folder:
        volume = MemoryVolume()
        brokers = [make_broker(Path(folder), volume, host) for host in range(1, HOSTS + 1)]
        for broker in brokers:
            up(broker, loop.time())
            broker.take_report(report(), loop.time())
            await broker.beat(loop.time())
        broker = brokers[0]
        door: FrontDoor | Listener = FrontDoor(broker) if is_apart else Listener(broker)
        await door.start([("127.0.0.1", 0)])
        tasks = [asyncio.create_task(broker.run())]
        if isinstance(door, FrontDoor):
            tasks.append(asyncio.create_task(door.run()))
            await door.ready.wait()
        strangers = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", STRANGERS, str(door.ports[0])), stderr=subprocess.DEVNULL
        )
        try:
            await asyncio.sleep(SETTLE_S)
            noted = Noted()
            broker.lateness = noted
            tasks.append(asyncio.create_task(_forge(volume)))
            cpu_s, began_s = time.process_time(), loop.time()
            wakes_ms = await _wakes(began_s + run_s)
            return (
                noted.values_ms,
                wakes_ms,
                (time.process_time() - cpu_s) / (loop.time() - began_s),
            )
        finally:
            strangers.kill()
            await strangers.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await door.close()


async def _wakes(until_s: float) -> list[float]:
    loop, late_ms = asyncio.get_running_loop(), []
    while loop.time() < until_s:
        due_s = loop.time() + TICK_S
        await asyncio.sleep(TICK_S)
        late_ms.append(1e3 * (loop.time() - due_s))
    return late_ms


async def _forge(volume: MemoryVolume) -> None:
    """A slot a second, of hosts that do not exist."""
    store, cluster = MemoryStore(volume), Hostile(1, own=9)
    while True:
        for slot, data in list(cluster.slots().items())[:1]:
            if slot > HOSTS:
                await store.write(slot, data)
        await asyncio.sleep(1.0)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What open dashboards cost the broker, the clients in a process of their own:
`python -m tests.bench streams`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.api.event_stream import STREAMS_MAX, STREAMS_PER_CLIENT_MAX
from tests.fakes.broker import make_broker, report, up
from tests.fakes.listener import Listener
from tests.fakes.slot_store import MemoryVolume

from .figure import Figure

SETTLE_S, RUN_S, RUNS = 2.0, 4.0, 3
#: Argument: the port.
CLIENTS = f"""
import asyncio, sys

async def listen(number):
    source = f"127.0.1.{{number // {STREAMS_PER_CLIENT_MAX} + 1}}"
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(sys.argv[1]), local_addr=(source, 0))
    writer.write(b"GET /api/v1/events?status=yes HTTP/1.1\\r\\nHost: ha\\r\\n"
                 b"Accept: text/event-stream\\r\\n\\r\\n")
    while await reader.read(65536):
        pass

async def main():
    await asyncio.gather(*map(listen, range({STREAMS_MAX})))

asyncio.run(main())
"""


def measure() -> Iterator[Figure]:
    """CPU a second with as many streams as there may be, less that without any."""
    for hosts in (3, 100):
        name = f"{STREAMS_MAX} event streams with the status, {hosts} hosts: CPU a second"
        yield Figure(name, "ms", asyncio.run(_cpu_ms(hosts)), 20.0)


async def _cpu_ms(hosts: int) -> list[float]:
    loop = asyncio.get_running_loop()
    with TemporaryDirectory() as folder:
        volume = MemoryVolume()
        brokers = [make_broker(Path(folder), volume, host) for host in range(1, hosts + 1)]
        for _ in range(3):
            for broker in brokers:
                up(broker, loop.time())
                broker.take_report(report(), loop.time())
                await broker.beat(loop.time())
        door = Listener(brokers[0])
        await door.start([("127.0.0.1", 0)])
        beating = asyncio.create_task(brokers[0].run())
        alone_ms = [await _spent_ms() for _ in range(RUNS)]
        clients = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CLIENTS, str(door.ports[0])), stderr=subprocess.DEVNULL
        )
        try:
            await asyncio.sleep(SETTLE_S)
            assert door.connections.total() == STREAMS_MAX, door.connections
            return [await _spent_ms() - sorted(alone_ms)[RUNS // 2] for _ in range(RUNS)]
        finally:
            clients.kill()
            await clients.wait()
            beating.cancel()
            await door.close()


async def _spent_ms() -> float:
    """CPU time that this process spends in a second, ms."""
    cpu_s, began_s = time.process_time(), time.monotonic()
    await asyncio.sleep(RUN_S)
    return 1000 * (time.process_time() - cpu_s) / (time.monotonic() - began_s)

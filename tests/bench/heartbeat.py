# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a question for a sign of life costs, both sides in one process over loopback:
`python -m tests.bench.heartbeat`. The figures of docs/decisions/0023."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp

from broker.cluster_key import ClusterKey
from broker.heartbeat import Heartbeat, heard, new_nonce
from broker.heartbeat_http import HttpTransport
from broker.heartbeats import Heartbeats
from broker.listener import Listener
from tests.fakes.slot_store import MemoryVolume
from tests.unit.test_api import make_broker

KEY = ClusterKey(b"k" * 32)
QUESTIONS = 2000
WARM_UP = 50


async def main() -> None:
    """Print a line for each way to ask."""
    with TemporaryDirectory() as folder:
        broker = make_broker(Path(folder), MemoryVolume())
        broker.heartbeats = Heartbeats(1, KEY, None)
        listener = Listener(broker)
        await listener.start([("127.0.0.1", 0)])
        address = f"127.0.0.1:{listener.ports[0]}"
        ours = HttpTransport()
        await measure("h11, a connection each", partial(ours.ask, address))
        for what, force_close in (("a connection each", True), ("one kept", False)):
            connector = aiohttp.TCPConnector(force_close=force_close)
            async with aiohttp.ClientSession(connector=connector) as session:
                await measure(f"aiohttp, {what}", partial(fetch, session, address))
        await listener.close()


async def fetch(session: aiohttp.ClientSession, address: str, nonce: str) -> bytes:
    url = f"http://{address}/heartbeat?nonce={nonce}"
    async with session.get(url, allow_redirects=False) as answer:
        return await answer.read()


async def measure(what: str, ask: Callable[[str], Awaitable[bytes]]) -> None:
    for number in range(WARM_UP + QUESTIONS):
        if number == WARM_UP:
            cpu_s, began_s = time.process_time(), time.perf_counter()
        nonce = new_nonce()
        assert isinstance(heard(KEY, await ask(nonce), 1, nonce), Heartbeat)
    cpu_us = 1e6 * (time.process_time() - cpu_s) / QUESTIONS
    took_ms = 1e3 * (time.perf_counter() - began_s) / QUESTIONS
    print(f"{what:28} {cpu_us:6.0f} us of CPU, {took_ms:.2f} ms")


if __name__ == "__main__":
    asyncio.run(main())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Strangers who fill a listener: connections from many addresses that send nothing, each opened
anew as soon as it is dropped.

`python -m tests.lab.idle_connections HOST PORT EACH ADDRESS…`: EACH from every address; prints
"full" once all of them have been tried, and runs until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

#: A connection that was refused or dropped is opened again after so long.
AGAIN_S = 0.2


async def main() -> None:
    """All of them, in one event loop."""
    host, port, each, *addresses = sys.argv[1:]
    async with asyncio.TaskGroup() as group:
        tried = [asyncio.Event() for _ in range(int(each) * len(addresses))]
        for number, event in enumerate(tried):
            address = addresses[number % len(addresses)]
            group.create_task(_hold(host, int(port), address, event))
        for event in tried:
            await event.wait()
        print("full", flush=True)


async def _hold(host: str, port: int, address: str, tried: asyncio.Event) -> None:
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(host, port, local_addr=(address, 0))
            tried.set()
            await reader.read()
            writer.close()
        tried.set()
        await asyncio.sleep(AGAIN_S)


if __name__ == "__main__":
    asyncio.run(main())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Strangers who fill a listener: connections from many addresses that send nothing, each opened
anew as soon as it is dropped.

`python -m tests.lab.idle_connections HOST PORT EACH ADDRESS…`: EACH from every address; prints
"full" once all of them have been tried, and runs until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .cluster import Cluster
from .layout import API_PORT, HOST_BRIDGE, NETWORK_PREFIX, host_id_of

#: A connection that was refused or dropped is opened again after so long.
AGAIN_S = 0.2
#: Sixteen addresses that nobody else has, and what one may open at a listener.
STRANGERS = [f"{NETWORK_PREFIX}.{n}" for n in range(220, 236)]
EACH = 16


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


@contextmanager
def idle_connections(lab: Cluster, source: str, target: str) -> Iterator[None]:
    """The target's listener has no place left: 256 connections from 16 addresses of a host."""
    for address in STRANGERS:
        lab.sh(source, ["ip", "address", "add", f"{address}/32", "dev", HOST_BRIDGE])
    place = [lab.layout.host(host_id_of(target)).address, str(API_PORT), str(EACH)]
    argv = [sys.executable, "-m", "tests.lab.idle_connections", *place, *STRANGERS]
    command, environment = lab.sh_command(source, argv)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as them:
        try:
            assert them.stdout is not None and them.stdout.readline() == "full\n"
            yield
        finally:
            them.kill()
            for address in STRANGERS:
                lab.sh(source, ["ip", "address", "del", f"{address}/32", "dev", HOST_BRIDGE])


if __name__ == "__main__":
    asyncio.run(main())

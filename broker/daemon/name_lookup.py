# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names to addresses, one thread for each who asks.

The system's resolver blocks, for tens of seconds when no name server answers. asyncio asks
it in threads that all share: a few such questions and nobody gets an answer any more. Here
a lookup that hangs holds up only the one who asked, and nothing piles up behind it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from typing import Any

from broker.daemon.foreign import sentence
from broker.daemon.worker import Worker

LOOKUP_S = 5.0
#: So many addresses of one name are tried.
ADDRESSES_MAX = 4


def is_address(name: str) -> bool:
    """Whether it is an IPv4 or IPv6 address and needs no lookup."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class NameLookup:
    """Raises OSError where there is no address, Hung where there is no answer."""

    def __init__(self, whose: str) -> None:
        self._worker = Worker(f"name lookup of the {whose}")

    async def addresses(self, name: str) -> list[str]:
        """The name's addresses, the best one first; one that is an address already as it is."""
        if is_address(name):
            return [name]
        found = await self._worker.call(f"looking up {name}", LOOKUP_S, _look_up, name)
        return found[:ADDRESSES_MAX]

    async def connect(self, target: str) -> None:
        """Open a TCP connection to an address of `host:port` or `[v6]:port`, and close it.

        OSError where none of its addresses takes it. Without a deadline of its own.
        """
        name, _, port = target.rpartition(":")
        why = f"{name} has no address"
        for address in await self.addresses(name.strip("[]")):
            try:
                _, writer = await asyncio.open_connection(address, int(port))
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else sentence(error)
                continue
            # Taken is answered; how the other end closes is nobody's business.
            writer.transport.abort()
            return
        raise OSError(why)


def _look_up(name: str) -> list[str]:
    """Runs in the thread."""
    try:
        found: list[Any] = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # longer than a name may be, for example
        raise OSError(f"{name} is no host name: {sentence(error)}") from None
    return list(dict.fromkeys(str(place[0]) for *_, place in found))

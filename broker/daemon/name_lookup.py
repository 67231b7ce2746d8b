# SPDX-License-Identifier: LGPL-2.1-or-later
"""Looks names up, in a thread of its own for each user.

The system's resolver blocks, for tens of seconds when no name server answers. asyncio calls it
in threads that all users share: a few such lookups and no other one is answered any more. Here
a lookup that hangs delays only its own user, and no others queue behind it.
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
#: At most so many addresses of one name are tried.
ADDRESSES_MAX = 4
PORT_MAX = 65_535


def is_address(name: str) -> bool:
    """Whether the name is an IPv4 or IPv6 address and needs no lookup."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class NameLookup:
    """Raises OSError where a name has no address, Hung where the resolver does not answer."""

    def __init__(self, whose: str) -> None:
        self._worker = Worker(f"name lookup of the {whose}")

    async def addresses(self, name: str) -> list[str]:
        """The name's addresses, the best one first; an address is returned as it is."""
        if is_address(name):
            return [name]
        found = await self._worker.call(f"looking up {name}", LOOKUP_S, _look_up, name)
        return found[:ADDRESSES_MAX]

    async def connect(self, target: str) -> None:
        """Open a TCP connection to an address of `host:port` or `[v6]:port`, and close it.

        OSError where no address accepts it. It has no deadline of its own.
        """
        name, _, port = target.rpartition(":")
        if not 1 <= int(port) <= PORT_MAX:
            raise OSError(f"there is no port {port}")
        why = f"{name} has no address"
        for address in await self.addresses(name.strip("[]")):
            try:
                _, writer = await asyncio.open_connection(address, int(port))
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else sentence(error)
                continue
            # The connection was accepted; how the other end closes it does not matter.
            writer.transport.abort()
            return
        raise OSError(why)


def _look_up(name: str) -> list[str]:
    """The addresses of a name; runs in the thread."""
    try:
        found: list[Any] = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # for example, a name that is too long
        raise OSError(f"{name} is no host name: {sentence(error)}") from None
    return list(dict.fromkeys(str(place[0]) for *_, place in found))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lets aiohttp's clients look names up in a thread of their own (broker/daemon/name_lookup.py)."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from aiohttp.abc import AbstractResolver, ResolveResult


class Resolver(AbstractResolver):
    """aiohttp's port for name lookup. `addresses`: the addresses of a name; OSError where it has
    none."""

    def __init__(self, addresses: Callable[[str], Awaitable[list[str]]]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses in aiohttp's form."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in await self._addresses(host)
        ]

    async def close(self) -> None:
        """Does nothing: the lookup outlives the request."""

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Heartbeats over UDP: the port that answers questions, and the client of other hosts' ports.

Rules of this file:

1. The kernel drops everything without the length and the first word of a question
   (broker/peers/kernel_filter.py). The port does nothing but answer: which datagrams it accepts and
   what it answers is decided by broker/peers/question_gate.py and broker/peers/datagram.py. It
   waits for nothing, and keeps nothing of a datagram.
2. Each question has a socket of its own, connected to the asked address. The kernel drops datagrams
   from elsewhere, nobody else knows the socket's port, and a late answer finds it closed.
3. A datagram that is no answer does not end the question: at most DATAGRAMS_MAX are
   read, until the right one comes or the caller's deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any, cast

from broker.config.addresses import split
from broker.daemon.name_lookup import is_address
from broker.peers.datagram import DATAGRAM_BYTES, QUESTION_BEGINS
from broker.peers.kernel_filter import accept_only, dropped
from broker.peers.transport import Names, ask_over_http

log = logging.getLogger("ha-broker.heartbeat")

#: The requested size of the port's queue; the kernel gives at most net.core.rmem_max.
QUEUE_BYTES = 1 << 20
#: So many replies to one question are read.
DATAGRAMS_MAX = 16
#: Makes the answer to a datagram from an address; None: there is none.
Answer = Callable[[bytes, str], bytes | None]


class HeartbeatPort:
    """`answer`: called with each datagram and the address it came from."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._transports: list[asyncio.DatagramTransport] = []

    async def start(self, addresses: Iterable[tuple[str, int]]) -> None:
        """Listen on each (host, port); port 0: any free one. OSError, with the address as its
        filename, where that fails."""
        loop = asyncio.get_running_loop()
        for host, port in addresses:
            try:
                transport, _ = await loop.create_datagram_endpoint(
                    lambda: _Port(self._answer), sock=await _bound(host, port)
                )
            except OSError as error:
                why = error.strerror or str(error)
                raise OSError(error.errno, why, f"{host} port {port}") from None
            self._transports.append(transport)

    @property
    def ports(self) -> list[int]:
        """The ports, in the order of the addresses."""
        return [one.get_extra_info("sockname")[1] for one in self._transports]

    @property
    def dropped(self) -> int:
        """Datagrams that the kernel dropped: they were no questions, or there was no room."""
        found = 0
        for transport in self._transports:
            with contextlib.suppress(OSError):
                found += dropped(transport.get_extra_info("socket"))
        return found

    def close(self) -> None:
        """Close the port."""
        for transport in self._transports:
            transport.abort()


async def _bound(host: str, port: int) -> socket.socket:
    """A socket bound there. As asyncio does for TCP, `::` stands for IPv6 alone."""
    if is_address(host):
        # An address needs no lookup, so no thread is made for it.
        flags = socket.AI_PASSIVE | socket.AI_NUMERICHOST
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=flags)
    else:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, place = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE_BYTES)
        try:
            accept_only(sock, DATAGRAM_BYTES, QUESTION_BEGINS)
        except OSError as error:
            log.warning("the kernel takes no filter for %s port %d: %s", host, port, error)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place)
    except OSError:
        sock.close()
        raise
    return sock


class _Port(asyncio.DatagramProtocol):
    """Answers questions. While an answer cannot be sent at once none is made, since asyncio would
    keep it in memory."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._is_full = False
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        answer = self._answer(data, _source(addr))
        if answer is not None and not self._is_full and self._transport is not None:
            self._transport.sendto(answer, addr)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False


def _source(addr: tuple[Any, ...]) -> str:
    """The address that a datagram came from, without the interface of a link-local one."""
    return str(addr[0]).partition("%")[0]


class NetworkTransport:
    """Transport port: the network."""

    def __init__(self) -> None:
        self._names = Names()

    async def ask_port(self, address: str, question: bytes, take: Callable[[bytes], bool]) -> None:
        host, port = split(address)
        where = await self._names.find(host)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Question(take, done), remote_addr=(where, port)
        )
        try:
            transport.sendto(question)
            await done
        finally:
            transport.abort()

    async def ask_listener(self, address: str, nonce: str) -> bytes:
        host, port = split(address)
        return await ask_over_http(await self._names.find(host), port, address, nonce)


class _Question(asyncio.DatagramProtocol):
    """Ends `done` with the right answer, or with the kernel's error that there will be none."""

    def __init__(self, take: Callable[[bytes], bool], done: asyncio.Future[None]) -> None:
        self._take, self._done = take, done
        self._left = DATAGRAMS_MAX

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if self._done.done():
            return
        self._left -= 1
        if self._take(data):
            self._done.set_result(None)
        elif self._left == 0:
            self._done.set_exception(OSError("too many datagrams that are no answer"))

    def error_received(self, exc: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(exc)

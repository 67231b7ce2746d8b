# SPDX-License-Identifier: LGPL-2.1-or-later
"""An HTTP application behind a door: who comes in, how long a request may take, and how large it
may be, before any library looks at it.

Rules of this file:

1. A connection has `request_s` to send a whole request, from its beginning or from the last
   answer on, and the same to take the answer; then it is dropped. While a handler works on a
   request nothing is counted: what takes long has its own bounds.
2. It has `request_bytes` for it. What a library keeps of an unfinished request is the library's
   affair (aiohttp 3.11 kept 2.5 GB of one connection); what it is given is ours.
3. So many connections at once, and so many of one client: an IPv4 address, an IPv6 /64 (RFC 4291
   gives a host no less), a user of a UNIX socket. Where the places run short, a connection with
   no request under way gives way, the one that has been idle longest first: nobody keeps others
   out by holding places.
4. The trusted have places of their own, and no clock.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import ssl
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from broker.api.answers import problem

log = logging.getLogger("ha-broker.listener")

#: Of the request line, and of each header line.
LINE_BYTES_MAX = 2048
HEADERS_MAX = 64
BODY_BYTES_MAX = 4096
#: How long the end of the broker waits for answers under way.
SHUTDOWN_S = 0.5
#: Of an IPv6 address, what one client has.
_PREFIX_BITS = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """`connections`: of strangers at once, `per_client` of them of one; `request_s`,
    `request_bytes`: for a whole request; `trusted`: clients that none of this binds but the
    bytes."""

    connections: int = 256
    per_client: int = 16
    request_s: float = 5.0
    request_bytes: int = 16_384
    trusted: frozenset[str] = frozenset()


def client_of(address: str) -> str:
    """What counts as one client: an IPv4 address, an IPv6 /64."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _PREFIX_BITS), strict=False))


@web.middleware
async def at_work(request: web.Request, handler: Any) -> web.StreamResponse:
    """The client's time stands still while its request, all of it, is worked on."""
    guest = request.transport.get_protocol() if request.transport is not None else None
    assert isinstance(guest, Guest) or guest is None
    # aiohttp 3.11 bounds neither, 3.14 both.
    sizes = [len(name) + len(value) for name, value in request.raw_headers]
    if len(sizes) > HEADERS_MAX or max(sizes, default=0) > LINE_BYTES_MAX:
        return problem(400, "Bad Request", "the header lines are too many, or too long")
    if request.can_read_body:
        await request.read()
    if guest is not None:
        guest.stop_clock()
    try:
        response = await handler(request)
        assert isinstance(response, web.StreamResponse)
        return response
    finally:
        if guest is not None:
            guest.start_clock()


class Doorway:
    """An application over TCP, on all addresses that it is given. `turned_away`: connections that
    were dropped for want of a place."""

    def __init__(self, app: web.Application, limits: Limits | None = None) -> None:
        """`limits`: None: of strangers on the network."""
        self.limits = limits or Limits()
        self.guests: Counter[str] = Counter()
        self.turned_away = 0
        self.whose: Callable[[asyncio.Transport], str] = _prefix_of
        self.handshakes: set[asyncio.Task[None]] = set()
        #: Connections with no request under way, the one that has been so longest first: how each
        #: is ended, and whose it is.
        self._idle: OrderedDict[object, tuple[str, Callable[[], None]]] = OrderedDict()
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=self.limits.request_s,
            lingering_time=0.0,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
            shutdown_timeout=SHUTDOWN_S,
            logger=log,
        )
        self._servers: list[asyncio.Server] = []

    async def start(
        self,
        addresses: Iterable[tuple[str, int]] = (),
        tls: ssl.SSLContext | None = None,
        sockets: Iterable[socket.socket] = (),
    ) -> None:
        """Listen on (host, port), port 0: any; OSError, its filename the address, where that
        cannot be. May be called again for other addresses. `tls`: over TLS. `sockets`: that
        listen already."""
        if self._runner.server is None:
            await self._runner.setup()
        loop = asyncio.get_running_loop()

        def guest() -> asyncio.Protocol:
            return self._guest() if tls is None else _Handshake(self, self._guest(), tls)

        for host, port in addresses:
            try:
                server = await loop.create_server(guest, host, port)
            except OSError as error:
                why = error.strerror or str(error)
                raise OSError(error.errno, why, f"{host} port {port}") from None
            self._servers.append(server)
        for sock in sockets:
            self._servers.append(await loop.create_server(guest, sock=sock))

    async def start_unix(self, path: str, mode: int) -> None:
        """Listen on a UNIX socket of that mode, in place of one that nobody serves any more;
        OSError."""
        if self._runner.server is None:
            await self._runner.setup()
        # The mode must be right from the first moment on.
        old = os.umask(0o777 & ~mode)
        try:
            loop = asyncio.get_running_loop()
            self._servers.append(await loop.create_unix_server(self._guest, path))
        finally:
            os.umask(old)

    @property
    def ports(self) -> list[int]:
        """Where it listens, in the order of the addresses."""
        return [server.sockets[0].getsockname()[1] for server in self._servers]

    async def close(self) -> None:
        """End it, and all connections."""
        for server in self._servers:
            server.close()
        for task in self.handshakes:
            task.cancel()
        await self._runner.cleanup()

    def _guest(self) -> Guest:
        assert self._runner.server is not None
        inner = self._runner.server()
        inner.__class__ = _Http
        return Guest(self, cast(asyncio.Protocol, inner))

    def admits(self, client: str) -> bool:
        """Count a connection, unless there are too many that are worked for. Who has sent no
        request gives way: of this client first where it takes all it may, else the one that has
        been idle longest."""
        limits = self.limits
        if client not in limits.trusted:
            strangers = self.guests.total() - sum(self.guests[each] for each in limits.trusted)
            if self.guests[client] >= limits.per_client:
                return self._takes_place_of(client, client)
            if strangers >= limits.connections:
                return self._takes_place_of(None, client)
        self.guests[client] += 1
        return True

    def _takes_place_of(self, whose: str | None, client: str) -> bool:
        """`whose`: only one of theirs; None: anybody's. The place is counted out at once: its
        connection ends a moment later."""
        self.turned_away += 1
        key = next((key for key, (of, _) in self._idle.items() if whose in (None, of)), None)
        if key is None:
            return False
        _, end = self._idle.pop(key)
        end()
        self.guests[client] += 1
        return True

    def rests(self, key: object, client: str, end: Callable[[], None]) -> None:
        """A connection with no request under way, from now on."""
        self._idle.pop(key, None)
        if client not in self.limits.trusted:
            self._idle[key] = client, end

    def works(self, key: object) -> None:
        """It is worked for, or gone."""
        self._idle.pop(key, None)

    def admitted(self, transport: asyncio.Transport) -> str | None:
        """Who connects, counted; None: one too many, and sent away."""
        client = self.whose(transport)
        if self.admits(client):
            return client
        transport.abort()
        return None

    def left(self, client: str) -> None:
        """It is over."""
        self.guests[client] -= 1
        if not self.guests[client]:
            del self.guests[client]


class _Http(RequestHandler):
    """aiohttp's protocol, but what is no request at all is a problem like all others, and told
    in a line without a traceback: anybody can send it. The same for a connection that ends before
    aiohttp's task has looked at it."""

    __slots__ = ()

    def connection_lost(self, exc: BaseException | None) -> None:
        task = self._task_handler if self._current_request is None else None
        super().connection_lost(exc)
        if task is not None:
            # It would go on without what the call above has taken away.
            task.cancel()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            return super().handle_error(request, status, exc, message)
        log.info("%s sent no usable request: %s", request.remote, type(exc).__name__)
        answer = problem(status, HTTPStatus(status).phrase, type(exc).__name__)
        answer.force_close()
        return answer


class Guest(asyncio.Protocol):
    """A connection before aiohttp's own protocol: lets it in, and ends it when it is slow."""

    def __init__(self, listener: Doorway, inner: asyncio.Protocol) -> None:
        self._listener = listener
        self._inner = inner
        self._client: str | None = None
        self._transport: asyncio.Transport | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._early: list[bytes] | None = None
        #: Bytes since the last answer.
        self._bytes = 0

    def start_clock(self) -> None:
        """From now on it has the time and the bytes of one request."""
        self.stop_clock()
        was_too_much = self._bytes > self._listener.limits.request_bytes
        self._bytes = 0
        if self._transport is not None and self._client is not None:
            if was_too_much:
                # Nobody knows where in it the next request begins.
                self._transport.close()
            loop = asyncio.get_running_loop()
            limits = self._listener.limits
            if self._client not in limits.trusted:
                self._clock = loop.call_later(limits.request_s, self._transport.abort)
            self._listener.rests(self, self._client, self.end)

    def stop_clock(self) -> None:
        """Wait for it as long as it takes."""
        self._listener.works(self)
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def end(self) -> None:
        """Another takes its place: it is counted out at once."""
        self.stop_clock()
        if self._client is not None and self._transport is not None:
            self._listener.left(self._client)
            self._client = None
            self._inner.connection_lost(None)
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        client = self._listener.admitted(transport)
        if client is not None:
            self.welcome(transport, client)

    def expect(self) -> None:
        """TLS is being set up: what comes with its end, before `welcome`, is kept."""
        self._early = []

    def welcome(self, transport: asyncio.Transport, client: str) -> None:
        """One that is admitted and counted."""
        self._client, self._transport = client, transport
        self.start_clock()
        self._inner.connection_made(transport)
        early, self._early = self._early, None
        for data in early or ():
            self._inner.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_clock()
        if self._client is not None:
            self._listener.left(self._client)
            self._client = None
            self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # What the library keeps of a request is not ours to bound; what it gets is. It may still
        # say that this is too much.
        room = max(0, self._listener.limits.request_bytes - self._bytes)
        self._bytes += len(data)
        if len(data) > room and self._transport is not None:
            self._transport.pause_reading()
        if self._client is not None:
            self._inner.data_received(data[:room])
        elif self._early is not None:
            self._early.append(data[:room])

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._client is not None else None

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class _Handshake(asyncio.Protocol):
    """A connection until TLS stands: counted from its first moment, and it has REQUEST_S too."""

    def __init__(self, listener: Doorway, guest: Guest, tls: ssl.SSLContext) -> None:
        self._listener = listener
        self._guest = guest
        self._tls = tls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        client = self._listener.admitted(transport)
        if client is None:
            return
        transport.pause_reading()
        self._guest.expect()
        self._listener.rests(transport, client, transport.abort)
        task = asyncio.get_running_loop().create_task(self._shake(transport, client))
        self._listener.handshakes.add(task)
        task.add_done_callback(self._listener.handshakes.discard)

    async def _shake(self, transport: asyncio.Transport, client: str) -> None:
        secured = None
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                self._guest,
                self._tls,
                server_side=True,
                ssl_handshake_timeout=self._listener.limits.request_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except OSError as error:
            # ssl.SSLError and ConnectionError are OSErrors.
            log.debug("no TLS with %s: %s", client, error)
        finally:
            self._listener.works(transport)
            if secured is None:
                transport.abort()
                self._listener.left(client)
        if secured is None:
            return
        if secured.is_closing():
            self._listener.left(client)
        else:
            self._guest.welcome(secured, client)


def _prefix_of(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return client_of(str(peer[0])) if peer else ""

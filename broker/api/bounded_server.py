# SPDX-License-Identifier: LGPL-2.1-or-later
"""An HTTP server with bounds: how many clients it admits, how long a request may take, and how
large it may be, before any library reads it.

Rules of this file:

1. A connection has `request_s` to send a whole request, counted from its beginning or from the
   last answer, and the same to take the answer; then it is dropped. While a handler works on a
   request no time is counted: long work has its own bounds.
2. A request has at most `request_bytes`. How much a library keeps of an unfinished request is not
   known (aiohttp 3.11 kept 2.5 GB of one connection), so it is given no more than that.
3. The number of connections is bounded, in all and for one client: an IPv4 address, an IPv6 /64
   (RFC 4291 gives a host no less), a user of a UNIX socket. Where the bound is reached, a
   connection without a request under way is dropped, the one that has been idle longest first:
   nobody keeps others out by idle connections.
4. Trusted clients have places of their own, and no time limit.
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

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestHandler

from broker.api.answers import problem

log = logging.getLogger("ha-broker.listener")

#: The longest request line, and the longest header line.
LINE_BYTES_MAX = 2048
HEADERS_MAX = 64
BODY_BYTES_MAX = 4096
#: How long the end of the broker waits for answers that are under way.
SHUTDOWN_S = 0.5
#: The part of an IPv6 address that counts as one client.
_PREFIX_BITS = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds. `connections`: of strangers at once, `per_client` of them for one; `request_s`,
    `request_bytes`: for a whole request; `trusted`: clients for which only the bytes are
    bounded."""

    connections: int = 256
    per_client: int = 16
    request_s: float = 5.0
    request_bytes: int = 16_384
    trusted: frozenset[str] = frozenset()


def client_of(address: str) -> str:
    """The client of an address: an IPv4 address, or an IPv6 /64."""
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
    """Stop the client's clock while its request, all of it, is worked on."""
    connection = request.transport.get_protocol() if request.transport is not None else None
    assert isinstance(connection, Connection) or connection is None
    # aiohttp 3.11 bounds neither their number nor their size, 3.14 both.
    sizes = [len(name) + len(value) for name, value in request.raw_headers]
    if len(sizes) > HEADERS_MAX or max(sizes, default=0) > LINE_BYTES_MAX:
        return problem(400, "Bad Request", "the header lines are too many, or too long")
    if request.can_read_body:
        try:
            await request.read()
        except (web.RequestPayloadError, ConnectionError) as error:
            log.info("%s sent no usable body: %s", request.remote, type(error).__name__)
            answer = problem(400, "Bad Request", "the body cannot be read")
            answer.force_close()
            return answer
    if connection is not None:
        connection.stop_clock()
    try:
        response = await handler(request)
        assert isinstance(response, web.StreamResponse)
        return response
    finally:
        if connection is not None:
            connection.start_clock()


class BoundedServer:
    """Serves an application over TCP, on all given addresses. `turned_away`: connections that were
    dropped for lack of a place."""

    def __init__(self, app: web.Application, limits: Limits | None = None) -> None:
        """`limits`: None: those for strangers on the network."""
        self.limits = limits or Limits()
        self.connections: Counter[str] = Counter()
        self.turned_away = 0
        self.whose: Callable[[asyncio.Transport], str] = _prefix_of
        self.handshakes: set[asyncio.Task[None]] = set()
        #: Connections with no request under way, the one that has been idle longest first: the call
        #: that ends each, and its client.
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
        fails. May be called again for other addresses. `tls`: over TLS. `sockets`: sockets that
        listen already."""
        if self._runner.server is None:
            await self._runner.setup()
        loop = asyncio.get_running_loop()

        def connection() -> asyncio.Protocol:
            return self._connection() if tls is None else _Handshake(self, self._connection(), tls)

        for host, port in addresses:
            try:
                server = await loop.create_server(connection, host, port)
            except OSError as error:
                why = error.strerror or str(error)
                raise OSError(error.errno, why, f"{host} port {port}") from None
            self._servers.append(server)
        for sock in sockets:
            self._servers.append(await loop.create_server(connection, sock=sock))

    async def start_unix(self, path: str, mode: int) -> None:
        """Listen on a UNIX socket of that mode, in place of one that no process serves any more;
        OSError."""
        if self._runner.server is None:
            await self._runner.setup()
        # The mode must be right from the first moment on.
        old = os.umask(0o777 & ~mode)
        try:
            loop = asyncio.get_running_loop()
            self._servers.append(await loop.create_unix_server(self._connection, path))
        finally:
            os.umask(old)

    @property
    def ports(self) -> list[int]:
        """The ports, in the order of the addresses."""
        return [server.sockets[0].getsockname()[1] for server in self._servers]

    async def close(self) -> None:
        """End the server, and all its connections."""
        for server in self._servers:
            server.close()
        for task in self.handshakes:
            task.cancel()
        await self._runner.cleanup()

    def _connection(self) -> Connection:
        assert self._runner.server is not None
        inner = self._runner.server()
        inner.__class__ = _Http
        return Connection(self, cast(asyncio.Protocol, inner))

    def admits(self, client: str) -> bool:
        """Count a connection and return True, unless all places are in use. An idle connection
        gives its place: one of this client where the client has all it may, else the one that has
        been idle longest."""
        limits = self.limits
        if client not in limits.trusted:
            strangers = self.connections.total() - sum(
                self.connections[each] for each in limits.trusted
            )
            if self.connections[client] >= limits.per_client:
                return self._takes_place_of(client, client)
            if strangers >= limits.connections:
                return self._takes_place_of(None, client)
        self.connections[client] += 1
        return True

    def _takes_place_of(self, whose: str | None, client: str) -> bool:
        """Give the place of an idle connection to the client. `whose`: only one of that client;
        None: any. The place is free at once: its connection ends a moment later."""
        self.turned_away += 1
        key = next((key for key, (of, _) in self._idle.items() if whose in (None, of)), None)
        if key is None:
            return False
        _, end = self._idle.pop(key)
        end()
        self.connections[client] += 1
        return True

    def rests(self, key: object, client: str, end: Callable[[], None]) -> None:
        """Note that a connection has no request under way."""
        self._idle.pop(key, None)
        if client not in self.limits.trusted:
            self._idle[key] = client, end

    def works(self, key: object) -> None:
        """Note that a connection has a request under way, or is gone."""
        self._idle.pop(key, None)

    def admitted(self, transport: asyncio.Transport) -> str | None:
        """The client that connects, counted; None: there was no place, and it is dropped."""
        client = self.whose(transport)
        if self.admits(client):
            return client
        transport.abort()
        return None

    def left(self, client: str) -> None:
        """Count a client's connection out."""
        self.connections[client] -= 1
        if not self.connections[client]:
            del self.connections[client]


class _Http(RequestHandler):
    """aiohttp's protocol, but an invalid request gets an answer like all other errors, and a log
    line without a traceback, since anybody can send one. So does a connection that ends before
    aiohttp's task has looked at it."""

    __slots__ = ()

    def connection_lost(self, exc: BaseException | None) -> None:
        task = self._task_handler if self._current_request is None else None
        super().connection_lost(exc)
        if task is not None:
            # The task would continue without what the call above has removed.
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
        # aiohttp would name itself, with its version; no hook is asked about an answer like this.
        answer.headers[hdrs.SERVER] = "ha-agent"
        answer.force_close()
        return answer


class Connection(asyncio.Protocol):
    """A connection, in front of aiohttp's own protocol: admits it, and ends it when it is slow."""

    def __init__(self, listener: BoundedServer, inner: asyncio.Protocol) -> None:
        self._listener = listener
        self._inner = inner
        self._client: str | None = None
        self._transport: asyncio.Transport | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._early: list[bytes] | None = None
        #: Bytes received since the last answer.
        self._bytes = 0

    def start_clock(self) -> None:
        """Give the connection the time and the bytes of one request from now on."""
        self.stop_clock()
        was_too_much = self._bytes > self._listener.limits.request_bytes
        self._bytes = 0
        if self._transport is not None and self._client is not None:
            if was_too_much:
                # Where the next request begins in these bytes is not known.
                self._transport.close()
            loop = asyncio.get_running_loop()
            limits = self._listener.limits
            if self._client not in limits.trusted:
                self._clock = loop.call_later(limits.request_s, self._transport.abort)
            self._listener.rests(self, self._client, self.end)

    def stop_clock(self) -> None:
        """Take the time limit away."""
        self._listener.works(self)
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def end(self) -> None:
        """End it, since another takes its place: it is counted out at once."""
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
        """TLS is being set up: bytes that come with its end, before `welcome`, are kept."""
        self._early = []

    def welcome(self, transport: asyncio.Transport, client: str) -> None:
        """Begin; the connection is admitted and counted."""
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
        # The library's own buffer cannot be bounded here; its input is. The library may still
        # answer that the request is too large.
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
    """A connection until TLS is set up: counted from its first moment, and bounded by REQUEST_S."""

    def __init__(
        self, listener: BoundedServer, connection: Connection, tls: ssl.SSLContext
    ) -> None:
        self._listener = listener
        self._connection = connection
        self._tls = tls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        client = self._listener.admitted(transport)
        if client is None:
            return
        transport.pause_reading()
        self._connection.expect()
        self._listener.rests(transport, client, transport.abort)
        task = asyncio.get_running_loop().create_task(self._shake(transport, client))
        self._listener.handshakes.add(task)
        task.add_done_callback(self._listener.handshakes.discard)

    async def _shake(self, transport: asyncio.Transport, client: str) -> None:
        secured = None
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                self._connection,
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
            self._connection.welcome(secured, client)


def _prefix_of(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return client_of(str(peer[0])) if peer else ""

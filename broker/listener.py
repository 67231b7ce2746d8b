# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the broker answers over TCP, to anyone who can connect.

Rules of this file:

1. What is read waits for no storage, libvirt or sanlock; but for what who has the cluster key
   asks of libvirt (broker/reach.py) or of a slot (broker/slot_seen.py). What changes something
   (broker/api.py) is let in by broker/gate.py.
2. A connection has REQUEST_S to send a whole request, from its beginning or from the last
   answer on, and the same to take the answer; then it is dropped. While a handler works on a
   request nothing is counted: what takes long has its own bounds.
3. So many connections at once, and so many from one address; more are dropped at once. An
   address that takes all it may cannot keep the others out.

`application` is where another page is added.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from broker.answers import as_problems, problem
from broker.api import Api
from broker.broker import Broker
from broker.dashboard import Dashboard
from broker.gate import Gate
from broker.heartbeat import is_nonce
from broker.metrics import Door, Metrics
from broker.reach import Reacher
from broker.slot_seen import SlotSeer

log = logging.getLogger("ha-broker.listener")

CONNECTIONS_MAX = 256
CONNECTIONS_PER_CLIENT_MAX = 16
REQUEST_S = 5.0
#: Of the request line, and of each header line.
LINE_BYTES_MAX = 2048
BODY_BYTES_MAX = 4096
#: How long the end of the broker waits for answers under way.
SHUTDOWN_S = 0.5

_BROKER: web.AppKey[Broker] = web.AppKey("broker", Broker)
_METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)


#: On every answer. What a page of ours may do is told by that page.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def application(
    broker: Broker, door: Door | None = None, token: str | None = None
) -> web.Application:
    """The pages over one broker; `door`: what the metrics tell of the listener; `token`: for
    changes, None: there are none."""
    app = web.Application(middlewares=[_at_work, as_problems], client_max_size=BODY_BYTES_MAX)
    app[_BROKER] = broker
    app[_METRICS] = Metrics(broker, lambda: asyncio.get_running_loop().time(), door=door)
    app.router.add_get("/heartbeat", _get_heartbeat, allow_head=False)
    app.router.add_get("/metrics", _get_metrics)
    Api(broker, Gate(token)).add_to(app.router)
    Dashboard().add_to(app.router)
    Reacher(broker).add_to(app.router)
    SlotSeer(broker).add_to(app.router)
    app.on_response_prepare.append(_with_headers)
    return app


async def _get_heartbeat(request: web.Request) -> web.Response:
    """A sign of life, signed: broker/heartbeat.py."""
    nonce = request.query.get("nonce", "")
    if not is_nonce(nonce):
        return problem(400, "nonce must be 32 lower-case hexadecimal digits")
    answer = request.app[_BROKER].heartbeat(nonce, asyncio.get_running_loop().time())
    if answer is None:
        return problem(404, "no heartbeat", "this host has no cluster-key in its secrets file")
    return web.Response(body=answer, content_type="application/json")


async def _get_metrics(request: web.Request) -> web.Response:
    """For Prometheus: broker/metrics.py."""
    text, kind = request.app[_METRICS].text(request.headers.get("Accept", ""))
    return web.Response(body=text, headers={"Content-Type": kind})


async def _with_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


@web.middleware
async def _at_work(request: web.Request, handler: Any) -> web.StreamResponse:
    """The client's time stands still while its request is worked on."""
    guest = request.transport.get_protocol() if request.transport is not None else None
    assert isinstance(guest, _Guest) or guest is None
    if guest is not None:
        guest.stop_clock()
    try:
        response = await handler(request)
        assert isinstance(response, web.StreamResponse)
        return response
    finally:
        if guest is not None:
            guest.start_clock()


class Listener:
    """The TCP side of the API on all its addresses."""

    def __init__(self, broker: Broker, token: str | None = None) -> None:
        self.guests: Counter[str] = Counter()
        self.turned_away = 0
        self.handshakes: set[asyncio.Task[None]] = set()
        door = Door(lambda: self.guests.total(), lambda: self.turned_away)
        self._runner = web.AppRunner(
            application(broker, door, token),
            access_log=None,
            handle_signals=False,
            keepalive_timeout=REQUEST_S,
            lingering_time=0.0,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
            shutdown_timeout=SHUTDOWN_S,
            logger=log,
        )
        self._servers: list[asyncio.Server] = []

    async def start(
        self, addresses: Iterable[tuple[str, int]], tls: ssl.SSLContext | None = None
    ) -> None:
        """Listen on (host, port), port 0: any; OSError, its filename the address, where that
        cannot be. May be called again for other addresses. `tls`: over TLS."""
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

    def _guest(self) -> _Guest:
        assert self._runner.server is not None
        inner = self._runner.server()
        inner.__class__ = _Http
        return _Guest(self, cast(asyncio.Protocol, inner))

    def admits(self, client: str) -> bool:
        """Count a connection, unless there are too many."""
        if (
            self.guests.total() >= CONNECTIONS_MAX
            or self.guests[client] >= CONNECTIONS_PER_CLIENT_MAX
        ):
            self.turned_away += 1
            return False
        self.guests[client] += 1
        return True

    def admitted(self, transport: asyncio.Transport) -> str | None:
        """Who connects, counted; None: one too many, and sent away."""
        client = _client_of(transport)
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
    in a line without a traceback: anybody can send it."""

    __slots__ = ()

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


class _Guest(asyncio.Protocol):
    """A connection before aiohttp's own protocol: lets it in, and ends it when it is slow."""

    def __init__(self, listener: Listener, inner: asyncio.Protocol) -> None:
        self._listener = listener
        self._inner = inner
        self._client: str | None = None
        self._transport: asyncio.Transport | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._early: list[bytes] | None = None

    def start_clock(self) -> None:
        """From now on it has REQUEST_S."""
        self.stop_clock()
        if self._transport is not None and self._client is not None:
            loop = asyncio.get_running_loop()
            self._clock = loop.call_later(REQUEST_S, self._transport.abort)

    def stop_clock(self) -> None:
        """Wait for it as long as it takes."""
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

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
        if self._client is not None:
            self._inner.data_received(data)
        elif self._early is not None:
            self._early.append(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._client is not None else None

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class _Handshake(asyncio.Protocol):
    """A connection until TLS stands: counted from its first moment, and it has REQUEST_S too."""

    def __init__(self, listener: Listener, guest: _Guest, tls: ssl.SSLContext) -> None:
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
                ssl_handshake_timeout=REQUEST_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except OSError as error:
            # ssl.SSLError and ConnectionError are OSErrors.
            log.debug("no TLS with %s: %s", client, error)
        finally:
            if secured is None:
                transport.abort()
                self._listener.left(client)
        if secured is None:
            return
        if secured.is_closing():
            self._listener.left(client)
        else:
            self._guest.welcome(secured, client)


def _client_of(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""

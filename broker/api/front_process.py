# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that serves strangers: HTTP for people, Prometheus and joining hosts. It knows
nothing of the cluster; it asks the broker, a few small questions at a time.

Why a process: anyone who can connect may send requests as fast as he can, and the broker's beat
must not be delayed by them. Here such requests use this process's time and memory, which are
bounded, and the kernel kills this process first. In a broker that serves strangers itself idle
connections from 16 addresses can take all places of the listener; the other hosts' questions are
then reset, and a living host is switched off.

Rules of this file:

1. Every request has a purpose, and each purpose has a pool: how many requests the broker gets at
   once, and how many a second. A request that finds no place within WAIT_S is answered with 503.
2. An answer that is the same for all is asked once and given to all for a moment (`FRESH_S`).
3. A page of another site must not read this one through somebody's browser: the name in a
   browser's `Host` must be one of this host's names (DNS rebinding), or an address.
4. Only the headers named here are passed on, in both directions.

The broker starts it (broker/api/front.py); it ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import hdrs, web

from broker.api.answers import as_problems, problem
from broker.api.bounded_server import BODY_BYTES_MAX, BoundedServer, at_work
from broker.api.dashboard import Dashboard
from broker.api.errors import Busy
from broker.daemon.service_manager import set_up_logging
from broker.daemon.tls import server_context

log = logging.getLogger("ha-broker.front")

#: Headers that say who asks: no other process can open the broker's socket for this one.
CLIENT, OVER_TLS = "X-Ha-Client", "X-Ha-Over-Tls"
OPEN_CONNECTIONS, TURNED_AWAY = "X-Ha-Open-Connections", "X-Ha-Turned-Away"

#: How long a request waits for a place in its pool.
WAIT_S = 2.0
#: The broker answers a request that is no stream within this time; /libvirt-reach takes 10 s.
ANSWER_S = 15.0
#: A client that does not take a piece of a stream within this time is dropped.
WRITE_S = 5.0
#: The largest answer of the broker: a status of 2000 hosts has 3 MB.
ANSWER_BYTES_MAX = 16 * 2**20
#: Answers that are the same for all clients, and how old they may be.
FRESH_S = {
    "/metrics": 1.0,
    "/api/v1/status": 0.2,
    "/api/v1/history": 1.0,
    "/api/v1/openapi.json": float("inf"),
}
#: Headers of a request that are passed on.
_PASSED = ("Accept", "Authorization", "Content-Type", "Last-Event-ID")
#: Headers of an answer that are passed on.
_GIVEN = ("Allow", "Cache-Control", "Retry-After", "WWW-Authenticate", "X-Accel-Buffering")
_FROM_MEMBERS = ("/member-challenge", "/member-request")
#: Paths that programs ask for: they have no other site open at the same time.
_BY_PROGRAMS = frozenset({"/metrics", "/heartbeat", "/libvirt-reach", "/slot-seen", *_FROM_MEMBERS})

#: Limits of this process. Less than any QEMU, and the first to be killed (proc(5), oom_score_adj).
_FILES_MAX, _DATA_BYTES_MAX, _OOM_SCORE, _NICE = 1024, 512 * 2**20, 500, 10


class Purpose(Enum):
    """The purpose of a request: how many at once, how many a second."""

    PEOPLE = (4, 50.0)
    PROMETHEUS = (1, 20.0)
    MEMBERS = (8, 400.0)
    CHANGES = (2, 20.0)
    STREAMS = (64, 20.0)


#: Path -> methods. A path with a variable part is listed by its beginning.
_ROUTES: tuple[tuple[str, str, Purpose], ...] = (
    ("GET", "/metrics", Purpose.PROMETHEUS),
    ("GET", "/heartbeat", Purpose.MEMBERS),
    ("GET", "/libvirt-reach", Purpose.MEMBERS),
    ("GET", "/slot-seen", Purpose.MEMBERS),
    ("GET", "/member-challenge", Purpose.MEMBERS),
    ("POST", "/member-request", Purpose.MEMBERS),
    ("GET", "/api/v1/openapi.json", Purpose.PEOPLE),
    ("GET", "/api/v1/status", Purpose.PEOPLE),
    ("GET", "/api/v1/vms", Purpose.PEOPLE),
    ("GET", "/api/v1/vms/{vm}", Purpose.PEOPLE),
    ("GET", "/api/v1/history", Purpose.PEOPLE),
    ("GET", "/api/v1/events", Purpose.PEOPLE),
    ("GET", "/api/v1/token", Purpose.CHANGES),
    ("GET", "/api/v1/orders/{number}", Purpose.PEOPLE),
    ("POST", "/api/v1/orders", Purpose.CHANGES),
    ("PUT", "/api/v1/maintenance/{mode}", Purpose.CHANGES),
)


class Pool:
    """Bounds the requests of one purpose to the broker: `at_once`, and `per_s` on average, of which
    one second's number may come at once."""

    def __init__(self, at_once: int, per_s: float) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._per_s = per_s
        self._left = per_s
        self._counted_s = 0.0

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place in the pool; Busy where there is none within WAIT_S, or too many wait."""
        now_s = asyncio.get_running_loop().time()
        self._left = min(self._per_s, self._left + (now_s - self._counted_s) * self._per_s)
        self._counted_s = now_s
        if self._left < 1.0:
            raise Busy
        self._left -= 1.0
        try:
            async with asyncio.timeout(WAIT_S):
                await self._places.acquire()
        except TimeoutError:
            raise Busy from None
        try:
            yield
        finally:
            self._places.release()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the broker."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    made_s: float


@dataclass(slots=True)
class _Kept:
    """An answer for all who ask the same, and whether it is being renewed."""

    answer: Answer | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Front:
    """Passes requests on to the broker. `upstream`: the path of the broker's socket; `names`: this
    host's names, in lower case."""

    def __init__(self, upstream: str, names: frozenset[str]) -> None:
        self._upstream = upstream
        self._names = names
        self._session: aiohttp.ClientSession | None = None
        self._pools = {purpose: Pool(*purpose.value) for purpose in Purpose}
        self._kept: dict[tuple[str, str], _Kept] = {}
        #: Set before the first request.
        self.server: BoundedServer | None = None

    def application(self) -> web.Application:
        """The application; it answers the dashboard's pages itself."""
        app = web.Application(
            middlewares=[as_problems, at_work, self._check_host], client_max_size=BODY_BYTES_MAX
        )
        for method, path, purpose in _ROUTES:
            app.router.add_route(method, path, functools.partial(self._pass_on, purpose))
        Dashboard().add_to(app.router)
        app.on_response_prepare.append(with_headers)
        return app

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    # --- one request --------------------------------------------------------------------------

    @web.middleware
    async def _check_host(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path not in _BY_PROGRAMS and not is_own(
            request.headers.get("Host"), self._names
        ):
            detail = "this host has another name; api.names can add names"
            return problem(421, "not for this host", detail)
        response = await handler(request)
        assert isinstance(response, web.StreamResponse)
        return response

    async def _pass_on(self, purpose: Purpose, request: web.Request) -> web.StreamResponse:
        try:
            if "text/event-stream" in request.headers.get("Accept", ""):
                return await self._stream(request)
            fresh_s = FRESH_S.get(request.path)
            if fresh_s is None or request.query_string:
                answer = await self._ask(purpose, request)
            else:
                answer = await self._kept_answer(purpose, request, fresh_s)
        except Busy:
            refused = problem(503, "busy", "too many requests of this kind at once; try again")
            refused.headers["Retry-After"] = "1"
            return refused
        except (aiohttp.ClientError, OSError, TimeoutError):
            detail = "the broker may be starting; try again"
            return problem(503, "the broker does not answer", detail)
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    async def _kept_answer(self, purpose: Purpose, request: web.Request, fresh_s: float) -> Answer:
        form = "openmetrics" if "openmetrics" in request.headers.get("Accept", "") else ""
        kept = self._kept.setdefault((request.path, form), _Kept())
        async with asyncio.timeout(WAIT_S), kept.lock:
            now_s = asyncio.get_running_loop().time()
            if kept.answer is None or now_s - kept.answer.made_s >= fresh_s:
                answer = await self._ask(purpose, request)
                kept.answer = answer if answer.status == 200 else None
                return answer
            return kept.answer

    async def _ask(self, purpose: Purpose, request: web.Request) -> Answer:
        body = await request.read()
        async with (
            self._pools[purpose].place(),
            asyncio.timeout(ANSWER_S),
            self._asked(request, body) as found,
        ):
            said = bytearray()
            while len(said) < ANSWER_BYTES_MAX and (part := await found.content.readany()):
                said += part
            now_s = asyncio.get_running_loop().time()
            return Answer(found.status, _given(found.headers), bytes(said), now_s)

    def _asked(self, request: web.Request, body: bytes) -> Any:
        if self._session is None:
            connector = aiohttp.UnixConnector(self._upstream, limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
            )
        server = self.server
        assert server is not None
        headers = {name: request.headers[name] for name in _PASSED if name in request.headers}
        secured = request.transport is not None and request.transport.get_extra_info("ssl_object")
        headers |= {
            CLIENT: request.remote or "",
            OVER_TLS: "yes" if secured else "no",
            OPEN_CONNECTIONS: str(server.connections.total()),
            TURNED_AWAY: str(server.turned_away),
        }
        return self._session.request(
            request.method,
            f"http://broker{request.rel_url}",
            data=body or None,
            headers=headers,
            allow_redirects=False,
            skip_auto_headers=("Accept-Encoding", "User-Agent"),
        )

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        async with self._pools[Purpose.STREAMS].place(), self._asked(request, b"") as found:
            if "text/event-stream" not in found.headers.get("Content-Type", ""):
                return web.Response(
                    status=found.status,
                    headers=_given(found.headers),
                    body=await found.content.read(BODY_BYTES_MAX),
                )
            response = web.StreamResponse(headers=_given(found.headers))
            with contextlib.suppress(ConnectionError, TimeoutError, aiohttp.ClientError):
                await response.prepare(request)
                async for part in found.content.iter_any():
                    async with asyncio.timeout(WRITE_S):
                        await response.write(part)
            # The connection is aborted: data that could not be sent is not waited for.
            if request.transport is not None:
                request.transport.abort()
            return response


def _given(headers: Mapping[str, str]) -> dict[str, str]:
    found = {name: headers[name] for name in _GIVEN if name in headers}
    return found | {"Content-Type": headers.get("Content-Type", "application/octet-stream")}


def is_own(host: str | None, names: frozenset[str]) -> bool:
    """Whether a `Host` header names this host: by an address, by one of `names`, or not at all,
    which no browser does."""
    if host is None:
        return True
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.lower().removesuffix(".")
    if name in names:
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


#: Headers of every answer. A page of ours has its own policy for what it may do.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


async def with_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers to every answer (aiohttp's on_response_prepare)."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    # The server's software and version are not published.
    response.headers.pop(hdrs.SERVER, None)


# --- the process ------------------------------------------------------------------------------


def bound_this_process() -> None:
    """Bound the process's files, memory and priority; a limit that cannot be set is skipped."""
    for what, most in (
        (resource.RLIMIT_NOFILE, _FILES_MAX),
        (resource.RLIMIT_DATA, _DATA_BYTES_MAX),
    ):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (most, most))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    with contextlib.suppress(OSError):
        os.nice(_NICE)


async def serve(spec: Mapping[str, Any]) -> None:
    """Serve on the sockets of `spec` until the standard input ends."""
    front = Front(spec["upstream"], frozenset(spec["names"]))
    server = front.server = BoundedServer(front.application())
    await server.start(sockets=[socket.socket(fileno=number) for number in spec["plain"]])
    tls = server_context()
    if spec["tls"]:
        tls.load_cert_chain(spec["certificate"], spec["private_key"], password="")
        await server.start(tls=tls, sockets=[socket.socket(fileno=n) for n in spec["tls"]])
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def certificate_anew() -> None:
        if spec["tls"]:
            # The broker has checked the files; they may have changed once more since.
            with contextlib.suppress(OSError):
                tls.load_cert_chain(spec["certificate"], spec["private_key"], password="")

    loop.add_signal_handler(signal.SIGHUP, certificate_anew)
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    # The broker ends this process; a Ctrl-C goes to both.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_reader(sys.stdin.fileno(), ended.set)
    os.write(sys.stdout.fileno(), b"ready\n")
    await ended.wait()
    await server.close()
    await front.close()


def main() -> None:
    """`python -m broker.api.front_process SPEC`, SPEC in JSON, as broker/api/front.py makes it."""
    spec = json.loads(sys.argv[1])
    # Each invalid request is logged in a line; repeats are held back.
    set_up_logging(spec["log_level"])
    bound_this_process()
    asyncio.run(serve(spec))


if __name__ == "__main__":
    main()

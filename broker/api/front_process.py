# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that meets strangers: HTTP for people, Prometheus and joining hosts. It knows nothing
of the cluster and asks the broker, a few questions at a time, each of them small.

Why a process: whoever may connect may ask as fast as he can, and the beat of the broker must not
be a millisecond later for it. Here he takes this process's time and memory, which are bounded,
and the kernel ends it first. Once, idle connections from 16 addresses took all places of one
listener, the other hosts' questions were reset, and a host was switched off that lived.

Rules of this file:

1. Every request has a purpose, and each purpose a pool of its own: how many of them the broker is
   asked at once, and how many a second. One that finds no place within WAIT_S is told to try later.
2. What is the same for all is asked once and given to all for a moment (`FRESH_S`).
3. A page of another site must not read this one through somebody's browser: where a browser asks,
   the name in `Host` must be one of this host's (DNS rebinding), or an address.
4. Only what is named here is passed on, of the question and of the answer.

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
from broker.api.dashboard import Dashboard
from broker.api.door import BODY_BYTES_MAX, Doorway, at_work
from broker.daemon.service_manager import set_up_logging
from broker.daemon.tls import server_context

log = logging.getLogger("ha-broker.front")

#: What the broker is told of who asks: nobody else can open the socket that it listens on.
CLIENT, OVER_TLS = "X-Ha-Client", "X-Ha-Over-Tls"
GUESTS, TURNED_AWAY = "X-Ha-Guests", "X-Ha-Turned-Away"

#: A request waits so long for a place in its pool.
WAIT_S = 2.0
#: The broker answers a question that is no stream within so long; /libvirt-reach takes 10 s.
ANSWER_S = 15.0
#: A client takes a piece of a stream within so long, or is dropped.
WRITE_S = 5.0
#: The largest answer of the broker: a status of 2000 hosts has 3 MB.
ANSWER_BYTES_MAX = 16 * 2**20
#: Answers that are the same for all, and how old they may be.
FRESH_S = {
    "/metrics": 1.0,
    "/api/v1/status": 0.2,
    "/api/v1/history": 1.0,
    "/api/v1/openapi.json": float("inf"),
}
#: Of a question.
_PASSED = ("Accept", "Authorization", "Content-Type", "Last-Event-ID")
#: Of an answer.
_GIVEN = ("Allow", "Cache-Control", "Retry-After", "WWW-Authenticate", "X-Accel-Buffering")
#: Asked by programs, which have no other site open beside it.
_BY_PROGRAMS = frozenset({"/metrics", "/heartbeat", "/libvirt-reach", "/slot-seen"})

#: Of this process. Less than any QEMU, and the first to go (proc(5), oom_score_adj).
_FILES_MAX, _DATA_BYTES_MAX, _OOM_SCORE, _NICE = 1024, 512 * 2**20, 500, 10


class Purpose(Enum):
    """What a request is for: how many at once, how many a second."""

    PEOPLE = (4, 50.0)
    PROMETHEUS = (1, 20.0)
    MEMBERS = (8, 400.0)
    CHANGES = (2, 20.0)
    STREAMS = (64, 20.0)


#: Path -> methods. A path with a part that varies stands with its beginning.
_ROUTES: tuple[tuple[str, str, Purpose], ...] = (
    ("GET", "/metrics", Purpose.PROMETHEUS),
    ("GET", "/heartbeat", Purpose.MEMBERS),
    ("GET", "/libvirt-reach", Purpose.MEMBERS),
    ("GET", "/slot-seen", Purpose.MEMBERS),
    ("GET", "/api/v1/openapi.json", Purpose.PEOPLE),
    ("GET", "/api/v1/status", Purpose.PEOPLE),
    ("GET", "/api/v1/history", Purpose.PEOPLE),
    ("GET", "/api/v1/events", Purpose.PEOPLE),
    ("GET", "/api/v1/token", Purpose.CHANGES),
    ("GET", "/api/v1/orders/{number}", Purpose.PEOPLE),
    ("POST", "/api/v1/orders", Purpose.CHANGES),
    ("PUT", "/api/v1/maintenance/{mode}", Purpose.CHANGES),
)


class Busy(Exception):
    """The pool of a purpose is full."""


class Pool:
    """How many requests of one purpose the broker is asked: `at_once`, and `per_s` on average, a
    second's worth in one go."""

    def __init__(self, at_once: int, per_s: float) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._per_s = per_s
        self._left = per_s
        self._counted_s = 0.0

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Busy where there is none within WAIT_S, or where this one would be too many."""
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
    """What the broker has said."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    made_s: float


@dataclass(slots=True)
class _Kept:
    """An answer for all who ask the same, and that somebody is asking for it anew."""

    answer: Answer | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Front:
    """Passes requests on to the broker. `upstream`: the path of its socket; `names`: this host's,
    in lower case."""

    def __init__(self, upstream: str, names: frozenset[str]) -> None:
        self._upstream = upstream
        self._names = names
        self._session: aiohttp.ClientSession | None = None
        self._pools = {purpose: Pool(*purpose.value) for purpose in Purpose}
        self._kept: dict[tuple[str, str], _Kept] = {}
        #: Set before the first request.
        self.doorway: Doorway | None = None

    def application(self) -> web.Application:
        """The pages; the dashboard's own are answered here."""
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
            detail = "this host has another name; more of them are set by api.names"
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
            refused = problem(503, "busy", "too many ask for this at once; try again")
            refused.headers["Retry-After"] = "1"
            return refused
        except (aiohttp.ClientError, OSError, TimeoutError):
            return problem(503, "the broker does not answer", "it may be starting; try again")
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
        door = self.doorway
        assert door is not None
        headers = {name: request.headers[name] for name in _PASSED if name in request.headers}
        secured = request.transport is not None and request.transport.get_extra_info("ssl_object")
        headers |= {
            CLIENT: request.remote or "",
            OVER_TLS: "yes" if secured else "no",
            GUESTS: str(door.guests.total()),
            TURNED_AWAY: str(door.turned_away),
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
            # Not in good order: what could not be sent is not waited for.
            if request.transport is not None:
                request.transport.abort()
            return response


def _given(headers: Mapping[str, str]) -> dict[str, str]:
    found = {name: headers[name] for name in _GIVEN if name in headers}
    return found | {"Content-Type": headers.get("Content-Type", "application/octet-stream")}


def is_own(host: str | None, names: frozenset[str]) -> bool:
    """Whether a `Host` header means this host: an address, one of `names`, or none at all, which no
    browser sends."""
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


#: On every answer. What a page of ours may do is told by that page.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


async def with_headers(request: web.Request, response: web.StreamResponse) -> None:
    """On every answer (aiohttp's on_response_prepare)."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    # Which library of which version answers is nobody's business.
    response.headers.pop(hdrs.SERVER, None)


# --- the process ------------------------------------------------------------------------------


def bound_this_process() -> None:
    """Its files, memory and standing with the kernel; what may not be set stays as it is."""
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
    """Serve on the sockets of `spec` until standard input ends."""
    front = Front(spec["upstream"], frozenset(spec["names"]))
    door = front.doorway = Doorway(front.application())
    await door.start(sockets=[socket.socket(fileno=number) for number in spec["plain"]])
    tls = server_context()
    if spec["tls"]:
        tls.load_cert_chain(spec["certificate"], spec["private_key"], password="")
        await door.start(tls=tls, sockets=[socket.socket(fileno=n) for n in spec["tls"]])
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def certificate_anew() -> None:
        if spec["tls"]:
            # The broker has looked at it; it may have changed once more since.
            with contextlib.suppress(OSError):
                tls.load_cert_chain(spec["certificate"], spec["private_key"], password="")

    loop.add_signal_handler(signal.SIGHUP, certificate_anew)
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    # The broker's own: it ends both.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_reader(sys.stdin.fileno(), ended.set)
    os.write(sys.stdout.fileno(), b"ready\n")
    await ended.wait()
    await door.close()
    await front.close()


def main() -> None:
    """`python -m broker.front_process SPEC`, SPEC in JSON: what broker/api/front.py hands over."""
    spec = json.loads(sys.argv[1])
    # A stranger's nonsense has a line each, which repeats are held back of.
    set_up_logging(spec["log_level"])
    bound_this_process()
    asyncio.run(serve(spec))


if __name__ == "__main__":
    main()

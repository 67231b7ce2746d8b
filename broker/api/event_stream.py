# SPDX-License-Identifier: LGPL-2.1-or-later
"""`/api/v1/events`: what has happened, as a list; or, for a client that accepts text/event-stream,
as it happens (server-sent events, HTML's section 9.2).

Rules of this file:

1. A stream holds no queue: it remembers the last id it sent and reads the ring. A client that was
   away sends Last-Event-ID (or `after`) and gets what it missed, as far as the ring holds it.
2. A client that does not take a piece within WRITE_S is dropped.
3. The number of streams is bounded, in all and for one address; more are refused with 503.
4. A status is encoded once for all streams, and a large one is sent less often.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import msgspec
from aiohttp import web

from broker.api.answers import encode, json_answer, problem
from broker.api.bounded_server import client_of
from broker.api.errors import BadQuery
from broker.api.served import Served
from broker.wire.events import Event, EventList

STREAMS_MAX = 64
STREAMS_PER_CLIENT_MAX = 8
WRITE_S = 5.0
#: Something is sent at least this often: a client that gets nothing for longer is cut off.
QUIET_S = 15.0
#: Least time between two statuses for a client.
APART_S = 0.2
#: A status of so many bytes waits a second for the next one: 300 hosts or so. 2000 take 4 s.
BYTES_PER_S = 300_000
#: The pause after which a browser connects again.
RETRY_MS = 2000
LIMIT_DEFAULT, LIMIT_MAX = 100, 1000
_DIGITS_MAX = 15


def number(text: str, name: str, least: int, most: int) -> int:
    """A parameter that must be a number in a range; BadQuery where it is not."""
    digits = text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX
    if not digits or not least <= int(text) <= most:
        raise BadQuery(f"{name} must be a whole number from {least} to {most}")
    return int(text)


class Streams:
    """Answers the queries for events of one broker."""

    def __init__(self, broker: Served) -> None:
        self._broker = broker
        self.open: Counter[str] = Counter()
        self._status: tuple[int, bytes] = (-1, b"")

    async def get_events(self, request: web.Request) -> web.StreamResponse:
        """A list or a stream. `after`: only events after that id. `limit`: the longest list.
        `status`: yes adds the status to a stream, at each beat."""
        query = request.query
        try:
            after = request.headers.get("Last-Event-ID") or query.get("after")
            after_id = None if after is None else number(after, "after", 0, 10**_DIGITS_MAX - 1)
            limit = number(query.get("limit", str(LIMIT_DEFAULT)), "limit", 1, LIMIT_MAX)
            if query.get("status", "no") not in ("yes", "no"):
                raise BadQuery("status must be yes or no")
        except BadQuery as error:
            return problem(400, "the query does not fit", str(error))
        if "text/event-stream" not in request.headers.get("Accept", ""):
            return json_answer(self._list(after_id, limit))
        client = client_of(request.remote or "")
        if self.open.total() >= STREAMS_MAX or self.open[client] >= STREAMS_PER_CLIENT_MAX:
            answer = problem(
                503,
                "too many event streams",
                f"{STREAMS_MAX} at once, "
                f"{STREAMS_PER_CLIENT_MAX} from one address; close one, or try later",
            )
            answer.headers["Retry-After"] = "10"
            return answer
        self.open[client] += 1
        try:
            return await self._stream(request, after_id, query.get("status") == "yes")
        finally:
            self.open[client] -= 1
            if not self.open[client]:
                del self.open[client]

    def _list(self, after_id: int | None, limit: int) -> EventList:
        ring = self._broker.events
        if after_id is not None:
            return ring.after(after_id, limit)
        found = ring.after(0)
        return msgspec.structs.replace(found, events=found.events[-limit:])

    async def _stream(
        self, request: web.Request, after_id: int | None, with_status: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        with contextlib.suppress(ConnectionError, TimeoutError):
            await response.prepare(request)
            await _send(response, b"retry: %d\n\n" % RETRY_MS)
            await self._send_for_ever(response, after_id, with_status)
        # The connection is aborted: data that could not be sent is not waited for.
        if request.transport is not None:
            request.transport.abort()
        return response

    async def _send_for_ever(
        self, response: web.StreamResponse, after_id: int | None, with_status: bool
    ) -> None:
        broker, ring = self._broker, self._broker.events
        sent_id = ring.after(0).last if after_id is None else after_id
        sent_news = -1
        while True:
            found = ring.after(sent_id)
            parts = [b"event: missed\ndata: {}\n\n"] if found.missed else []
            parts += map(_as_sse, found.events)
            sent_id = found.last
            if with_status and broker.news.version != sent_news:
                sent_news = broker.news.version
                parts.append(b"event: status\ndata: " + self._encoded_status() + b"\n\n")
            await _send(response, b"".join(parts) or b":\n\n")
            if with_status:
                await asyncio.sleep(max(APART_S, len(self._status[1]) / BYTES_PER_S))
                await broker.news.wait(sent_news, QUIET_S)
            else:
                await ring.newer(sent_id, QUIET_S)

    def _encoded_status(self) -> bytes:
        news, text = self._status
        if news != self._broker.news.version:
            text = encode(self._broker.shown.now(asyncio.get_running_loop().time()))
            self._status = self._broker.news.version, text
        return text


def _as_sse(event: Event) -> bytes:
    # Encoded JSON has no raw line ends, so foreign text cannot end the field.
    return b"id: %d\nevent: happened\ndata: %s\n\n" % (event.id, encode(event))


async def _send(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_S):
        await response.write(data)

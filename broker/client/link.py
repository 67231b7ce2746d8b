# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent's connection to its broker: HTTP/1.1 on the UNIX socket, by h11.

aiohttp's client would work too, but needs twelve MiB more in a daemon that must stay small.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import h11
import msgspec

from broker.client.ask import BrokerDown, BrokerRefused, refusal
from broker.client.quick import ANSWER_BYTES_MAX
from broker.daemon.foreign_json import decoded
from broker.wire.exchange import FenceNote, Report, View

T = TypeVar("T")

#: Longer than the broker may hold back an answer (PATIENCE_S in broker/api/socket.py).
LINK_TIMEOUT_S = 7.0
READ_BYTES = 65_536


class Link:
    """The agent's connections, kept open from beat to beat: one for answers that may be held back,
    one for those that come at once, one for the fence log."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._patient = _Exchanges(path)
        self._prompt = _Exchanges(path)
        self._notes = _Exchanges(path)

    async def exchange(self, report: Report, newer_than: int | None = None) -> View:
        """Send a report and get the view: at once, or when it is newer than that version.

        BrokerDown or BrokerRefused.
        """
        target, over = "/v1/report", self._prompt
        if newer_than is not None:
            target, over = f"{target}?newer-than={newer_than}", self._patient
        return await self._asked(over, "PUT", target, report, View)

    async def note_fence(self, note: FenceNote) -> None:
        """Have the broker write to the fence log. BrokerDown, BrokerRefused: it was not written."""
        await self._asked(self._notes, "POST", "/v1/fence-log", note, dict)

    async def _asked(
        self, over: _Exchanges, method: str, target: str, value: Any, kind: type[T]
    ) -> T:
        body = msgspec.json.encode(value)
        try:
            async with asyncio.timeout(LINK_TIMEOUT_S):
                status, raw = await over.ask(method, target, body)
        except (OSError, TimeoutError, h11.ProtocolError) as error:
            over.close()
            raise BrokerDown(f"no answer on {self._path}: {type(error).__name__}") from None
        except BaseException:
            over.close()
            raise
        if status != 200:
            raise BrokerRefused(refusal(status, raw), status)
        try:
            return decoded(raw, kind)
        except msgspec.MsgspecError as error:
            raise BrokerRefused(f"an answer that does not fit: {error}") from None

    async def close(self) -> None:
        """Close the connections."""
        self._patient.close()
        self._prompt.close()
        self._notes.close()


class _Exchanges:
    """HTTP/1.1 on one connection that is made when needed; one request at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._http = h11.Connection(h11.CLIENT)

    def close(self) -> None:
        """Drop the connection; the next request makes a new one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def ask(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        """The answer's status and body. OSError, EOFError as ConnectionError, ProtocolError."""
        reused = self._streams is not None
        try:
            return await self._ask(method, target, body)
        except (ConnectionError, h11.RemoteProtocolError):
            # A broker that was restarted does not know the connection: that is no failure.
            self.close()
            if not reused:
                raise
        return await self._ask(method, target, body)

    async def _ask(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(self._path)
            self._http = h11.Connection(h11.CLIENT)
        reader, writer = self._streams
        headers = [("Host", "ha"), ("Content-Length", str(len(body)))]
        request = h11.Request(method=method, target=target, headers=headers)
        for sent in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(self._http.send(sent) or b"")
        await writer.drain()
        status, parts = 0, bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await reader.read(READ_BYTES))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                parts += event.data
                if len(parts) > ANSWER_BYTES_MAX:
                    raise ConnectionError("the answer has no end")
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionError("closed")
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.close()
        return status, bytes(parts)

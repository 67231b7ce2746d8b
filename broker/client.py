# SPDX-License-Identifier: LGPL-2.1-or-later
"""Talking to the broker's socket: `ask` for commands (no event loop), `Link` for the agent."""

from __future__ import annotations

import http.client
import socket
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from broker.wire import Problem, Report, View

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

ASK_TIMEOUT_S = 5.0
#: More than the broker holds back an answer for (server.PATIENCE_S).
LINK_TIMEOUT_S = 7.0
ANSWER_BYTES_MAX = 32 * 1024 * 1024


class BrokerDown(Exception):
    """Nobody answers on the socket: the message says which and what to do."""


class BrokerRefused(Exception):
    """The broker answered with an error."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("ha", timeout=ASK_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ASK_TIMEOUT_S)
        self.sock.connect(self._path)


def ask(path: str, method: str, resource: str, kind: type[T], body: Any = None) -> T:
    """One request to the broker; blocking, at most ASK_TIMEOUT_S a step.

    Raises BrokerDown where nobody answers, BrokerRefused where the answer is an error.
    """
    connection = _UnixConnection(path)
    data = None if body is None else msgspec.json.encode(body)
    try:
        connection.request(method, resource, data)
        answer = connection.getresponse()
        raw = answer.read(ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BrokerDown(
            f"no answer on {path}: {why}; is ha-broker running? (systemctl status ha-broker)"
        ) from None
    finally:
        connection.close()
    if answer.status != 200:
        raise BrokerRefused(_refusal(answer.status, raw))
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise BrokerRefused(f"an answer that does not fit: {error}") from None


def _refusal(status: int, raw: bytes) -> str:
    try:
        problem = msgspec.json.decode(raw, type=Problem)
    except msgspec.MsgspecError:
        return f"the broker answers {status}"
    return f"{problem.title}: {problem.detail}" if problem.detail else problem.title


class Link:
    """The agent's connection, kept open from beat to beat."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._session: aiohttp.ClientSession | None = None

    async def exchange(self, report: Report, newer_than: int | None = None) -> View:
        """Hand over a report, get the view: at once, or when it is newer than that version.

        BrokerDown or BrokerRefused.
        """
        import aiohttp  # the command line must not pay for it

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self._path),
                timeout=aiohttp.ClientTimeout(total=LINK_TIMEOUT_S),
            )
        try:
            body = msgspec.json.encode(report)
            where = "http://ha/v1/report"
            if newer_than is not None:
                where += f"?newer-than={newer_than}"
            async with self._session.put(where, data=body) as answer:
                raw = await answer.read()
                if answer.status != 200:
                    raise BrokerRefused(_refusal(answer.status, raw))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise BrokerDown(f"no answer on {self._path}: {type(error).__name__}") from None
        try:
            return msgspec.json.decode(raw, type=View)
        except msgspec.MsgspecError as error:
            raise BrokerRefused(f"an answer that does not fit: {error}") from None

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

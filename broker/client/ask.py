# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sends a command's request to the broker's socket, without an event loop. The agent uses
link.py."""

from __future__ import annotations

import http.client
import socket
from typing import Any, TypeVar

import msgspec

from broker.client.quick import ANSWER_BYTES_MAX, ASK_TIMEOUT_S, BrokerDown, BrokerError
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign_json import decoded
from broker.wire.problem import Problem

__all__ = ["BrokerDown", "BrokerError", "BrokerRefused", "ask", "refusal"]

T = TypeVar("T")


class BrokerRefused(BrokerError):
    """The broker answered with an error. `status`: of HTTP; 0: the answer does not fit."""

    code = ExitCode.REFUSED

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("ha", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(
    path: str,
    method: str,
    resource: str,
    kind: type[T],
    body: Any = None,
    timeout_s: float = ASK_TIMEOUT_S,
) -> T:
    """Send one request to the broker; blocks at most `timeout_s` in each step.

    Raises BrokerDown where the broker does not answer, BrokerRefused where the answer is an error.
    """
    connection = _UnixConnection(path, timeout_s)
    data = None if body is None else msgspec.json.encode(body)
    try:
        connection.request(method, resource, data)
        answer = connection.getresponse()
        raw = answer.read(ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        raise BrokerDown.because(path, error) from None
    finally:
        connection.close()
    if answer.status != 200:
        raise BrokerRefused(refusal(answer.status, raw), answer.status)
    try:
        return decoded(raw, kind)
    except msgspec.MsgspecError as error:
        raise BrokerRefused(f"an answer that does not fit: {error}") from None


def refusal(status: int, raw: bytes) -> str:
    """The error text in an answer that is not 200."""
    try:
        problem = decoded(raw, Problem)
    except msgspec.MsgspecError:
        return f"the broker answers {status}"
    return f"{problem.title}: {problem.detail}" if problem.detail else problem.title

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fastest way to ask the broker: HTTP/1.0 over its UNIX socket, without any library. It is for
`ha-agent --status`, of whose time http.client's imports (ssl, email) would be a third; other
commands use ask.py.
"""

from __future__ import annotations

import socket
from enum import Enum, auto

from broker.daemon.errors import HaError, why
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import sentence

ASK_TIMEOUT_S = 5.0
ANSWER_BYTES_MAX = 32 * 1024 * 1024
_PART_BYTES = 256 * 1024
REASON_CHARS_MAX = 120


class BrokerError(HaError):
    """The broker did not do what it was asked for."""


class Fault(Enum):
    """Why a broker does not answer. FORBIDDEN: this user may not ask. NOBODY: no process listens
    on its socket."""

    NO_ANSWER = auto()
    FORBIDDEN = auto()
    NOBODY = auto()


class BrokerDown(BrokerError):
    """No broker answers on the socket: the message says which socket and what to do."""

    code = ExitCode.BROKER_DOWN
    #: Why, where the kernel says it; NO_ANSWER: the broker may run.
    fault = Fault.NO_ANSWER

    @classmethod
    def because(cls, path: str, error: Exception) -> BrokerDown:
        """A BrokerDown for the error of an attempt."""
        if isinstance(error, PermissionError):
            return cls._of(
                Fault.FORBIDDEN,
                f"{path}: this user may not ask the broker; run as root, by sudo for example",
            )
        if isinstance(error, ConnectionRefusedError | FileNotFoundError):
            # Nobody listens there: an ended broker leaves its socket where it was.
            return cls._of(
                Fault.NOBODY,
                f"ha-broker does not run: nothing answers on {path} (systemctl start ha-broker;"
                " systemctl status ha-broker says why it ended)",
            )
        # http.client quotes what came instead of an answer.
        said = sentence(why(error), REASON_CHARS_MAX)
        return cls(
            f"no answer on {path}: {said}; is ha-broker running? (systemctl status ha-broker)"
        )

    @classmethod
    def _of(cls, fault: Fault, text: str) -> BrokerDown:
        made = cls(text)
        made.fault = fault
        return made


def get(path: str, resource: str, timeout_s: float = ASK_TIMEOUT_S) -> tuple[int, bytes]:
    """GET `resource` (no blanks in it) from the broker on the socket `path`: HTTP status and body.

    Blocks at most `timeout_s` in each step. Raises BrokerDown where nothing answers in HTTP.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(path)
            # HTTP/1.0: the answer comes in one piece and ends with the connection.
            connection.sendall(f"GET {resource} HTTP/1.0\r\nHost: ha\r\n\r\n".encode())
            parts, size = [], 0
            while part := connection.recv(_PART_BYTES):
                parts.append(part)
                size += len(part)
                if size > ANSWER_BYTES_MAX:
                    raise OSError(0, f"the answer is longer than {ANSWER_BYTES_MAX} bytes")
    except OSError as error:
        raise BrokerDown.because(path, error) from None
    head, end, body = b"".join(parts).partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if not end or len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise BrokerDown.because(path, OSError(0, "the answer is cut short"))
    length = _length(head)
    if length is not None and length != len(body):
        raise BrokerDown.because(path, OSError(0, "the answer is cut short"))
    return int(words[1]), body


def _length(head: bytes) -> int | None:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return None

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sends the daemons' log lines to systemd's journal with fields, or to standard error.

Rules of this file:

1. Under systemd a line goes to the journal's own socket, with its particulars as fields
   (systemd.io/JOURNAL_NATIVE_PROTOCOL). A line that cannot be sent there at once (no socket, full,
   too long) goes to standard error, which systemd reads too.
2. Sending never blocks and never raises.
3. Repeated lines are held back here and nowhere else: BURST of a line are sent within WINDOW_S,
   further ones are counted, and the count is logged when the window is over. Lines with `always`
   are never held back.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import struct
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

JOURNAL_SOCKET = "/run/systemd/journal/socket"
#: sd-daemon(3), the kernel's levels.
PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}
DEBUG_PRIORITY = 7
#: How many of one line are sent within the window.
BURST = 10
WINDOW_S = 60.0
#: So many different lines are remembered.
REMEMBERED_MAX = 256
_LENGTH = struct.Struct("<Q")
_NUMBER = re.compile(r"[0-9]+")


def fields(
    given: Mapping[str, object] = MappingProxyType({}), *, always: bool = False, **named: object
) -> dict[str, Any]:
    """The particulars of a line, for `extra=` of the call: `reason="lease-wait"` becomes the
    journal's field HA_REASON. None is left out. `always`: the line is never held back."""
    texts = {
        f"HA_{name.upper()}": str(one)
        for name, one in {**given, **named}.items()
        if one is not None
    }
    return {"ha_fields": texts, "ha_always": always}


def priority(level: int) -> int:
    """The journal's priority for one of logging's levels."""
    return PRIORITIES.get(level, DEBUG_PRIORITY)


@dataclass(slots=True)
class _Line:
    since_s: float
    count: int
    last: logging.LogRecord


class Repeats:
    """Holds back lines that come too often; lines that differ only in their numbers count as one.
    `clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: OrderedDict[tuple[str, int, str], _Line] = OrderedDict()
        self._unsent: list[logging.LogRecord] = []

    def lets_out(self, record: logging.LogRecord) -> bool:
        """Whether the line is to be sent."""
        if getattr(record, "ha_always", False):
            return True
        now_s = self._clock()
        key = (record.name, record.levelno, _NUMBER.sub("#", record.getMessage()))
        line = self._lines.get(key)
        if line is None:
            while len(self._lines) >= REMEMBERED_MAX:
                self._forget(*self._lines.popitem(last=False))
            line = self._lines[key] = _Line(now_s, 0, record)
        line.count += 1
        line.last = record
        return line.count <= BURST

    def due(self, everything: bool = False) -> list[logging.LogRecord]:
        """Lines with the number of held-back ones, for each window that is over."""
        now_s = self._clock()
        while self._lines:
            key, line = next(iter(self._lines.items()))
            if not everything and now_s - line.since_s < WINDOW_S:
                break
            del self._lines[key]
            self._forget(key, line)
        found, self._unsent = self._unsent, []
        return found

    def _forget(self, _key: tuple[str, int, str], line: _Line) -> None:
        if (held := line.count - BURST) > 0:
            self._unsent.append(_count_line(line.last, held))


def _count_line(last: logging.LogRecord, held: int) -> logging.LogRecord:
    text = f"{held} more like this were held back, the last one: {last.getMessage()}"
    made = logging.LogRecord(last.name, last.levelno, last.pathname, last.lineno, text, (), None)
    vars(made).update(fields(held_back=held))
    return made


class Lines(logging.Handler):
    """The only handler: repeats are held back, other lines are sent by `send`."""

    def __init__(self, send: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._send = send
        self._repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record; counts that have become due are sent first."""
        try:
            for due in self._repeats.due():
                self._send(due)
            if self._repeats.lets_out(record):
                self._send(record)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Log the counts of all held-back lines."""
        with contextlib.suppress(Exception):
            for due in self._repeats.due(everything=True):
                self._send(due)
        super().close()


class Journal:
    """Sends to the journal's socket; `otherwise` gets the lines that cannot be sent."""

    def __init__(self, path: str, otherwise: Callable[[logging.LogRecord], None]) -> None:
        self._path = path
        self._otherwise = otherwise
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, record: logging.LogRecord) -> None:
        """Send the line as one datagram."""
        try:
            self._socket.sendto(datagram(record), self._path)
        except OSError:
            self._otherwise(record)

    def close(self) -> None:
        """Close the socket; later lines go to `otherwise`."""
        self._socket.close()


def datagram(record: logging.LogRecord) -> bytes:
    """The line in the journal's native format."""
    message = record.getMessage()
    if record.exc_info:
        message += "\n" + logging.Formatter().formatException(record.exc_info)
    named: Mapping[str, str] = getattr(record, "ha_fields", {})
    return b"".join(
        _field(name, value)
        for name, value in (
            ("MESSAGE", message),
            ("PRIORITY", str(priority(record.levelno))),
            ("SYSLOG_IDENTIFIER", Path(sys.argv[0]).name),
            ("LOGGER", record.name),
            ("CODE_FILE", record.pathname),
            ("CODE_LINE", str(record.lineno)),
            ("CODE_FUNC", record.funcName or ""),
            *named.items(),
        )
    )


def _field(name: str, value: str) -> bytes:
    raw = value.encode(errors="replace")
    if b"\n" not in raw:
        return name.encode() + b"=" + raw + b"\n"
    # With its length before it a value may hold newlines.
    return name.encode() + b"\n" + _LENGTH.pack(len(raw)) + raw + b"\n"


def to_standard_error(formatter: logging.Formatter) -> Callable[[logging.LogRecord], None]:
    """A function that writes a record to standard error."""
    stream = logging.StreamHandler()
    stream.setFormatter(formatter)
    return stream.emit

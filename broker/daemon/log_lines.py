# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the daemons' log lines go: to systemd's journal with fields, or to standard error.

Rules of this file:

1. Under systemd a line goes to the journal's own socket, with what is in it as fields
   (systemd.io/JOURNAL_NATIVE_PROTOCOL). What cannot be sent there at once (no socket, full,
   too long) goes to standard error, which systemd reads too.
2. Sending never blocks and never raises.
3. The same line again and again is held back here and nowhere else: BURST within WINDOW_S, then
   it is counted, and the count is told when the time is up. Lines with `always` are never.
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
#: The same line may come so often within so long.
BURST = 10
WINDOW_S = 60.0
#: So many different lines are remembered for that.
REMEMBERED_MAX = 256
_LENGTH = struct.Struct("<Q")
_NUMBER = re.compile(r"[0-9]+")


def fields(
    given: Mapping[str, object] = MappingProxyType({}), *, always: bool = False, **named: object
) -> dict[str, Any]:
    """What a line is about, for `extra=` of the call: `reason="lease-wait"` becomes the journal's
    field HA_REASON. None is left out. `always`: the line is never held back."""
    texts = {
        f"HA_{name.upper()}": str(one)
        for name, one in {**given, **named}.items()
        if one is not None
    }
    return {"ha_fields": texts, "ha_always": always}


def priority(level: int) -> int:
    """The journal's for one of logging's levels."""
    return PRIORITIES.get(level, DEBUG_PRIORITY)


@dataclass(slots=True)
class _Line:
    since_s: float
    count: int
    last: logging.LogRecord


class Repeats:
    """Holds back what comes too often; lines that differ in their numbers alone are the same.
    `clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: OrderedDict[tuple[str, int, str], _Line] = OrderedDict()
        self._untold: list[logging.LogRecord] = []

    def lets_out(self, record: logging.LogRecord) -> bool:
        """Whether it may go out."""
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
        """Lines that tell how many were held back, of those whose time is up."""
        now_s = self._clock()
        while self._lines:
            key, line = next(iter(self._lines.items()))
            if not everything and now_s - line.since_s < WINDOW_S:
                break
            del self._lines[key]
            self._forget(key, line)
        found, self._untold = self._untold, []
        return found

    def _forget(self, _key: tuple[str, int, str], line: _Line) -> None:
        if (held := line.count - BURST) > 0:
            self._untold.append(_told_of(line.last, held))


def _told_of(last: logging.LogRecord, held: int) -> logging.LogRecord:
    text = f"{held} more like this were held back, the last one: {last.getMessage()}"
    made = logging.LogRecord(last.name, last.levelno, last.pathname, last.lineno, text, (), None)
    vars(made).update(fields(held_back=held))
    return made


class Lines(logging.Handler):
    """The one handler: repeats are held back, the rest goes out by `send`."""

    def __init__(self, send: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._send = send
        self._repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        """What has become due goes first."""
        try:
            for due in self._repeats.due():
                self._send(due)
            if self._repeats.lets_out(record):
                self._send(record)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """The end: what was held back is told."""
        with contextlib.suppress(Exception):
            for due in self._repeats.due(everything=True):
                self._send(due)
        super().close()


class Journal:
    """Sends to the journal's socket; `otherwise` gets what cannot be sent."""

    def __init__(self, path: str, otherwise: Callable[[logging.LogRecord], None]) -> None:
        self._path = path
        self._otherwise = otherwise
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, record: logging.LogRecord) -> None:
        """One datagram."""
        try:
            self._socket.sendto(datagram(record), self._path)
        except OSError:
            self._otherwise(record)

    def close(self) -> None:
        """Its socket; whatever is sent later goes the other way."""
        self._socket.close()


def datagram(record: logging.LogRecord) -> bytes:
    """The line as the journal takes it."""
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
    # With its length in front a value may hold newlines.
    return name.encode() + b"\n" + _LENGTH.pack(len(raw)) + raw + b"\n"


def to_standard_error(formatter: logging.Formatter) -> Callable[[logging.LogRecord], None]:
    """The way there."""
    stream = logging.StreamHandler()
    stream.setFormatter(formatter)
    return stream.emit

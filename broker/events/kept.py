# SPDX-License-Identifier: LGPL-2.1-or-later
"""The newest events in a file, so that a restart of the broker or of the host forgets nothing.

Rules of this file:

1. A line of JSON each. What cannot be read, as a line that a power cut has torn, is passed over.
2. `keep` is called from the beat: it only hands over. A thread that lives while there is
   something to write writes it; a disk that hangs costs the file, never the beat.
3. The file is made anew with what is remembered when it holds twice as much.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from pathlib import Path

import msgspec

from broker.daemon.atomic_file import append_lines, write_atomically
from broker.wire.status import Event

log = logging.getLogger("ha-broker.events")

FILE_NAME = "events.jsonl"
#: Longer files are not ours: so much is read from the end.
BYTES_MAX = 8 * 2**20


class KeptEvents:
    """The file in `directory`, of which the newest `count_max` events count."""

    def __init__(self, directory: Path, count_max: int) -> None:
        self.path = directory / FILE_NAME
        self._count_max = count_max
        #: As the file has them, or will.
        self._newest: deque[Event] = deque(maxlen=count_max)
        self._lines = 0
        self._waiting: deque[Event] = deque(maxlen=count_max)
        self._lock = threading.Lock()
        self._writing: threading.Thread | None = None
        #: Why events do not outlive this broker now; empty while they do.
        self.problem = ""

    def load(self) -> tuple[Event, ...]:
        """What an earlier broker kept, oldest first, ids growing; nothing where there is none."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, self.path.stat().st_size - BYTES_MAX))
                lines = file.read().splitlines()
        except FileNotFoundError:
            return ()
        except OSError as error:
            log.warning("%s cannot be read: %s", self.path, error.strerror)
            return ()
        self._lines = len(lines)
        decoder, last = msgspec.json.Decoder(Event), 0
        for line in lines:
            try:
                event = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if event.id > last:
                self._newest.append(event)
                last = event.id
        return tuple(self._newest)

    def keep(self, event: Event) -> None:
        """Have it written, soon; never raises, never waits for the disk."""
        with self._lock:
            self._waiting.append(event)
            if self._writing is None:
                self._writing = threading.Thread(
                    target=self._write_all, name="keep events", daemon=True
                )
                self._writing.start()

    @property
    def is_writing(self) -> bool:
        """Whether something is still on its way to the disk."""
        return self._writing is not None

    def flush(self, patience_s: float) -> None:
        """Wait until all is written, `patience_s` at most."""
        writing = self._writing
        if writing is not None:
            writing.join(patience_s)

    def _write_all(self) -> None:
        while True:
            with self._lock:
                batch = tuple(self._waiting)
                self._waiting.clear()
                if not batch:
                    self._writing = None
                    return
            try:
                self._write(batch)
            except OSError as error:
                if not self.problem:
                    log.warning("%s cannot be written: %s", self.path, error.strerror)
                self.problem = f"{self.path}: {error.strerror}: events are lost with a restart"
            else:
                self.problem = ""

    def _write(self, batch: tuple[Event, ...]) -> None:
        self._newest.extend(batch)
        self._lines += len(batch)
        if self._lines > 2 * self._count_max:
            write_atomically(self.path, _encoded(self._newest))
            self._lines = len(self._newest)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_lines(self.path, _encoded(batch))


def _encoded(events: tuple[Event, ...] | deque[Event]) -> bytes:
    return b"".join(msgspec.json.encode(event) + b"\n" for event in events)

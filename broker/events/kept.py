# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps the newest events in a file, so that they survive a restart of the broker or of the host.

Rules of this file:

1. Each line is one event in JSON. A line that cannot be read, as one that a power cut has torn, is
   skipped.
2. `keep` is called from the beat: it only hands over. A thread that lives while there is
   something to write writes it; a disk that hangs costs the file, never the beat.
3. The file is written anew with the newest events when it holds twice as many.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from pathlib import Path

import msgspec

from broker.daemon.atomic_file import append_lines, write_atomically
from broker.daemon.foreign_json import decoded
from broker.wire.events import Event

log = logging.getLogger("ha-broker.events")

FILE_NAME = "events.jsonl"
#: At most so much is read from the end of the file: this program writes no longer ones.
BYTES_MAX = 8 * 2**20


class KeptEvents:
    """The file in `directory`, which keeps the newest `count_max` events."""

    def __init__(self, directory: Path, count_max: int) -> None:
        self.path = directory / FILE_NAME
        self._count_max = count_max
        #: The events of the file, those still to be written included.
        self._newest: deque[Event] = deque(maxlen=count_max)
        self._lines = 0
        self._waiting: deque[Event] = deque(maxlen=count_max)
        self._lock = threading.Lock()
        self._writing: threading.Thread | None = None
        #: Why events are not kept at the moment; empty while they are.
        self.problem = ""

    def load(self) -> tuple[Event, ...]:
        """An earlier broker's events, oldest first, ids growing; empty where there are none."""
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
        last = 0
        for line in lines:
            try:
                event = decoded(line, Event)
            except msgspec.MsgspecError:
                continue
            if event.id > last:
                self._newest.append(event)
                last = event.id
        return tuple(self._newest)

    def keep(self, event: Event) -> None:
        """Have the event written soon; never raises, never waits for the disk."""
        with self._lock:
            self._waiting.append(event)
            if self._writing is None:
                self._writing = threading.Thread(
                    target=self._write_all, name="keep events", daemon=True
                )
                self._writing.start()

    @property
    def is_writing(self) -> bool:
        """Whether events are still to be written."""
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

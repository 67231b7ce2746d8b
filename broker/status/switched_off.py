# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why this host was switched off in its last boot, by the fence log. The notice is sent once; the
line in the status stays until a person acknowledges it."""

from __future__ import annotations

import logging
from pathlib import Path

from broker.daemon.atomic_file import write_atomically
from broker.daemon.foreign import whole
from broker.whiteboard.fence_log import FenceLog, LogRecord

log = logging.getLogger("ha-broker")

#: A record's number is not larger.
NUMBER_MAX = 10**15


class SwitchedOff:
    """`host_id`: this host's; `state_dir`: keeps the number of the reported record."""

    def __init__(self, fence_log: FenceLog, host_id: int, state_dir: Path) -> None:
        self._fence_log = fence_log
        self._host_id = host_id
        self._reported_file = state_dir / "certificate-told"
        self._reported: int | None = None
        self._seen_file = state_dir / "switched-off-acknowledged"
        self._seen: int | None = _number_in(self._seen_file)

    def record(self, previous_boot_id: str) -> LogRecord | None:
        """The record of the power-off; None: there was none, as far as known."""
        return self._fence_log.certificate(self._host_id, previous_boot_id)

    def shown(self, previous_boot_id: str) -> LogRecord | None:
        """The record, until somebody has acknowledged it."""
        record = self.record(previous_boot_id)
        return None if record is None or record.number == self._seen else record

    def acknowledge(self, previous_boot_id: str) -> LogRecord | None:
        """A person has read the line: the record that is acknowledged (None: there is none).
        OSError where that cannot be remembered."""
        record = self.shown(previous_boot_id)
        if record is not None:
            write_atomically(self._seen_file, str(record.number).encode())
            self._seen = record.number
        return record

    def unreported(self, previous_boot_id: str) -> LogRecord | None:
        """The record, once for each power-off, however often the broker is restarted after it."""
        record = self.record(previous_boot_id)
        if record is None or record.number == self._reported:
            return None
        known = str(record.number).encode()
        self._reported = record.number
        try:
            reported = self._reported_file.read_bytes()
        except OSError:
            reported = b""
        if reported == known:
            return None
        try:
            write_atomically(self._reported_file, known)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._reported_file, error)
        return record


def _number_in(path: Path) -> int | None:
    """The number in a file of ours; None: there is none."""
    try:
        return whole(path.read_text().strip(), NUMBER_MAX)
    except (OSError, UnicodeDecodeError):
        return None

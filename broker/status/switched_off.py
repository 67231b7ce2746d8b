# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why this host was switched off in its last boot, as the fence log has it; told once."""

from __future__ import annotations

import logging
from pathlib import Path

from broker.daemon.atomic_file import write_atomically
from broker.whiteboard.fence_log import FenceLog, LogRecord

log = logging.getLogger("ha-broker")


class SwitchedOff:
    """`host_id`: this host's; `state_dir`: remembers what was told over restarts."""

    def __init__(self, fence_log: FenceLog, host_id: int, state_dir: Path) -> None:
        self._fence_log = fence_log
        self._host_id = host_id
        self._told_file = state_dir / "certificate-told"
        self._told: int | None = None

    def record(self, previous_boot_id: str) -> LogRecord | None:
        """The record of it; None: it was not, as far as known."""
        return self._fence_log.certificate(self._host_id, previous_boot_id)

    def untold(self, previous_boot_id: str) -> LogRecord | None:
        """The same, once for each time, however often the broker is restarted after it."""
        record = self.record(previous_boot_id)
        if record is None or record.number == self._told:
            return None
        known = str(record.number).encode()
        self._told = record.number
        try:
            told = self._told_file.read_bytes()
        except OSError:
            told = b""
        if told == known:
            return None
        try:
            write_atomically(self._told_file, known)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._told_file, error)
        return record

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records whether this boot of the host was, or may have been, in the lockspace, and by which
process of sanlock: two files with its boot id, written before sanlock is asked. They outlive the
broker, and mean nothing after a boot. The second one is apart for brokers of earlier versions,
which read the first as a whole."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from broker.daemon.atomic_file import write_atomically

log = logging.getLogger("ha-broker.lockspace")

FILE, PROCESS_FILE = "joined-on-boot", "joined-by-sanlock"


class JoinedMark:
    """The mark in the state folder. `boot_id` "": unknown, so the mark counts as set. Both methods
    block as long as the local disk does."""

    def __init__(self, folder: Path, boot_id: str) -> None:
        self._path = folder / FILE
        self._boot_id = boot_id
        self._is_written = False
        with contextlib.suppress(OSError, UnicodeDecodeError):
            self._is_written = self._path.read_text().strip() == boot_id
        self.is_set = self._is_written or not boot_id
        self._process_path = folder / PROCESS_FILE
        self.process = ""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            boot, _, process = self._process_path.read_text().strip().partition(" ")
            if boot and boot == boot_id:
                self.process = process

    def set(self, process: str) -> None:
        """Note that this boot may be in the lockspace from now on, by that process. Where a file
        cannot be written the next call tries again; this broker knows it in any case."""
        is_known = self._is_written and self.process == process
        self.is_set, self.process = True, process
        if is_known:
            return
        try:
            write_atomically(self._path, f"{self._boot_id}\n".encode())
            self._is_written = True
            write_atomically(self._process_path, f"{self._boot_id} {process}\n".encode())
        except OSError as error:
            log.warning("%s: cannot be written: %s; free space there", self._path, error.strerror)

    def clear(self) -> None:
        """Remove the mark: sanlock said that it did not join, or the id was given back."""
        self.is_set = not self._boot_id
        self._is_written, self.process = False, ""
        for path in (self._process_path, self._path):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

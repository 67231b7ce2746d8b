# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records whether this boot of the host was, or may have been, in the lockspace: a file with its
boot id, written before sanlock is asked. It outlives the broker, and means nothing after a boot."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from broker.daemon.atomic_file import write_atomically

log = logging.getLogger("ha-broker.lockspace")

FILE = "joined-on-boot"


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

    def set(self) -> None:
        """Note that this boot may be in the lockspace from now on. Where the file cannot be written
        the next call tries again; this broker knows it in any case."""
        self.is_set = True
        if self._is_written:
            return
        try:
            write_atomically(self._path, f"{self._boot_id}\n".encode())
            self._is_written = True
        except OSError as error:
            log.warning("%s: cannot be written: %s; free space there", self._path, error.strerror)

    def clear(self) -> None:
        """Remove the mark: sanlock said that it did not join, or the id was given back."""
        self.is_set = not self._boot_id
        self._is_written = False
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of state, whole or as they were, and files to which lines are added, whole or not."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file's content, on the disk when this returns; OSError where it cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def append_lines(path: Path, data: bytes, sync: bool = False) -> None:
    """Add lines to a file, all of them or none; OSError where that fails. `data` ends in a newline;
    `sync`: it is on the disk when this returns.

    A line that a power cut left torn is ended first, and what a full disk took only in part is
    cut off again: what is read later lacks that line and no other.
    """
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            data = data if file.read(1) == b"\n" else b"\n" + data
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            if sync:
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise

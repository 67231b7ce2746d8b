# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes a state file completely or not at all, and appends lines completely or not at all."""

from __future__ import annotations

import contextlib
import grp
import os
from pathlib import Path


def write_atomically(path: Path, data: bytes, mode: int | None = None, group: str = "") -> None:
    """Replace a file's content; content and name are on the disk when this returns. OSError where
    that fails; no part of the attempt is left then.

    `mode`, `group`: of the new file, which never had wider permissions; None, "": those of any file
    of this process. A link at the temporary file's name is not followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    ways = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, ways, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if group:
                with contextlib.suppress(KeyError):
                    os.fchown(file.fileno(), -1, grp.getgrnam(group).gr_gid)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk, which new names need. Some file systems cannot do
    it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_lines(path: Path, data: bytes, sync: bool = False) -> None:
    """Append lines to a file, all of them or none; OSError where that fails. `data` ends in a
    newline; `sync`: the lines are on the disk when this returns.

    A line that a power cut left incomplete is ended first; what a full disk took only in part is
    cut off again: a reader later misses that line and no other.
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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of state, whole or as they were, and files to which lines are added, whole or not."""

from __future__ import annotations

import contextlib
import grp
import os
from pathlib import Path


def write_atomically(path: Path, data: bytes, mode: int | None = None, group: str = "") -> None:
    """Replace a file's content, it and its name on the disk when this returns; OSError where it
    cannot be, and then nothing is left of the try.

    `mode`, `group`: of the new file, which was never open to more; None, "": as the process makes
    files. A link that stands where the new file is made is not followed.
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
    """A name is on the disk only once its folder is. Not every file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A storage that answers with an error: a FUSE file system that passes all on until it is told
otherwise."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

#: What follows the backing folder and the mount point: the file with the operation that fails, and
#: its error's number.
FUSE = """
import os, sys
os.environ["FUSE_LIBRARY_NAME"] = "fuse3"
import mfusepy

def check(does):
    with open(sys.argv[3]) as order:
        words = order.read().split()
    if words[:1] == [does]:
        raise mfusepy.FuseOSError(int(words[1]))

class Through(mfusepy.Operations):
    def getattr(self, path, fh=None):
        found = os.lstat(sys.argv[1] + path)
        names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid")
        return {name: getattr(found, name) for name in names}

    def open(self, path, flags):
        return os.open(sys.argv[1] + path, os.O_RDWR)

    def create(self, path, mode, fi=None):
        check("write")
        return os.open(sys.argv[1] + path, os.O_RDWR | os.O_CREAT, mode)

    def truncate(self, path, length, fh=None):
        check("write")
        os.truncate(sys.argv[1] + path, length)

    def unlink(self, path):
        os.unlink(sys.argv[1] + path)

    def read(self, path, size, offset, fh):
        check("read")
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        check("write")
        return os.pwrite(fh, data, offset)

mfusepy.FUSE(Through(), sys.argv[2], foreground=True, direct_io=True)
"""


class FailingStorage:
    """`place`: where it is mounted; the volumes of the test's configuration lie there."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "mount"
        self._order = folder / "order"
        self.fine()

    def fine(self) -> None:
        """From now on all goes well."""
        self._order.write_text("")

    def fails(self, what: str, code: int) -> None:
        """From now on each `read`, or `write`, ends with that error."""
        self._order.write_text(f"{what} {code}")


@contextlib.contextmanager
def failing_storage(site: Path, folder: Path) -> Iterator[FailingStorage]:
    """The volumes that a configuration names are put on such a file system."""
    found = FailingStorage(folder)
    backing = folder / "backing"
    backing.mkdir()
    found.place.mkdir()
    text = site.read_text()
    for name in ("whiteboard", "leases"):
        (folder / name).rename(backing / name)
        text = text.replace(f'"{folder}/{name}"', f'"{found.place}/{name}"')
    site.write_text(text)
    program = folder / "failing.py"
    program.write_text(FUSE)
    argv = [sys.executable, str(program), str(backing), str(found.place), str(folder / "order")]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        if (
            f" {found.place} " in Path("/proc/self/mounts").read_text()
            or process.poll() is not None
        ):
            break
        time.sleep(0.05)
    if process.poll() is not None:
        pytest.skip("no FUSE here")
    try:
        yield found
    finally:
        subprocess.run(["umount", "-l", str(found.place)], check=False)
        process.kill()
        process.wait()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A storage that does not answer: a FUSE file system whose process is stopped."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.waiting import stop

#: A file system with one folder of the backing one, until it is stopped.
FUSE = """
import os, sys
os.environ["FUSE_LIBRARY_NAME"] = "fuse3"
import mfusepy

class Through(mfusepy.Operations):
    def getattr(self, path, fh=None):
        found = os.lstat(sys.argv[1] + path)
        names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid")
        return {name: getattr(found, name) for name in names}

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(sys.argv[1] + path)]

    def open(self, path, flags):
        return os.open(sys.argv[1] + path, os.O_RDWR)

    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

mfusepy.FUSE(Through(), sys.argv[2], foreground=True, direct_io=True)
"""


@contextlib.contextmanager
def fuse_client(
    backing: Path, place: Path, program: Path, text: str = FUSE
) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a FUSE file system that has `backing` mounted at `place`; skips the test where
    this machine has no FUSE. `program`: where the process's program is written."""
    program.write_text(text)
    process = subprocess.Popen(
        [sys.executable, str(program), str(backing), str(place)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(200):
        if f" {place} " in Path("/proc/self/mounts").read_text() or process.poll() is not None:
            break
        time.sleep(0.05)
    if process.poll() is not None:
        pytest.skip("no FUSE here")
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        subprocess.run(["umount", "-l", str(place)], check=False)


@contextlib.contextmanager
def hanging_storage(site: Path, folder: Path) -> Iterator[Path]:
    """Moves the volumes that a configuration names to a file system that does not answer any more;
    the place where that is mounted."""
    backing, place = folder / "backing", folder / "mount"
    backing.mkdir()
    place.mkdir()
    for name in ("whiteboard", "leases"):
        (folder / name).rename(backing / name)
    with fuse_client(backing, place, folder / "through.py") as process:
        text = site.read_text()
        for name in ("whiteboard", "leases"):
            text = text.replace(f'"{folder}/{name}"', f'"{place}/{name}"')
        (backing / "registry").touch()
        text = text.replace("[storage]\n", f'[storage]\nregistry = "{place}/registry"\n', 1)
        site.write_text(text)
        stop(process)
        yield place

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shared storage as one host sees it: a pass-through file system that fails on demand.

It stands for that host's NFS or CephFS mount, and for its way to the storage: the file
``HostLayout.storage_fault`` says what becomes of each operation (FAULTS). One that hung
goes on when the fault ends, as on a real mount: a late write still arrives.

Opened below without O_DIRECT, all hosts share the kernel's one page cache, so what one
has written the others read at once; the mount itself has none (``direct_io``).

It runs inside the host and dies with it. Its death wakes all who wait for it: so nothing
in a lab can hang for longer than its file system lives.

Run by host_init.py, as storage_fault.py says: ``python -m tests.lab.host_storage RUN-DIRECTORY
HOST``.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# By name: beside libfuse 2 (which sshfs, ceph-fuse and glusterfs-client bring) mfusepy would take
# that one, whose mounts are refused over a folder that is not empty.
os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")

import mfusepy

from .layout import Layout, host_id_of
from .storage_fault import read_fault

POLL_S = 0.02
#: Operations that may hang at once; libfuse's own limit is 10, and then "ok" is not seen.
THREADS_MAX = 64
#: Faults by which changes fail, and reads do not.
_NO_WRITES = {"full": errno.ENOSPC, "read-only": errno.EROFS}
_DROPPED = os.O_DIRECT | os.O_SYNC | os.O_DSYNC


class HostStorage(mfusepy.Operations):  # type: ignore[misc]
    """Passes everything on to the folder that the mount covers; `root`: its descriptor."""

    use_ns = True

    def __init__(self, root: int, fault: Path) -> None:
        self._root = root
        self._fault = fault

    def _gate(self) -> None:
        """Returns when the operation may go on; OSError when it must fail."""
        fault, _, seconds = read_fault(self._fault).partition(" ")
        if fault == "slow":
            time.sleep(float(seconds))
        while fault == "hang":
            time.sleep(POLL_S)
            fault = read_fault(self._fault)
        if fault == "eio":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _gate_of_writes(self) -> None:
        """Returns when a change may be made; OSError when it must fail."""
        self._gate()
        code = _NO_WRITES.get(read_fault(self._fault))
        if code is not None:
            raise OSError(code, os.strerror(code))

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        self._gate()
        found = os.stat(_below(path), dir_fd=self._root, follow_symlinks=False)
        names = ("mode", "nlink", "uid", "gid", "size")
        return {f"st_{name}": getattr(found, f"st_{name}") for name in names}

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        self._gate()
        descriptor = os.open(_below(path), os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)
        try:
            names = os.listdir(descriptor)
        finally:
            os.close(descriptor)
        yield from (".", "..", *names)

    def open(self, path: str, flags: int) -> int:
        self._gate()
        return os.open(_below(path), flags & ~_DROPPED, dir_fd=self._root)

    def create(self, path: str, mode: int, fi: int = 0) -> int:
        self._gate_of_writes()
        return os.open(_below(path), os.O_RDWR | os.O_CREAT, mode, dir_fd=self._root)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._gate()
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._gate_of_writes()
        return os.pwrite(fh, data, offset)

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> int:
        self._gate_of_writes()
        if mode:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        os.posix_fallocate(fh, offset, size)
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        self._gate_of_writes()
        descriptor = os.open(_below(path), os.O_WRONLY, dir_fd=self._root)
        try:
            os.ftruncate(descriptor, length)
        finally:
            os.close(descriptor)

    def link(self, target: str, source: str) -> None:
        self._gate_of_writes()
        os.link(_below(source), _below(target), src_dir_fd=self._root, dst_dir_fd=self._root)

    def rename(self, old: str, new: str) -> None:
        self._gate_of_writes()
        os.rename(_below(old), _below(new), src_dir_fd=self._root, dst_dir_fd=self._root)

    def chmod(self, path: str, mode: int) -> None:
        self._gate()
        os.chmod(_below(path), mode, dir_fd=self._root)

    def chown(self, path: str, uid: int, gid: int) -> None:
        self._gate()
        os.chown(_below(path), uid, gid, dir_fd=self._root)

    def unlink(self, path: str) -> None:
        self._gate_of_writes()
        os.unlink(_below(path), dir_fd=self._root)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        # There is no power cut of this machine in the lab: the page cache is the disk.
        self._gate()

    def release(self, path: str, fh: int) -> None:
        os.close(fh)


def _below(path: str) -> str:
    return path.lstrip("/") or "."


def main() -> None:
    """Returns when the mount is gone."""
    host = Layout(Path(sys.argv[1])).host(host_id_of(sys.argv[2]))
    # Opened first: from the mount on, the path leads to this process itself.
    root = os.open(host.lab.shared, os.O_RDONLY | os.O_DIRECTORY)
    mfusepy.FUSE(
        HostStorage(root, host.storage_fault),
        str(host.lab.shared),
        foreground=True,
        direct_io=True,
        allow_other=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
        max_threads=THREADS_MAX,
        fsname=f"{host.name}-storage",
    )


if __name__ == "__main__":
    main()

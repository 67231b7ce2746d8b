# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client of NFS in user space: libnfs behind FUSE. Passes reads, writes and names on, and has no
cache. One connection per operation at a time is enough for the lab; libnfs is not safe in threads.

``python -m tests.lab.storages.nfs_client URL MOUNT-POINT``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")

import mfusepy

_nfs = ctypes.CDLL("libnfs.so.13", use_errno=True)
_nfs.nfs_init_context.restype = ctypes.c_void_p
_nfs.nfs_parse_url_dir.restype = ctypes.c_void_p
_nfs.nfs_get_error.restype = ctypes.c_char_p
_nfs.nfs_readdir.restype = ctypes.c_void_p
_POINTER = ctypes.c_void_p
_U64 = ctypes.c_uint64
STAT_FIELDS = (
    *("dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks"),
    *("atime", "mtime", "ctime", "atime_nsec", "mtime_nsec", "ctime_nsec", "used"),
)


class _Url(ctypes.Structure):
    _fields_ = (("server", ctypes.c_char_p), ("path", ctypes.c_char_p), ("file", ctypes.c_char_p))


class _Stat(ctypes.Structure):
    """struct nfs_stat_64."""

    _fields_ = tuple((name, _U64) for name in STAT_FIELDS)


class NfsClient(mfusepy.Operations):  # type: ignore[misc]
    """The export, through one connection."""

    use_ns = True

    def __init__(self, url: str) -> None:
        self._lock = threading.Lock()
        self._context = ctypes.c_void_p(_nfs.nfs_init_context())
        parsed = _nfs.nfs_parse_url_dir(self._context, url.encode())
        if not parsed:
            raise OSError(errno.EINVAL, self._error())
        place = _Url.from_address(parsed)
        self._do("nfs_mount", place.server, place.path)

    def _error(self) -> str:
        return (_nfs.nfs_get_error(self._context) or b"").decode(errors="replace")

    def _do(self, name: str, *arguments: Any) -> int:
        with self._lock:
            answer = int(getattr(_nfs, name)(self._context, *arguments))
            if answer < 0:
                raise OSError(-answer, f"{name}: {self._error()}")
            return answer

    def _open(self, path: str, flags: int) -> int:
        handle = ctypes.c_void_p()
        self._do(
            "nfs_open", path.encode(), flags & (os.O_ACCMODE | os.O_TRUNC), ctypes.byref(handle)
        )
        assert handle.value is not None
        return handle.value

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        found = _Stat()
        self._do("nfs_lstat64", path.encode(), ctypes.byref(found))
        return {f"st_{n}": int(getattr(found, n)) for n in ("mode", "nlink", "uid", "gid", "size")}

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        folder = ctypes.c_void_p()
        self._do("nfs_opendir", path.encode(), ctypes.byref(folder))
        names = []
        with self._lock:
            while entry := _nfs.nfs_readdir(self._context, folder):
                # struct nfsdirent: next, name, inode, ...
                name = ctypes.cast(entry + 8, ctypes.POINTER(ctypes.c_char_p)).contents.value
                names.append((name or b"").decode(errors="replace"))
            _nfs.nfs_closedir(self._context, folder)
        yield from {".", "..", *names}

    def open(self, path: str, flags: int) -> int:
        return self._open(path, flags)

    def create(self, path: str, mode: int, fi: int = 0) -> int:
        handle = ctypes.c_void_p()
        self._do("nfs_creat", path.encode(), mode, ctypes.byref(handle))
        self._do("nfs_close", handle)
        return self._open(path, os.O_RDWR)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        got = self._do("nfs_pread", ctypes.c_void_p(fh), _U64(offset), _U64(size), buffer)
        return buffer.raw[:got]

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return self._do("nfs_pwrite", ctypes.c_void_p(fh), _U64(offset), _U64(len(data)), data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        self._do("nfs_truncate", path.encode(), _U64(length))

    def link(self, target: str, source: str) -> None:
        self._do("nfs_link", source.encode(), target.encode())

    def rename(self, old: str, new: str) -> None:
        self._do("nfs_rename", old.encode(), new.encode())

    def chmod(self, path: str, mode: int) -> None:
        self._do("nfs_chmod", path.encode(), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        self._do("nfs_chown", path.encode(), uid, gid)

    def unlink(self, path: str) -> None:
        self._do("nfs_unlink", path.encode())

    def mkdir(self, path: str, mode: int) -> None:
        self._do("nfs_mkdir", path.encode())

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        self._do("nfs_fsync", ctypes.c_void_p(fh))

    def release(self, path: str, fh: int) -> None:
        self._do("nfs_close", ctypes.c_void_p(fh))


def main() -> None:
    """Returns when the mount is gone."""
    mfusepy.FUSE(
        NfsClient(sys.argv[1]),
        sys.argv[2],
        foreground=True,
        direct_io=True,
        allow_other=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
        fsname=sys.argv[1],
    )


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whiteboard's volume: a file of a shared file system, or a block device.

Rules of this file:

1. Writes go through O_DIRECT|O_DSYNC, 4096 bytes in one call: on the storage, or an error.
   Reads go through O_DIRECT: a page cache would show this host what it saw before, not what
   the others have written since.
2. Every failure is a `VolumeError`: errno, path and a sentence with the next step.
3. Calls block, for as long as the storage likes. They belong into the broker's storage
   thread; one object is used by one thread at a time.

O_DIRECT wants offset, length and memory aligned to the device's logical block (open(2)): all
are multiples of 4096 here, the memory is page aligned since it comes from mmap.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from broker.whiteboard.errors import WhiteboardError
from broker.whiteboard.layout import SLOT_MAX
from broker.whiteboard.mounts import mount_anew
from broker.whiteboard.sizes import SLOT_BYTES

#: A call to the whiteboard that takes longer has failed.
STORAGE_DEADLINE_S = 2.0
#: The most that one read asks for.
READ_BYTES_MAX = 1024 * 1024

assert READ_BYTES_MAX % SLOT_BYTES == 0
assert mmap.PAGESIZE % SLOT_BYTES == 0, "the buffer must be aligned to a slot"


class VolumeFault(StrEnum):
    """What is wrong with a volume. The values are stable: they go into logs and JSON."""

    MISSING = "volume-missing"
    PERMISSION = "volume-permission"
    NOT_A_VOLUME = "volume-not-a-volume"
    NO_DIRECT_IO = "volume-no-direct-io"
    READ_ONLY = "volume-read-only"
    FULL = "volume-full"
    SHORT_WRITE = "volume-short-write"
    CLOSED = "volume-closed"
    EMPTY = "volume-empty"
    OTHER_VOLUME = "volume-other"
    SHRUNK = "volume-shrunk"
    IO = "volume-io"


_FAULTS: dict[int, tuple[VolumeFault, str]] = {
    errno.ENOENT: (VolumeFault.MISSING, "check the path and that its file system is mounted"),
    errno.ENOTDIR: (VolumeFault.MISSING, "check the path and that its file system is mounted"),
    errno.ENXIO: (VolumeFault.MISSING, "check that the device is attached"),
    errno.ENODEV: (VolumeFault.MISSING, "check that the device is attached"),
    errno.EACCES: (VolumeFault.PERMISSION, "check owner and mode of the file and its folders"),
    errno.EPERM: (VolumeFault.PERMISSION, "check owner and mode of the file and its folders"),
    errno.EISDIR: (VolumeFault.NOT_A_VOLUME, "name the metadata file or block device itself"),
    errno.EROFS: (
        VolumeFault.READ_ONLY,
        "look in the kernel log why it is read-only, then mount the file system read-write",
    ),
    errno.ENOSPC: (VolumeFault.FULL, "free space on its file system, or enlarge the volume"),
    errno.EFBIG: (VolumeFault.FULL, "the volume is too small or a file size limit is set"),
    errno.EDQUOT: (VolumeFault.FULL, "raise the quota of the file system"),
    errno.EBADF: (VolumeFault.CLOSED, "the volume was closed; open it again"),
    errno.ENOTCONN: (
        VolumeFault.IO,
        "this host's client of the storage has ended or has lost its servers; umount -l, and mount"
        " it anew",
    ),
    errno.ESHUTDOWN: (
        VolumeFault.IO,
        "the storage has shut this host's client out (CephFS: evicted and blocklisted); umount -l,"
        " end the client, and mount it anew",
    ),
    errno.EIO: (VolumeFault.IO, "look at the storage's servers, its mount and the kernel log"),
    errno.ESTALE: (
        VolumeFault.IO,
        "the server has another file or export there by now; unmount it and mount it anew",
    ),
}
#: What these errors mend is to mount the storage anew.
_MOUNT_FAILED = frozenset({errno.ENOTCONN, errno.ESHUTDOWN, errno.ESTALE})
#: What the kernel says of a write to a device that it has as read-only, and of its opening for one.
_REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.EROFS})
_READ_ONLY_DEVICE = (
    "the device is read-only on this host; look in the kernel log and at the storage whether it is"
    " write-protected, then blockdev --setrw (a logical volume: lvchange -prw)"
)
_IO = (VolumeFault.IO, "check the storage and the kernel log")


class VolumeError(WhiteboardError):
    """The volume cannot be used: the storage's or the configuration's fault.

    `fault`: stable code. `errno`: of the failed call, 0 where none failed. `path`: the volume.
    str(): one line that names the volume and the next step.
    """

    def __init__(self, fault: VolumeFault, path: str, what: str, step: str, code: int = 0) -> None:
        super().__init__(fault, path, what, step, code)
        self.fault = fault
        self.path = path
        self.what = what
        self.step = step
        self.errno = code

    def __str__(self) -> str:
        # A path may hold anything but NUL; an error is one line.
        shown = self.path if self.path.isprintable() else ascii(self.path)
        if self.fault in (VolumeFault.OTHER_VOLUME, VolumeFault.SHRUNK):
            return f"{shown}: {self.what}; {self.step}"
        return f"volume {shown}: {self.what}; {self.step}"


def volume_error(path: str, doing: str, err: OSError) -> VolumeError:
    """The VolumeError for an OSError that came up while `doing` something. Where the mount is what
    failed, with the commands that mount it anew."""
    code = err.errno or 0
    fault, step = _FAULTS.get(code, _IO)
    if code in _REFUSED and _is_read_only_device(path):
        fault, step = VolumeFault.READ_ONLY, _READ_ONLY_DEVICE
    if code in _MOUNT_FAILED and (anew := mount_anew(path)):
        step = f"{step}: {anew}"
    return VolumeError(fault, path, f"{doing}: {os.strerror(code)}", step, code)


class Volume:
    """An open whiteboard volume. Raises VolumeError from every method, and nothing else.

    `read_only`: for looking at any volume or copy of one: works where O_DIRECT does not (tmpfs),
    cannot write. Otherwise the volume must do O_DIRECT.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.path = os.fspath(path)
        self.read_only = read_only
        self._fd = -1
        self._fd = self._open()
        self._buffer = mmap.mmap(-1, READ_BYTES_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close; a second time is harmless. Every other call then fails as CLOSED."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # nothing is written behind our back: O_DSYNC
                os.close(fd)
            # A read that still hangs in its thread holds on to the buffer: it goes with that.
            with contextlib.suppress(BufferError):
                self._buffer.close()

    def write_slot(self, host_id: int, data: bytes) -> None:
        """Write one slot, 0 (the cluster's) or a host's, in a single 4096-byte write.

        On return the slot is on the storage. A file that shrank grows again as far as this slot.
        """
        assert 0 <= host_id <= SLOT_MAX, host_id
        self._write(host_id, data, f"writing slot {host_id}")

    def write_at(self, offset: int, data: bytes) -> None:
        """Write 4096 bytes at a multiple of 4096; on return they are on the storage."""
        assert offset >= 0 and offset % SLOT_BYTES == 0, offset
        self._write(offset // SLOT_BYTES, data, f"writing at {offset}")

    def _write(self, block: int, data: bytes, doing: str) -> None:
        assert len(data) == SLOT_BYTES, len(data)
        if self.read_only:
            raise VolumeError(
                VolumeFault.READ_ONLY,
                self.path,
                f"{doing}: opened for reading only",
                "open it for writing",
            )
        with self._failures(doing):
            self._check_open()
            self._buffer[:SLOT_BYTES] = data
            with memoryview(self._buffer) as whole, whole[:SLOT_BYTES] as slot:
                written = os.pwrite(self._fd, slot, block * SLOT_BYTES)
        if written != SLOT_BYTES:
            raise VolumeError(
                VolumeFault.SHORT_WRITE,
                self.path,
                f"{doing}: only {written} of {SLOT_BYTES} bytes were written",
                "make the volume larger or free space on its file system",
            )

    def read_slots(self, ids: Iterable[int]) -> dict[int, bytes]:
        """The slots' bytes, as far as the volume reaches.

        Where the volume ends within a slot that one is short; those beyond are not in the
        answer. Neighbouring slots are read in one call.
        """
        wanted = sorted(set(ids))
        assert not wanted or (wanted[0] >= 0 and wanted[-1] <= SLOT_MAX), wanted
        slots: dict[int, bytes] = {}
        for run in _runs(wanted, READ_BYTES_MAX // SLOT_BYTES):
            slots |= self._read_run(run)
            if len(slots.get(run[-1], b"")) < SLOT_BYTES:
                break  # the volume ends here; all others lie behind
        return slots

    def read_at(self, offset: int) -> bytes:
        """4096 bytes from a multiple of 4096 on; fewer where the volume ends."""
        assert offset >= 0 and offset % SLOT_BYTES == 0, offset
        got = self._read_at(offset // SLOT_BYTES, 1)
        return self._buffer[:got]

    @property
    def size_bytes(self) -> int:
        """The volume's size now. For a block device st_size is 0, its end has to be sought."""
        with self._failures("measuring"):
            self._check_open()
            return os.lseek(self._fd, 0, os.SEEK_END)

    @property
    def size_slots(self) -> int:
        """How many whole slots the volume holds now."""
        return self.size_bytes // SLOT_BYTES

    def _open(self) -> int:
        # A FIFO would block the open, a character device may act on it: look first. And again
        # behind the open, since the path may have changed meanwhile; O_NONBLOCK for that case
        # (opened for both ways a FIFO does not block).
        with self._failures("opening"):
            self._check_kind(Path(self.path).stat().st_mode)
            if os.geteuid() == 0:
                self._check_link()
        ways = os.O_RDONLY | os.O_NONBLOCK if self.read_only else os.O_RDWR | os.O_DSYNC
        flags = ways | os.O_CLOEXEC | os.O_NOCTTY
        with self._failures("opening"):
            try:
                fd = os.open(self.path, flags | os.O_DIRECT)
            except OSError as err:
                if err.errno != errno.EINVAL:
                    raise
                if not self.read_only:
                    raise VolumeError(
                        VolumeFault.NO_DIRECT_IO,
                        self.path,
                        "opening: its file system does not do O_DIRECT",
                        "use NFS, CephFS, Gluster or a block device",
                        errno.EINVAL,
                    ) from err
                fd = os.open(self.path, flags)
        try:
            with self._failures("opening"):
                self._check_kind(os.fstat(fd).st_mode)
        except VolumeError:
            os.close(fd)
            raise
        return fd

    def _check_link(self) -> None:
        """Root follows no link that somebody else could have put there: what it writes to might
        be anything. /dev/disk/by-id and the like are root's own."""
        path = Path(self.path)
        folder = path.parent.stat()
        others_write = folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if path.is_symlink() and (folder.st_uid != 0 or others_write):
            raise VolumeError(
                VolumeFault.NOT_A_VOLUME,
                self.path,
                "is a link in a folder that others than root may change",
                "name the file or block device itself",
                errno.ELOOP,
            )

    def _check_kind(self, mode: int) -> None:
        if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            return
        kinds = {
            stat.S_IFDIR: "a directory",
            stat.S_IFIFO: "a FIFO",
            stat.S_IFSOCK: "a socket",
            stat.S_IFCHR: "a character device",
        }
        raise VolumeError(
            VolumeFault.NOT_A_VOLUME,
            self.path,
            f"is {kinds.get(stat.S_IFMT(mode), 'of an unknown kind')}, not a file or block device",
            "name the metadata file or block device itself",
            errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL,
        )

    def _check_open(self) -> None:
        if self._fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def _read_run(self, run: range) -> dict[int, bytes]:
        """One run of neighbouring slots; bounded: each turn gets at least one slot or ends."""
        slots: dict[int, bytes] = {}
        first = run.start
        while first < run.stop:
            got = self._read_at(first, run.stop - first)
            for offset in range(0, got, SLOT_BYTES):
                # Never beyond `got`: behind it lies what an earlier read left there.
                slots[first + offset // SLOT_BYTES] = self._buffer[
                    offset : min(offset + SLOT_BYTES, got)
                ]
            if got < SLOT_BYTES:
                break
            # A read may stop short without the end being there: ask again, from the slot
            # where it stopped, as an unaligned offset could not be asked for.
            first += got // SLOT_BYTES
        return slots

    def _read_at(self, first: int, count: int) -> int:
        """Fill the buffer from slot `first` on; the number of bytes got, 0 at the end."""
        doing = f"reading slots {first}..{first + count - 1}"
        offset = first * SLOT_BYTES
        with self._failures(doing):
            self._check_open()
            with memoryview(self._buffer) as whole, whole[: count * SLOT_BYTES] as part:
                try:
                    return os.preadv(self._fd, [part], offset)
                except OSError as err:
                    if err.errno != errno.EINVAL or not self.read_only:
                        raise
                    # Some file systems accept O_DIRECT at the open and refuse it at the read.
                    flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
                    fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
                    return os.preadv(self._fd, [part], offset)

    @contextlib.contextmanager
    def _failures(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise volume_error(self.path, doing, err) from err
        except ValueError as err:  # a NUL in the path
            raise VolumeError(
                VolumeFault.MISSING, self.path, f"{doing}: {err}", "check the path", errno.EINVAL
            ) from err


def _runs(ids: list[int], length_max: int) -> Iterator[range]:
    """Ascending ids as runs of neighbours, none longer than `length_max`."""
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or ids[end] != ids[end - 1] + 1 or end - start == length_max:
            yield range(ids[start], ids[end - 1] + 1)
            start = end


def _is_read_only_device(path: str) -> bool:
    """Whether it is a block device that the kernel has as read-only, by sysfs."""
    try:
        found = Path(path).stat()
        if not stat.S_ISBLK(found.st_mode):
            return False
        number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        return Path(f"/sys/dev/block/{number}/ro").read_text().strip() == "1"
    except OSError:
        return False

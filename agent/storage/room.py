# SPDX-License-Identifier: LGPL-2.1-or-later
"""Room for the volumes: the size that each must have, and files of that size with real blocks."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.terminal.errors import CommandError
from broker.daemon.exit_codes import ExitCode
from broker.registry.record import units_for
from broker.whiteboard.identity import LEASES_UNIT, VolumeKind
from broker.whiteboard.layout import SLOT_MAX
from broker.whiteboard.lease_sectors import ALIGN_OF_SECTOR
from broker.whiteboard.sizes import SLOT_BYTES

WHITEBOARD_BYTES = (SLOT_MAX + 1) * SLOT_BYTES
#: Alignment units of a lease volume, up to the one with its identity.
LEASE_UNITS = LEASES_UNIT + 1
USER, GROUP, MODE = "ha-agent", "sanlock", 0o660


def bytes_of(path: str, kind: VolumeKind, vms: int = 1) -> int:
    """The size that a volume of this kind must have there, for so many VMs; CommandError."""
    if kind is VolumeKind.WHITEBOARD:
        return WHITEBOARD_BYTES
    units = LEASE_UNITS if vms == 1 else units_for(vms)
    return units * ALIGN_OF_SECTOR[sector_of(path)]


def make_room(path: str, kind: VolumeKind) -> None:
    """Grow a file to the size of its kind while it is in use. CommandError where there is no room,
    or where a device is too small."""
    size = bytes_of(path, kind)
    if stat.S_ISBLK(Path(path).stat().st_mode):
        check_device(path, size)
    else:
        allocate(path, size)


def check_room(path: str, size: int) -> None:
    """CommandError where no volume of this size can be made or extended there. The file that is
    written to find that out has no name, or is removed before this returns."""
    place = Path(path)
    try:
        status = place.stat() if place.exists() else None
    except OSError as error:
        raise CommandError(ExitCode.STORAGE, f"{path}: {error.strerror}") from None
    if status is not None and stat.S_ISBLK(status.st_mode):
        check_device(path, size)
    elif status is not None and status.st_size > 0:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            step = "check its mode"
            if error.errno == errno.EROFS:
                step = "look in the kernel log why it is read-only, then mount it read-write"
            raise CommandError(
                ExitCode.STORAGE, f"{path}: cannot be written: {error.strerror}; {step}"
            ) from None
        # The free space is not asked for: some FUSE file systems say 0, and mean unknown.
        _check_free(path, size, missing=size - status.st_size)
    else:
        _check_free(path, size, missing=size)


def _check_free(path: str, size: int, missing: int) -> None:
    """CommandError where `missing` more bytes cannot be allocated."""
    if missing <= 0:
        return
    try:
        with _nameless(Path(path).parent) as descriptor:
            os.posix_fallocate(descriptor, 0, missing)
    except OSError as error:
        raise no_room(path, size, error) from None


@contextlib.contextmanager
def _nameless(folder: Path) -> Iterator[int]:
    """A new file with direct I/O in that folder, without a name."""
    flags = os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC
    try:
        descriptor = os.open(folder, flags | os.O_TMPFILE, MODE)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
        # Some file systems, such as NFS, have no files without a name.
        name = folder / f".ha-agent-probe-{os.getpid()}"
        try:
            descriptor = os.open(name, flags | os.O_CREAT | os.O_EXCL, MODE)
        finally:
            name.unlink(missing_ok=True)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check_device(path: str, size: int) -> None:
    """CommandError where a device is too small."""
    try:
        with Path(path).open("rb") as device:
            has = device.seek(0, os.SEEK_END)
    except OSError as error:
        raise CommandError(ExitCode.STORAGE, f"{path}: {error.strerror}; run as root") from None
    if has < size:
        raise too_small(path, has, size)


def too_small(path: str, has: int, size: int) -> CommandError:
    """The error for a device of `has` bytes where `size` are needed."""
    return CommandError(
        ExitCode.STORAGE,
        f"{path}: the device is too small: it has {has} bytes, {size} are needed; enlarge it",
    )


def no_room(path: str, size: int, error: OSError) -> CommandError:
    """The error for room that cannot be allocated."""
    step = "check the mount and its modes"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        step = "free space there"
    elif error.errno == errno.EINVAL:
        step = "direct I/O (O_DIRECT) does not work there; use another file system"
    return CommandError(
        ExitCode.STORAGE, f"{path}: {size} bytes cannot be had: {error.strerror}; {step}"
    )


def sector_of(path: str) -> int:
    """The sector size for leases there: 4096 on a block device with such sectors and on a file
    system of one, whose direct I/O takes no smaller pieces; else 512. CommandError."""
    try:
        for place in (Path(path), Path(path).parent):
            if place.exists():
                return _sector_of_device(place.stat())
    except (OSError, ValueError) as error:
        raise CommandError(ExitCode.STORAGE, f"{path}: its sector size: {error}") from None
    return 512


def _sector_of_device(found: os.stat_result) -> int:
    """The sector size of a block device, or of the one that a file lies on. A file system of the
    network, or one that spans several devices, has none that the kernel names: 512 works there."""
    number = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
    place = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    for queue in (Path(place, "queue"), Path(place, "../queue")):  # a partition's is its disk's
        if (size := queue / "logical_block_size").exists():
            return 4096 if int(size.read_text()) == 4096 else 512
    return 512


def owner_ids() -> tuple[int, int]:
    """uid and gid that a volume should have; -1: not to be changed, no such user or group."""
    return _known(lambda: pwd.getpwnam(USER).pw_uid), _known(lambda: grp.getgrnam(GROUP).gr_gid)


def _known(find: Callable[[], int]) -> int:
    try:
        return find()
    except KeyError:
        return -1


def allocate(path: str, size: int) -> None:
    """Make a file of real blocks, for sanlock and the daemons; CommandError where there is no
    room."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            is_new = os.fstat(descriptor).st_size == 0
            os.posix_fallocate(descriptor, 0, size)
            if is_new:
                os.fchmod(descriptor, MODE)
                with contextlib.suppress(PermissionError):  # an export that maps all to one user
                    os.fchown(descriptor, *owner_ids())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise no_room(path, size, error) from None

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Room for the volumes: how large each has to be, and files of real blocks that are so large."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path

from agent.errors import CommandError
from broker.delta_leases import ALIGN_OF_SECTOR
from broker.exit_codes import ExitCode
from broker.identity import LEASES_UNIT, VolumeKind
from broker.volume_layout import SLOT_MAX
from broker.whiteboard import SLOT_BYTES

WHITEBOARD_BYTES = (SLOT_MAX + 1) * SLOT_BYTES
#: Alignment units of a lease volume: all up to the one with its identity.
LEASE_UNITS = LEASES_UNIT + 1
USER, GROUP, MODE = "ha-agent", "sanlock", 0o660


def bytes_of(path: str, kind: VolumeKind) -> int:
    """How large a volume of this kind has to be there; CommandError."""
    if kind is VolumeKind.WHITEBOARD:
        return WHITEBOARD_BYTES
    return LEASE_UNITS * ALIGN_OF_SECTOR[sector_of(path)]


def make_room(path: str, kind: VolumeKind) -> None:
    """Let a file grow to the size of its kind; whoever uses it goes on. CommandError where there is
    no room, or where a device is too small."""
    size = bytes_of(path, kind)
    if not stat.S_ISBLK(Path(path).stat().st_mode):
        allocate(path, size)
        return
    with Path(path).open("rb") as device:
        if device.seek(0, os.SEEK_END) < size:
            raise CommandError(
                ExitCode.STORAGE, f"{path}: the device is too small: {size} bytes needed"
            )


def sector_of(path: str) -> int:
    """512, or 4096 on a block device with such sectors; CommandError."""
    try:
        if not stat.S_ISBLK(Path(path).stat().st_mode):
            return 512
        name = os.path.realpath(path)
        number = Path(name).stat().st_rdev
        place = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
        for queue in (Path(place, "queue"), Path(place, "../queue")):  # a partition's is its disk's
            if (size := queue / "logical_block_size").exists():
                return 4096 if int(size.read_text()) == 4096 else 512
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise CommandError(ExitCode.STORAGE, f"{path}: its sector size: {error}") from None
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
    """A file of real blocks, for sanlock and the daemons; CommandError where there is no room."""
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
        step = "free space there" if error.errno in (28, 122) else "check the mount and its modes"
        raise CommandError(
            ExitCode.STORAGE, f"{path}: {size} bytes cannot be had: {error.strerror}; {step}"
        ) from None

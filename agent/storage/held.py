# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a file or block device holds before a volume is made on it, and who uses it. It changes
nothing.

Rules:

1. A device that the kernel has given to somebody (a mounted file system, LVM, a RAID, multipath)
   is in use. Nothing is written to it, whatever was asked for.
2. A file system, partition table, LVM, RAID, LUKS or swap is found by `blkid`; where that command
   is missing, by the marks of the usual ones.
3. A header of this product is found at its places (broker/whiteboard/identity.py).
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

from agent.storage.identity import found_at
from agent.terminal.errors import CommandError
from broker.daemon.exit_codes import ExitCode
from broker.whiteboard.identity import Identity, VolumeKind
from broker.whiteboard.mounts import source_place

BLKID = "blkid"
BLKID_DEADLINE_S = 10.0
#: blkid(8): nothing was found; several things were found.
_NOTHING, _AMBIVALENT = 2, 8
SYS_BLOCK = Path("/sys/dev/block")
#: (offset, mark, what has it). Of what blkid knows the usual part.
_MARKS = (
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"XFSB", "an xfs file system"),
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (0x10000, b"\x01\x16\x19\x70", "a gfs2 file system"),
    *((512 * number, b"LABELONE", "an LVM physical volume") for number in range(4)),
    (512, b"EFI PART", "a partition table (gpt)"),
    (4096, b"EFI PART", "a partition table (gpt)"),
    (510, b"\x55\xaa", "a partition table (dos)"),
    (4096, b"\xfc\x4e\x2b\xa9", "a RAID member"),
    (4086, b"SWAPSPACE2", "swap"),
)


def in_use(path: str) -> str:
    """Who uses the block device, in words; "": nobody that the kernel knows, or no device."""
    try:
        mode = Path(path).stat()
    except OSError:
        return ""
    if not stat.S_ISBLK(mode.st_mode):
        return ""
    for name, uuid in _holders(mode.st_rdev):
        if uuid.startswith("mpath-"):
            return f"is one path of the multipath device {name}: name /dev/mapper/{name} instead"
        if uuid.startswith("LVM-"):
            return f"carries the logical volume {name}: name that one instead"
        return f"is a part of {name}"
    try:
        # The kernel is asked whether anybody has claimed a block device (open(2)).
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise CommandError(ExitCode.STORAGE, f"{path}: {error.strerror}; run as root") from None
        place = source_place(mode.st_rdev)
        return f"is mounted at {place}" if place else "is in use: see lsblk"
    return ""


def _holders(number: int) -> list[tuple[str, str]]:
    """Name and device mapper's uuid ("" for others) of the devices that are built on this one."""
    found = []
    for holder in sorted(_place(number).glob("holders/*")):
        found.append((_text(holder / "dm/name") or holder.name, _text(holder / "dm/uuid")))
    return found


def logical_volume(path: str) -> str:
    """The name that the device mapper has for an LVM logical volume; "" where it is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return ""
    if not stat.S_ISBLK(found.st_mode):
        return ""
    place = _place(found.st_rdev)
    return _text(place / "dm/name") if _text(place / "dm/uuid").startswith("LVM-") else ""


def _place(number: int) -> Path:
    return SYS_BLOCK / f"{os.major(number)}:{os.minor(number)}"


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def contents(path: str) -> str:
    """What the device or file holds that is not of this product, in words; "": nothing is known.
    CommandError where it cannot be read."""
    try:
        done = subprocess.run(  # noqa: S603 - the path is an argument, not a word of a shell
            [BLKID, "--probe", "--output", "export", "--", path],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=BLKID_DEADLINE_S,
        )
    except FileNotFoundError:
        return _marked(path)
    except subprocess.TimeoutExpired:
        raise CommandError(
            ExitCode.STORAGE,
            f"{path}: could not be read within {BLKID_DEADLINE_S:.0f} s; check the storage",
        ) from None
    if done.returncode == _AMBIVALENT:
        return "several things at once (see: wipefs DEVICE)"
    if done.returncode == _NOTHING:
        return ""
    if done.returncode:
        said = done.stderr.strip() or f"blkid ends with {done.returncode}"
        raise CommandError(ExitCode.STORAGE, f"{path}: {said}; run as root")
    return _in_words(dict(line.partition("=")[::2] for line in done.stdout.splitlines()))


def _in_words(found: dict[str, str]) -> str:
    """The answer of blkid as words."""
    kind = found.get("TYPE", "")
    label = f", called {found['LABEL']!a}" if found.get("LABEL") else ""
    match found.get("USAGE"):
        case "filesystem":
            return f"a file system ({kind}{label})"
        case "raid" if kind == "LVM2_member":
            return "an LVM physical volume"
        case "raid":
            return f"a RAID member ({kind}{label})"
        case "crypto":
            return f"encrypted data ({kind}{label})"
        case _ if kind:
            return f"{kind}{label}"
        case _ if "PTTYPE" in found:
            return f"a partition table ({found['PTTYPE']})"
        case _:
            return ""


def _marked(path: str) -> str:
    """What the marks of the usual kinds say, where blkid is missing."""
    try:
        with Path(path).open("rb") as file:
            for offset, mark, what in _MARKS:
                file.seek(offset)
                if file.read(len(mark)) == mark:
                    return what
    except OSError as error:
        raise CommandError(ExitCode.STORAGE, f"{path}: {error.strerror}; run as root") from None
    return ""


def header(path: str) -> Identity | None:
    """The header of this product that lies there, of whatever kind; None: none that can be
    read."""
    found = (found_at(path, kind) for kind in VolumeKind)
    return next((each for each in found if each is not None), None)


def same(paths: dict[str, str]) -> str:
    """Which two of the places (key -> path) are one device or file, in words; "": none."""
    seen: dict[tuple[int, int], str] = {}
    for key, path in paths.items():
        try:
            found = Path(path).stat()
        except OSError:
            continue
        is_device = stat.S_ISBLK(found.st_mode)
        number = (found.st_rdev, 0) if is_device else (found.st_dev, found.st_ino)
        if number in seen:
            return f"{path}: {seen[number]} and {key} are the same device or file"
        seen[number] = key
    return ""

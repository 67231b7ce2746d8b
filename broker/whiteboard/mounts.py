# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel says of the mounts, without touching any: a look at a file could hang."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
MOUNT_INFO = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount. `source`: a device, or a server's export."""

    source: str
    place: str
    kind: str
    options: tuple[str, ...]


def mount_of(path: str) -> Mount | None:
    """The mount that a path lies on; the last one where several lie over each other. None: none
    is known."""
    best = None
    for line in MOUNTS.read_text().splitlines():
        source, place, kind, options = (_plain(word) for word in line.split()[:4])
        inside = path == place or path.startswith(place.rstrip("/") + "/")
        if inside and (best is None or len(place) >= len(best.place)):
            best = Mount(source, place, kind, tuple(options.split(",")))
    return best


def file_system(path: str) -> str:
    """The kind of file system that a path lies on, as /proc/self/mounts calls it; "" if not
    known."""
    found = mount_of(path)
    return "" if found is None else found.kind


def source_place(number: int) -> str:
    """Where the file system of a block device is mounted, by the device's number; "" nowhere."""
    wanted = f"{os.major(number)}:{os.minor(number)}"
    for line in MOUNT_INFO.read_text().splitlines():
        words = line.split()
        if words[2] == wanted:
            return _plain(words[4])
    return ""


def mount_unit(place: str) -> str:
    """The name that systemd gives the unit of a mount point (systemd-escape --path)."""
    path = place.strip("/")
    if not path:
        return "-.mount"
    shown = "".join(
        "-"
        if char == "/"
        else char
        if char.isascii() and (char.isalnum() or (char in ":_." and (char != "." or at > 0)))
        else "".join(f"\\x{byte:02x}" for byte in char.encode())
        for at, char in enumerate(path)
    )
    return f"{shown}.mount"


def mount_anew(path: str) -> str:
    """What mounts anew what a path lies on; "" where no mount but the root's is known."""
    found = mount_of(path)
    if found is None or found.place == "/":
        return ""
    return f"umount -l {found.place}; systemctl restart '{mount_unit(found.place)}'"


def _plain(word: str) -> str:
    """Without the kernel's escapes: a blank in a name is \\040."""
    return _ESCAPED.sub(lambda found: chr(int(found.group(1), 8)), word)

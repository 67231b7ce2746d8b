# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the settings of the sanlock lock driver in libvirt's own configuration files.

qemu.conf chooses the driver. Chosen alone, it demands a lease for every disk of every VM on the
host, and a VM without leases can neither be started nor resumed: qemu-sanlock.conf beside it must
say that leases for disks are not required (libvirt's locking-sanlock page).

libvirt uses the first line of a key and ignores later ones (virConfGetValue). A test holds the
reading here to libvirt's own.
"""

from __future__ import annotations

import re
from pathlib import Path

#: The line of qemu.conf, and the line of qemu-sanlock.conf, that a host must have.
LOCK_MANAGER_LINE = 'lock_manager = "sanlock"'
NO_DISK_LEASES_LINE = "require_lease_for_disks = 0"

_LONG_TEXT = re.compile(r'""".*?"""', re.DOTALL)
_END = r"[ \t]*(?:#.*)?$"


def lock_driver_named(path: str) -> bool | None:
    """Whether qemu.conf names the sanlock lock driver; None where it cannot be read. Blocks."""
    text = _text(Path(path))
    if text is None:
        return None
    return _first(text, "lock_manager", r"(?:\"\"\"|[\"'])([^\"'\n]*)(?:\"\"\"|[\"'])") == "sanlock"


def sanlock_conf(qemu_conf: str) -> Path:
    """The lock driver's file: libvirt looks for it beside qemu.conf."""
    return Path(qemu_conf).with_name("qemu-sanlock.conf")


def disk_leases_required(qemu_conf: str) -> bool | None:
    """Whether the lock driver refuses a VM whose disks have no leases: as the file says, else
    unless it makes the leases itself. None: the file does not say, and libvirt requires them.

    OSError where the file is there and cannot be read. Blocks.
    """
    try:
        text = sanlock_conf(qemu_conf).read_text(errors="replace")
    except FileNotFoundError:
        return None
    said = _first(text, "require_lease_for_disks", "([01])")
    if said is not None:
        return said == "1"
    return False if _first(text, "auto_disk_leases", "([01])") == "1" else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _first(text: str, key: str, value: str) -> str | None:
    """The first value of a key; None where there is none, or it is of another form."""
    lines = _LONG_TEXT.sub(lambda found: found.group().replace("\n", " "), text)
    first = re.search(rf"^[ \t]*{key}[ \t]*=[ \t]*(.*)$", lines, re.MULTILINE)
    found = None if first is None else re.match(value + _END, first.group(1))
    return None if found is None else found.group(1)

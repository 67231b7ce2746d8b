# SPDX-License-Identifier: LGPL-2.1-or-later
"""Gives the block devices of a cluster to the daemons and to sanlock: now, and by a rule for udev
after each boot, which makes a device's node anew."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

from agent.storage.room import GROUP, MODE, USER, owner_ids
from agent.terminal.errors import CommandError
from agent.terminal.steps import Step
from broker.config.sections import StorageSection
from broker.daemon.atomic_file import write_atomically
from broker.daemon.exit_codes import ExitCode

RULES = Path("/etc/udev/rules.d/90-ha-agent.rules")
UDEVADM_SECONDS_MAX = 30.0
SYS_BLOCK = Path("/sys/dev/block")
#: The first line of the file where it is ours.
HEAD = "# Written by ha-agent: the devices of the cluster belong to its daemons and to sanlock.\n"
#: What udev takes literally in a match (udev(7)).
_LITERAL = re.compile(r"[A-Za-z0-9._/+:=@%-]+")
#: A disk's name of the kernel, which another disk may have after the next boot.
_CHANGING = re.compile(r"(sd[a-z]+|vd[a-z]+|nvme\d+n\d+p?)\d*")


def devices_of(storage: StorageSection) -> list[str]:
    """The volumes that are block devices."""
    given = (storage.whiteboard, storage.leases, storage.registry)
    return [path for path in given if path and _is_device(path)]


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(Path(path).stat().st_mode)
    except OSError:
        return False


def rule_of(path: str) -> str:
    """The rule for one device; CommandError where no rule can name it."""
    number = Path(path).stat().st_rdev
    sys = SYS_BLOCK / f"{os.major(number)}:{os.minor(number)}"
    mapper = sys / "dm" / "name"
    if mapper.exists():
        key, name = "ENV{DM_NAME}", mapper.read_text().strip()
    elif Path(path).is_symlink() and path.startswith("/dev/"):
        key, name = "SYMLINK", path.removeprefix("/dev/")
    else:
        key, name = "KERNEL", sys.resolve().name
    if not _LITERAL.fullmatch(name) or (key == "KERNEL" and _CHANGING.fullmatch(name)):
        raise CommandError(
            ExitCode.STORAGE,
            f"{path}: this name may be another device's after the next boot, or udev cannot match"
            " it; name the device by a link in /dev/disk/by-id or by /dev/mapper/NAME",
        )
    owner = f'OWNER="{USER}", GROUP="{GROUP}", MODE="{MODE:04o}"'
    return f'SUBSYSTEM=="block", {key}=="{name}", {owner}'


def devices_step(storage: StorageSection, rules: Path = RULES) -> list[Step]:
    """Give them their owner, where volumes are devices and the packages have made the user."""
    paths = devices_of(storage)
    if not paths or -1 in owner_ids():
        return []
    wanted: Mapping[str, str] = {path: rule_of(path) for path in paths}

    def look() -> str | None:
        text = rules.read_text() if rules.exists() else ""
        has_rules = all(rule in text.splitlines() for rule in wanted.values())
        if has_rules and all(map(_is_owned, paths)):
            return f"{', '.join(paths)}: {USER}:{GROUP}, also after a boot ({rules})"
        return None

    def act() -> str:
        text = rules.read_text() if rules.exists() else HEAD
        lines = text.splitlines()
        lines += [rule for rule in wanted.values() if rule not in lines]
        try:
            write_atomically(rules, "".join(f"{line}\n" for line in lines).encode(), 0o644)
            # Rules first: a change that udev is handling then gives the same owner.
            is_reloaded = _reload_udev()
            for path in paths:
                os.chown(path, *owner_ids())
                Path(path).chmod(MODE)
        except OSError as error:
            where = error.filename or rules
            raise CommandError(ExitCode.FILE, f"{where}: {error.strerror}; run as root") from None
        later = "" if is_reloaded else "; udev does not know yet: udevadm control --reload"
        return f"{', '.join(paths)}: {USER}:{GROUP}, also after a boot ({rules}){later}"

    return [Step("devices", look, f"giving {', '.join(paths)} to {USER}:{GROUP}", act)]


def _is_owned(path: str) -> bool:
    found = Path(path).stat()
    return (found.st_uid, found.st_gid) == owner_ids() and stat.S_IMODE(found.st_mode) == MODE


def _reload_udev() -> bool:
    """Have udev read its rules; whether it did."""
    program = shutil.which("udevadm")
    if program is None:
        return False
    try:
        done = subprocess.run(  # noqa: S603  our own words
            [program, "control", "--reload"], capture_output=True, timeout=UDEVADM_SECONDS_MAX
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0

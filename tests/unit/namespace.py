# SPDX-License-Identifier: LGPL-2.1-or-later
"""A network of its own for a test: real interfaces, and none of this machine's."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BRIDGE = "ovirtmgmt"
CLONE_NEWNET = 0x40000000  # linux/sched.h


def ip(*words: str) -> None:
    """ip(8)."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def own_network(tmp_path: Path) -> Iterator[Path]:
    """Puts this thread into a network namespace with a bridge; yields its /sys/class/net."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    sysfs = tmp_path / "sys"
    sysfs.mkdir()
    assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    try:
        # A sysfs shows the interfaces of the namespace it was mounted from.
        subprocess.run(["mount", "-t", "sysfs", "sysfs", str(sysfs)], check=True)
        ip("link", "add", BRIDGE, "type", "bridge")
        yield sysfs / "class/net"
    finally:
        subprocess.run(["umount", str(sysfs)], check=False)
        libc.setns(before, CLONE_NEWNET)
        os.close(before)


def card(net: Path, name: str, bridge: str, *, kind: str = "", carrier: str = "1") -> None:
    """An interface as sysfs shows it."""
    (net / name).mkdir(parents=True)
    (net / name / "carrier").write_text(carrier)
    (net / name / "uevent").write_text(f"DEVTYPE={kind}\nINTERFACE={name}\n" if kind else "")
    (net / bridge / "brif" / name).mkdir(parents=True)


def made(net: Path) -> Path:
    """A bridge br0 without a port, as sysfs shows it; the folder that it is in."""
    (net / "br0").mkdir(parents=True)
    (net / "br0" / "flags").write_text("0x1003\n")
    (net / "br0" / "operstate").write_text("up\n")
    return net

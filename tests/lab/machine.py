# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether this machine can run a lab at all; said before anything is started."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .errors import MachineError
from .guest import BUSYBOX
from .layout import CHECKOUT
from .namespaces import HOST_NAMESPACES, unshare
from .storages import kinds

# Program (or file) -> the Debian package that has it.
NEEDED = {
    "sanlock": "sanlock",
    "libvirtd": "libvirt-daemon",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-nbd": "qemu-utils",
    "ipmi_sim": "openipmi",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "/usr/lib/x86_64-linux-gnu/libvirt/lock-driver/sanlock.so": "libvirt-sanlock",
    "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so": (
        "libvirt-daemon-driver-qemu"
    ),
    str(BUSYBOX): "busybox-static",
    "/usr/lib/x86_64-linux-gnu/libfuse3.so.3": "fuse3",
}
# What is left to see where no lab can run.
WITHOUT = "make demo-sim tells the same story in virtual time, without root"
# Administrators' programs lie where a user's PATH does not look.
SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def check(storage: str = kinds.FUSE) -> None:
    """MachineError naming what is missing and the next step."""
    if os.geteuid() != 0:
        raise MachineError(f"the lab needs root (namespaces, taps, libvirtd): {WITHOUT}")
    if missing := _missing(NEEDED):
        raise MachineError(f"missing packages: {' '.join(missing)}; run scripts/setup")
    if missing := _missing(kinds.NEEDED.get(storage, {})):
        raise MachineError(
            f"missing packages: {' '.join(missing)}; run scripts/setup --also {' '.join(missing)}"
        )
    if not os.path.exists("/dev/net/tun"):
        raise MachineError("/dev/net/tun is not there; load the tun module (modprobe tun)")
    _check_namespaces()


def install(storage: str) -> None:
    """Install what that storage needs beside the lab; MachineError."""
    missing = _missing(kinds.NEEDED.get(storage, {}))
    if missing:
        done = subprocess.run([CHECKOUT / "scripts/setup", "--also", *missing])
        if done.returncode != 0:
            raise MachineError(f"storage {storage}: its packages could not be installed; see above")


def _missing(needed: dict[str, str]) -> list[str]:
    """The packages that are not there."""
    return sorted({package for name, package in needed.items() if not _is_there(name)})


def _is_there(name: str) -> bool:
    if name.startswith("/"):
        return Path(name).exists()
    return shutil.which(name, path=SEARCH_PATH) is not None


def _check_namespaces() -> None:
    child = os.fork()
    if child == 0:
        try:
            unshare(HOST_NAMESPACES)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise MachineError(
            f"namespaces are not to be had here ({os.strerror(code)}); "
            f"run on a machine or container with CAP_SYS_ADMIN; {WITHOUT}"
        )

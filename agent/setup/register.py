# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent storage register`: this host's SCSI-3 key with the VMs' disks, once at each boot.

A host that was cut has no key any more, and its boot gives it back. So this runs before libvirt and
the agent start, and never while a VM may run here that another host has taken over.

Rules of this file:

1. No VM runs here where no process is QEMU. A QEMU that was killed and hangs in the kernel is one:
   its last writes may be under way.
2. A missing folder of libvirt's pid files says nothing by itself: at a boot there is none yet, and
   a wrong libvirt.pid-dir looks the same. It is one more witness, for emulators of other names.
3. What cannot be read is not known, and nothing is registered.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from agent.fence.reservations import ScsiReservations
from agent.fence.storage_program import StorageFenceError
from agent.terminal import in_json
from agent.terminal.columns import say
from agent.terminal.errors import CommandError
from broker.config.load import load
from broker.daemon.exit_codes import ExitCode

PROC = Path("/proc")
#: Programs of QEMU that run no VM, by the 15 bytes of their names that the kernel keeps.
_NO_VM = frozenset(
    {"qemu-nbd", "qemu-img", "qemu-io", "qemu-ga", "qemu-pr-helper", "qemu-bridge-hel"}
)
_LIBVIRT = ("libvirtd", "virtqemud")


def run(arguments: argparse.Namespace, as_json: bool) -> int:
    """Register and print; CommandError where a device refuses."""
    config = load(arguments.config)
    given = config.storage_fence
    if given.type != "scsi":
        raise CommandError(
            ExitCode.CONFIG, 'storage-fence.type is not "scsi": there is nothing to register with'
        )
    try:
        vm = running_vm(config.libvirt.pid_dir)
    except OSError as error:
        raise CommandError(
            ExitCode.REFUSED,
            f"whether a VM runs here is not known, so nothing is registered: {error}",
        ) from None
    if vm is not None:
        raise CommandError(
            ExitCode.REFUSED,
            f"{vm} runs here: a host that was cut while it lived must boot before it writes again",
        )
    fence = ScsiReservations(given.devices, config.cluster.id, config.host.id)
    try:
        done = fence.register(time.monotonic() + given.timeout)
    except StorageFenceError as error:
        raise CommandError(ExitCode.STORAGE, str(error)) from None
    if as_json:
        in_json.show({"registered": list(done)}, indent=None)
    else:
        for line in done:
            say(line, 2)
    return ExitCode.OK


def running_vm(pid_dir: str, proc: Path | None = None) -> str | None:
    """A VM that has a process here, in words; None: there is none. OSError where that is not known,
    with what to do. `proc`: procfs; None: PROC."""
    proc = proc or PROC
    processes = dict(_processes(proc))
    if not processes:
        raise OSError(f"{proc} shows no process; mount it")
    for pid, name in processes.items():
        if name == "kvm" or (name.startswith("qemu") and name not in _NO_VM):
            return f"{_guest(proc / str(pid)) or name} (process {pid})"
    folder = Path(pid_dir)
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".pid")
    except FileNotFoundError:
        for pid, name in processes.items():
            if name in _LIBVIRT:
                raise OSError(
                    f"{name} (process {pid}) runs, and {folder} is not there; libvirt.pid-dir must"
                    " be its folder of pid files"
                ) from None
        return None
    for path in files:
        if path.stem in ("driver", *_LIBVIRT):
            continue
        text = path.read_text().strip()
        if not text.isdecimal():
            raise OSError(f"{path} has no number of a process; look whether that VM runs")
        if int(text) in processes:
            return f"{path.stem} (process {text}, by {path})"
    return None


def _processes(proc: Path) -> Iterator[tuple[int, str]]:
    """Number and name of each process, the name cut to 15 bytes by the kernel."""
    for entry in proc.iterdir():
        if entry.name.isdecimal():
            # One that has just ended.
            with suppress(FileNotFoundError, ProcessLookupError):
                name = (entry / "comm").read_bytes().decode(errors="replace").rstrip("\n")
                yield int(entry.name), name


def _guest(process: Path) -> str:
    """The name that libvirt gave a QEMU (`-name guest=NAME,...`); "" where it does not show."""
    with suppress(OSError):
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        for word in words:
            if word.startswith("guest="):
                return word.removeprefix("guest=").partition(",")[0]
    return ""

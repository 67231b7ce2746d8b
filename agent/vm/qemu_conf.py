# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks that libvirt's configuration names the sanlock lock driver, without which nothing is safe,
and that it does not keep the host's other VMs from starting."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from agent.terminal.errors import CommandError
from agent.terminal.steps import Step
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.vm.qemu_conf import (
    LOCK_MANAGER_LINE,
    NO_DISK_LEASES_LINE,
    disk_leases_required,
    lock_driver_named,
    sanlock_conf,
)

#: For systemd to stop and start a daemon.
RESTART_SECONDS_MAX = 120.0
#: Who runs QEMU: libvirt's modular daemon, or the one for all.
UNITS = ("virtqemud.service", "libvirtd.service")
_RESTART = "then restart libvirt (virtqemud)"


def lock_driver_problem(config: Config) -> tuple[str, str]:
    """What is wrong and what to type; both empty where all is in order."""
    path = config.libvirt.qemu_conf
    mend = f"echo '{LOCK_MANAGER_LINE}' >> {path}, {_RESTART}"
    if not Path(path).exists():
        return f"{path} is not there: libvirt's QEMU driver is not installed, or elsewhere", mend
    named = lock_driver_named(path)
    if named is None:
        return f"{path} cannot be read", "run it as root"
    if not named:
        # libvirt uses the first line: one more at the end would change nothing.
        other = "lock_manager" in Path(path).read_text(errors="replace")
        hint = f" (a line with another lock_manager before it must go), {_RESTART}"
        return (
            f"{path}: libvirt runs without the sanlock lock driver",
            f"echo '{LOCK_MANAGER_LINE}' >> {path}{hint}" if other else mend,
        )
    return "", ""


def other_vms_problem(config: Config) -> tuple[str, str]:
    """What would keep the other VMs of this host from starting, and what to type; both empty where
    nothing would, or where the file sets it on purpose."""
    path = sanlock_conf(config.libvirt.qemu_conf)
    try:
        required = disk_leases_required(config.libvirt.qemu_conf)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}", "run it as root"
    if required is not None:
        return "", ""
    return (
        f"{path} does not say {NO_DISK_LEASES_LINE}: the lock driver lets no VM of this host start"
        " or resume whose disks have no leases of their own",
        f"echo '{NO_DISK_LEASES_LINE}' >> {path}, {_RESTART}",
    )


def lock_driver_step(config: Config, may_set: bool = False) -> Step:
    """Libvirt's configuration is the administrator's: a check only, unless `may_set`, where it was
    said that the lines may be added and libvirt restarted, which no VM notices."""

    def look() -> str | None:
        found = [lock_driver_problem(config), other_vms_problem(config)]
        wrong = [f"{problem}; {mend}" for problem, mend in found if problem]
        if wrong and may_set and _lacking(config):
            return None
        if wrong:
            more = "" if may_set or not _lacking(config) else "; or have it done by --set-libvirt"
            raise CommandError(ExitCode.LOCK_DRIVER, f"{'; '.join(wrong)}{more}")
        text = f"{config.libvirt.qemu_conf} names sanlock"
        if disk_leases_required(config.libvirt.qemu_conf):
            path = sanlock_conf(config.libvirt.qemu_conf)
            return f"{text}; {path} asks other VMs for leases of all their disks"
        return f"{text}, other VMs need no leases"

    def act() -> str:
        lines = _lacking(config)
        for path, line in lines.items():
            try:
                with path.open("a") as file:
                    file.write(f"{line}\n")
            except OSError as error:
                raise CommandError(
                    ExitCode.FILE, f"{path}: {error.strerror}; run as root"
                ) from None
        return f"{', '.join(map(str, lines))}: set; {restart_libvirt()}"

    return Step("lock-driver", look, f"setting {LOCK_MANAGER_LINE} and restarting libvirt", act)


def _lacking(config: Config) -> dict[Path, str]:
    """The line that each file lacks, where a line at its end is all that is to be done; empty where
    a file says something else, or is not there."""
    path = Path(config.libvirt.qemu_conf)
    lines = {}
    if lock_driver_problem(config)[0]:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            return {}
        if re.search(r"^[ \t]*lock_manager", text, re.MULTILINE):
            return {}
        lines[path] = LOCK_MANAGER_LINE
    if other_vms_problem(config)[0]:
        lines[sanlock_conf(config.libvirt.qemu_conf)] = NO_DISK_LEASES_LINE
    return lines


def restart_libvirt() -> str:
    """Restart libvirt's QEMU driver, where systemd runs it; says so."""
    if not Path("/run/systemd/system").is_dir():
        return "restart libvirt now"
    active = [unit for unit in UNITS if _systemctl("is-active", unit).returncode == 0]
    for unit in active:
        done = _systemctl("restart", unit)
        if done.returncode != 0:
            raise CommandError(
                ExitCode.LOCK_DRIVER,
                f"{unit} was not restarted: {done.stderr.strip()}; systemctl restart {unit}",
            )
    return f"{', '.join(active)} restarted" if active else "libvirt does not run"


def _systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  our own words
        ["systemctl", *words],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=RESTART_SECONDS_MAX,
    )

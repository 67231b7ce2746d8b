# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent leave --undo`: takes back what init and join changed outside of our own files: lines in
the configurations of libvirt and sanlock, and the rule for udev. What somebody else wrote stays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import libvirt

from agent.setup.sanlock_name import named_in
from agent.setup.written import place, read_text
from agent.storage.device_rule import HEAD, RULES
from agent.terminal.errors import CommandError
from agent.terminal.steps import Step
from agent.vm.qemu_conf import restart_libvirt
from broker.config.machine import system_uuid
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import sentence
from broker.lockspace.rejoin import own_names
from broker.vm.qemu_conf import LOCK_MANAGER_LINE, NO_DISK_LEASES_LINE, sanlock_conf


def undo_steps(config: Config, rules: Path = RULES) -> list[Step]:
    """Libvirt first: without it nothing else is taken back."""
    name = named_in(read_text(Path(config.storage.sanlock_conf)))
    ours = name in own_names(system_uuid(config))
    return [
        _libvirt_step(config),
        _line_step(
            "sanlock-name", {config.storage.sanlock_conf: f"our_host_name = {name}" if ours else ""}
        ),
        _rule_step(rules),
    ]


def _libvirt_step(config: Config) -> Step:
    lines = {
        config.libvirt.qemu_conf: LOCK_MANAGER_LINE,
        str(sanlock_conf(config.libvirt.qemu_conf)): NO_DISK_LEASES_LINE,
    }
    step = _line_step("lock-driver", lines)

    def look() -> str | None:
        found = step.look()
        if found is None and (names := guests_with_a_lease(config.libvirt.uri)):
            raise CommandError(
                ExitCode.REFUSED,
                f"{', '.join(names)} runs here under a lease, which the lock driver keeps; move it"
                " away or shut it down first",
            )
        return found

    def act() -> str:
        return f"{step.act()}; {restart_libvirt()}"

    return Step(step.name, look, f"{step.plan}, and restarting libvirt", act)


def guests_with_a_lease(uri: str, lockspace: str | None = None) -> list[str]:
    """The running VMs of this host that have a lease (in `lockspace`, if it is given); CommandError
    where libvirt does not say."""
    try:
        connection = libvirt.openReadOnly(uri)
        try:
            return [
                domain.name()
                for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
                if _has_lease(domain.XMLDesc(), lockspace)
            ]
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        raise CommandError(
            ExitCode.REFUSED, f"libvirt at {uri}: {sentence(error)}; whether a VM runs is not known"
        ) from None


def _has_lease(xml: str, lockspace: str | None) -> bool:
    root = ElementTree.fromstring(xml)  # noqa: S314  (libvirt's word)
    spaces = [lease.findtext("lockspace", "") for lease in root.iterfind("devices/lease")]
    return bool(spaces) if lockspace is None else lockspace in spaces


def _line_step(name: str, lines: Mapping[str, str]) -> Step:
    """Take one line out of each file, as init or join wrote it."""
    due = {path: line for path, line in lines.items() if line and line in _lines_of(path)}

    def act() -> str:
        for path, line in due.items():
            kept = [each for each in read_text(Path(path)).splitlines() if each.strip() != line]
            mode = Path(path).stat().st_mode & 0o777
            place(Path(path), "".join(f"{each}\n" for each in kept), mode)
        return f"{', '.join(due)}: as before"

    plan = f"taking {' and '.join(due.values())} out of {' and '.join(due)}"
    return Step(name, lambda: None if due else f"{', '.join(lines)}: nothing of ours", plan, act)


def _lines_of(path: str) -> list[str]:
    return [re.sub(r"\s+$", "", line) for line in read_text(Path(path)).splitlines()]


def _rule_step(rules: Path) -> Step:
    def look() -> str | None:
        return None if read_text(rules).startswith(HEAD) else f"{rules}: nothing of ours"

    def act() -> str:
        try:
            rules.unlink()
        except OSError as error:
            raise CommandError(ExitCode.FILE, f"{rules}: {error.strerror}; run as root") from None
        return f"{rules} is removed"

    return Step("devices", look, f"removing {rules}", act)

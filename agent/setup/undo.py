# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent leave --undo`: takes back what init and join changed outside of our own files: VMs and
certificates for libvirt, lines in the configurations of libvirt and sanlock, and the rule for udev.
What somebody else wrote stays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import libvirt

from agent.certificates.of_host import HostCertificate
from agent.setup.sanlock_name import named_in
from agent.setup.written import place, read_text
from agent.storage.device_rule import HEAD, RULES
from agent.storage.watched import read_leases, read_slots
from agent.terminal.errors import CommandError
from agent.terminal.steps import Step
from agent.vm.old_domains import undefine
from agent.vm.qemu_conf import restart_libvirt
from broker.config.machine import system_uuid
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import sentence
from broker.lockspace.rejoin import own_names
from broker.vm.qemu_conf import LOCK_MANAGER_LINE, NO_DISK_LEASES_LINE, sanlock_conf


def undo_steps(config: Config, folder: Path, rules: Path = RULES) -> list[Step]:
    """Libvirt first: without it nothing else is taken back. And the VMs before the lock driver:
    without it libvirt ignores their leases. `folder`: of the configuration."""
    name = named_in(read_text(Path(config.storage.sanlock_conf)))
    ours = name in own_names(system_uuid(config))
    return [
        _definitions_step(config),
        HostCertificate(config, folder).undo_step(),
        _libvirt_step(config),
        _line_step(
            "sanlock-name", {config.storage.sanlock_conf: f"our_host_name = {name}" if ours else ""}
        ),
        _rule_step(rules),
    ]


def _definitions_step(config: Config) -> Step:
    """Where the cluster goes on, no VM of it stays defined in the libvirt of a host that has left:
    `virsh start` would run it here a second time, its lease ignored."""
    uri, own = config.libvirt.uri, config.host.id

    def look() -> str | None:
        names = ", ".join(vms_with_a_lease(uri, config.storage.lockspace, active=False))
        if not names:
            return "no VM of this cluster is defined in libvirt"
        in_use = {host for host, (_, at) in read_leases(config.storage.leases)[1].items() if at}
        others = (in_use | set(read_slots(config.storage.whiteboard).reports)) - {own}
        if others:
            return None
        return f"{names} stays defined in libvirt: every other host has left"

    def act() -> str:
        try:
            connection = libvirt.open(uri)
            try:
                names = vms_with_a_lease(uri, config.storage.lockspace, active=False)
                for name in names:
                    undefine(connection.lookupByName(name))
            finally:
                connection.close()
        except libvirt.libvirtError as error:
            raise CommandError(
                ExitCode.REFUSED,
                f"libvirt at {uri}: {sentence(error)}; first: virsh undefine --keep-nvram NAME",
            ) from None
        kept = config.vm.definition
        return f"{', '.join(names)}: taken out of libvirt here, disks untouched; {kept} stays"

    plan = (
        "taking the VMs of this cluster out of libvirt: nothing would keep them from running twice"
    )
    return Step("definitions", look, plan, act)


def _libvirt_step(config: Config) -> Step:
    lines = {
        config.libvirt.qemu_conf: LOCK_MANAGER_LINE,
        str(sanlock_conf(config.libvirt.qemu_conf)): NO_DISK_LEASES_LINE,
    }
    step = _line_step("lock-driver", lines)

    def look() -> str | None:
        found = step.look()
        if found is None and (names := vms_with_a_lease(config.libvirt.uri)):
            raise CommandError(
                ExitCode.REFUSED,
                f"{', '.join(names)} runs here under a lease, which the lock driver keeps; move it"
                " away or shut it down first",
            )
        return found

    def act() -> str:
        return f"{step.act()}; {restart_libvirt()}"

    return Step(step.name, look, f"{step.plan}, and restarting libvirt", act)


def vms_with_a_lease(uri: str, lockspace: str | None = None, active: bool = True) -> list[str]:
    """The running VMs of this host that have a lease (in `lockspace`, if it is given), or those
    that do not run; CommandError where libvirt does not say."""
    which = (
        libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
        if active
        else libvirt.VIR_CONNECT_LIST_DOMAINS_INACTIVE
    )
    try:
        connection = libvirt.openReadOnly(uri)
        try:
            return [
                domain.name()
                for domain in connection.listAllDomains(which)
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
            _write_or_remove(Path(path), "".join(f"{each}\n" for each in kept))
        return f"{', '.join(due)}: as before"

    plan = f"taking {' and '.join(due.values())} out of {' and '.join(due)}"
    return Step(name, lambda: None if due else f"{', '.join(lines)}: nothing of ours", plan, act)


def _write_or_remove(path: Path, text: str) -> None:
    """A file that had nothing but our line was not there before it."""
    try:
        if text:
            place(path, text, path.stat().st_mode & 0o777)
        else:
            path.unlink()
    except OSError as error:
        raise CommandError(ExitCode.FILE, f"{path}: {error.strerror}; run as root") from None


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

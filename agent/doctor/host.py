# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks of this host for `ha-agent doctor`: libvirt, sanlock, the watchdog, the storage.

Each check yields (verdict, text, what to type).
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

import libvirt
import sanlock

from agent.registry.change import kept_of
from agent.setup.sanlock_name import IN_USE, machines_name, named_in, twin, twins
from agent.setup.written import read_text
from agent.storage.device_rule import RULES, rule_of
from agent.storage.identity import IDENTITY_COMMAND, check_volumes
from agent.storage.made import LOCAL
from agent.storage.room import GROUP, USER
from agent.storage.speed import storage_speed
from agent.storage.watched import read_leases, read_names
from agent.terminal.errors import CommandError
from agent.vm.definition import load_definition
from agent.vm.errors import DefinitionError
from agent.vm.qemu_conf import lock_driver_problem, other_vms_problem
from broker.config.machine import system_uuid
from broker.config.sections import Config
from broker.daemon.foreign import sentence
from broker.lockspace.lease_records import decode
from broker.lockspace.lost_leases import LostLeases, lost_in, wanted_leases
from broker.lockspace.process_leases import process_leases
from broker.lockspace.rejoin import own_names
from broker.vm.errors import BadDomain
from broker.vm.needs import needs_of
from broker.vm.start_proof import lacks, refusals, unreadable
from broker.whiteboard.lease_sectors import ALIGN_OF_SECTOR, sector_of_leases
from broker.whiteboard.mounts import file_system
from broker.whiteboard.volume import Volume, VolumeError

Found = Iterator[tuple[str, str, str]]
#: adjtimex(2): the clock is not synchronised.
_TIME_ERROR = 5
#: The kernel's struct timex has 208 bytes; its first field, `modes`, 0: read only.
_TIMEX_BYTES = 256
#: A read of the whiteboard that is this slow uses up the reserve of `suspect-after`.
SLOW_MS, FAR_TOO_SLOW_MS = 100.0, 1000.0
KVM = Path("/dev/kvm")
#: Names of a watchdog that is a timer in the kernel: it stops when the kernel hangs.
_SOFT = ("softdog", "software watchdog")


def lock_driver(config: Config) -> Found:
    """The lock driver in libvirt's file, and the lease of the VM's process where the VM runs
    here."""
    problem, mend = lock_driver_problem(config)
    if problem:
        yield "fail", problem, mend
    else:
        yield "ok", f"{config.libvirt.qemu_conf} names sanlock", ""
        started = _libvirt_started()
        if started is not None and Path(config.libvirt.qemu_conf).stat().st_mtime > started:
            yield (
                "warn",
                f"{config.libvirt.qemu_conf} was changed after libvirt was started",
                "systemctl restart virtqemud (or libvirtd); the VM runs on",
            )
    yield from _other_vms(config)
    pid = engine_pid(config)
    if pid is None:
        return
    try:
        held = process_leases(pid)
    except sanlock.SanlockException as error:
        yield "fail", f"sanlock does not say which leases the VM holds: {error.args[-1]}", ""
        return
    wanted = (config.storage.lockspace, config.storage.resource)
    if held is not None and wanted in held:
        yield "ok", f"the VM's process {pid} holds lease {wanted[1]}", ""
    else:
        yield (
            "fail",
            f"the VM runs here as process {pid} WITHOUT its lease",
            f"virsh shutdown {config.vm.name}: the agent starts it again under it",
        )


def _other_vms(config: Config) -> Found:
    """Whether the lock driver lets the other VMs of this host start."""
    problem, mend = other_vms_problem(config)
    if not problem:
        return
    names = ", ".join(_without_leases(config))
    if names:
        yield "fail", f"{problem}: {names}", mend
    else:
        yield "warn", problem, mend


def _without_leases(config: Config) -> list[str]:
    """The other VMs that libvirt knows here and that have no leases of their own."""
    try:
        connection = libvirt.open(config.libvirt.uri)
        try:
            return sorted(
                domain.name()
                for domain in connection.listAllDomains()
                if domain.name() != config.vm.name and "<lease>" not in domain.XMLDesc()
            )
        finally:
            connection.close()
    except libvirt.libvirtError:
        return []  # the next check reports it


def engine_pid(config: Config) -> int | None:
    """The process id of the VM here; None: unknown, or it does not run here."""
    try:
        return int((Path(config.libvirt.pid_dir) / f"{config.vm.name}.pid").read_text())
    except (OSError, ValueError):
        return None


def _libvirt_started() -> float | None:
    """When libvirt's daemon was started, UTC seconds since 1970; None: unknown."""
    for name in ("virtqemud", "libvirtd"):
        try:
            pid = int(Path(f"/run/{name}.pid").read_text())
            return Path(f"/proc/{pid}").stat().st_mtime
        except (OSError, ValueError):
            continue
    return None


def accelerator(config: Config) -> Found:
    """KVM or emulation: in the definition, on this host, and in the VM's process."""
    try:
        connection = libvirt.open(config.libvirt.uri)
        connection.close()
        yield "ok", f"libvirt answers at {config.libvirt.uri}", ""
    except libvirt.libvirtError as error:
        yield (
            "fail",
            f"libvirt at {config.libvirt.uri}: {sentence(error)}",
            "systemctl start virtqemud.socket",
        )
    try:
        kind = load_definition(config).domain_type
    except DefinitionError:
        return  # the checks of the configuration report it
    if kind != "kvm":
        yield (
            "warn",
            f"the VM is emulated (domain type {kind!r}): many times slower than under KVM",
            f"<domain type='kvm'> in {config.vm.definition} on every host",
        )
    elif not KVM.exists():
        yield (
            "fail",
            "the VM wants KVM and there is no /dev/kvm",
            "switch virtualisation on in the firmware; modprobe kvm_intel (or kvm_amd)",
        )
    pid = engine_pid(config)
    if pid is None:
        if kind == "kvm" and KVM.exists():
            yield "ok", "/dev/kvm exists; whether the VM uses it shows once the VM runs here", ""
        return
    try:
        links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError as error:
        yield (
            "warn",
            f"whether process {pid} uses KVM cannot be seen: {error.strerror}",
            "run as root",
        )
        return
    if any("kvm-vm" in link for link in links):
        yield "ok", f"the VM's process {pid} runs under KVM", ""
    elif kind == "kvm":
        yield "fail", f"the VM's process {pid} does not use KVM", "virsh domcapabilities"
    else:
        yield "ok", f"the VM's process {pid} is emulated, as its definition says", ""


def can_start(config: Config) -> Found:
    """The proof of the monitor can_start, part by part."""
    path = config.vm.definition
    try:
        xml = Path(path).read_text()
        needs = needs_of(xml)
    except (OSError, UnicodeDecodeError, BadDomain):
        return  # the checks of the configuration report it
    problems = [*lacks(needs), *unreadable(needs)]
    try:
        connection = libvirt.open(config.libvirt.uri)
        try:
            problems += refusals(connection, needs, xml)
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        text = f"libvirt does not say whether it could start the VM: {sentence(error)}"
        yield "warn", text, "systemctl start virtqemud.socket"
    for problem in problems:
        yield "fail", problem, f"mend it here, or {path} on every host"
    if not problems:
        yield "ok", f"what {path} needs is on this host", ""


def groups(config: Config) -> Found:
    """The daemons' user and its groups, and the files that others must not read."""
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        yield (
            "warn",
            f"there is no user {USER}: the daemons were not installed as a package",
            "systemd-sysusers ha-agent.conf",
        )
        return
    lacking = []
    for name in (GROUP, "libvirt"):
        try:
            group = grp.getgrnam(name)
        except KeyError:
            lacking.append(name)
            continue
        if USER not in group.gr_mem and user.pw_gid != group.gr_gid:
            lacking.append(name)
    if lacking:
        yield (
            "fail",
            f"user {USER} is not in group {', '.join(lacking)}",
            f"usermod -aG {','.join(lacking)} {USER}; systemctl restart ha-broker ha-agent",
        )
    else:
        yield "ok", f"user {USER} is in the groups {GROUP} and libvirt", ""
    secrets = Path(config.daemon.secrets)
    if secrets.exists():
        gid = secrets.stat().st_gid
        if gid == user.pw_gid or secrets.stat().st_uid == user.pw_uid:
            yield "ok", f"{secrets} can be read by {USER}", ""
        else:
            yield (
                "fail",
                f"{secrets} cannot be read by {USER}",
                f"chown root:{USER} {secrets}; chmod 0640 {secrets}",
            )


def sanlock_state(config: Config) -> Found:
    """Whether sanlock answers, and with which id this host is in the lockspace."""
    given = config.storage
    try:
        spaces = sanlock.get_lockspaces()
    except sanlock.SanlockException as error:
        yield "fail", f"sanlock does not answer: {error.args[-1]}", "systemctl start sanlock"
        return
    ours = [s for s in spaces if s["lockspace"] == given.lockspace.encode()]
    if not ours:
        yield (
            "warn",
            f"this host is not in lockspace {given.lockspace} yet",
            "systemctl enable --now ha-broker ha-agent",
        )
    elif ours[0]["host_id"] != config.host.id:
        yield (
            "fail",
            f"this host's sanlock is in lockspace {given.lockspace} as host id"
            f" {ours[0]['host_id']}, but host.id is {config.host.id}",
            "set host.id to that one, or: ha-agent leave --lockspace-only",
        )
    else:
        yield "ok", f"host id {config.host.id} is joined in lockspace {given.lockspace}", ""


def sanlock_name(config: Config) -> Found:
    """Whether sanlock has a fixed name that is this machine's own, uses it, and is alone with
    it."""
    path, name = config.storage.sanlock_conf, machines_name(config)
    found = named_in(read_text(Path(path)))
    slow = "after a boot this host's id must stand still for sanlock's whole time"
    if not name:
        yield (
            "warn",
            f"this machine has no UUID to make a name for sanlock from: {slow}",
            "host.system-uuid, one that no other host has (uuidgen)",
        )
    elif not found:
        mend = f"echo 'our_host_name = {name}' >> {path}; {IN_USE}"
        yield "warn", f"{path} gives sanlock no name: {slow}", mend
    elif found not in own_names(system_uuid(config)):
        mend = f"our_host_name = {name} in its place; {IN_USE}"
        text = f"{path} has the name {found}, which is not this machine's own: {slow}"
        yield "warn", text, mend
    for host_id in twins(config, (config.host.id,)):
        yield "fail", *twin(config, host_id)
    lease = read_names(config.storage.leases).get(config.host.id)
    if not found or lease is None or not lease.timestamp:
        return
    if lease.name == found:
        yield "ok", f"sanlock has its fixed name, {found}", ""
    else:
        text = f"sanlock uses the name {lease.name}, not yet {found}"
        yield "warn", text, IN_USE


def watchdog(config: Config) -> Found:
    """Whether a watchdog is armed: it resets a host whose sanlock cannot end the VM."""
    found = []
    for place in sorted(Path("/sys/class/watchdog").glob("watchdog*")):
        try:
            state = (place / "state").read_text().strip()
            identity = (place / "identity").read_text().strip()
        except OSError:
            continue
        found.append(f"{identity} {state}")
        if state == "active":
            if any(word in identity.lower() for word in _SOFT):
                yield (
                    "warn",
                    f"{identity} is armed; it does not fire where the kernel itself hangs",
                    "use the board's own (iTCO_wdt, sp5100_tco, ipmi_watchdog)",
                )
            else:
                yield "ok", f"{identity} is armed", ""
            return
    what = ", ".join(found) or "no device in /sys/class/watchdog"
    yield (
        "warn",
        f"no watchdog is armed ({what}): a host that cannot end its VM is not reset",
        "modprobe the board's driver (softdog where there is none); systemctl enable --now wdmd;"
        " no -w 0 and no use_watchdog = 0 for sanlock",
    )


def clock(config: Config) -> Found:
    """Whether the clock is right: no decision depends on it; ends of maintenance and logs do."""
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state < 0:
        yield "warn", f"adjtimex: {os.strerror(ctypes.get_errno())}", ""
    elif state == _TIME_ERROR:
        yield (
            "warn",
            "the clock is not synchronised: ends of maintenance and logs of the hosts will differ",
            "systemctl enable --now chronyd (or systemd-timesyncd)",
        )
    else:
        yield "ok", "the clock is synchronised", ""


def volumes(config: Config) -> Found:
    """Both volumes: direct I/O and its duration, kind, owner, and the lockspace's own data."""
    given = config.storage
    text, slowest_ms = storage_speed(config)
    if slowest_ms > FAR_TOO_SLOW_MS:
        yield "fail", text, "the storage, its network, multipath; iostat -x 1"
    elif slowest_ms > SLOW_MS:
        yield "warn", text, "the storage, its network, multipath; iostat -x 1"
    else:
        yield "ok", text, ""
    kind = file_system(given.whiteboard)
    if kind in LOCAL and not stat.S_ISBLK(Path(given.whiteboard).stat().st_mode):
        yield (
            "warn",
            f"{given.whiteboard} lies on {kind}: do the other hosts see this very file?",
            "findmnt -T on every host must name the same shared storage",
        )
    head, _ = read_leases(given.leases)
    if head is None:
        yield "fail", f"{given.leases}: holds no lockspace", "ha-agent reinitialize-lockspace"
    elif head.lockspace != given.lockspace:
        yield "fail", f"{given.leases}: holds lockspace {head.lockspace!r}", "storage.lockspace"
    elif head.io_timeout not in (0, given.io_timeout):
        yield (
            "warn",
            f"{given.leases}: made with io-timeout {head.io_timeout}, not {given.io_timeout}",
            f"storage.io-timeout = {head.io_timeout} on every host",
        )
    else:
        yield "ok", f"{given.leases}: lockspace {given.lockspace}", ""
        yield from _lost_leases(config)
    yield from _owners(given.whiteboard, given.leases)
    text = check_volumes(config)
    if config.cluster.id:
        yield "ok", text, ""
    else:
        yield "warn", "another volume at the same path would be taken: no ids", IDENTITY_COMMAND


def _lost_leases(config: Config) -> Found:
    """The leases that are not there, by this host's copy of the registry."""
    given = config.storage
    vms = kept_of(config).vms
    try:
        with Volume(given.leases, read_only=True) as volume:
            align = ALIGN_OF_SECTOR[sector_of_leases(volume)]
            found = lost_in(
                wanted_leases(given, vms),
                given.lockspace,
                lambda unit: decode(volume.read_at(unit * align)),
            )
    except VolumeError as error:
        yield "warn", f"{given.leases}: the leases cannot be read: {error.what}", error.step
        return
    lost = LostLeases(given, found)
    for what in (lost.of_engine, *lost.of_vms(vms).values(), *lost.others):
        if what:
            yield "fail", what, "docs/operations.md#a-lease-is-lost"


def _owners(*paths: str) -> Found:
    try:
        uid, gid = pwd.getpwnam(USER).pw_uid, grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return
    for path in paths:
        status = Path(path).stat()
        mode = stat.S_IMODE(status.st_mode)
        as_user = status.st_uid == uid and mode & 0o600 == 0o600
        as_group = status.st_gid == gid and mode & 0o060 == 0o060
        if not ((as_user or as_group) and as_group) and mode & 0o006 != 0o006:
            yield (
                "fail",
                f"{path}: {USER} and sanlock cannot both write it (mode {mode:04o})",
                f"chown {USER}:{GROUP} {path}; chmod 0660 {path}{_after_a_boot(path, status)}",
            )


def _after_a_boot(path: str, status: os.stat_result) -> str:
    """The commands that give a device to them after a boot too; empty for a file."""
    if not stat.S_ISBLK(status.st_mode):
        return ""
    try:
        return f"; echo '{rule_of(path)}' >> {RULES}; udevadm control --reload"
    except CommandError as error:
        return f"; {error}"

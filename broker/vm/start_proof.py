# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves whether libvirt on this host could start the VM, without a start, a definition or a
process.

A standby that cannot start the VM is none. Without this proof it is found out when the VM is down:
the bridge has another name here, the ISO lies on the other host, this QEMU lacks the machine type.

Rules of this file:

1. Only what certainly makes a start fail is a problem. What is unknown is none: a wrong "cannot"
   on every host would keep the VM down, while a start that is tried and fails costs a second.
2. Each part is one blocking call of its own: storage that hangs hides no missing bridge.
3. The questions to libvirt define no domain and open no disk. Its sentence is shown, its
   error's code decides.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import libvirt

from broker.daemon.errors import why
from broker.daemon.foreign import sentence, whole
from broker.vm.needs import NeededFile, VmNeeds

#: Errors that say nothing about the file: it exists and this process may not read it (libvirt
#: changes the owner at a start), or this process lacks something itself.
_NO_ANSWER = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EINTR,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ETIMEDOUT,
    }
)
#: libvirt's codes for a refused definition: measured on 9.0 with wrong elements, attributes,
#: devices and machines. Other codes (1, internal error) come where the question cannot be answered
#: without a start, for example with a PCI device of the host.
_REFUSES = frozenset(
    {libvirt.VIR_ERR_XML_ERROR, libvirt.VIR_ERR_XML_DETAIL, libvirt.VIR_ERR_CONFIG_UNSUPPORTED}
)
#: libvirt's codes for missing capabilities: a machine, an emulator or a domain type.
_NOT_CAPABLE = frozenset({libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_CONFIG_UNSUPPORTED})
#: libvirt's codes for a CPU, from the CPU driver: an unknown model, or missing features.
_NO_SUCH_CPU = frozenset(
    {
        libvirt.VIR_ERR_CPU_INCOMPATIBLE,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_INTERNAL_ERROR,
    }
)
#: More CPUs than any machine type has.
_VCPUS_MAX = 10**6
#: Domains of errors on the way to libvirt: it has not answered at all.
AWAY = frozenset({libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE})
_TOTAL = re.compile(r"^(?:MemTotal|SwapTotal):\s+([0-9]{1,18}) kB$", re.MULTILINE)
_DEFAULT_PAGE = re.compile(r"^Hugepagesize:\s+([0-9]{1,9}) kB$", re.MULTILINE)


# --- the host -------------------------------------------------------------------------------------


def lacks(needs: VmNeeds, root: Path = Path("/")) -> Iterator[str]:
    """What this host lacks, by /sys and /proc, which always answer."""
    for name, what in needs.links:
        if not (root / "sys/class/net" / name).exists():
            yield (
                f"{name} of the VM's interface is not on this host: make that {what}, or name"
                " another one in the definition"
            )
    for address in needs.pci:
        if not (root / "sys/bus/pci/devices" / address).exists():
            yield f"PCI device {address} of the definition is not on this host"
    if needs.domain_type == "kvm" and not (root / "dev/kvm").exists():
        yield (
            "the VM wants KVM and there is no /dev/kvm: switch virtualisation on in the firmware;"
            " modprobe kvm_intel (or kvm_amd)"
        )
    with contextlib.suppress(OSError):
        meminfo = (root / "proc/meminfo").read_text()
        yield from _lacks_memory(needs, meminfo, root / "sys/kernel/mm/hugepages")


def _lacks_memory(needs: VmNeeds, meminfo: str, pools: Path) -> Iterator[str]:
    """Memory that is more than the host has in all; how much of it is free is not checked."""
    sizes = needs.hugepages_kib
    if not sizes:
        total_kib = sum(int(kib) for kib in _TOTAL.findall(meminfo))
        if 0 < total_kib < needs.memory_kib:
            yield (
                f"the VM needs {needs.memory_kib / 1024:.0f} MiB of memory, this host has"
                f" {total_kib / 1024:.0f} in all, swap included"
            )
        return
    default = _DEFAULT_PAGE.search(meminfo)
    for size in sizes:
        kib = size or (int(default.group(1)) if default else 0)
        pool = pools / f"hugepages-{kib}kB"
        if not pool.exists():
            yield f"this host has no huge pages of {kib} KiB: hugepagesz= for its kernel"
            continue
        there = sum(
            int((pool / name).read_text()) for name in ("nr_hugepages", "nr_overcommit_hugepages")
        )
        if len(sizes) == 1 and there * kib < needs.memory_kib:
            yield (
                f"the VM needs {needs.memory_kib / 1024:.0f} MiB in huge pages of {kib} KiB, this"
                f" host has {there * kib / 1024:.0f} in all: more nr_hugepages"
            )


# --- files: may hang ------------------------------------------------------------------------------


def unreadable(needs: VmNeeds) -> Iterator[str]:
    """Files of the VM that do not exist or cannot be read; blocks while their storage hangs."""
    files = needs.files
    if needs.emulator:
        files = (NeededFile(needs.emulator, "the emulator"), *files)
    hidden = _hidden()
    for file in files:
        problem = _problem_of(file.path, hidden)
        if problem and file.instead is not None:
            file = NeededFile(file.instead, f"the template of {file.what}")
            problem = _problem_of(file.path, hidden)
        if problem:
            yield _says(file, problem)


def _says(file: NeededFile, problem: str) -> str:
    return f"{file.what}: {file.path} cannot be read on this host: {problem}"


def _hidden() -> tuple[str, ...]:
    """Folders of which this process may see others than QEMU will (PrivateTmp= of the unit; paths
    under ProtectHome= answer with EACCES)."""
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        mounted = {line.split()[4] for line in lines}
        return tuple(f"{folder}/" for folder in ("/tmp", "/var/tmp") if folder in mounted)  # noqa: S108
    return ()


def _problem_of(path: str, hidden: tuple[str, ...]) -> str:
    """Why QEMU could not open the file; empty where it could, and where that is unknown."""
    try:
        # O_NONBLOCK: the open waits neither for a FIFO's other end nor for a drive to be closed.
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        is_known = error.errno not in _NO_ANSWER and not path.startswith(hidden)
        return why(error) if is_known else ""
    return ""


# --- libvirt --------------------------------------------------------------------------------------


def refusals(connection: libvirt.virConnect, needs: VmNeeds, xml: str) -> Iterator[str]:
    """What libvirt here refuses. libvirtError where it does not answer; blocks."""
    yield from not_capable(connection, needs)
    yield from other_cpu(connection, needs)
    for name in needs.networks:
        yield from _no_network(connection, name)
    for pool, volume in needs.volumes:
        yield from _no_volume(connection, pool, volume)
    try:
        # As in a start, from the definition to QEMU's arguments; nothing of it is kept.
        connection.domainXMLToNative("qemu-argv", xml)
    except libvirt.libvirtError as error:
        if _code(error) in _REFUSES:
            yield f"libvirt refuses the definition: {sentence(error)}"


def _code(error: libvirt.libvirtError) -> int:
    """The error's code; the error is raised again where libvirt has not answered at all."""
    if error.get_error_domain() in AWAY:
        raise error
    return int(error.get_error_code() or 0)


def not_capable(
    connection: libvirt.virConnect, needs: VmNeeds, where: str = "on this host"
) -> Iterator[str]:
    """Emulator, machine type, CPUs or firmware that are missing `where` the connection leads
    to. libvirtError where libvirt does not answer."""
    try:
        text = connection.getDomainCapabilities(
            needs.emulator or None,
            needs.arch or None,
            needs.machine or None,
            needs.domain_type or None,
        )
    except libvirt.libvirtError as error:
        if _code(error) in _NOT_CAPABLE:
            yield f"libvirt: {sentence(error)}"
        return
    root = ElementTree.fromstring(text)  # noqa: S314  (libvirt's own words)
    most = root.find("vcpu")
    if most is not None and 0 < (whole(most.get("max", ""), _VCPUS_MAX) or 0) < needs.vcpus:
        yield f"the VM has {needs.vcpus} CPUs, this machine type takes {most.get('max')} {where}"
    known = root.find("os/enum[@name='firmware']")
    values = None if known is None else [value.text for value in known.iterfind("value")]
    if needs.efi and values is not None and "efi" not in values:
        yield f"no UEFI firmware is installed {where} (ovmf, edk2-ovmf)"


def other_cpu(
    connection: libvirt.virConnect, needs: VmNeeds, where: str = "on this host"
) -> Iterator[str]:
    """A CPU that is missing there; as `not_capable`."""
    if not needs.cpu:
        return
    try:
        connection.compareHypervisorCPU(
            needs.emulator or None,
            needs.arch or None,
            needs.machine or None,
            needs.domain_type or None,
            needs.cpu,
            libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE,
        )
    except libvirt.libvirtError as error:
        if _code(error) in _NO_SUCH_CPU and error.get_error_domain() == libvirt.VIR_FROM_CPU:
            yield f"the VM's CPU cannot be had {where}: {sentence(error)}"


def _no_network(connection: libvirt.virConnect, name: str) -> Iterator[str]:
    try:
        is_active = connection.networkLookupByName(name).isActive()
    except libvirt.libvirtError as error:
        if _code(error) == libvirt.VIR_ERR_NO_NETWORK:
            yield f"libvirt here knows no network {name!r} (virsh net-define)"
        return
    if not is_active:
        yield f"libvirt's network {name!r} is not active here: virsh net-start {name}"


def _no_volume(connection: libvirt.virConnect, pool: str, volume: str) -> Iterator[str]:
    try:
        found = connection.storagePoolLookupByName(pool)
        if not found.isActive():
            yield f"libvirt's storage pool {pool!r} is not active here: virsh pool-start {pool}"
            return
        found.storageVolLookupByName(volume)
    except libvirt.libvirtError as error:
        code = _code(error)
        if code == libvirt.VIR_ERR_NO_STORAGE_POOL:
            yield f"libvirt here knows no storage pool {pool!r} (virsh pool-define)"
        elif code == libvirt.VIR_ERR_NO_STORAGE_VOL:
            yield f"libvirt's storage pool {pool!r} has no volume {volume!r} here"

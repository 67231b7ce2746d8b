# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks both libvirts beforehand whether a live migration of the VM would be refused.

A refused migration costs nothing by itself. But a host that is to be drained then tries for ever,
and some of libvirt's refusals say little: two machines with one UUID, as boards of one maker have,
are an "internal error".

Rules of this file:

1. Only a certain failure is a problem. What cannot be known is none: libvirt reports it when the
   migration is tried.
2. libvirt's sentence is shown, its error's code decides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

import libvirt

from broker.vm.errors import BadDomain
from broker.vm.needs import needs_of
from broker.vm.start_proof import not_capable, other_cpu

#: libvirt's error codes for a refusal because of the VM or the target itself
#: (src/qemu/qemu_migration.c): a host device, a disk cache that is not safe, a CPU, a machine.
#: INTERNAL_ERROR and OPERATION_INVALID are not among them: temporary failures have them too.
_LASTING = frozenset(
    {
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_CPU_INCOMPATIBLE,
        libvirt.VIR_ERR_MIGRATE_UNSAFE,
    }
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the VM cannot be migrated there. `lasting`: the reason does not go away by itself. Empty
    `text`: no reason is known."""

    text: str = ""
    lasting: bool = False


def is_lasting(error: libvirt.libvirtError) -> bool:
    """Whether a migration that failed with this error would fail again."""
    return error.get_error_code() in _LASTING


def ask_target(uri: str, own: libvirt.virConnect, xml: str) -> Refusal:
    """Why the libvirt at `uri` would refuse the VM that runs with `xml`; libvirtError where none
    answers there. May block for minutes."""
    there = libvirt.open(uri)
    try:
        there.getLibVersion()
        found = list(problems(own, there, xml))
        return Refusal("; ".join(found), bool(found))
    finally:
        there.close()


def problems(own: libvirt.virConnect, there: libvirt.virConnect, xml: str) -> Iterator[str]:
    """The reasons why a migration from `own` to `there` would fail, each with what to do."""
    with contextlib.suppress(libvirt.libvirtError):
        uuid = _host_uuid(there)
        if uuid and uuid == _host_uuid(own):
            yield (
                f"its libvirt names the machine UUID {uuid}, and so does the one here, which for "
                "libvirt is one host: give one of them another host_uuid in libvirtd.conf "
                "(virtqemud.conf), and restart libvirt there"
            )
    with contextlib.suppress(libvirt.libvirtError):
        name = there.getHostname()
        if name and name == own.getHostname():
            yield f"it calls itself {name} as this host does, which for libvirt is one host"
    with contextlib.suppress(libvirt.libvirtError, BadDomain):
        needs = needs_of(xml)
        yield from not_capable(there, needs, "there")
        yield from other_cpu(there, needs, "there")


def _host_uuid(connection: libvirt.virConnect) -> str:
    """The UUID that libvirt compares; empty where it has none."""
    try:
        root = ElementTree.fromstring(connection.getCapabilities())  # noqa: S314  (libvirt's word)
    except ElementTree.ParseError:
        return ""
    return (root.findtext("host/uuid") or "").strip().lower()


def host_devices(xml: str) -> list[str]:
    """The kinds of host devices with which libvirt migrates no VM, or only some: all but USB
    devices and network cards with a stand-in (`<teaming>`). Empty where the XML cannot be read."""
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  (root's own file)
    except ElementTree.ParseError:
        return []
    found = [
        device.get("type") or device.get("mode") or "?"
        for device in root.iterfind("devices/hostdev")
        if device.get("type") != "usb" and device.find("teaming") is None
    ]
    found += [
        "network card"
        for device in root.iterfind("devices/interface[@type='hostdev']")
        if device.find("teaming") is None
    ]
    return sorted(set(found))

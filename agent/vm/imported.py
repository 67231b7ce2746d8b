# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM's definition, taken from a file or from libvirt and completed with its lease, a UUID and
the MAC addresses of its interfaces."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import libvirt

from agent.terminal.errors import CommandError
from broker.config.sections import StorageSection
from broker.daemon.errors import why
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import sentence
from broker.vm.domain_facts import parse
from broker.vm.errors import BadDomain


@dataclass(frozen=True, slots=True)
class Imported:
    """A definition with its lease. `bridge`: of its first bridged network interface, or empty.
    `notes`: what was changed, or should be known."""

    xml: str
    name: str
    bridge: str
    notes: tuple[str, ...]


def read_domain(source: str, uri: str) -> str:
    """The XML of a file, or of a libvirt domain, running or not, of that name; CommandError."""
    if "/" in source or Path(source).is_file():
        try:
            return Path(source).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(ExitCode.FILE, f"{source}: cannot be read: {why(error)}") from None
    try:
        connection = libvirt.open(uri)
        try:
            flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
            return str(connection.lookupByName(source).XMLDesc(flags))
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        raise CommandError(
            ExitCode.DEFINITION,
            f"--domain {source}: neither a file nor a domain that libvirt knows ({uri}):"
            f" {sentence(error)}",
        ) from None


def known_domains(uri: str) -> list[str]:
    """Names of the domains that libvirt here knows; empty where it does not answer."""
    try:
        connection = libvirt.open(uri)
        try:
            return sorted(domain.name() for domain in connection.listAllDomains())
        finally:
            connection.close()
    except libvirt.libvirtError:
        return []


def imported(
    xml: str, source: str, storage: StorageSection, offset: int, key: str = ""
) -> Imported:
    """The definition with the `<lease>` of that key at `offset` in the lease volume; "": the
    engine's. CommandError where the text is no domain."""
    try:
        root = parse(xml)
    except BadDomain as error:
        raise CommandError(ExitCode.DEFINITION, f"{source}: {error}") from None
    name = (root.findtext("name") or "").strip()
    devices = root.find("devices")
    if not name or devices is None:
        raise CommandError(ExitCode.DEFINITION, f"{source}: a domain needs <name> and <devices>")
    notes = []
    if not (root.findtext("uuid") or "").strip():
        for old in root.findall("uuid"):
            root.remove(old)
        made = ElementTree.Element("uuid")
        made.text, made.tail = str(uuid.uuid4()), "\n  "
        root.insert(list(root).index(root.find("name") or root[0]) + 1, made)
        notes.append(f"it had no <uuid>, it gets {made.text}")
    notes += with_macs(root)
    notes += _with_lease(devices, storage, offset, key or storage.resource)
    # These parts belong to one run on one host, or let libvirt start the VM without the agent.
    root.attrib.pop("id", None)
    source_bridges = (i.get("bridge", "") for i in devices.iterfind("interface/source"))
    bridge = next(filter(None, source_bridges), "")
    return Imported(
        ElementTree.tostring(root, encoding="unicode") + "\n", name, bridge, tuple(notes)
    )


def with_macs(root: ElementTree.Element) -> list[str]:
    """Give each interface a MAC address that has none; what was changed, a sentence each. Without
    one libvirt makes up another address at each start, and the guest finds a new card. The address
    follows from the VM's UUID and the interface's position, so it stays as it is when the same text
    is given once more."""
    own = (root.findtext("uuid") or "").strip().lower()
    notes = []
    for number, interface in enumerate(root.iterfind("devices/interface"), 1):
        mac = interface.find("mac")
        if mac is not None and mac.get("address"):
            continue
        if mac is None:
            mac = ElementTree.Element("mac")
            mac.tail = interface.text
            interface.insert(0, mac)
        digest = hashlib.sha256(f"{own} {number}".encode()).hexdigest()
        mac.set("address", f"52:54:00:{digest[:2]}:{digest[2:4]}:{digest[4:6]}")
        notes.append(f"interface {number} had no <mac>, it gets {mac.get('address')}")
    return notes


def _with_lease(
    devices: ElementTree.Element, storage: StorageSection, offset: int, key: str
) -> list[str]:
    wanted = (storage.lockspace, key, storage.leases, str(offset))
    kept = False
    for lease in devices.findall("lease"):
        target = lease.find("target")
        place = (target.get("path", ""), target.get("offset", "0")) if target is not None else ()
        if (lease.findtext("lockspace", ""), lease.findtext("key", ""), *place) == wanted:
            kept = True
            continue
        # A foreign lease would have to be free too: the VM could not start.
        devices.remove(lease)
    if kept:
        return []
    lease = ElementTree.Element("lease")
    for tag, text in (("lockspace", storage.lockspace), ("key", key)):
        ElementTree.SubElement(lease, tag).text = text
    ElementTree.SubElement(lease, "target", {"path": storage.leases, "offset": str(offset)})
    ElementTree.indent(lease, "  ", 2)
    lease.tail = "\n    "
    devices.insert(0, lease)
    return [f"it gets the <lease> {key} in {storage.leases} at {offset}"]

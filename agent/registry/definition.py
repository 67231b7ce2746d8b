# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM's definition on its way into the registry: named, with its UUID and its lease."""

from __future__ import annotations

import math
import tempfile
import uuid
from dataclasses import dataclass
from xml.etree import ElementTree

import libvirt

from agent.terminal.errors import CommandError
from agent.vm.imported import imported, with_macs
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import sentence
from broker.registry.admission import refused
from broker.registry.record import MEMORY_MB_MAX, VmRecord
from broker.vm import needs
from broker.vm.admitted import memory_mb_of, reaches_out
from broker.vm.domain_facts import parse
from broker.vm.errors import BadDomain
from broker.vm.host_local import one_host
from broker.vm.shared_paths import SharedPaths
from scoring.vm_facts import ORDINARY_PAGES_KB

_TYPES = ("kvm", "qemu")
#: Huge pages of the host's default size, on x86_64 and aarch64.
_USUAL_HUGE_KB = 2048


@dataclass(frozen=True, slots=True)
class Text:
    """A definition as somebody gave it, its name and UUID set. `notes`: what was changed."""

    xml: str
    source: str
    name: str
    uuid: str
    memory_mb: int
    pages_kb: int
    notes: tuple[str, ...] = ()


def text_of(xml: str, source: str, config: Config, name: str = "", own: str = "") -> Text:
    """Read a definition. `source`: where it comes from; `name`: to be given to it, "": as it says;
    `own`: the UUID that it must have, "": its own, or a new one. CommandError."""
    try:
        root = parse(xml)
    except BadDomain as error:
        raise _error(source, str(error)) from None
    if root.get("type") not in _TYPES:
        raise _error(source, f"is of type {root.get('type', '')!r}, not kvm or qemu")
    notes: list[str] = []
    said = (root.findtext("name") or "").strip()
    if name and said != name:
        notes += [f"it is called {name}, not {said}"] if said else []
        _set(root, "name", name)
    if not (name or said):
        raise _error(source, "has no <name>; add one, or give --name")
    made = _uuid(root, source, own)
    if (root.findtext("uuid") or "").strip().lower() != made:
        notes.append(f"it gets the UUID {made}")
        _set(root, "uuid", made)
    notes += with_macs(root)
    memory = memory_mb_of(root)
    if memory is None or not 0 < math.ceil(memory) <= MEMORY_MB_MAX:
        raise _error(
            source, "has no usable <memory>; add one, such as <memory unit='GiB'>8</memory>"
        )
    reach = reaches_out(root, config.libvirt.emulators, config.libvirt.passthrough)
    if reach:
        raise CommandError(
            ExitCode.DEFINITION,
            f"{source}: {reach}: no host would start it; allow it on every host that may run the"
            " VM, or take it out",
        )
    text = ElementTree.tostring(root, encoding="unicode")
    return Text(text, source, name or said, made, math.ceil(memory), _pages_kb(text), tuple(notes))


def with_lease(text: Text, record: VmRecord, config: Config, align: int) -> str:
    """The definition with the lease of its record; CommandError where no host would start it.
    `align`: bytes of an alignment unit of the lease volume."""
    key = config.storage.resource if record.number == 1 else record.resource
    found = imported(text.xml, text.source, config.storage, record.unit * align, key)
    problem = refused(found.xml, record, config)
    if problem:
        raise _error(text.source, problem)
    return found.xml


def one_host_only(xml: str, config: Config) -> list[str]:
    """What of the VM exists on this host alone, a sentence each."""
    storage = config.storage
    shared = SharedPaths([storage.whiteboard, storage.leases, storage.registry])
    return [str(each) for each in one_host(xml, shared.has)]


def not_in_schema(xml: str) -> list[str]:
    """What libvirt's schema does not know of the definition, a sentence: libvirt leaves it out
    without a word. Asked of libvirt's test driver, which runs in this process and touches no
    host; empty where it has no schema."""
    libvirt.registerErrorHandler(lambda context, error: None, None)
    with tempfile.NamedTemporaryFile("w", suffix=".xml") as node:
        node.write("<node/>")
        node.flush()
        try:
            connection = libvirt.open(f"test://{node.name}")
            try:
                connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
            finally:
                connection.close()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_XML_INVALID_SCHEMA:
                return [f"libvirt does not know all of it, and leaves that out: {sentence(error)}"]
    return []


def _uuid(root: ElementTree.Element, source: str, own: str) -> str:
    said = (root.findtext("uuid") or "").strip()
    if not said:
        return own or str(uuid.uuid4())
    try:
        found = str(uuid.UUID(said))
    except ValueError:
        raise _error(source, f"its <uuid> is none: {said[:80]!r}") from None
    if own and found != own:
        raise _error(
            source,
            f"has the UUID {found}, and this VM is {own}: it is another VM; add it under another"
            " name, or take its <uuid> out",
        )
    return found


def _set(root: ElementTree.Element, tag: str, text: str) -> None:
    for old in root.findall(tag):
        root.remove(old)
    made = ElementTree.Element(tag)
    made.text, made.tail = text, "\n  "
    root.insert(0 if tag == "name" else 1, made)


def _pages_kb(xml: str) -> int:
    try:
        pages = needs.needs_of(xml).hugepages_kib
    except BadDomain:
        return ORDINARY_PAGES_KB
    return (pages[0] or _USUAL_HUGE_KB) if pages else ORDINARY_PAGES_KB


def _error(source: str, what: str) -> CommandError:
    return CommandError(ExitCode.DEFINITION, f"{source}: {what}")

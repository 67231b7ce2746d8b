# SPDX-License-Identifier: LGPL-2.1-or-later
"""The definition of a VM: a libvirt domain XML that must carry the VM's sanlock lease."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

from agent.vm.errors import DefinitionError
from broker.config.sections import Config, StorageSection
from broker.daemon.errors import why
from broker.daemon.foreign import clean, whole
from broker.daemon.regular_file import read_text
from broker.registry.record import VmRecord

_MIB_OF_UNIT = {
    "b": 2**-20,
    "bytes": 2**-20,
    "kb": 1000 / 2**20,
    "k": 2**-10,
    "kib": 2**-10,
    "mb": 1e6 / 2**20,
    "m": 1.0,
    "mib": 1.0,
    "gb": 1e9 / 2**20,
    "g": 1024.0,
    "gib": 1024.0,
    "tb": 1e12 / 2**20,
    "t": 2.0**20,
    "tib": 2.0**20,
}


#: libvirt's numbers have 64 bits.
_NUMBER_MAX = 2**64


@dataclass(frozen=True, slots=True)
class Definition:
    """The facts of the VM that the agent needs. `lease_offset`: bytes into the lease volume."""

    xml: str
    name: str
    memory_mb: float
    lease_offset: int
    domain_type: str


def load_definition(config: Config) -> Definition:
    """Read and check the domain XML; DefinitionError where it cannot be used.

    The lease must be the configured one (formatdomain, "Device leases"): without it nothing
    would keep a second copy from running.
    """
    path = config.vm.definition
    try:
        xml = read_text(path)
    except FileNotFoundError:
        raise DefinitionError(f"vm.definition: {path} is not there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionError(f"vm.definition: {path} cannot be read: {why(error)}") from None
    return definition_of(xml, config)


def definition_of(xml: str, config: Config) -> Definition:
    """Check a text that is, or will be, in the configured file; as `load_definition`."""
    path, storage = config.vm.definition, config.storage
    root = _root(xml, f"vm.definition: {path}")
    name = _text(root, "name")
    if name != config.vm.name:
        raise DefinitionError(
            f"vm.definition: {path} defines {name!r}, but vm.name is {config.vm.name!r}"
        )
    return _checked(xml, root, f"vm.definition: {path}", storage, storage.resource)


def recorded_definition(
    record: VmRecord, xml: str, storage: StorageSection, align: int
) -> Definition:
    """Check the definition of a VM of the registry against its record; DefinitionError. `align`:
    from one lease of the lease volume to the next, in bytes."""
    where = f"the definition of {record.name} in the registry"
    root = _root(xml, where)
    found = _checked(xml, root, where, storage, record.resource)
    if _text(root, "uuid").lower() != record.uuid:
        raise DefinitionError(
            f"{where} has UUID {clean(_text(root, 'uuid'), 40)}, its record {record.uuid}:"
            f" ha-agent vm define {record.name} FILE"
        )
    if found.lease_offset != record.unit * align:
        raise DefinitionError(
            f"{where} has its lease at {found.lease_offset}, VM {record.number} has it at"
            f" {record.unit * align}: ha-agent vm define {record.name} FILE"
        )
    return found


def _root(xml: str, where: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  (a member's word, or root's own file)
    except ElementTree.ParseError as error:
        raise DefinitionError(f"{where} is not XML: {error}") from None
    if root.tag != "domain":
        raise DefinitionError(f"{where} holds <{clean(root.tag, 40)}>, not a libvirt <domain>")
    return root


def _text(root: ElementTree.Element, tag: str) -> str:
    return (root.findtext(tag) or "").strip()


def _checked(
    xml: str, root: ElementTree.Element, where: str, storage: StorageSection, resource: str
) -> Definition:
    if not _text(root, "uuid"):
        # libvirt would make a new UUID at each define, and refuse it as a second domain.
        raise DefinitionError(
            f"{where} has no <uuid>: add one below <name>, the same on every host"
            " (virsh dumpxml shows libvirt's; uuidgen makes one)"
        )
    return Definition(
        xml,
        _text(root, "name"),
        _memory_mb(root, where),
        _lease_offset(root, where, storage, resource),
        root.get("type", ""),
    )


def _memory_mb(root: ElementTree.Element, where: str) -> float:
    memory = root.find("memory")
    amount = None if memory is None else whole((memory.text or "").strip(), _NUMBER_MAX)
    unit = "KiB" if memory is None else memory.get("unit", "KiB")
    factor = _MIB_OF_UNIT.get(unit.lower())
    if amount is None or factor is None:
        raise DefinitionError(f"{where} has no usable <memory>")
    return amount * factor


def _lease_offset(
    root: ElementTree.Element, where: str, storage: StorageSection, resource: str
) -> int:
    wanted = (storage.lockspace, resource, storage.leases)
    for lease in root.iterfind("devices/lease"):
        target = lease.find("target")
        place = target.get("path", "") if target is not None else ""
        found = (lease.findtext("lockspace", ""), lease.findtext("key", ""), place)
        if found == wanted:
            offset = whole("0" if target is None else target.get("offset", "0"), _NUMBER_MAX)
            if offset is None:
                raise DefinitionError(f"{where} has a <lease> without usable offset")
            return offset
    raise DefinitionError(
        f"{where} has no <lease> for lockspace {wanted[0]}, key {wanted[1]}, "
        f"target {wanted[2]}: without it the VM would run unprotected"
    )

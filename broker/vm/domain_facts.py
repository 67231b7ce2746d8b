# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads a libvirt domain XML into facts that can be compared. Pure.

The administrator's file, libvirt's own definition and libvirt's XML of the running VM are never
alike as texts: libvirt adds addresses, aliases, labels, controllers and defaults, and turns `pc`
into a version. A comparison of texts would report a difference every day. So each text is read into
*facts*, and only facts are compared.

Rules of this file:

1. A fact is what the guest would notice, or on which its data depend. What libvirt adds or chooses
   itself is none: addresses, aliases, labels, balloon, controllers, consoles, graphics, video.
2. A fact that the recorded text leaves to libvirt (no MAC, no model, no loader) is not compared.
3. The disks come first: each has its *chain* of layers, beginning with the one that is written to.
4. Text that cannot be read as a domain is a BadDomain, never "no difference".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from broker.daemon.foreign import clean, whole
from broker.vm.errors import BadDomain

#: The number of bytes in a unit of libvirt's <memory>.
BYTES_OF_UNIT: dict[str, int] = {"b": 1, "bytes": 1} | {
    unit + end: base**power
    for power, unit in enumerate("kmgt", start=1)
    for end, base in (("", 2**10), ("ib", 2**10), ("b", 1000))
}
#: The attributes of a <source>, and of the elements in it, that say where it lies. In the others
#: libvirt writes what it chose (tls='no', transport='tcp', index), even the usual port.
_NAMES = frozenset({"protocol", "name", "pool", "volume", "namespace", "path", "type"})
_NAMES_BELOW = {
    "host": frozenset({"name", "port", "socket"}),
    "address": frozenset({"domain", "bus", "slot", "function"}),
    "snapshot": frozenset({"name"}),
}
_PORTS = {"nbd": "10809", "gluster": "24007", "iscsi": "3260", "http": "80", "https": "443"}
#: At most so many layers are read.
CHAIN_MAX = 64
#: Devices of which only the number is compared.
COUNTED = ("memory", "redirdev", "shmem", "vsock", "rng", "smartcard", "sound", "iommu")
#: libvirt adds some of these devices itself: only a missing one is a difference.
AT_LEAST = ("watchdog", "panic", "channel", "serial", "parallel")
#: Namespaces that libvirt and related programs write keep their usual prefixes.
for _prefix, _uri in (
    ("qemu", "http://libvirt.org/schemas/domain/qemu/1.0"),
    ("libosinfo", "http://libosinfo.org/xmlns/libvirt/domain/1.0"),
    ("ovirt-vm", "http://ovirt.org/vm/1.0"),
):
    ElementTree.register_namespace(_prefix, _uri)
#: Elements with text for people, which may have several lines.
_PROSE = frozenset({"metadata", "description", "title"})
#: `pc` and `q35` are names for the newest machine type of a kind.
_MACHINES = {"pc": "pc-i440fx-", "q35": "pc-q35-"}


#: libvirt's numbers have 64 bits.
_AMOUNT_MAX = 2**64
_SHOWN_CHARS_MAX = 120


class Differs(StrEnum):
    """What of the VM differs; stable names, described in docs/reasons.md."""

    DISKS = "disks-differ"
    BLOCK_JOB = "block-job"
    FIRMWARE = "firmware-differs"
    TPM = "tpm-differs"
    DEVICES = "devices-differ"
    MEMORY = "memory-differs"
    VCPUS = "vcpus-differ"


@dataclass(frozen=True, slots=True)
class Difference:
    """A fact that differs. `recorded`, `found`: "" where the thing does not exist there."""

    code: Differs
    what: str
    recorded: str
    found: str

    def __str__(self) -> str:
        if not self.found:
            return f"{self.what}: recorded {self.recorded}, not there"
        if not self.recorded:
            return f"{self.what}: not recorded, but there: {self.found}"
        return f"{self.what}: recorded {self.recorded}, found {self.found}"


@dataclass(frozen=True, slots=True)
class Layer:
    """An image of a disk's chain. `kind`: libvirt's (file, block, network, …); `place`: its path,
    or its name; `form`: raw, qcow2, …, "" where it is not given."""

    kind: str
    place: str
    form: str

    def __str__(self) -> str:
        return f"{self.place} ({self.form})" if self.form else self.place


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk with the guest's data. `target`: vda, …; `chain`: from the layer that is written to
    down to the base; layers below the last one are unknown here. `job`: the
    block job under way (copy, active-commit, …), "": none; `pivot`: the disk may change over to
    another image at any moment, or is about to."""

    target: str
    chain: tuple[Layer, ...]
    job: str = ""
    pivot: bool = False


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface. `mac`, `model`: "" where they are left to libvirt; `place`: the network
    or device that it is connected to."""

    mac: str
    place: str
    model: str


@dataclass(frozen=True, slots=True)
class Domain:
    """The content of a domain XML. `facts`: by code and name; `loose`: names of facts that are
    compared only where they are recorded; `disks`: by target; `interfaces`: in order."""

    facts: Mapping[tuple[Differs, str], str]
    loose: frozenset[str]
    disks: Mapping[str, Disk]
    interfaces: tuple[Interface, ...]


def parse(xml: str) -> Element:
    """The root of a domain's XML; BadDomain."""
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  (root's own file, or libvirt's word)
    except ElementTree.ParseError as error:
        raise BadDomain(f"is not XML: {error}") from None
    if root.tag != "domain":
        raise BadDomain(f"holds <{clean(root.tag, _SHOWN_CHARS_MAX)}>, not a libvirt <domain>")
    _only_what_can_be_shown(root)
    return root


def parse_disk(text: str) -> Element:
    """A `<disk>` element by itself; BadDomain."""
    try:
        disk = ElementTree.fromstring(text)  # noqa: S314  (signed, or of an earlier version)
    except ElementTree.ParseError as error:
        raise BadDomain(f"a disk is not XML: {error}") from None
    if disk.tag != "disk" or not target_of(disk):
        raise BadDomain("a disk has no <target>")
    _only_what_can_be_shown(disk)
    return disk


def _only_what_can_be_shown(root: Element) -> None:
    """BadDomain where a path or a name could not be shown as it is. It is not cleaned, since the
    opened path must be the shown one. Texts for people are not checked."""
    for child in root.iterfind("*"):
        if child.tag in _PROSE:
            continue
        for element in child.iter():
            texts = (
                element.attrib.values()
                if len(element)
                else (*element.attrib.values(), element.text or "")
            )
            for text in texts:
                if not text.strip().isprintable():
                    shown = clean(text.strip(), _SHOWN_CHARS_MAX)
                    raise BadDomain(
                        f"has a name that cannot be shown as it is: <{element.tag}> {shown}"
                    )


def read(xml: str) -> Domain:
    """The facts of a domain XML; BadDomain."""
    root = parse(xml)
    facts: dict[tuple[Differs, str], str] = {}
    loose: set[str] = set()
    for code, name, value, is_loose in _facts(root):
        facts[code, name] = value
        if is_loose:
            loose.add(name)
    disks = {disk.target: disk for disk in map(_disk, data_disks(root)) if disk.target}
    interfaces = tuple(map(_interface, root.iterfind("devices/interface")))
    return Domain(facts, frozenset(loose), disks, interfaces)


def differences(recorded: Domain, found: Domain) -> tuple[Difference, ...]:
    """How `found` differs from `recorded`; disks first, then by code and name."""
    differing: list[Difference] = []
    for target in sorted({*recorded.disks, *found.disks}):
        differing += _disk_differences(recorded.disks.get(target), found.disks.get(target))
    differing += _interface_differences(recorded.interfaces, found.interfaces)
    for key in sorted({*recorded.facts, *found.facts}):
        code, name = key
        was, now = recorded.facts.get(key, ""), found.facts.get(key, "")
        if was == now:
            continue
        if not was and name in found.loose:
            continue
        if name in AT_LEAST and int(now or 0) >= int(was or 0):
            continue
        if name == "machine" and _is_same_machine(was, now):
            continue
        differing.append(Difference(code, name, was, now))
    return tuple(differing)


def data_disks(root: Element) -> list[Element]:
    """The `<disk>` elements that hold the guest's data: neither CD-ROM nor floppy."""
    return [
        disk
        for disk in root.iterfind("devices/disk")
        if disk.get("device", "disk") in _DATA_DEVICES
    ]


_DATA_DEVICES = ("disk", "lun")


def host_devices(root: Element) -> list[str]:
    """The host devices that are passed through, by their own names."""
    return [_host_device(each) for each in root.iterfind("devices/hostdev")]


def layers(disk: Element) -> tuple[Layer, ...]:
    """The chain of a `<disk>`, beginning with the layer that is written to."""
    driver = disk.find("driver")
    form = "raw" if driver is None else driver.get("type", "raw")
    chain: list[Layer] = []
    here: Element | None = disk
    while here is not None and len(chain) < CHAIN_MAX:
        source = here.find("source")
        if source is None:
            break
        chain.append(_layer(here.get("type", "file"), source, form))
        here = here.find("backingStore")
        if here is not None:
            found = here.find("format")
            form = "" if found is None else found.get("type", "")
    return tuple(chain)


# --- one fact after another -----------------------------------------------------------------


def _facts(root: Element) -> Iterator[tuple[Differs, str, str, bool]]:
    """(code, name, value, whether it is compared only where it is recorded)."""
    memory_mb = _memory_mb(root)
    if memory_mb is not None:
        yield Differs.MEMORY, "memory", f"{memory_mb} MiB", False
    vcpus = root.find("vcpu")
    most = "1" if vcpus is None else (vcpus.text or "1").strip()
    now = most if vcpus is None else vcpus.get("current", most)
    yield Differs.VCPUS, "vCPUs", now if now == most else f"{now} of {most}", False
    topology = root.find("cpu/topology")
    if topology is not None:
        parts = (f"{topology.get(key, '1')} {key}" for key in ("sockets", "cores", "threads"))
        yield Differs.VCPUS, "topology", ", ".join(parts), True
    yield from _firmware(root)
    yield from _tpm(root)
    devices = root.find("devices")
    yield from () if devices is None else _devices(devices)


def _memory_mb(root: Element) -> int | None:
    """Rounded up as libvirt does; None where none is given. NUMA cells are added up."""
    cells = [cell for cell in root.iterfind("cpu/numa/cell") if cell.get("memory") is not None]
    if cells:
        kib = sum(_kib(cell.get("memory"), cell.get("unit")) for cell in cells)
        kib += sum(
            _kib(size.text, size.get("unit"))
            for size in root.iterfind("devices/memory/target/size")
        )
    else:
        memory = root.find("memory")
        if memory is None:
            return None
        kib = _kib(memory.text, memory.get("unit"))
    return math.ceil(kib / 1024)


def _kib(text: str | None, unit: str | None) -> int:
    amount = whole((text or "").strip(), _AMOUNT_MAX)
    unit_bytes = BYTES_OF_UNIT.get((unit or "KiB").lower())
    if amount is None or unit_bytes is None:
        raise BadDomain(f"has memory of {text!r} {unit or 'KiB'!r}"[:_SHOWN_CHARS_MAX])
    return math.ceil(amount * unit_bytes / 1024)


def _firmware(root: Element) -> Iterator[tuple[Differs, str, str, bool]]:
    os = root.find("os")
    if os is None:
        return
    kind = os.find("type")
    if kind is not None and kind.get("machine"):
        yield Differs.FIRMWARE, "machine", kind.get("machine", ""), True
    for tag in ("loader", "kernel", "initrd", "cmdline"):
        text = _text(os, tag)
        if text:
            # libvirt chooses a loader itself where only <os firmware='efi'> is given.
            yield Differs.FIRMWARE, tag, text, tag == "loader"
    nvram = os.find("nvram")
    if nvram is not None:
        source = nvram.find("source")
        place = _text(os, "nvram") or ("" if source is None else _place(source))
        if place:
            yield Differs.FIRMWARE, "nvram", place, True


def _tpm(root: Element) -> Iterator[tuple[Differs, str, str, bool]]:
    for tpm in root.iterfind("devices/tpm"):
        backend = tpm.find("backend")
        yield (
            Differs.TPM,
            "TPM",
            "passthrough" if backend is None else backend.get("type", ""),
            False,
        )
        if tpm.get("model"):
            yield Differs.TPM, "TPM model", tpm.get("model", ""), True
        if backend is not None and backend.get("version"):
            yield Differs.TPM, "TPM version", backend.get("version", ""), True


def _devices(devices: Element) -> Iterator[tuple[Differs, str, str, bool]]:
    for disk in devices.findall("disk"):
        if disk.get("device", "disk") not in _DATA_DEVICES:
            source = disk.find("source")
            place = "empty" if source is None else _place(source) or "empty"
            yield Differs.DEVICES, f"{disk.get('device')} {target_of(disk)}", place, False
    for hostdev in devices.findall("hostdev"):
        yield Differs.DEVICES, f"host device {_host_device(hostdev)}", "passed through", False
    for filesystem in devices.findall("filesystem"):
        target, source = filesystem.find("target"), filesystem.find("source")
        name = "" if target is None else target.get("dir", "")
        place = "" if source is None else _place(source)
        yield Differs.DEVICES, f"file system {name}", place or "there", False
    for tag in (*COUNTED, *AT_LEAST):
        count = len(devices.findall(tag))
        if count:
            yield Differs.DEVICES, tag, str(count), False


def _interface(interface: Element) -> Interface:
    mac, model = interface.find("mac"), interface.find("model")
    return Interface(
        "" if mac is None else mac.get("address", "").lower(),
        _network(interface),
        "" if model is None else model.get("type", ""),
    )


def _interface_differences(
    recorded: tuple[Interface, ...], found: tuple[Interface, ...]
) -> Iterator[Difference]:
    """Compare by MAC where one is recorded, else by order, since libvirt makes up a MAC."""
    left = {each.mac or f"number {number}": each for number, each in enumerate(found, 1)}
    known = {each.mac for each in recorded}
    unnamed = iter([name for name, each in left.items() if not each.mac or each.mac not in known])
    for number, mine in enumerate(recorded, 1):
        theirs = left.pop(mine.mac or next(unnamed, ""), None)
        name = f"interface {mine.mac or number}"
        if theirs is None or theirs.place != mine.place:
            now = "" if theirs is None else theirs.place
            yield Difference(Differs.DEVICES, name, mine.place, now)
        elif mine.model and mine.model != theirs.model:
            yield Difference(Differs.DEVICES, f"model of {name}", mine.model, theirs.model)
    for name, theirs in left.items():
        yield Difference(Differs.DEVICES, f"interface {name}", "", theirs.place)


def _network(interface: Element) -> str:
    """The kind of an interface, and what it is connected to."""
    kind, source = interface.get("type", ""), interface.find("source")
    # In the other attributes libvirt writes what it found in this run.
    keys = {"network": ("network", "portgroup"), "direct": ("dev", "mode")}
    if source is None:
        return kind
    wanted = keys.get(kind, ("bridge", "dev", "name", "path", "address", "port"))
    return " ".join([kind, *(source.get(key, "") for key in wanted if source.get(key))])


def _host_device(hostdev: Element) -> str:
    """A passed-through device, by its own name: for USB by vendor and product where given."""
    kind, source = hostdev.get("type", ""), hostdev.find("source")
    if source is None:
        return kind
    vendor, product = source.find("vendor"), source.find("product")
    if vendor is not None and product is not None:
        return f"{kind} {_number(vendor.get('id', ''))}:{_number(product.get('id', ''))}"
    address = source.find("address")
    parts = {} if address is None else address.attrib
    return " ".join([kind, *(f"{key}={_number(parts[key])}" for key in sorted(parts))])


def _number(text: str) -> str:
    """The number in a uniform text: 0x3b, 0x003b and 59 are the same."""
    try:
        return f"{int(text, 0):#x}"
    except ValueError:
        return text


# --- disks ----------------------------------------------------------------------------------


def _disk(element: Element) -> Disk:
    mirror = element.find("mirror")
    if mirror is None:
        return Disk(target_of(element), layers(element))
    job = mirror.get("job", "copy")
    return Disk(target_of(element), layers(element), job, mirror.get("ready") in ("yes", "pivot"))


def _disk_differences(recorded: Disk | None, found: Disk | None) -> Iterator[Difference]:
    disk = recorded or found
    assert disk is not None
    was, now = () if recorded is None else recorded.chain, () if found is None else found.chain
    if recorded is None or found is None:
        yield Difference(Differs.DISKS, disk.target, _top(was), _top(now))
    elif was[:1] != now[:1]:
        yield Difference(Differs.DISKS, disk.target, _top(was) or "empty", _top(now) or "empty")
    elif len(was) > 1 and _below(was) != _below(now):
        yield Difference(
            Differs.DISKS, f"layers below {disk.target}", _chain(was[1:]), _chain(now[1:]) or "none"
        )
    if found is not None and found.job:
        state = "it may go over to another image now" if found.pivot else "copying"
        yield Difference(Differs.BLOCK_JOB, found.target, "", f"{found.job}, {state}")


def _below(chain: tuple[Layer, ...]) -> list[tuple[str, str]]:
    return [(layer.kind, layer.place) for layer in chain[1:]]


def _top(chain: tuple[Layer, ...]) -> str:
    return str(chain[0]) if chain else ""


def _chain(chain: tuple[Layer, ...]) -> str:
    return " on ".join(map(str, chain))


def _layer(kind: str, source: Element, form: str) -> Layer:
    return Layer(kind, _place(source), form)


def _place(source: Element) -> str:
    """Where the source lies: a path, or its name elsewhere."""
    for key in ("file", "dev", "dir"):
        if source.get(key):
            return source.get(key, "")
    parts = [f"{key}={source.attrib[key]}" for key in sorted(_NAMES & set(source.keys()))]
    usual = _PORTS.get(source.get("protocol", ""), "")
    for child in source:
        keys = _NAMES_BELOW.get(child.tag, frozenset()) & set(child.keys())
        said = {key: child.attrib[key] for key in sorted(keys)}
        if said.get("port") == usual:
            del said["port"]
        parts += [f"{key}={value}" for key, value in said.items()]
    return " ".join(parts)


def target_of(disk: Element) -> str:
    """The name of the disk in the guest, vda say; empty where it has none."""
    target = disk.find("target")
    return "" if target is None else target.get("dev", "")


# --- names ----------------------------------------------------------------------------------


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _is_same_machine(recorded: str, found: str) -> bool:
    return found.startswith(_MACHINES.get(recorded, f"{recorded}-"))

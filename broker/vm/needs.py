# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads what a VM's definition (libvirt's formatdomain) needs of the host that starts it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from broker.daemon.foreign import clean, whole
from broker.vm.errors import BadDomain

_KIB_OF = {"b": 1 / 1024, "bytes": 1 / 1024, "kb": 1000 / 1024, "mb": 1e6 / 1024, "gb": 1e9 / 1024}
_KIB_OF |= {"k": 1.0, "kib": 1.0, "m": 1024.0, "mib": 1024.0, "g": 2.0**20, "gib": 2.0**20}
#: libvirt's numbers have 64 bits.
_NUMBER_MAX = 2**64
_KIB_OF |= {"tb": 1e12 / 1024, "t": 2.0**30, "tib": 2.0**30}


@dataclass(frozen=True, slots=True)
class NeededFile:
    """A file or block device that QEMU opens. `what`: in words. `instead`: the template that it is
    made from where it does not exist; None: there is none."""

    path: str
    what: str
    instead: str | None = None


@dataclass(frozen=True, slots=True)
class VmNeeds:
    """What the host must have. Empty strings: libvirt chooses.

    `cpu`: the <cpu> that is compared with the host's before a start, empty: it is not compared.
    `memory_kib`: the largest amount. `hugepages_kib`: sizes of pages, 0: the host's default size.
    `links`: network devices by name, each with its kind. `volumes`: pool and volume. `pci`: as
    in sysfs. `efi`: libvirt looks for a firmware itself.
    """

    domain_type: str
    arch: str = ""
    machine: str = ""
    emulator: str = ""
    cpu: str = ""
    vcpus: int = 0
    memory_kib: float = 0
    hugepages_kib: tuple[int, ...] = ()
    files: tuple[NeededFile, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    networks: tuple[str, ...] = ()
    volumes: tuple[tuple[str, str], ...] = ()
    pci: tuple[str, ...] = ()
    efi: bool = False


def needs_of(xml: str) -> VmNeeds:
    """The needs of a definition; BadDomain where the text is none."""
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  (root's own file)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadDomain(f"it is not XML: {error}") from None
    if root.tag != "domain":
        raise BadDomain(f"it holds <{clean(root.tag, 40)}>, not a libvirt <domain>")
    kind, disks = root.find("os/type"), list(root.iterfind("devices/disk"))
    return VmNeeds(
        domain_type=root.get("type", ""),
        arch="" if kind is None else kind.get("arch", ""),
        machine="" if kind is None else kind.get("machine", ""),
        emulator=_text(root, "devices/emulator"),
        cpu=_compared_cpu(root),
        vcpus=int(_number(root.find("vcpu"))),
        memory_kib=_kib(root.find("memory")),
        hugepages_kib=tuple(_hugepages(root)),
        files=(*_boot_files(root), *(file for disk in disks for file in _disk_files(disk))),
        links=tuple(_links(root)),
        networks=tuple(_sources(root.iterfind("devices/interface[@type='network']"), "network")),
        volumes=tuple(_volumes(disks)),
        pci=tuple(_pci(root)),
        efi=root.find("os[@firmware='efi']") is not None and not _text(root, "os/loader"),
    )


def _text(root: ElementTree.Element, path: str) -> str:
    return (root.findtext(path) or "").strip()


def _number(element: ElementTree.Element | None) -> float:
    """The number, 0 where it is none: libvirt reports what is wrong with it."""
    text = "" if element is None else (element.text or "").strip()
    return float(whole(text, _NUMBER_MAX) or 0)


def _kib(element: ElementTree.Element | None) -> float:
    unit = "KiB" if element is None else element.get("unit", "KiB")
    return _number(element) * _KIB_OF.get(unit.lower(), 0.0)


def _compared_cpu(root: ElementTree.Element) -> str:
    """The CPU that libvirt compares with the host's. It compares a named model unless "check" says
    otherwise, and without KVM only when "check" demands it (formatdomain, "CPU model and
    topology")."""
    cpu = root.find("cpu")
    if cpu is None or cpu.find("model") is None or cpu.get("mode", "custom") != "custom":
        return ""
    usual = "partial" if root.get("type") == "kvm" else "none"
    if cpu.get("check", usual) == "none":
        return ""
    return ElementTree.tostring(cpu, encoding="unicode")


def _hugepages(root: ElementTree.Element) -> Iterator[int]:
    wanted = root.find("memoryBacking/hugepages")
    if wanted is None:
        return
    pages = list(wanted.iterfind("page"))
    if not pages:
        yield 0
    for page in pages:
        size, factor = page.get("size", ""), _KIB_OF.get(page.get("unit", "KiB").lower(), 0.0)
        if (count := whole(size, _NUMBER_MAX)) is not None and factor:
            yield int(count * factor)


def _boot_files(root: ElementTree.Element) -> Iterator[NeededFile]:
    for tag in ("kernel", "initrd", "dtb", "loader"):
        path = _text(root, f"os/{tag}")
        if path:
            yield NeededFile(path, "the firmware" if tag == "loader" else f"the {tag}")
    nvram = root.find("os/nvram")
    if nvram is not None and (nvram.text or "").strip():
        template = nvram.get("template")
        # Without a template libvirt uses that of its firmware.
        if template:
            yield NeededFile((nvram.text or "").strip(), "the firmware's variables", template)


def _disk_files(disk: ElementTree.Element) -> Iterator[NeededFile]:
    """The layers that the definition names, the lowest ones too; none that may be missing."""
    target = disk.find("target")
    name = "" if target is None else target.get("dev", "")
    layer: ElementTree.Element | None = disk
    while layer is not None:
        source = layer.find("source")
        if source is not None and source.get("startupPolicy") != "optional":
            path = source.get("file") or source.get("dev") or source.get("dir") or ""
            if path.startswith("/") and source.get("pool") is None:
                yield NeededFile(path, f"disk {name}".strip())
        layer = layer.find("backingStore")


def _links(root: ElementTree.Element) -> Iterator[tuple[str, str]]:
    for name in _sources(root.iterfind("devices/interface[@type='bridge']"), "bridge"):
        yield name, "bridge"
    for name in _sources(root.iterfind("devices/interface[@type='direct']"), "dev"):
        yield name, "network device"


def _sources(elements: Iterator[ElementTree.Element], attribute: str) -> Iterator[str]:
    for element in elements:
        source = element.find("source")
        if source is not None and (name := source.get(attribute)):
            yield name


def _volumes(disks: list[ElementTree.Element]) -> Iterator[tuple[str, str]]:
    for disk in disks:
        source = disk.find("source")
        if source is None or source.get("startupPolicy") == "optional":
            continue
        pool, volume = source.get("pool"), source.get("volume")
        if pool and volume:
            yield pool, volume


def _pci(root: ElementTree.Element) -> Iterator[str]:
    for path in ("devices/hostdev[@type='pci']", "devices/interface[@type='hostdev']"):
        for element in root.iterfind(path):
            address = element.find("source/address")
            if address is None:
                continue
            try:
                domain, bus, slot, function = (
                    int(address.get(part, "0"), 0) for part in ("domain", "bus", "slot", "function")
                )
            except ValueError:
                continue  # libvirt reports what is wrong with it
            yield f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"

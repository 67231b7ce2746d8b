# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM from vm.conf, from an OVF envelope, or from the domain XML that VDSM used. Pure.

ImportFault says what is missing. Elements of an OVF are found by their names without namespace,
which has changed with the engine's version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

from agent.ovirt.errors import ImportFault
from agent.ovirt.key_values import device, number
from agent.ovirt.machine import Disk, Machine, Nic
from agent.ovirt.storage_domain import UUID, StorageDomain

#: rasd:ResourceSubType of a network interface, oVirt's VmInterfaceType.
_NIC_MODELS = {"0": "virtio", "1": "rtl8139", "2": "e1000", "3": "virtio"}
_VM_CONF_NICS = {"pv": "virtio", "rtl8139": "rtl8139", "e1000": "e1000", "rtl8139_pv": "virtio"}
#: oVirt's BiosType: the first value with q35, and the first with UEFI.
_Q35, _EFI = 2, 3
#: The paths of QEMU in distributions.
_EMULATORS = frozenset(
    {"/usr/libexec/qemu-kvm", "/usr/bin/qemu-kvm", "/usr/bin/kvm", "/usr/bin/qemu-system-x86_64"}
)
#: Devices that give the guest access to the host.
_UNEXPECTED = {
    "filesystem": "a folder of the host is shared with the VM (<filesystem>)",
    "hostdev": "a device of the host is passed through (<hostdev>)",
    "shmem": "memory is shared with the host (<shmem>)",
}
#: Elements whose paths are checked elsewhere, or made anew by libvirt.
_WITH_PATHS = frozenset({"disk", "channel", "interface"})


def from_vm_conf(
    values: Mapping[str, str], devices: Sequence[str], domain: StorageDomain
) -> Machine:
    """The VM of a vm.conf that has no domain XML in it."""
    disks, nics = [], []
    for found in map(device, devices):
        if found.get("type") == "disk" and found.get("device") == "disk":
            path = domain.volume(
                found.get("imageID", ""), found.get("volumeID", ""), found.get("domainID", "")
            )
            format_ = "qcow2" if found.get("format") in ("cow", "qcow2") else "raw"
            disks.append(Disk(path, format_, found.get("iface", "virtio")))
        elif found.get("type") == "interface":
            model = _VM_CONF_NICS.get(found.get("nicModel", "pv"), "virtio")
            nics.append(Nic(found.get("network", ""), found.get("macAddr", ""), model))
    if not UUID.fullmatch(values.get("vmId", "")) or not number(values, "memSize"):
        raise ImportFault("vmId or memSize is missing, or no UUID")
    return Machine(
        name=values.get("vmName", "HostedEngine"),
        uuid=values["vmId"],
        memory_mb=number(values, "memSize"),
        sockets=max(1, number(values, "smp", 1)),
        machine=values.get("emulatedMachine", "") or "pc",
        cpu=_cpu(values.get("cpuType", "")),
        disks=tuple(disks),
        nics=tuple(nics),
    )


def _cpu(name: str) -> str:
    """The CPU model: oVirt writes `model_Haswell`, or appends features."""
    return name.removeprefix("model_").partition(",")[0].strip()


def local(name: str) -> str:
    """A name without its namespace."""
    return name.rpartition("}")[2]


def _text(element: ElementTree.Element, name: str) -> str:
    """The text of the first child of that name."""
    found = next((child for child in element if local(child.tag) == name), None)
    return ((found.text if found is not None else "") or "").strip()


def _attribute(element: ElementTree.Element, name: str) -> str:
    return next((value for key, value in element.attrib.items() if local(key) == name), "")


def _all(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (found for found in element.iter() if local(found.tag) == name)


def from_envelope(root: ElementTree.Element, domain: StorageDomain) -> Machine:
    """The VM of an OVF, as the engine keeps it in an OVF_STORE."""
    content = next(_all(root, "Content"), None)
    if content is None:
        raise ImportFault("no <Content> in the OVF envelope")
    sections = [s for s in content if local(s.tag) == "Section"]
    system = next((s for s in sections if "OperatingSystem" in _attribute(s, "type")), None)
    uuid = _attribute(system, "id") if system is not None else ""
    formats = {
        _attribute(disk, "fileRef"): (
            "qcow2" if _attribute(disk, "volume-format").upper() == "COW" else "raw",
            _attribute(disk, "disk-interface") or "VirtIO",
        )
        for disk in _all(root, "Disk")
    }
    shape, memory_mb = (1, 1, 1), 0
    disks, nics = [], []
    for item in _all(content, "Item"):
        match _text(item, "ResourceType"):  # of CIM_ResourceAllocationSettingData
            case "3":  # processor
                names = ("num_of_sockets", "cpu_per_socket", "threads_per_cpu")
                sockets, cores, threads = (
                    max(1, number({name: _text(item, name)}, name, 1)) for name in names
                )
                shape = (sockets, cores, threads)
            case "4":  # memory
                memory_mb = number({"": _text(item, "VirtualQuantity")}, "")
            case "17":  # disk
                place = _text(item, "HostResource")
                image, _, volume = place.partition("/")
                format_, interface = formats.get(place, ("raw", "VirtIO"))
                path = domain.volume(image, volume, _text(item, "StorageId"))
                disks.append(Disk(path, format_, interface))
            case "10":  # network adapter
                model = _NIC_MODELS.get(_text(item, "ResourceSubType"), "virtio")
                nics.append(Nic(_text(item, "Connection"), _text(item, "MACAddress"), model))
            case _:
                pass
    if not UUID.fullmatch(uuid) or not memory_mb:
        raise ImportFault("the OVF envelope has no VM id, or one that is no UUID, or no memory")
    bios = number({"": _text(content, "BiosType")}, "")
    return Machine(
        _text(content, "Name") or "HostedEngine",
        uuid,
        memory_mb,
        *shape,
        machine=_text(content, "CustomEmulatedMachine") or ("q35" if bios >= _Q35 else "pc"),
        cpu=_cpu(_text(content, "CustomCpuName")),
        efi=bios >= _EFI,
        disks=tuple(disks),
        nics=tuple(nics),
    )


def unexpected(root: ElementTree.Element, devices: ElementTree.Element) -> list[str]:
    """Everything that the engine puts into no machine of its own, in words; ImportFault where it
    would run a program with QEMU's rights on the host."""
    for element in root.iter():
        if local(element.tag) == "commandline":
            raise ImportFault(
                "it passes arguments to QEMU by itself (<qemu:commandline>): take it out"
            )
    found = []
    for emulator in devices.iterfind("emulator"):
        path = (emulator.text or "").strip()
        if path and path not in _EMULATORS:
            raise ImportFault(
                f"its emulator is {path[:80]!r}: take <emulator> out, libvirt knows one"
            )
    for tag, what in _UNEXPECTED.items():
        found += [f"look at it: {what}" for _ in devices.iterfind(tag)]
    for element in devices:
        if element.tag in _WITH_PATHS:
            continue
        for source in element.iter("source"):
            for name in ("path", "file", "dev", "dir"):
                if (path := source.get(name, "")).startswith("/"):
                    found.append(
                        f"look at it: <{local(element.tag)}> names {path[:80]!r} on the host"
                    )
    return found


def without_vdsm(root: ElementTree.Element, domain: StorageDomain) -> list[str]:
    """Change the domain XML that VDSM used so that it runs without VDSM; returns the changes."""
    devices = root.find("devices")
    if devices is None:
        raise ImportFault("the domain has no <devices>")
    if not UUID.fullmatch((root.findtext("uuid") or "").strip()):
        raise ImportFault("the domain's <uuid> is no UUID")
    notes = unexpected(root, devices)
    for source in devices.iterfind("disk/source"):
        for name in ("file", "dev"):
            path = source.get(name, "")
            if path and (place := domain.without_vdsm(path)) != path:
                source.set(name, place)
                notes.append(f"disk {path} is {place} without VDSM")
    for interface in devices.iterfind("interface"):
        for rule in interface.findall("filterref"):
            if rule.get("filter", "").startswith("vdsm-"):
                interface.remove(rule)
                notes.append(f"the filter {rule.get('filter')} is VDSM's own: taken out")
    for channel in devices.iterfind("channel/source"):
        if channel.attrib.pop("path", ""):
            notes.append("a channel's socket: libvirt chooses its path")
    for graphics in devices.iterfind("graphics"):
        # VDSM sets an expired password, and listens on a network of its own.
        for name in ("passwd", "passwdValidTo", "connected"):
            graphics.attrib.pop(name, None)
        graphics.attrib.pop("listen", None)
        for listen in graphics.findall("listen"):
            graphics.remove(listen)
        ElementTree.SubElement(graphics, "listen", type="address", address="127.0.0.1")
        notes.append(f"{graphics.get('type')} listens on 127.0.0.1, without password")
    return notes

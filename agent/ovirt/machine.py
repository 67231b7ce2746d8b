# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM as oVirt's files describe it, and its form as a libvirt domain."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

#: oVirt's names of disk interfaces -> the bus and the first letters of the device.
_BUSES = {
    "virtio": ("virtio", "vd"),
    "virtio_scsi": ("scsi", "sd"),
    "ide": ("ide", "hd"),
    "sata": ("sata", "sd"),
}


@dataclass(frozen=True, slots=True)
class Disk:
    """`path`: its path without VDSM. `format`: raw or qcow2. `interface`: oVirt's word."""

    path: str
    format: str = "raw"
    interface: str = "virtio"


@dataclass(frozen=True, slots=True)
class Nic:
    """A network interface on a bridge. `model`: libvirt's word."""

    bridge: str
    mac: str = ""
    model: str = "virtio"


@dataclass(frozen=True, slots=True)
class Machine:
    """`memory_mb`: MiB. `cpu`: libvirt's name of a model, empty: the host's. `machine`: QEMU's
    machine type. `efi`: it boots by UEFI."""

    name: str
    uuid: str
    memory_mb: int
    sockets: int = 1
    cores: int = 1
    threads: int = 1
    machine: str = "q35"
    cpu: str = ""
    efi: bool = False
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()


def domain_xml(vm: Machine) -> str:
    """A libvirt domain of the VM: what oVirt would run, without the parts that only VDSM
    provides."""
    root = ElementTree.Element("domain", type="kvm")
    _text(root, "name", vm.name)
    _text(root, "uuid", vm.uuid)
    _text(root, "memory", str(vm.memory_mb), unit="MiB")
    _text(root, "vcpu", str(vm.sockets * vm.cores * vm.threads))
    system = ElementTree.SubElement(root, "os", {"firmware": "efi"} if vm.efi else {})
    _text(system, "type", "hvm", arch="x86_64", machine=vm.machine)
    ElementTree.SubElement(system, "boot", dev="hd")
    features = ElementTree.SubElement(root, "features")
    ElementTree.SubElement(features, "acpi")
    if vm.cpu:
        cpu = ElementTree.SubElement(root, "cpu", mode="custom", match="exact", check="none")
        _text(cpu, "model", vm.cpu, fallback="allow")
    else:
        cpu = ElementTree.SubElement(root, "cpu", mode="host-model")
    shape = {"sockets": vm.sockets, "cores": vm.cores, "threads": vm.threads}
    ElementTree.SubElement(cpu, "topology", {name: str(n) for name, n in shape.items()})
    clock = ElementTree.SubElement(root, "clock", offset="utc")
    ElementTree.SubElement(clock, "timer", name="rtc", tickpolicy="catchup")
    for event, act in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(root, f"on_{event}", act)
    _devices(ElementTree.SubElement(root, "devices"), vm)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _devices(devices: ElementTree.Element, vm: Machine) -> None:
    counted: dict[str, int] = {}
    for disk in vm.disks:
        bus, letters = _BUSES.get(disk.interface.lower(), _BUSES["virtio"])
        number = counted.get(letters, 0)
        counted[letters] = number + 1
        kind = "block" if disk.path.startswith("/dev/") else "file"
        made = ElementTree.SubElement(devices, "disk", type=kind, device="disk")
        driver = {"name": "qemu", "type": disk.format, "cache": "none", "error_policy": "stop"}
        ElementTree.SubElement(
            made, "driver", driver | {"io": "threads" if kind == "file" else "native"}
        )
        ElementTree.SubElement(made, "source", {"dev" if kind == "block" else "file": disk.path})
        ElementTree.SubElement(made, "target", dev=f"{letters}{chr(97 + number)}", bus=bus)
    if any(_BUSES.get(disk.interface.lower(), ("",))[0] == "scsi" for disk in vm.disks):
        ElementTree.SubElement(devices, "controller", type="scsi", model="virtio-scsi")
    for nic in vm.nics:
        made = ElementTree.SubElement(devices, "interface", type="bridge")
        if nic.mac:
            ElementTree.SubElement(made, "mac", address=nic.mac)
        ElementTree.SubElement(made, "source", bridge=nic.bridge)
        ElementTree.SubElement(made, "model", type=nic.model)
    agent = ElementTree.SubElement(devices, "channel", type="unix")
    ElementTree.SubElement(agent, "target", type="virtio", name="org.qemu.guest_agent.0")
    ElementTree.SubElement(devices, "console", type="pty")
    graphics = ElementTree.SubElement(devices, "graphics", type="vnc", autoport="yes")
    ElementTree.SubElement(graphics, "listen", type="address", address="127.0.0.1")
    video = ElementTree.SubElement(devices, "video")
    ElementTree.SubElement(video, "model", type="vga")
    rng = ElementTree.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")


def _text(parent: ElementTree.Element, tag: str, text: str, **attributes: str) -> None:
    ElementTree.SubElement(parent, tag, attributes).text = text

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds what of a VM exists on one host only, or must be alike on every host, and what that costs
at a takeover. Pure; the caller says whether a path is on the shared storage.

A takeover is a start on another machine with what every machine has. What is missing there is
replaced by something empty (nvram, TPM), keeps the VM from starting (a disk, a device), or is
silently something else (a bridge of that name). None of it shows before the takeover, so it is
listed by `init`, `join`, `config check` and `doctor`; what costs data is a trouble too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from broker.vm import domain_facts
from broker.vm.domain_facts import Layer

#: libvirt's folder for files to which the definition gives no place.
NVRAM_FOLDER = "/var/lib/libvirt/qemu/nvram"
TPM_FOLDER = "/var/lib/libvirt/swtpm"
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"
#: Network interfaces that depend on the host, by their kind.
_LINKS = {"bridge": "bridge", "network": "network", "direct": "dev", "ethernet": "dev"}


@dataclass(frozen=True, slots=True)
class OneHost:
    """One such thing. `what`: its name, with its place; `cost`: at a takeover; `costs_data`: what
    the guest or its users stored is missing on another host."""

    what: str
    cost: str
    costs_data: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.cost}"


def one_host(xml: str, is_shared: Callable[[Layer], bool]) -> tuple[OneHost, ...]:
    """All such things, those that cost data first; BadDomain."""
    root = domain_facts.parse(xml)

    def is_here_alone(path: str) -> bool:
        return not is_shared(Layer("file", path, ""))

    found = [
        *_disks(root, is_shared),
        *_nvram(root, is_here_alone),
        *_tpm(root, is_here_alone),
        *_files(root, is_here_alone),
        *_devices(root),
        *_machine(root),
    ]
    return tuple(sorted(found, key=lambda each: not each.costs_data))


def _disks(root: Element, is_shared: Callable[[Layer], bool]) -> Iterator[OneHost]:
    data = domain_facts.data_disks(root)
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        name = f"{disk.get('device', 'disk')} {'' if target is None else target.get('dev', '')}"
        for layer in domain_facts.layers(disk):
            if layer.kind == "volume":
                text = "the storage pool must be defined, with the same content, on every host"
                yield OneHost(f"{name} in {layer.place}", text)
            elif layer.kind == "block":
                text = "it must be the same device on every host, under the same name"
                yield OneHost(f"{name} on {layer.place}", text)
            elif layer.kind == "network" and not is_shared(layer):
                yield OneHost(f"{name} by {layer.place}", "every host must serve it there")
            elif layer.place and not is_shared(layer):
                yield _of_layer(name, layer, disk in data)


def _of_layer(name: str, layer: Layer, is_data: bool) -> OneHost:
    where = f"{name} in {layer.place}, which is not on the shared storage"
    if is_data:
        text = "no other host can start the VM, and if this one dies its data are gone"
        return OneHost(where, text, costs_data=True)
    text = "another host cannot start the VM without that file: eject it, or put it there"
    return OneHost(where, text)


def _nvram(root: Element, is_here_alone: Callable[[str], bool]) -> Iterator[OneHost]:
    loader, nvram = root.find("os/loader"), root.find("os/nvram")
    os = root.find("os")
    is_efi = os is not None and os.get("firmware") == "efi"
    is_flash = loader is not None and loader.get("type") == "pflash"
    if nvram is None and not is_efi and not is_flash:
        return
    source = None if nvram is None else nvram.find("source")
    path = "" if nvram is None else (nvram.text or "").strip()
    path = path or ("" if source is None else source.get("file", ""))
    path = path or f"{NVRAM_FOLDER}/{(root.findtext('name') or '').strip()}_VARS.fd"
    if is_here_alone(path):
        text = (
            "another host starts with the firmware's template in its place: boot entries, Secure"
            " Boot keys and passwords of the firmware are lost there"
        )
        yield OneHost(f"firmware nvram in {path}", text, costs_data=True)


def _tpm(root: Element, is_here_alone: Callable[[str], bool]) -> Iterator[OneHost]:
    for tpm in root.iterfind("devices/tpm"):
        backend = tpm.find("backend")
        if backend is None or backend.get("type") != "emulator":
            yield OneHost("TPM of the host", "the VM starts on this host alone", costs_data=True)
            continue
        source = backend.find("source")
        path = "" if source is None else source.get("path", "")
        path = path or f"{TPM_FOLDER}/{(root.findtext('uuid') or '').strip()}"
        if is_here_alone(path):
            text = (
                "another host starts with an empty TPM: a guest whose disk key is sealed in it"
                " (BitLocker, LUKS) asks for the recovery key, and what else it kept is lost"
            )
            yield OneHost(f"TPM state in {path}", text, costs_data=True)


def _files(root: Element, is_here_alone: Callable[[str], bool]) -> Iterator[OneHost]:
    for tag in ("kernel", "initrd", "dtb"):
        path = (root.findtext(f"os/{tag}") or "").strip()
        if path and is_here_alone(path):
            yield OneHost(f"{tag} {path}", "the same file must be on every host")
    loader = root.find("os/loader")
    path = "" if loader is None else (loader.text or "").strip()
    if loader is not None and path and is_here_alone(path):
        kind = "Secure Boot firmware" if loader.get("secure") == "yes" else "firmware"
        text = "the same package must be on every host, of a version that reads this nvram"
        yield OneHost(f"{kind} {path}", text)
    for share in root.iterfind("devices/filesystem"):
        source = share.find("source")
        path = "" if source is None else source.get("dir", "")
        if path and is_here_alone(path):
            text = "the guest finds another folder, or none, on another host"
            yield OneHost(f"shared folder {path}", text, costs_data=True)


def _devices(root: Element) -> Iterator[OneHost]:
    for name in domain_facts.host_devices(root):
        text = "a host without that device cannot start the VM, and it cannot be migrated live"
        yield OneHost(f"host device {name}", text)
    links: dict[str, None] = {}
    for number, interface in enumerate(root.iterfind("devices/interface"), 1):
        mac = interface.find("mac")
        if mac is None or not mac.get("address"):
            text = "libvirt makes one up at each start, and the guest finds a new card; give it one"
            yield OneHost(f"interface {number} without a <mac>", text)
        kind, source = interface.get("type", ""), interface.find("source")
        name = "" if source is None else source.get(_LINKS.get(kind, ""), "")
        if name:
            links[f"{kind} {name}"] = None
    for link in links:
        text = "every host must have one of that name, in the same network"
        yield OneHost(f"interface on {link}", text)


def _machine(root: Element) -> Iterator[OneHost]:
    cpu = root.find("cpu")
    if cpu is not None and cpu.get("mode") in ("host-passthrough", "maximum", "host-model"):
        text = "live migration only between hosts of the same CPU; the guest sees another CPU after"
        yield OneHost(f"CPU {cpu.get('mode')}", f"{text} a takeover")
    vcpu = root.find("vcpu")
    pins = [] if vcpu is None or not vcpu.get("cpuset") else [f"cpuset {vcpu.get('cpuset')}"]
    pins += ["CPU pinning"] if root.find("cputune/vcpupin") is not None else []
    pins += ["NUMA placement"] if root.find("numatune") is not None else []
    for pin in pins:
        yield OneHost(pin, "every host must have these CPUs and nodes, free for the VM")
    if root.find("memoryBacking/hugepages") is not None:
        text = "every host must keep as many free, of this size; without them the VM does not start"
        yield OneHost("huge pages", text)
    if root.find(_QEMU) is not None:
        text = "nobody checks what they name: see that it is on every host"
        yield OneHost("arguments of qemu:commandline", text)

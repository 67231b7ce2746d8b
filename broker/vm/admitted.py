# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a definition from the shared storage may be started on this host. Pure.

A definition decides which program libvirt starts as which user, and which files it opens. Only root
can write the definition file of a host. But a definition from the registry was written on another
host: it is signed, but an intruder on that host must not become root on all others by it. So a
definition that runs a program of its own, or opens a file that is no disk, is refused unless this
host's configuration allows it.

Rules of this file:

1. Name, UUID and memory are those of the record, and there is exactly one lease: this VM's.
2. The emulator is one that the host lists (`libvirt.emulators`), or libvirt chooses it.
3. Without `libvirt.passthrough`: nothing of another XML namespace outside <metadata>
   (qemu:commandline), no scripts and helper programs, no folder of the host, no text that QEMU or
   libvirt writes to a file of it, no security label.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from broker.daemon.foreign import clean, whole
from broker.vm.domain_facts import parse
from broker.vm.errors import BadDomain

SIZE_MAX = 1024 * 1024
#: libvirt's numbers have 64 bits.
_NUMBER_MAX = 2**64
_SHOWN_CHARS_MAX = 120
_MIB_OF = {"b": 2**-20, "bytes": 2**-20, "kb": 1e3 / 2**20, "mb": 1e6 / 2**20, "gb": 1e9 / 2**20}
_MIB_OF |= {"k": 2**-10, "kib": 2**-10, "m": 1.0, "mib": 1.0, "g": 1024.0, "gib": 1024.0}
_MIB_OF |= {"tb": 1e12 / 2**20, "t": 2.0**20, "tib": 2.0**20}
#: Elements that run a program of the host, or write to one of its files: tag -> what it is.
_REACHING_OUT = {
    "script": "a script",
    "downscript": "a script",
    "seclabel": "a security label",
    "log": "a log file",
    "bootloader": "a boot loader program",
    "backenddomain": "a backend domain",
    "filesystem": "a folder of the host",
}
_CHARACTER = ("serial", "parallel", "console", "channel", "redirdev", "smartcard", "rng")


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as a definition names it. `offset`: bytes into the volume at `path`."""

    lockspace: str
    key: str
    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What a record says of its VM. `leases`: one of them must be the VM's."""

    name: str
    uuid: str
    memory_mb: int
    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True)
class Allowed:
    """What this host's configuration allows."""

    emulators: Collection[str]
    passthrough: bool = False


def refusal(xml: str, wanted: Identity, allowed: Allowed) -> str:
    """Why this host does not start that definition, in a sentence; "": it does."""
    if len(xml) > SIZE_MAX:
        return f"its definition has {len(xml)} characters, {SIZE_MAX} may be"
    try:
        root = parse(xml)
    except BadDomain as error:
        return f"its definition {error}"
    return next(_problems(root, wanted, allowed), "")


def reaches_out(root: Element, emulators: Collection[str], passthrough: bool = False) -> str:
    """What in the definition a host does not start by itself, in a sentence; ""."""
    return next(_reaching_out(root, Allowed(emulators, passthrough)), "")


def memory_mb_of(root: Element) -> float | None:
    """The memory of a domain in MiB; None where it names none that can be read."""
    memory = root.find("memory")
    if memory is None:
        return None
    amount = whole((memory.text or "").strip(), _NUMBER_MAX)
    factor = _MIB_OF.get(memory.get("unit", "KiB").lower())
    return None if not amount or factor is None else amount * factor


def leases_of(root: Element) -> list[Lease | None]:
    """The leases that a domain names; None for one that cannot be read."""
    return [_lease(each) for each in root.iterfind("devices/lease")]


def _problems(root: Element, wanted: Identity, allowed: Allowed) -> Iterator[str]:
    for what, value in (("name", wanted.name), ("uuid", wanted.uuid)):
        found = (root.findtext(what) or "").strip()
        if (found.lower() if what == "uuid" else found) != value:
            yield f"its definition has the {what} {_shown(found)}, and its record {value}"
    memory = memory_mb_of(root)
    if memory is None or not memory <= wanted.memory_mb < memory + 1:
        said = "no memory" if memory is None else f"{memory:.0f} MiB"
        yield f"its definition has {said}, and its record {wanted.memory_mb} MiB"
    found_leases = leases_of(root)
    if len(found_leases) != 1 or found_leases[0] not in wanted.leases:
        one = wanted.leases[0]
        yield f"its definition does not have exactly one lease, {one.key} in {one.path} of this VM"
    yield from _reaching_out(root, allowed)


def _reaching_out(root: Element, allowed: Allowed) -> Iterator[str]:
    for emulator in root.iterfind("devices/emulator"):
        path = (emulator.text or "").strip()
        if path and path not in allowed.emulators:
            yield f"its emulator {_shown(path)} is not in libvirt.emulators of this host"
    if allowed.passthrough:
        return
    for element in _outside_metadata(root):
        what = _reach_of(element)
        if what:
            yield f"its definition has {what}, and libvirt.passthrough is off on this host"


def _outside_metadata(root: Element) -> Iterator[Element]:
    yield root
    for child in root:
        if child.tag != "metadata":
            yield from child.iter()


def _reach_of(element: Element) -> str:
    tag = element.tag
    if not isinstance(tag, str):  # a comment or a processing instruction
        return ""
    foreign = [name for name in (tag, *element.attrib) if name.startswith("{")]
    if foreign:
        return f"{_shown(foreign[0])} of another namespace"
    if tag in _REACHING_OUT:
        return f"{_REACHING_OUT[tag]} (<{tag}>)"
    if tag == "binary" and element.get("path"):
        return f"a helper program ({_shown(element.get('path', ''))})"
    if tag in _CHARACTER and element.get("type") in ("file", "pipe", "dev"):
        return f"a {tag} of type {element.get('type')}"
    if tag == "backend" and element.get("type") in ("file", "pipe", "dev"):
        return f"a backend of type {element.get('type')}"
    return ""


def _lease(element: Element) -> Lease | None:
    target = element.find("target")
    if target is None:
        return None
    offset = whole(target.get("offset", "0"), _NUMBER_MAX)
    if offset is None:
        return None
    return Lease(
        element.findtext("lockspace", ""),
        element.findtext("key", ""),
        target.get("path", ""),
        offset,
    )


def _shown(text: str) -> str:
    return clean(text, _SHOWN_CHARS_MAX) or "(none)"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the text of a domain out of two: the definition with the disks that ran, or with facts of
another text. Pure.

A definition is a person's file. What is taken into it is an element at a time, and all the rest
stays as it was written: its order, what this product does not know.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from broker.vm.domain_facts import (
    AT_LEAST,
    COUNTED,
    Differs,
    data_disks,
    parse,
    parse_disk,
    target_of,
)
from broker.vm.errors import BadDomain


def composed(xml: str, disks: Mapping[str, str]) -> str:
    """The definition with other disks. `disks`: a `<disk>` element by target, as `element_of`
    makes it: for a disk of the definition only its place and form are taken, else all of it.
    BadDomain."""
    if not disks:
        return xml
    root = parse(xml)
    devices = root.find("devices")
    if devices is None:
        raise BadDomain("has no <devices>")
    mine = {target_of(element): element for element in data_disks(root)}
    for target, text in sorted(disks.items()):
        other = parse_disk(text)
        if target not in mine:
            devices.append(other)
            continue
        _take_place(mine[target], other)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def with_facts_of(xml: str, other: str, codes: Collection[Differs]) -> str:
    """The definition with the facts of these codes from another text of the VM; BadDomain."""
    root, theirs = parse(xml), parse(other)
    for code, paths in _PLACES.items():
        if code in codes:
            for path in paths:
                _replace(root, theirs, path)
    if Differs.FIRMWARE in codes:
        kind, new = root.find("os/type"), theirs.find("os/type")
        if kind is not None and new is not None and new.get("machine"):
            kind.set("machine", new.get("machine", ""))
    if Differs.DISKS in codes:
        disks = {target_of(disk) for disk in data_disks(theirs)}
        devices = root.find("devices")
        for gone in [disk for disk in data_disks(root) if target_of(disk) not in disks]:
            assert devices is not None
            devices.remove(gone)
        text = ElementTree.tostring(root, encoding="unicode")
        root = parse(composed(text, {target: element_of(theirs, target) for target in disks}))
    return ElementTree.tostring(root, encoding="unicode").rstrip("\n") + "\n"


#: The elements of each code; devices of one kind are replaced together.
_PLACES: Mapping[Differs, tuple[str, ...]] = {
    Differs.MEMORY: ("memory", "currentMemory", "maxMemory"),
    Differs.VCPUS: ("vcpu", "vcpus", "cpu/topology"),
    Differs.FIRMWARE: ("os/loader", "os/nvram", "os/kernel", "os/initrd", "os/cmdline"),
    Differs.TPM: ("devices/tpm",),
    Differs.DEVICES: tuple(
        f"devices/{tag}"
        for tag in (
            "disk[@device='cdrom']",
            "disk[@device='floppy']",
            "interface",
            "hostdev",
            "filesystem",
            *COUNTED,
            *AT_LEAST,
        )
    ),
}


def _replace(root: Element, theirs: Element, path: str) -> None:
    """Replace all elements of a path by the other text's, at the place of the first of them."""
    above, _, tag = path.rpartition("/")
    parent = root.find(above) if above else root
    if parent is None:
        return
    old, new = parent.findall(tag), theirs.findall(path)
    at = list(parent).index(old[0]) if old else len(parent)
    for element in old:
        parent.remove(element)
    for number, element in enumerate(new):
        copy = _alone(element)
        for alias in copy.findall("alias"):
            copy.remove(alias)
        for target in copy.findall("target") if copy.tag == "interface" else ():
            copy.remove(target)
        parent.insert(at + number, copy)


def element_of(root: Element, target: str) -> str:
    """The `<disk>` of the running VM in a form for a definition: without what belongs to this run.
    Its layers below the first are left out: each image names the one below it."""
    disk = next(each for each in data_disks(root) if target_of(each) == target)
    copy = _alone(disk)
    for tag in ("backingStore", "mirror", "alias"):
        for child in copy.findall(tag):
            copy.remove(child)
    source = copy.find("source")
    if source is not None:
        _without_run(source)
    for each in copy.iter():
        each.tail = None
        each.text = each.text if (each.text or "").strip() else None
    return ElementTree.tostring(copy, encoding="unicode")


def _alone(element: Element) -> Element:
    """A copy without the text that stands behind it: libvirt takes a definition that has some."""
    copy = deepcopy(element)
    copy.tail = None
    return copy


def _take_place(mine: Element, other: Element) -> None:
    """Take the place and the form of the other disk; all the rest stays."""
    mine.set("type", other.get("type", "file"))
    for tag in ("backingStore", "mirror"):
        for child in mine.findall(tag):
            mine.remove(child)
    old, new = mine.find("source"), other.find("source")
    if new is not None:
        at = len(mine) if old is None else list(mine).index(old)
        if old is not None:
            new.tail = old.tail
            mine.remove(old)
        mine.insert(at, new)
    driver, theirs = mine.find("driver"), other.find("driver")
    form = "raw" if theirs is None else theirs.get("type", "raw")
    if driver is None:
        driver = ElementTree.Element("driver", {"name": "qemu"})
        mine.insert(0, driver)
    driver.set("type", form)


def _without_run(source: Element) -> None:
    """Remove what belongs to one run of the VM."""
    source.attrib.pop("index", None)
    for child in source.findall("seclabel"):
        source.remove(child)

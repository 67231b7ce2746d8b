# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds what a VM's definition has in common with the other VMs, and must not have: disks that both
write to, an nvram file, MAC addresses.

Each VM has a lease of its own, so no lease keeps two VMs from writing to one disk. QEMU locks image
files, but not block devices, and not where a file system has no locks. A copied definition in which
the disk was left as it was is the usual way there, and it costs the data of both VMs. The calls ask
the file system, so they may block.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from broker.vm.domain_facts import Layer, data_disks, layers, parse, target_of
from broker.vm.errors import BadDomain

_BY_PATH = ("file", "block", "dir")


@dataclass(frozen=True, slots=True)
class _Image:
    """An image of a disk. `name`: of its disk in the guest; `written`: the guest's writes go there;
    `both_may`: its guest expects that another VM writes to it too (<shareable/>)."""

    name: str
    place: str
    written: bool
    both_may: bool


def written_by_both(xml: str, others: Iterable[tuple[str, str]]) -> list[str]:
    """Images of the VM that another one uses too while one of the two writes to them, a sentence
    each. `others`: the name and the definition of each other VM; one that cannot be read has
    nothing in common. BadDomain where `xml` cannot be read."""
    mine = list(_images(parse(xml)))
    return [
        f"{one.name} is {one.place}, which {name} uses too (its {its.name}): two VMs that write to"
        " one disk destroy what is on it"
        for name, root in _readable(others)
        for its in _images(root)
        for one in mine
        if one.place == its.place
        and (one.written or its.written)
        and not (one.both_may and its.both_may)
    ]


def same_macs(xml: str, others: Iterable[tuple[str, str]]) -> list[str]:
    """MAC addresses of the VM that another one has too, a sentence each; as `written_by_both`."""
    mine = _macs(parse(xml))
    return [
        f"{name} has the MAC {mac} too: while both run, the network mixes them up"
        for name, root in _readable(others)
        for mac in sorted(mine & _macs(root))
    ]


def _readable(others: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Element]]:
    for name, xml in others:
        try:
            yield name, parse(xml)
        except BadDomain:
            continue


def _images(root: Element) -> Iterator[_Image]:
    for disk in data_disks(root):
        reads_only = disk.find("readonly") is not None
        both_may = disk.find("shareable") is not None
        for depth, layer in enumerate(layers(disk)):
            if layer.place:
                written = depth == 0 and not reads_only
                yield _Image(f"disk {target_of(disk)}", _place(layer), written, both_may)
    path = (root.findtext("os/nvram") or "").strip()
    source = root.find("os/nvram/source")
    if source is not None:
        path = path or source.get("file", "")
    if path:
        yield _Image("firmware nvram", _place(Layer("file", path, "")), True, False)


def _place(layer: Layer) -> str:
    """The place, whatever link leads there."""
    return os.path.realpath(layer.place) if layer.kind in _BY_PATH else layer.place


def _macs(root: Element) -> set[str]:
    found = (mac.get("address", "").lower() for mac in root.iterfind("devices/interface/mac"))
    return {mac for mac in found if mac}

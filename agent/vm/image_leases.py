# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds whose image it is: the leases of the VMs that write to an image on a volume of Gluster.

The path of an image in its volume is what lies below the mount point in a VM's definition, or what
follows the volume's name there. Blocks as long as the storage does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from agent.fence.storage_program import StorageFenceError
from agent.leases.vm_records import VmRecords
from agent.vm.definition import load_definition
from agent.vm.errors import DefinitionError
from broker.config.sections import Config
from broker.lockspace.open_leases import OpenLeases
from broker.registry.record import unit_of
from broker.vm.domain_facts import Layer, data_disks, layers, parse
from broker.vm.errors import BadDomain
from broker.whiteboard.identity import VolumeKind, expected
from broker.whiteboard.mounts import mount_of
from broker.whiteboard.volume import VolumeError
from scoring.vm_facts import ENGINE


@dataclass(frozen=True, slots=True)
class _Lease:
    """The lease of a VM, and its definition. `vm`: its name."""

    vm: str
    resource: str
    offset: int
    xml: str


class LeasesOfImages:
    """ImageLeases by this host's definitions and the lease volume, which is kept open. For one
    thread."""

    def __init__(self, config: Config, records: VmRecords) -> None:
        self._config, self._records = config, records
        wanted = expected(config, VolumeKind.LEASES)
        self._open = OpenLeases(config.storage.leases, wanted)

    def of(self, host: int, image: str) -> tuple[str, ...]:
        """See ImageLeases.of."""
        storage = self._config.storage
        try:
            having = [lease for lease in self._leases() if _has(lease.xml, image)]
            for lease in having:
                found = self._open.owner_of(storage.lockspace, lease.resource, lease.offset)
                if not found.held:
                    raise StorageFenceError(f"nobody has the lease of {lease.vm}")
                if found.owner != host:
                    raise StorageFenceError(f"host {found.owner} has the lease of {lease.vm}")
        except (VolumeError, DefinitionError, BadDomain) as error:
            raise StorageFenceError(f"whose image it is, is not known: {error}") from None
        if not having:
            raise StorageFenceError("no VM's definition here has that image")
        path = storage.leases.replace(":", "\\:")
        return tuple(
            f"{storage.lockspace}:{lease.resource}:{path}:{lease.offset}" for lease in having
        )

    def _leases(self) -> Iterator[_Lease]:
        engine = load_definition(self._config)
        name, resource = self._config.vm.name, self._config.storage.resource
        yield _Lease(name, resource, engine.lease_offset, engine.xml)
        known = self._records.now()
        vms = {number: record for number, record in known.vms.items() if number != ENGINE}
        align = self._open.layout().align if vms else 0
        for number, record in vms.items():
            if number not in known.definitions:
                raise StorageFenceError(f"the definition of {record.name} is not known here")
            offset = unit_of(number) * align
            yield _Lease(record.name, record.resource, offset, known.definitions[number])


def _has(xml: str, image: str) -> bool:
    """Whether a disk of that definition, or a layer below one, is that image."""
    chains = (layers(disk) for disk in data_disks(parse(xml)))
    return any(in_volume(layer) == image for chain in chains for layer in chain)


def in_volume(layer: Layer) -> str:
    """The path of an image in its volume of Gluster; "" where it is on none."""
    if layer.kind == "network":
        # The first `name` is the image's, those behind it are the servers'.
        said = dict(word.partition("=")[::2] for word in reversed(layer.place.split(" ")))
        path = said.get("name", "").partition("/")[2]
        return f"/{path}" if said.get("protocol") == "gluster" and path else ""
    mount = mount_of(os.path.realpath(layer.place)) if layer.kind == "file" else None
    if mount is None or mount.kind != "fuse.glusterfs":
        return ""
    return "/" + os.path.relpath(os.path.realpath(layer.place), mount.place)

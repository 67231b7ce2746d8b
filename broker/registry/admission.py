# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether this host starts a VM of the registry by its definition: broker/vm/admitted.py, with what
the record and this host's configuration say. Pure."""

from __future__ import annotations

from broker.config.sections import Config
from broker.registry.record import VmRecord
from broker.vm.admitted import Allowed, Identity, Lease, refusal
from broker.whiteboard.lease_sectors import ALIGN_OF_SECTOR


def refused(xml: str, record: VmRecord, config: Config) -> str:
    """Why this host does not start that definition, in a sentence; "": it does. Whether the lease
    is that of the volume's own sector size, sanlock says at the start."""
    storage = config.storage
    key = storage.resource if record.number == 1 else record.resource
    leases = tuple(
        Lease(storage.lockspace, key, storage.leases, record.unit * align)
        for align in ALIGN_OF_SECTOR.values()
    )
    wanted = Identity(record.name, record.uuid, record.memory_mb, leases)
    return refusal(xml, wanted, Allowed(config.libvirt.emulators, config.libvirt.passthrough))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which leases of the lease volume are lost: overwritten, or another one's.

The VM that has such a lease runs on, and nobody notices: sanlock looks at a lease when it is
acquired. But after its host's death no host could start it. So each host looks at all of them once
a minute, and says so while there is time to do something about it.

Rules:

1. A lease counts as lost once two looks have found the same: one look may meet a lease that is just
   being written anew.
2. A lease that lies elsewhere on the volume is not lost: the definition of the engine may name any
   place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from broker.config.sections import StorageSection
from broker.lockspace.delta_leases import FENCE_RESOURCE, FENCE_UNIT
from broker.lockspace.lease_records import LeaseRecord
from broker.registry.record import (
    REGISTRY_RESOURCE,
    REGISTRY_UNIT,
    VmRecord,
    unit_of,
    units_for,
)
from broker.wire.limits import VMS_MAX
from scoring.vm_facts import ENGINE

#: From one look to the next; and while a lease is lost.
LEASES_EVERY_S, AGAIN_S = 60.0, 4.0


def wanted_leases(storage: StorageSection, vms: Mapping[int, VmRecord]) -> dict[str, int]:
    """The leases that must be there: name -> alignment unit."""
    wanted = {storage.resource: unit_of(ENGINE), FENCE_RESOURCE: FENCE_UNIT}
    if storage.registry:
        wanted[REGISTRY_RESOURCE] = REGISTRY_UNIT
    return wanted | {one.resource: one.unit for number, one in vms.items() if number != ENGINE}


def lost_in(
    wanted: Mapping[str, int], lockspace: str, read: Callable[[int], LeaseRecord | None]
) -> dict[str, str]:
    """The leases that are not on the volume: name -> what is in its place. `read`: the
    record in an alignment unit; None where there is none, or no such unit."""
    found = {name: why_lost(read(unit), lockspace, name) for name, unit in wanted.items()}
    lost = {name: why for name, why in found.items() if why}
    if lost:
        everywhere = [read(unit) for unit in range(1, units_for(VMS_MAX))]
        there = {one.resource for one in everywhere if one and one.lockspace == lockspace}
        lost = {name: why for name, why in lost.items() if name not in there}
    return lost


def why_lost(found: LeaseRecord | None, lockspace: str, resource: str) -> str:
    """Why that record is not the lease, in words; "": it is."""
    if found is None:
        return "nothing that can be read"
    if found.lockspace != lockspace:
        return f"a lease of lockspace {found.lockspace}"
    return "" if found.resource == resource else f"lease {found.resource}"


class LostLeases:
    """The lost leases in words. `found`: name -> what stands in its place (Lockspace port)."""

    def __init__(self, storage: StorageSection, found: Mapping[str, str]) -> None:
        self._storage, self._found = storage, found

    def of_vms(self, vms: Mapping[int, VmRecord]) -> dict[int, str]:
        """By the number of a VM beside the engine: why no host can start it."""
        if not self._found:
            return {}
        return {
            number: f"{self._is_lost(one.resource)}; once it is down: ha-agent vm rebuild"
            for number, one in vms.items()
            if number != ENGINE and one.resource in self._found
        }

    @property
    def of_engine(self) -> str:
        """Why no host can start the engine; "": its lease is not lost."""
        resource = self._storage.resource
        if resource not in self._found:
            return ""
        return f"{self._is_lost(resource)}; ha-agent reinitialize-lockspace makes them all anew"

    @property
    def others(self) -> tuple[str, ...]:
        """The other lost leases, each in a sentence."""
        sentences = {
            FENCE_RESOURCE: (
                "no host can be switched off or given up; ha-agent reinitialize-lockspace makes all"
                " leases anew"
            ),
            REGISTRY_RESOURCE: (
                "the registry cannot be changed; ha-agent storage grow makes it anew"
            ),
        }
        return tuple(
            f"the lease {name}: {self._is_lost(name)}: {what}"
            for name, what in sentences.items()
            if name in self._found
        )

    def _is_lost(self, name: str) -> str:
        return f"{self._storage.leases} holds {self._found[name]} in place of its lease {name}"

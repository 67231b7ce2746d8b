# SPDX-License-Identifier: LGPL-2.1-or-later
"""One VM as it is seen in one beat: here, and on another host.

An observation says everything of a host in one record, as one slot does. What of it is about a VM
is picked out here and nowhere else: the rest of this room asks `VmTurn.here` and `VmTurn.at`, and
does not know where a VM's facts stand.
"""

from __future__ import annotations

from scoring.observation import LocalHost, PeerReport
from scoring.vm_facts import ENGINE, EngineStatus, Health, PeerVm, VmHere, VmStatus

#: A host that speaks less does not know of VMs beside the engine.
SPEAKS_SEVERAL = 2
#: A VM that nobody says anything of: unknown is not down.
NOT_KNOWN = EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN, "unknown", "nothing is known of it")
NOTHING_SAID = PeerVm(NOT_KNOWN)
#: A host lists what is up, acting or barred there, or ran there last; nothing else.
NOT_LISTED = PeerVm(EngineStatus(VmStatus.DOWN, Health.BAD))


def here(local: LocalHost, number: int) -> VmHere:
    """What this host's samples say of a VM."""
    if number != ENGINE:
        found = (vm for vm in local.vms if vm.number == number)
        return next(found, VmHere(NOT_KNOWN, local.engine_taken_s, number=number))
    return VmHere(
        local.engine,
        local.engine_taken_s,
        local.lease_held,
        local.migrating_s,
        local.last_ran,
        local.config_up_to_date,
        local.unfit,
        local.domain,
        local.healthy_before,
        local.uplink_up,
        local.outside,
    )


def at(peer: PeerReport, number: int) -> PeerVm:
    """What another host's slot says of a VM: down, where the slot lists VMs and not this one."""
    if number != ENGINE:
        unlisted = NOT_LISTED if peer.speaks >= SPEAKS_SEVERAL else NOTHING_SAID
        found, outside = peer.vms.get(number, unlisted), peer.reached.get(number)
        return found if outside is None else found._replace(outside=outside)
    return PeerVm(
        peer.engine,
        peer.state,
        peer.last_ran,
        peer.moving_until_s,
        peer.memory_short,
        peer.uplink_up,
        peer.outside,
    )

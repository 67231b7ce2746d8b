# SPDX-License-Identifier: LGPL-2.1-or-later
"""One VM as it is seen in one beat: here, and on another host.

An observation has a record for each VM that a host speaks of. What a host leaves out says something
too: a host that knows of several VMs lists those that are not down on it, so one that it does not
list is down there; of one that this host has not sampled nothing is known. Both answers are given
here and nowhere else: the rest of this room asks `VmTurn.here` and `VmTurn.at`.
"""

from __future__ import annotations

from scoring.observation import LocalHost, PeerReport
from scoring.vm_facts import EngineStatus, Health, PeerVm, VmHere, VmStatus

#: A host that speaks less does not know of VMs beside the engine.
SPEAKS_SEVERAL = 2
#: A VM that nobody says anything of: unknown is not down.
NOT_KNOWN = EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN, "unknown", "nothing is known of it")
NOTHING_SAID = PeerVm(NOT_KNOWN)
#: A host lists what is up, acting or barred there, or ran there last; nothing else.
NOT_LISTED = PeerVm(EngineStatus(VmStatus.DOWN, Health.BAD))


def here(local: LocalHost, number: int) -> VmHere:
    """What this host's samples say of a VM."""
    found = (vm for vm in local.vms if vm.number == number)
    return next(found, VmHere(NOT_KNOWN, local.engine.taken_s, number=number))


def at(peer: PeerReport, number: int) -> PeerVm:
    """What another host's slot says of a VM: down, where the slot lists VMs and not this one."""
    unlisted = NOT_LISTED if peer.speaks >= SPEAKS_SEVERAL else NOTHING_SAID
    found, outside = peer.vms.get(number, unlisted), peer.reached.get(number)
    return found if outside is None else found._replace(outside=outside)

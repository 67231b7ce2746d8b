# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report about one VM in one beat: from this host, and from another host.

An observation contains only the VMs that a host lists, and a missing entry means one of two things.
A host that knows of several VMs lists those that are not down on it: a VM that it does not list is
down there. If this host has no sample of a VM, or the other host is of an earlier version, nothing
is known: that must not count as down. The difference is made here alone; the other files use
`VmTurn.here` and `VmTurn.at`.
"""

from __future__ import annotations

from scoring.observation import LocalHost, PeerReport
from scoring.vm_facts import EngineStatus, Health, PeerVm, VmHere, VmStatus

#: The least `PeerReport.speaks` of a host that knows of VMs beside the engine.
SPEAKS_SEVERAL = 2
#: The report about a VM of which nothing is known: unknown is not down.
NOT_KNOWN = EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN, "unknown", "nothing is known of it")
NOTHING_SAID = PeerVm(NOT_KNOWN)
#: The report about a VM that a host does not list: a host lists each VM that is up, acted on or
#: barred there, or that ran there last.
NOT_LISTED = PeerVm(EngineStatus(VmStatus.DOWN, Health.BAD))


def here(local: LocalHost, number: int) -> VmHere:
    """A VM by this host's samples; unknown where there is none."""
    found = (vm for vm in local.vms if vm.number == number)
    return next(found, VmHere(NOT_KNOWN, local.engine.taken_s, number=number))


def at(peer: PeerReport, number: int) -> PeerVm:
    """A VM by another host's slot: down if the slot lists VMs but not this one."""
    unlisted = NOT_LISTED if peer.speaks >= SPEAKS_SEVERAL else NOTHING_SAID
    found, outside = peer.vms.get(number, unlisted), peer.reached.get(number)
    return found if outside is None else found._replace(outside=outside)

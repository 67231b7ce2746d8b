# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ran last, and the differences, for decisions, the status and the slot. Pure."""

from __future__ import annotations

from broker.this_host.disks_record import DisksRecord
from broker.vm import domain_facts
from broker.vm.in_use import InUse
from broker.whiteboard.what_ran import OnDisk
from broker.wire.status import DifferenceStatus, WhatRanStatus
from scoring.vm_facts import Obstacle, Unfit

#: At most so many differences are shown.
SHOWN_MAX = 32


def unfit(disks: DisksRecord) -> tuple[Unfit, ...]:
    """The obstacle, where a start here would not boot what ran last."""
    return (Unfit(Obstacle.HELD_BACK, disks.held_back),) if disks.held_back else ()


def differences(in_use: InUse | None) -> tuple[DifferenceStatus, ...]:
    """Each differing fact; none where that is unknown."""
    if in_use is None:
        return ()
    found = [("running", each) for each in in_use.of_running]
    found += [("libvirt", each) for each in in_use.of_libvirt]
    return tuple(
        DifferenceStatus(each.code.value, where, each.what, each.recorded, each.found, str(each))
        for where, each in found[:SHOWN_MAX]
    )


def codes(in_use: InUse | None) -> tuple[str, ...]:
    """The codes of the differences here, each once."""
    return tuple(sorted({each.code for each in differences(in_use)}))


def record(on_disk: OnDisk | None) -> WhatRanStatus | None:
    """The record for people; None where there is none."""
    found = None if on_disk is None else on_disk.record
    if found is None:
        return None
    disks = {}
    for target, text in found.disks.items():
        chain = domain_facts.layers(domain_facts.parse_disk(text))
        disks[target] = str(chain[0]) if chain else "empty"
    return WhatRanStatus(
        found.generation,
        found.by,
        found.by_name,
        found.at,
        disks,
        found.held,
        found.only,
        found.decided,
    )


def problem(disks: DisksRecord) -> str:
    """Why it is unknown what ran last, or why what runs here is not recorded."""
    return disks.problem or ("" if disks.on_disk is None else disks.on_disk.problem)


def one_host(in_use: InUse | None) -> tuple[str, ...]:
    """The state of the VM that exists on this host alone and costs data at a takeover."""
    found = () if in_use is None else in_use.one_host
    return tuple(str(each) for each in found if each.costs_data)[:SHOWN_MAX]

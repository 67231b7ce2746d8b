# SPDX-License-Identifier: LGPL-2.1-or-later
"""The part of the status's text about several VMs: their first line, their troubles, and their
table. With one VM alone none of it is shown. Its imports are cheap."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from agent.status.sentences import duration, if_it_dies

if TYPE_CHECKING:
    from broker.wire.status import HostStatus, Status
    from broker.wire.vms import VmEntry

HEAD = ("", "VM", "PRIO", "STATE", "ON", "SINCE", "WHY")
HOSTS_HEAD = ("", "ID", "HOST", "VMS", "FREE", "SCORE", "AGE", "WHY")
#: How many VMs that are not well are named in the first line.
NAMED_MAX = 3
_MIB_IN_GIB = 1024


#: Why a host is no candidate for the VMs beside the engine.
STARTS_NO_OTHER = (
    "starts no VM but the engine: an earlier version runs there, or storage.registry is not set"
    " there (ha-agent storage grow), or its daemons were not restarted since"
)


def has_several(status: Status) -> bool:
    """Whether there is a VM beside the engine."""
    return len(status.vms) > 1


def engine_name(status: Status) -> str:
    """What a sentence calls VM 1."""
    return "the engine" if has_several(status) else "the VM"


def of_engine(status: Status, line: str) -> str:
    """A line about VM 1, which calls it "the VM", with its name where there are several."""
    if not has_several(status):
        return line
    return re.sub(r"\b([Tt]he) VM\b", r"\1 engine", line)


def first_line(status: Status) -> str:
    """How many of the VMs that are to run are up and healthy, and those that are not."""
    wanted = [vm for vm in status.vms if vm.want == "up" or vm.up]
    up = [vm for vm in wanted if vm.up]
    well = [vm for vm in up if vm.healthy]
    if len(wanted) == len(well) == 1:
        head = f"{wanted[0].name}, the only VM that is to run, is up and healthy"
    elif len(well) == len(wanted):
        head = f"all {len(wanted)} VMs are up and healthy"
    elif len(up) == len(wanted) and not well:
        head = f"all {len(wanted)} VMs are up, none is healthy"
    else:
        head = f"{len(up)} of {len(wanted)} VMs are up, {len(well)} healthy"
    if len(well) == len(wanted) and status.engine.reached is False:
        # Law 11: what its users cannot reach is not up.
        head = f"all {len(wanted)} VMs are up, but the engine is NOT REACHED from outside"
    odd = [_odd(vm) for vm in wanted if not (vm.up and vm.healthy)]
    if len(odd) > NAMED_MAX:
        odd = [*odd[:NAMED_MAX], f"and {len(odd) - NAMED_MAX} more"]
    return f"{status.cluster}: {'; '.join([head, *odd])}"


def _odd(vm: VmEntry) -> str:
    """A VM that is not up and healthy, in a few words."""
    what, since = _what(vm), ""
    if vm.for_s is not None:
        since = f" for {'at least ' if vm.at_least else ''}{duration(vm.for_s)}"
    where = f" on {vm.hostname}" if vm.hostname is not None else ""
    return f"{vm.name} {what}{where}{since}"


def _what(vm: VmEntry) -> str:
    if vm.up:
        words = {"booting": "boots", "moving": "is being moved", "stopping": "is being stopped"}
        unwell = "is not healthy" if vm.healthy is False else "is up, its health is not known,"
        return words.get(vm.state, unwell)
    if vm.up is None:
        return "is NOT KNOWN to run or not"
    return "is being started" if vm.state == "starting" else "is DOWN"


def is_well(status: Status) -> bool:
    """Whether every VM that is to run is up and healthy, and the engine is reached."""
    if status.engine.reached is False:
        return False
    return all(vm.up and vm.healthy for vm in status.vms if vm.want == "up")


def troubles(status: Status) -> Iterator[str]:
    """What is wrong with VMs beside the engine, and which would have no place, a line each."""
    for vm in status.vms:
        if vm.number == 1:
            continue
        why = f": {vm.reason}" if vm.reason else ""
        if vm.up is None:
            yield f"whether {vm.name} is up is not known{why} (ha-agent why {vm.name})"
        elif vm.state in ("waiting", "starting") and status.global_maintenance is False:
            yield f"{vm.name} is down (ha-agent why {vm.name})"
        elif vm.up and vm.healthy is False and vm.state == "up":
            yield f"{vm.name} is not healthy{why} (ha-agent why {vm.name})"
        if vm.differs:
            yield f"{vm.name} {differs(vm)}"
        if vm.refused:
            yield f"{vm.name} cannot be started on this host: {vm.refused}"
    for host in status.hosts.values():
        if host.engine_only:
            yield f"ENGINE ONLY: {host.hostname} {STARTS_NO_OTHER}"
    yield from (f"{each.text} (ha-agent why {each.name})" for each in status.short)
    yield from (each.text for each in status.n_plus_1)


def differs(vm: VmEntry) -> str:
    """How a running VM differs from its definition, and what that means."""
    what = "; ".join(vm.differences) or f"{', '.join(vm.differs)} (ha-agent why {vm.name} there)"
    then = "Its next start takes the definition"
    if "disks-differ" in vm.differs:
        then = f"As long as its disks differ no host starts it, even when {vm.hostname} has died"
    return (
        f"on {vm.hostname} is not as its definition says: {what}. {then}; to keep what runs:"
        f" ha-agent vm define {vm.name} --from-running there"
    )


def next_lines(status: Status) -> Iterator[str]:
    """What is about to happen to VMs beside the engine."""
    bounds = {int(number): bound for number, bound in status.vm_bounds.items()}
    for vm in status.vms:
        if vm.number != 1 and vm.reason and vm.state in ("starting", "waiting", "moving"):
            yield f"{vm.name}: {vm.reason}"
        bound = bounds.get(vm.number)
        if vm.number != 1 and vm.up and bound is not None:
            yield if_it_dies(bound, vm.hostname or "its host", vm.name)


def row(vm: VmEntry) -> tuple[str, ...]:
    """A VM's line."""
    state = str(vm.state)
    if state == "up":
        health = {True: "good", False: "bad", None: "?"}
        state = f"up/{health[vm.healthy]}"
    since = "?" if vm.for_s is None else age(vm.for_s) + ("+" if vm.at_least else "")
    return ("", vm.name, str(vm.priority), state, vm.hostname or "-", since, vm.reason)


def host_row(host: HostStatus, why: str) -> tuple[str, ...]:
    """A host's line; `why`: what its score lacks, in words."""
    return (
        "*" if host.local else "",
        str(host.host_id),
        host.hostname,
        "?" if host.vms is None else str(host.vms),
        "?" if host.free_mb is None else size(host.free_mb),
        str(host.score),
        "?" if host.age_s is None else f"{host.age_s:.0f} s",
        why,
    )


def age(seconds: float) -> str:
    """A duration in its largest unit."""
    return " ".join(duration(seconds).split()[:2])


def size(mb: float) -> str:
    """An amount of memory."""
    return f"{mb:.0f} MiB" if mb < _MIB_IN_GIB else f"{mb // _MIB_IN_GIB:.0f} GiB"

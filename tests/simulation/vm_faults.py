# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clusters of several VMs by chance, and what goes wrong with one VM, with the registry or with a
host's memory; beside the faults of hosts (faults.py)."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

from scoring.vm_facts import Pause, VmStatus, Want
from tests.simulation.faults import (
    RETRY_BOUND_S,
    SICK_BOUND_S,
    STAND_BACK_BOUND_S,
    Fault,
)
from tests.simulation.host import Host
from tests.simulation.lockspace import Refused
from tests.simulation.world import World

#: Memory of VMs and of hosts, MiB.
VM_SIZES_MB = (1024, 2048, 4096, 8192, 16_384)
HOST_SIZES_MB = (24_576, 49_152, 98_304)


def populate(world: World, chance: random.Random, count: int) -> None:
    """Protect so many VMs, the engine among them, with wishes that do not contradict each other."""
    for number in range(2, count + 1):
        fields: dict[str, Any] = {
            "memory_mb": chance.choice(VM_SIZES_MB),
            "priority": chance.choice([10, 50, 50, 80, 90]),
        }
        earlier = list(range(2, number))
        rest = list(earlier)
        if earlier and chance.random() < 0.35:
            fields["after"] = tuple(chance.sample(earlier, chance.randint(1, min(2, len(earlier)))))
        if rest and chance.random() < 0.15:
            fields["apart"] = (chance.choice(rest),)
        elif rest and chance.random() < 0.1:
            fields["together"] = (chance.choice(rest),)
        elif chance.random() < 0.15 and len(world.hosts) > 2:
            fields["only"] = tuple(sorted(chance.sample(sorted(world.hosts), 2)))
        if chance.random() < 0.3:
            fields["prefer"] = (chance.choice(sorted(world.hosts)),)
            fields["failback"] = chance.random() < 0.4
        if chance.random() < 0.05:
            fields["overcommit"] = True
        if chance.random() < 0.07:
            fields["want"] = Want.DOWN
        world.vms.change(f"vm{number}", **fields)


def _nothing() -> None:
    """There is nothing to mend."""


def _one(world: World, chance: random.Random) -> tuple[int, Host | None]:
    vm = chance.choice(world.vms.numbers)
    return vm, world.owner(vm)


def _qemu(world: World, _: Host, chance: random.Random) -> Callable[[], None]:
    vm, owner = _one(world, chance)
    if owner is not None:
        owner.end_qemu("crashed", VmStatus.DOWN_UNEXPECTED, "its process died", vm=vm)
    return _nothing


def _powers_off(world: World, _: Host, chance: random.Random) -> Callable[[], None]:
    vm, owner = _one(world, chance)
    if owner is not None:
        owner.end_qemu("the guest powered itself off", VmStatus.DOWN, "shut down", vm=vm)
    return _nothing


def _hangs(world: World, _: Host, chance: random.Random) -> Callable[[], None]:
    vm, owner = _one(world, chance)
    if owner is not None:
        owner.qemus[vm].is_hung = True
        world.tell(owner.name, f"the guest of {world.vms.name_of(vm)} hangs")
    return _nothing


def _panics(world: World, _: Host, chance: random.Random) -> Callable[[], None]:
    vm, owner = _one(world, chance)
    if owner is not None and not owner.qemus[vm].leaving:
        world.tell(owner.name, f"the guest of {world.vms.name_of(vm)} panics, its process stays")
        owner.leave_qemu(crashed=True, vm=vm)
    return _nothing


def _paused(world: World, _: Host, chance: random.Random) -> Callable[[], None]:
    """Somebody pauses it, and resumes it unless it has run elsewhere since."""
    vm, owner = _one(world, chance)
    if owner is None or owner.qemus[vm].leaving:
        return _nothing
    qemu = owner.qemus[vm]
    qemu.pause = chance.choice([Pause.USER, Pause.SNAPSHOT, Pause.IO_ERROR])
    world.tell(owner.name, f"{world.vms.name_of(vm)} is paused: {qemu.pause}")
    owner.pause_qemu(vm)

    def resume() -> None:
        is_newest = world.leases.resources[f"vm-{vm}"].last_owner == owner.host_id
        if owner.qemus.get(vm) is qemu and not qemu.running and is_newest:
            with contextlib.suppress(Refused):
                owner.resume_qemu(max(qemu.healthy_from_s, world.timeline.now_s), vm)

    return resume


def _start_fails(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """One VM cannot be started on a host, or a start of it there never comes back; and it is down
    now, so that somebody tries."""
    vm, owner = _one(world, chance)
    key, vms = (host.number, vm), world.vms
    hangs = chance.random() < 0.5
    if hangs:
        vms.start_hangs.add(key)
    else:
        vms.start_fails[key] = "internal error: its disk is not here"
    if owner is not None:
        owner.end_qemu("crashed", VmStatus.DOWN_UNEXPECTED, "its process died", vm=vm)

    def back() -> None:
        vms.start_hangs.discard(key)
        vms.start_fails.pop(key, None)

    return back


def _wanted_down(world: World, _: Host, chance: random.Random) -> Callable[[], None]:
    """An administrator wants it down for a while."""
    vm, _owner = _one(world, chance)
    name = world.vms.name_of(vm)
    before = world.vms.records[vm].want
    world.vms.change(name, want=Want.DOWN if before is Want.UP else Want.UP)
    world.tell("operator", f"{name} is wanted {world.vms.records[vm].want}")

    def back() -> None:
        if vm in world.vms.numbers:
            world.vms.change(name, want=before)

    return back


def _set_otherwise(world: World, _: Host, chance: random.Random) -> Callable[[], None]:
    """An administrator changes what is wanted of a VM."""
    vm, _owner = _one(world, chance)
    name = world.vms.name_of(vm)
    fields: dict[str, Any] = chance.choice(
        [
            {"priority": chance.choice([0, 50, 100])},
            {"prefer": (chance.choice(sorted(world.hosts)),), "failback": True},
            {"prefer": (), "failback": False},
            {"after": ()},
            {"overcommit": True},
        ]
    )
    world.tell("operator", f"{name} is set: {fields}")
    world.vms.change(name, **fields)
    return _nothing


def _added(world: World, _: Host, chance: random.Random) -> Callable[[], None]:
    """A VM is added while all runs, or two at once."""
    for _again in range(chance.choice([1, 2])):
        name = f"vm{1 + max(world.vms.records)}"
        world.tell("operator", f"{name} is added")
        world.vms.change(name, memory_mb=chance.choice(VM_SIZES_MB[:3]))
    return _nothing


def _registry(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """A host cannot read some records, or reads nothing new of the registry."""
    if chance.random() < 0.5:
        host.damaged_vms = frozenset(chance.sample(world.vms.numbers, 1))
        world.tell(host.name, f"records {sorted(host.damaged_vms)} are damaged there")
    else:
        host.registry = "old"
        world.tell(host.name, "it reads an old registry")
    world.vms.changed_s = world.timeline.now_s

    def back() -> None:
        host.registry, host.damaged_vms = "", frozenset()
        world.vms.changed_s = world.timeline.now_s

    return back


def _memory(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """Something else takes a host's memory."""
    assert host.total_mb is not None
    host.memory_mb = chance.choice([512.0, 4096.0, host.total_mb / 2])
    host.memory_changed_s = world.timeline.now_s
    world.tell(host.name, f"{host.memory_mb:g} MiB are available")

    def back() -> None:
        assert host.total_mb is not None
        host.memory_mb = host.total_mb
        host.memory_changed_s = world.timeline.now_s

    return back


def _many_die(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """All VMs of a host at once."""
    for vm in list(host.qemus):
        host.end_qemu("crashed", VmStatus.DOWN_UNEXPECTED, "its process died", vm=vm)
    return _nothing


VM_FAULTS: tuple[Fault, ...] = (
    Fault("QEMU of a VM", _qemu, extra_bound_s=STAND_BACK_BOUND_S, weight=6),
    Fault("QEMUs of a host", _many_die, extra_bound_s=STAND_BACK_BOUND_S, weight=2),
    Fault("VM powers off", _powers_off, extra_bound_s=STAND_BACK_BOUND_S, weight=3),
    Fault("VM hangs", _hangs, extra_bound_s=SICK_BOUND_S, weight=4),
    Fault("VM panics", _panics, extra_bound_s=STAND_BACK_BOUND_S, weight=3),
    Fault("VM is paused", _paused, (1.0, 400.0), SICK_BOUND_S, weight=3),
    Fault("VM does not start", _start_fails, (10.0, 300.0), RETRY_BOUND_S + SICK_BOUND_S, weight=4),
    Fault("VM is wanted otherwise", _wanted_down, (10.0, 400.0), SICK_BOUND_S, weight=3),
    Fault("VM is set", _set_otherwise, extra_bound_s=SICK_BOUND_S, weight=2),
    Fault("VMs are added", _added, extra_bound_s=SICK_BOUND_S, weight=2),
    Fault("registry of a host", _registry, (10.0, 300.0), SICK_BOUND_S, weight=3),
    Fault("memory of a host", _memory, (10.0, 300.0), SICK_BOUND_S, weight=3),
)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM's disk goes on in other images, and hosts die at random: nobody ever boots an older one.

A host has RECORDED_S to record what its VM went over to; the record says what is left in that time.
"""

from __future__ import annotations

import random

import pytest

from broker.whiteboard.layout import WHAT_RAN_SLOTS
from scoring.vm_facts import VmStatus
from tests.simulation.world import Settings, World

#: A sample each second, a beat, and a write.
RECORDED_S = 4.0
TURNS = 6


def change(world: World, chance: random.Random) -> None:
    """A snapshot, a pivot back, or nothing; now and then with a write that is torn."""
    owner = world.owner()
    if owner is None:
        return
    if chance.random() < 0.3:
        owner.storage.torn_writes = chance.randrange(1, 4)
    match chance.randrange(4):
        case 0:
            world.snapshot(owner, shared=True)
        case 1:
            world.snapshot(owner, shared=False)
        case 2:
            world.pivot(owner)
    world.run(RECORDED_S)


def trouble(world: World, chance: random.Random) -> None:
    """The host of the VM dies, or its QEMU, or its daemons."""
    owner = world.owner()
    if owner is None:
        return
    match chance.randrange(4):
        case 0:
            owner.power_off("test")
        case 1:
            owner.end_qemu("crashed", VmStatus.DOWN_UNEXPECTED, "its process died")
        case 2:
            owner.crash("broker")
        case 3:
            owner.reset("test")
    world.run(chance.uniform(5.0, 60.0))


@pytest.mark.parametrize("seed", range(3))
def test_nobody_boots_an_older_disk(seed: int) -> None:
    chance = random.Random(seed)
    world = World(Settings(hosts=3), random.Random(seed))
    try:
        world.fault_began("test")
        world.power_all_on(1.0)
        world.run(150.0)
        for _ in range(TURNS):
            change(world, chance)
            trouble(world, chance)
            for host in world.hosts.values():
                host.power_on()
            if world.owner() is None and chance.random() < 0.5:
                world.decide(chance.choice(list(world.hosts.values())), adopt=False)
            world.run(120.0)
        assert WHAT_RAN_SLOTS[0] in world.board.slots, "something was recorded"
        world.stop()
    finally:
        world.close()

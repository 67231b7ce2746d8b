# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the VM is about to go is told before it goes."""

from __future__ import annotations

import random

import pytest

from tests.simulation.host import Host
from tests.simulation.world import Move, Settings, World


def test_the_broker_knows_of_a_migration_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    migrate, began = World.migrate, World.began

    def looked(world: World, host: Host, what: str) -> None:
        if what == "migrate":
            told.append(world.brokers[host.number].status(host.clock_s()).hosts[host.number].intent)
        began(world, host, what)

    def moved(world: World, source: Host, hostname: str) -> Move:
        told.append(hostname)
        return migrate(world, source, hostname)

    monkeypatch.setattr(World, "began", looked)
    monkeypatch.setattr(World, "migrate", moved)
    world = World(Settings(hosts=2, host_boot_s=20.0), random.Random(3))
    try:
        world.fault_began("test")
        world.power_all_on(1.0)
        world.run(150.0)
        owner = world.owner()
        assert owner is not None and owner.vm_healthy
        world.set_local_maintenance(owner, True)
        world.run(30.0)
    finally:
        world.close()
    other = next(host for host in world.hosts.values() if host is not owner)
    assert told[:2] == [f"migrate {other.number}", other.name]

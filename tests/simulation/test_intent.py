# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the VM is about to go is told before it goes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

from broker.whiteboard.slot import decode_slot
from broker.whiteboard.store import StorageTrouble
from scoring.observation import OrderKind
from tests.simulation.host import Host
from tests.simulation.ports import SimStore
from tests.simulation.world import Move, Settings, World


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[World, Host]]:
    """A cluster that has come up, and the host that runs the VM, healthy."""
    world = World(Settings(hosts=2, host_boot_s=20.0), random.Random(3))
    try:
        world.fault_began("test")
        world.power_all_on(1.0)
        world.run(150.0)
        owner = world.owner()
        assert owner is not None and owner.vm_healthy
        yield world, owner
    finally:
        world.close()


def test_the_broker_knows_of_a_migration_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    migrate, began = World.migrate, World.began

    def looked(world: World, host: Host, what: str, vm: int) -> None:
        if what == "migrate":
            told.append(world.brokers[host.number].status(host.clock_s()).hosts[host.number].intent)
            slot = decode_slot(host.host_id, world.board.slots[host.host_id])
            assert slot is not None
            told.append(slot.extra["intent"])
        began(world, host, what, vm)

    def moved(world: World, source: Host, hostname: str, vm: int) -> Move:
        told.append(hostname)
        return migrate(world, source, hostname, vm)

    monkeypatch.setattr(World, "began", looked)
    monkeypatch.setattr(World, "migrate", moved)
    with two_hosts() as (world, owner):
        world.set_local_maintenance(owner, True)
        world.run(30.0)
    other = next(host for host in world.hosts.values() if host is not owner)
    words = f"migrate {other.number}"
    slot = f"{words} from {owner.number} within 340 s"
    assert told[:3] == [words, slot, other.name]


def test_a_host_that_cannot_tell_the_others_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's writes fail, its reads do not; once both succeed it moves the VM after all."""
    failing: list[Host] = []
    write = SimStore.write

    async def refused(store: SimStore, slot: int, data: bytes) -> None:
        if store._host in failing:
            raise StorageTrouble("writing: Input/output error")
        await write(store, slot, data)

    monkeypatch.setattr(SimStore, "write", refused)
    with two_hosts() as (world, owner):
        failing.append(owner)
        world.order(owner, OrderKind.MIGRATE)
        world.run(20.0)
        begun = [what for _, _, what in world.trace if what == "agent: migrate"]
        assert not begun and world.owner() is owner
        answer = world.agents[owner.number].last
        assert answer is not None
        assert "could not publish it for 5 s" in answer.state.engine.answers[-1].text
        failing.clear()
        world.run(5.0)
        world.order(owner, OrderKind.MIGRATE)
        world.run(20.0)
        assert world.owner() not in (owner, None)

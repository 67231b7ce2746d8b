# SPDX-License-Identifier: LGPL-2.1-or-later
"""Law `fenced` judges a host that asks to be switched off for a VM beside the engine: breaches are
planted, in the name of a host that would do them, and seen."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from scoring.observation import FenceAsk, OrderKind
from scoring.vm import unstoppable
from scoring.vm_facts import ENGINE
from tests.simulation.host import Host
from tests.simulation.laws import Broken
from tests.simulation.world import Settings, World

DB = 2


@pytest.fixture
def world() -> Iterator[World]:
    """Three hosts, the engine on one and a database that hangs, and cannot be ended, on another."""
    world = World(Settings(hosts=3, memory_mb=16_384), random.Random(1))
    world.fault_began("test")
    world.power_all_on(1.0)
    world.run(150.0)
    engine_on = world.owner()
    assert engine_on is not None
    target = next(host for host in world.hosts.values() if host is not engine_on)
    world.vms.change("db", memory_mb=1024, prefer=(target.host_id,))
    assert world.vms.named("db") == DB
    world.run(60.0)
    assert target.is_healthy(DB)
    target.unkillable_vms.add(DB)
    yield world
    world.close()


def target_of(world: World) -> Host:
    host = world.owner(DB)
    assert host is not None
    return host


def asks_with_reason(world: World) -> Host:
    """The database's host asks to be switched off, and nobody does it: the daemons of all others
    are dead."""
    target = target_of(world)
    for host in world.hosts.values():
        if host is not target:
            world.wish_daemons(host, False)
    target.qemus[DB].is_hung = True
    world.run(750.0)
    return target


def shot(world: World, target: Host) -> None:
    asker = next(host for host in world.hosts.values() if host is not target)
    asker.fence_held = True
    world.shoots(asker, target)


def shot_against_the_law(world: World, target: Host) -> None:
    shot(world, target)
    with pytest.raises(Broken, match="law 'fenced'"):
        world.run(1.0)


def test_a_host_that_asks_with_reason_may_be_switched_off(world: World) -> None:
    shot(world, asks_with_reason(world))
    world.run(1.0)


def test_a_host_that_asks_although_the_vm_is_well(world: World) -> None:
    target = asks_with_reason(world)
    target.qemus[DB].is_hung = False
    shot_against_the_law(world, target)


def test_a_host_that_asks_although_the_vm_can_be_ended(world: World) -> None:
    target = asks_with_reason(world)
    target.unkillable_vms.clear()
    shot_against_the_law(world, target)


def test_a_host_that_asks_for_another_vm_than_the_sick_one(world: World) -> None:
    """The engine can be ended where it is."""
    target = asks_with_reason(world)
    broker = world.brokers[target.number]
    word = FenceAsk(unstopped_s=5000.0, vm=ENGINE)
    broker.this_host.sick_vm.ask = lambda *_: word  # type: ignore[method-assign]
    world.run(3.0)
    shot_against_the_law(world, target)


def test_a_host_that_asks_beside_a_well_vm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product asks although the engine is well there too."""
    monkeypatch.setattr(unstoppable, "_well_here", lambda _: [])
    target = target_of(world)
    world.order(world.owner(), OrderKind.MIGRATE, target.host_id)  # type: ignore[arg-type]
    world.run(60.0)
    assert target.vm_healthy
    target = asks_with_reason(world)
    shot_against_the_law(world, target)


def test_a_host_whose_ask_is_not_true_of_its_patience(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product asks at once, and the others believe it."""
    monkeypatch.setattr(unstoppable, "_has_to_ask", lambda *_: True)
    target_of(world).qemus[DB].is_hung = True
    with pytest.raises(Broken, match="law 'fenced'"):
        world.run(700.0)


def test_the_word_of_a_broker_whose_agent_lives(world: World) -> None:
    target = target_of(world)
    target.unkillable_vms.clear()
    target.qemus[DB].is_hung = True
    world.run(100.0)
    broker = world.brokers[target.number]
    word = FenceAsk(agent_dead_s=5000.0, bad_s=5000.0, vm=DB)
    broker.this_host.sick_vm.ask = lambda *_: word  # type: ignore[method-assign]
    with pytest.raises(Broken, match="law 'fenced'"):
        world.run(3.0)
        shot(world, target)
        world.run(1.0)

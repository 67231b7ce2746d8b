# SPDX-License-Identifier: LGPL-2.1-or-later
"""An error that no code expects costs a restart of the agent, and no more."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from agent.ports import Still
from broker.wire.what_ran import WhatRan
from scoring.decision import FreeHostId
from scoring.observation import HostIdFreed, VmStartEnded
from tests.simulation.ports import SimHypervisor, SimLeases
from tests.simulation.world import Settings, World

BOOTED_S, TAKEOVER_S = 150.0, 60.0
#: What a system call says when the machine is short of processes or threads.
ERROR = BlockingIOError(11, "Resource temporarily unavailable")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Two hosts that are about to boot. The failed agent is what the test is about."""
    monkeypatch.setattr(World, "problems", lambda world: [])
    world = World(Settings(hosts=2, host_boot_s=20.0), random.Random(3))
    world.fault_began("test")
    world.power_all_on(1.0)
    yield world
    world.close()


def has_come_up(world: World) -> bool:
    owner = world.owner()
    return owner is not None and owner.vm_healthy


def agents_ended(world: World) -> list[str]:
    return [text for _, _, text in world.trace if text.startswith("agent ended: ")]


def test_a_start_without_an_outcome_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    start = SimHypervisor.start

    async def fails_once(
        hypervisor: SimHypervisor, what_ran: WhatRan | None = None, registry: int = 0
    ) -> VmStartEnded:
        begun.append(registry)
        if len(begun) == 1:
            raise ERROR
        return await start(hypervisor, what_ran, registry)

    monkeypatch.setattr(SimHypervisor, "start", fails_once)
    world.run(BOOTED_S)
    assert len(begun) == 2 and has_come_up(world)
    (text,) = agents_ended(world)
    assert "Resource temporarily unavailable" in text


def test_a_freeing_without_an_outcome_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[int] = []
    free = SimLeases.free_host_id

    async def fails_once(leases: SimLeases, act: FreeHostId, still: Still) -> HostIdFreed:
        freed.append(act.host_id)
        if len(freed) == 1:
            raise ERROR
        return await free(leases, act, still)

    monkeypatch.setattr(SimLeases, "free_host_id", fails_once)
    world.run(BOOTED_S)
    dead = world.owner()
    assert dead is not None
    dead.power_off("test")
    world.run(TAKEOVER_S)
    assert freed == [dead.host_id] * 2 and has_come_up(world)
    assert len(agents_ended(world)) == 1

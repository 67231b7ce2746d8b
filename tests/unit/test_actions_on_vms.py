# SPDX-License-Identifier: LGPL-2.1-or-later
"""An action is carried out for its own VM, its outcome says which one that was, and what hangs for
one VM holds no other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import pytest

from agent.actions import ActionRunner
from agent.ports import FenceDevices, FenceLog, Hypervisor, Leases
from broker.wire.what_ran import WhatRan
from scoring.decision import (
    Action,
    AskLease,
    AskMigrationPath,
    CancelMigration,
    DisarmDomain,
    MigrateVm,
    PowerOffVm,
    ShutDownVm,
    StartVm,
)
from scoring.observation import (
    DomainDisarmed,
    LeaseAnswer,
    MigrationCancelled,
    MigrationPath,
    Outcome,
    StartResult,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)


class Hand:
    """A hypervisor that notes what it is asked for; `hangs` until it is set free."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.free = asyncio.Event()
        self.free.set()

    async def _does(self, *what: Any) -> None:
        self.asked.append(what)
        await self.free.wait()

    async def start(self, what_ran: WhatRan | None = None, registry: int = 0) -> VmStartEnded:
        await self._does("start", what_ran, registry)
        return VmStartEnded(StartResult.STARTED)

    async def shut_down(self) -> VmStopEnded:
        await self._does("shut down")
        return VmStopEnded(True)

    async def power_off(self) -> VmStopEnded:
        await self._does("power off")
        return VmStopEnded(False, "it does not end")

    async def disarm(self, image: bool) -> DomainDisarmed:
        await self._does("disarm", image)
        return DomainDisarmed(True)

    async def migrate(
        self, target: int, hostname: str, timeout_s: float | None = None
    ) -> VmMigrationEnded:
        await self._does("migrate", target, hostname, timeout_s)
        return VmMigrationEnded(target, True)

    async def ask_path(self, target: int, hostname: str) -> MigrationPath:
        await self._does("ask", target, hostname)
        return MigrationPath(target, True, 7.0)

    async def cancel_migration(self, why: str) -> MigrationCancelled:
        await self._does("cancel", why)
        return MigrationCancelled(True)


class Asked:
    """Leases that note for which VMs they are asked at once."""

    fence_held = False

    def __init__(self) -> None:
        self.looks: list[tuple[int, ...]] = []

    async def ask_engine(self) -> LeaseAnswer:
        self.looks.append((1,))
        return LeaseAnswer(True, 7.0)

    async def ask_vms(self, vms: Sequence[int]) -> tuple[LeaseAnswer, ...]:
        self.looks.append(tuple(vms))
        return tuple(LeaseAnswer(True, 7.0, vm=vm) for vm in vms)


class World:
    """A runner whose every port is a note-taker."""

    def __init__(self) -> None:
        self.hands: dict[int, Hand] = {}
        self.leases = Asked()
        self.runner = ActionRunner(
            lambda vm: cast(Hypervisor, self.hand(vm)),
            cast(Leases, self.leases),
            cast(FenceDevices, None),
            cast(FenceLog, None),
        )
        self.runner.hostnames = {4: "four"}

    def hand(self, vm: int) -> Hand:
        return self.hands.setdefault(vm, Hand())

    async def outcomes(self, number: int) -> list[Outcome]:
        """The next outcomes, so many."""
        found: list[Outcome] = []
        while len(found) < number:
            await self.runner.news.wait()
            self.runner.news.clear()
            found += self.runner.take_outcomes()
        return found


def run(story: Callable[[World], Awaitable[None]]) -> None:
    async def begin() -> None:
        async with asyncio.timeout(10.0):
            await story(World())

    asyncio.run(begin())


ON_VM = [
    (StartVm(3), ("start", None, 9), VmStartEnded(StartResult.STARTED, vm=3)),
    (ShutDownVm(3), ("shut down",), VmStopEnded(True, vm=3)),
    (PowerOffVm(3), ("power off",), VmStopEnded(False, "it does not end", vm=3)),
    (DisarmDomain(True, 3), ("disarm", True), DomainDisarmed(True, vm=3)),
    (MigrateVm(4, 3), ("migrate", 4, "four", None), VmMigrationEnded(4, True, vm=3)),
    (MigrateVm(4, 3, 900.0), ("migrate", 4, "four", 900.0), VmMigrationEnded(4, True, vm=3)),
    (AskMigrationPath(4, 3), ("ask", 4, "four"), MigrationPath(4, True, 7.0, vm=3)),
    (CancelMigration("a test", 3), ("cancel", "a test"), MigrationCancelled(True, vm=3)),
]


@pytest.mark.parametrize(("action", "asked", "outcome"), ON_VM, ids=lambda each: str(each)[:20])
def test_it_is_done_to_its_vm_and_the_outcome_says_so(
    action: Action, asked: tuple[Any, ...], outcome: Outcome
) -> None:
    async def story(world: World) -> None:
        world.runner.what_ran = WhatRan(1, 1, 1, "one", 0.0)
        world.runner.registry = 9
        world.runner.begin(action)
        assert await world.outcomes(1) == [outcome]
        assert {vm: hand.asked for vm, hand in world.hands.items()} == {3: [asked]}

    run(story)


def test_what_the_engine_ran_from_is_the_engine_s() -> None:
    async def story(world: World) -> None:
        ran = world.runner.what_ran = WhatRan(1, 1, 1, "one", 0.0)
        for vm in (1, 2):
            world.runner.begin(StartVm(vm))
        await world.outcomes(2)
        assert world.hand(1).asked == [("start", ran, 0)]
        assert world.hand(2).asked == [("start", None, 0)]

    run(story)


def test_a_start_that_hangs_holds_no_other_vm() -> None:
    async def story(world: World) -> None:
        world.hand(2).free.clear()
        for vm in (2, 3, 1):
            world.runner.begin(StartVm(vm))
        assert {outcome.vm for outcome in await world.outcomes(2)} == {1, 3}  # type: ignore[union-attr]
        assert world.runner.busy
        world.hand(2).free.set()
        assert await world.outcomes(1) == [VmStartEnded(StartResult.STARTED, vm=2)]

    run(story)


def test_the_leases_of_all_missing_vms_are_read_in_one_look() -> None:
    async def story(world: World) -> None:
        for vm in (5, 1, 2, 9):
            world.runner.begin(AskLease(vm))
        answers = await world.outcomes(4)
        assert {answer.vm for answer in answers} == {1, 2, 5, 9}  # type: ignore[union-attr]
        assert sorted(world.leases.looks) == [(1,), (5, 2, 9)]
        world.runner.begin(AskLease(5))
        assert await world.outcomes(1) == [LeaseAnswer(True, 7.0, vm=5)], "asked anew"

    run(story)


def test_a_move_that_could_not_be_published_says_whose_it_was() -> None:
    async def story(world: World) -> None:
        async def published() -> str:
            return "not published"

        world.runner.begin_move(MigrateVm(4, 3), published())
        assert await world.outcomes(1) == [VmMigrationEnded(4, False, "not published", vm=3)]
        assert world.hands == {}, "nothing was moved"

    run(story)

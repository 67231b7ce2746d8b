# SPDX-License-Identifier: LGPL-2.1-or-later
"""The freeing of a host id: written down before it begins, over when nothing of it can land any
more, and its end told; the fence lease stays all that time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import pytest

from agent import actions
from agent.actions import ActionRunner
from agent.fence.driver import always
from agent.leases.freeing import free_host_id, was_freed
from agent.ports import FenceDevices, Hypervisors, Leases, Still
from broker.wire.exchange import FenceNote
from scoring.decision import AskFenceOwner, DropFenceLease, FreeHostId, TakeFenceLease
from scoring.observation import (
    FenceLeaseAnswer,
    FenceOwnerAnswer,
    HostIdFreed,
    LeaseAnswer,
)

ACT = FreeHostId(2, 5, 77, 0.0, True, "read off twice")


@dataclass
class World:
    """Leases and FenceLog in one; `told`: what happened, in order. `ends`: set, the process of a
    freeing has ended. `log_problems`: of the next notes, in order."""

    freed: HostIdFreed = field(default_factory=lambda: HostIdFreed(2, True))
    fence_held: bool = True
    fence_given: bool = True
    before: FreeHostId | None = None
    log_problems: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    ends: asyncio.Event = field(default_factory=asyncio.Event)

    async def take_fence(self) -> FenceLeaseAnswer:
        self.fence_held = self.fence_given
        return FenceLeaseAnswer(self.fence_given, 1.0)

    async def ask_fence(self) -> LeaseAnswer:
        return LeaseAnswer(True, 1.0, owner=3)

    async def drop_fence(self) -> None:
        self.told.append("drop")
        self.fence_held = False

    async def free_host_id(self, act: FreeHostId, still: Still) -> HostIdFreed:
        self.told.append(f"frees {act.host_id}")
        await self.ends.wait()
        return self.freed

    async def freeing_of_before(self) -> FreeHostId | None:
        return self.before

    async def end_of_before(self, act: FreeHostId) -> HostIdFreed:
        await self.ends.wait()
        return self.freed

    def freeing_is_recorded(self) -> None:
        self.told.append("told")

    async def note(self, note: FenceNote) -> str:
        problem = self.log_problems.pop(0) if self.log_problems else ""
        over, closes = " over" if note.over else "", " closes" if note.only_closes else ""
        what = f"{note.step.value} {note.target}{over}{closes}"
        self.told.append(f"not noted: {what}" if problem else what)
        return problem


def runner(world: World) -> ActionRunner:
    return ActionRunner(
        cast(Hypervisors, None), cast(Leases, world), cast(FenceDevices, None), world
    )


async def settle(until: Callable[[], bool] = lambda: False) -> None:
    for _ in range(50):
        if until():
            return
        await asyncio.sleep(0.001)


def test_it_is_written_down_before_it_begins_and_how_it_ended() -> None:
    async def run() -> None:
        world = World()
        ours = runner(world)
        ours.begin(ACT)
        await settle()
        assert world.told == ["freeing 2", "frees 2"] and ours.freeing == 2
        ours.begin(DropFenceLease())
        await settle()
        assert "drop" not in world.told, "the fence lease stays while a write may land"
        assert ours.take_outcomes() == ()
        world.ends.set()
        await settle(lambda: not ours.busy)
        assert world.told[2:] == ["dead 2", "told"] and ours.freeing is None
        assert ours.take_outcomes() == (HostIdFreed(2, True),)
        ours.begin(DropFenceLease())
        await settle(lambda: not ours.busy)
        assert world.told[-1] == "drop"

    asyncio.run(run())


def test_one_that_came_to_nothing_is_said_to_be_over() -> None:
    async def run() -> None:
        world = World(freed=HostIdFreed(2, False, "killed"))
        world.ends.set()
        ours = runner(world)
        ours.begin(ACT)
        await settle(lambda: not ours.busy)
        assert world.told == ["freeing 2", "frees 2", "freeing 2 over", "told"]

    asyncio.run(run())


def test_nothing_is_freed_that_is_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record may be there although its write failed, so it is closed where it is."""
    monkeypatch.setattr(actions, "RECORD_END_PAUSE_S", 0.001)

    async def run() -> None:
        world = World(log_problems=["no answer"])
        ours = runner(world)
        ours.begin(ACT)
        await settle(lambda: not ours.busy)
        (outcome,) = ours.take_outcomes()
        assert isinstance(outcome, HostIdFreed) and not outcome.ok and "no answer" in outcome.detail
        assert not outcome.begun
        assert world.told == ["not noted: freeing 2", "freeing 2 over closes", "told"]

    asyncio.run(run())


def test_an_end_that_cannot_be_written_holds_up_no_start_and_is_written_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actions, "RECORD_END_PAUSE_S", 0.01)

    async def run() -> None:
        world = World(log_problems=["", "no answer", "no answer"])
        world.ends.set()
        ours = runner(world)
        ours.begin(ACT)
        await settle(lambda: bool(ours._outcomes))
        assert ours.take_outcomes() == (HostIdFreed(2, True),)
        ours.begin(DropFenceLease())
        await settle(lambda: not ours.busy)
        assert world.told == [
            "freeing 2",
            "frees 2",
            "not noted: dead 2",
            "not noted: dead 2 closes",
            "dead 2 closes",
            "told",
        ], "under the fence lease, which is kept"

    asyncio.run(run())


def test_it_is_not_written_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "RECORD_END_PAUSE_S", 0.0)

    async def run() -> None:
        world = World(log_problems=["", *["no answer"] * 99])
        world.ends.set()
        ours = runner(world)
        ours.begin(ACT)
        await settle(lambda: not ours.busy)
        assert len(world.told) == 3 + actions.RECORD_END_TRIES
        ours.begin(DropFenceLease())
        await settle(lambda: not ours.busy)
        assert world.told[-1] == "drop", "others need it"

    asyncio.run(run())


def test_the_next_freeing_stops_the_telling_of_the_last_one() -> None:
    """The late end of the last freeing would close the record of the new one."""

    async def run() -> None:
        world = World(log_problems=["", "no answer"])
        world.ends.set()
        ours = runner(world)
        ours.begin(ACT)
        await settle(lambda: bool(ours._outcomes))
        recorder = ours._recorder
        assert recorder is not None and not recorder.done()
        ours.begin(ACT)
        await settle(lambda: not ours.busy)
        assert recorder.cancelled()

    asyncio.run(run())


def test_while_a_record_may_still_land_the_fence_lease_stays() -> None:
    async def run() -> None:
        world = World()
        ours = runner(world)
        ours.log_is_written = True
        ours.begin(DropFenceLease())
        await settle()
        assert world.told == []

    asyncio.run(run())


# --- an earlier agent's ---------------------------------------------------------------------


def test_what_an_earlier_agent_began_is_waited_for_and_its_end_told() -> None:
    async def run() -> None:
        world = World(before=ACT, fence_held=False)
        ours = runner(world)
        finishing = asyncio.ensure_future(ours.finish_freeing_of_before())
        await settle()
        assert ours.freeing == 2 and world.told == []
        world.ends.set()
        await finishing
        assert world.told == ["dead 2 closes", "told"] and world.fence_held
        assert ours.freeing is None and ours.news.is_set()

    asyncio.run(run())


def test_without_the_fence_lease_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has booted is given none before it has joined the lockspace."""
    monkeypatch.setattr(actions, "RECORD_END_PAUSE_S", 0.0)

    async def run() -> None:
        world = World(before=ACT, fence_held=False, fence_given=False)
        world.ends.set()
        ours = runner(world)
        finishing = asyncio.ensure_future(ours.finish_freeing_of_before())
        await settle()
        assert world.told == [] and ours.freeing is None
        world.fence_given = True
        await finishing
        assert world.told == ["dead 2 closes", "told"]

    asyncio.run(run())


def test_an_end_of_before_that_cannot_be_written_does_not_keep_the_fence_lease_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actions, "RECORD_END_PAUSE_S", 0.0)

    async def run() -> None:
        world = World(before=ACT, log_problems=["no answer"] * 99)
        world.ends.set()
        ours = runner(world)
        await asyncio.ensure_future(ours.finish_freeing_of_before())
        assert world.told == ["not noted: dead 2 closes"] * actions.RECORD_END_TRIES
        ours.begin(DropFenceLease())
        await settle(lambda: not ours.busy)
        assert world.told[-1] == "drop"

    asyncio.run(run())


def test_nothing_of_before_is_nothing_to_do() -> None:
    async def run() -> None:
        world = World()
        await runner(world).finish_freeing_of_before()
        assert world.told == []

    asyncio.run(run())


# --- of the host that owns the fence lease ---------------------------------------------------

FENCER = FreeHostId(3, 5, 77, 0.0, evidence="read off twice", fencer=True)


def test_the_fence_log_is_told_of_a_fencer_when_the_fence_lease_is_ours() -> None:
    """Before that it is not ours to write: the slot says it."""

    async def run() -> None:
        world = World(freed=HostIdFreed(3, True), fence_held=False)
        ours = runner(world)
        ours.begin(FENCER)
        await settle()
        assert world.told == ["frees 3"]
        assert (ours.freeing, ours.freeing_fencer) == (3, True)
        world.ends.set()
        await settle(lambda: not ours.busy)
        assert world.told == ["frees 3", "told"]
        assert (ours.freeing, ours.freeing_fencer) == (None, False)
        world.fence_given = False
        ours.begin(TakeFenceLease())
        await settle(lambda: not ours.busy)
        world.fence_given, world.log_problems = True, []
        for _ in range(2):
            ours.begin(TakeFenceLease())
            await settle(lambda: not ours.busy)
        assert world.told == ["frees 3", "told", "dead 3"], "once"

    asyncio.run(run())


def test_a_fencer_that_was_not_freed_is_told_to_nobody() -> None:
    async def run() -> None:
        world = World(freed=HostIdFreed(3, False, "changed"))
        world.ends.set()
        ours = runner(world)
        ours.begin(FENCER)
        await settle(lambda: not ours.busy)
        ours.begin(TakeFenceLease())
        await settle(lambda: not ours.busy)
        assert world.told == ["frees 3", "told"]

    asyncio.run(run())


def test_a_record_that_cannot_be_written_does_not_keep_the_fence_lease_from_us() -> None:
    async def run() -> None:
        world = World(freed=HostIdFreed(3, True), log_problems=["no answer"])
        world.ends.set()
        ours = runner(world)
        ours.begin(FENCER)
        await settle(lambda: not ours.busy)
        ours.take_outcomes()
        ours.begin(TakeFenceLease())
        await settle(lambda: not ours.busy)
        (answer,) = ours.take_outcomes()
        assert isinstance(answer, FenceLeaseAnswer) and answer.held
        assert world.told[-1] == "not noted: dead 3"

    asyncio.run(run())


def test_who_owns_the_fence_lease_is_asked() -> None:
    async def run() -> None:
        world = World()
        ours = runner(world)
        ours.begin(AskFenceOwner())
        await settle(lambda: not ours.busy)
        assert ours.take_outcomes() == (FenceOwnerAnswer(LeaseAnswer(True, 1.0, owner=3)),)

    asyncio.run(run())


# --- the act itself -------------------------------------------------------------------------


@dataclass
class Disk:
    """DeltaLeases. `on_disk`: what each look finds, in order."""

    on_disk: list[tuple[int, int] | None]
    problem: str = ""
    released: int = 0
    waits: Callable[[], None] = lambda: None

    async def read_delta(self, host_id: int) -> tuple[int, int] | None:
        return self.on_disk.pop(0)

    async def release_id(self, act: FreeHostId, still: Still) -> str:
        self.waits()
        if why := still():
            return why
        self.released += 1
        return self.problem


def free(
    disk: Disk,
    held: bool = True,
    off_ago_s: float = 1.0,
    own: int = 1,
    still: Still = always,
    fencer: bool = False,
) -> HostIdFreed:
    async def run() -> HostIdFreed:
        read_s = asyncio.get_running_loop().time() - off_ago_s
        act = FreeHostId(2, 5, 77, read_s, fencer=fencer)
        return await free_host_id(act, own, 10.0, lambda: held, disk, still)

    return asyncio.run(run())


def test_it_is_freed_when_all_holds_and_the_disk_shows_it() -> None:
    assert free(Disk([(5, 77), (5, 0)])).ok


def test_of_a_fencer_nobody_can_hold_the_fence_lease() -> None:
    assert free(Disk([(5, 77), (5, 0)]), held=False, fencer=True).ok
    late = free(Disk([(5, 77)]), held=False, fencer=True, off_ago_s=10.5)
    assert "10.5 s old" in late.detail
    assert "shows" in free(Disk([(5, 0)]), held=False, fencer=True).detail, "freed by another"


def test_what_comes_between_the_last_check_and_the_write_forbids_it() -> None:
    """The local disk hung while the file was written."""
    lives: list[str] = []
    disk = Disk([(5, 77)], waits=lambda: lives.append("it lives"))
    freed = free(disk, still=lambda: "".join(lives))
    assert freed.detail == "it lives" and disk.released == 0


@pytest.mark.parametrize(
    ("disk", "given", "why"),
    [
        (Disk([(5, 77)]), {"own": 2}, "own id"),
        (Disk([(5, 78)]), {}, r"shows .*\(5, 78\)"),
        (Disk([None]), {}, "shows .*None"),
        (Disk([(5, 77)]), {"held": False}, "fence lease"),
        (Disk([(5, 77)]), {"off_ago_s": 10.5}, "10.5 s old"),
        (Disk([(5, 77)]), {"still": lambda: "it lives"}, "it lives"),
    ],
)
def test_each_condition_alone_forbids_it(disk: Disk, given: dict[str, float], why: str) -> None:
    freed = free(disk, **given)  # type: ignore[arg-type]
    assert not freed.ok and disk.released == 0
    assert re.search(why, freed.detail)


@pytest.mark.parametrize(
    ("disk", "why"),
    [
        (Disk([(5, 77)], problem="killed"), "killed"),
        (Disk([(5, 77), (5, 77)]), "not free on disk"),
        (Disk([(5, 77), (6, 0)]), "not free on disk"),
        (Disk([(5, 77), None]), "not free on disk"),
    ],
)
def test_a_command_that_returned_is_not_a_fact(disk: Disk, why: str) -> None:
    freed = free(disk)
    assert not freed.ok and why in freed.detail and disk.released == 1


def test_what_came_of_it_is_what_the_disk_shows() -> None:
    assert was_freed(ACT, (5, 0)).ok
    assert not was_freed(ACT, (6, 0)).ok, "another generation was freed"

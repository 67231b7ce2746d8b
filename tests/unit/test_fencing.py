# SPDX-License-Identifier: LGPL-2.1-or-later
"""The checks right before a host is switched off, and what goes into the fence log."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from agent.fence.switching import note_failed, power_off_host, power_on_host
from agent.ports import FenceDevices, Leases, Still
from broker.wire.exchange import FenceNote
from scoring.decision import NoteFenceFailed, PowerOffHost, PowerOnHost
from scoring.observation import FenceLeaseAnswer, PowerOffEnded, PowerOnEnded

ACT = PowerOffHost(2, attempt=0, slot=500, generation=5, timestamp=77, evidence="all silent")


@dataclass
class World:
    """Leases, fence devices and fence log in one; `told`: what happened, in order."""

    fence_held: bool = True
    on_disk: tuple[int, int] | None = (5, 77)
    lives: str = ""
    overtaken: str = ""
    log_problem: str = ""
    device_ok: bool = True
    fence_given: bool = True
    told: list[str] = field(default_factory=list)

    async def read_delta(self, host_id: int) -> tuple[int, int] | None:
        return self.on_disk

    async def take_fence(self) -> FenceLeaseAnswer:
        self.fence_held = self.fence_given
        return FenceLeaseAnswer(self.fence_given, 1.0, "" if self.fence_given else "taken")

    async def note(self, note: FenceNote) -> str:
        if not self.log_problem:
            what = "withdrawn" if note.withdrawn else note.step.value
            self.told.append(f"{what} {note.target}: {note.text}")
        return self.log_problem

    async def power_off(
        self, host_id: int, system_uuid: str, attempt: int, still: Still
    ) -> PowerOffEnded:
        self.told.append(f"off {host_id} {system_uuid} {attempt}")
        if self.overtaken:
            self.lives = self.overtaken
            return PowerOffEnded(host_id, False, f"withdrawn: {still()}", withdrawn=True)
        return PowerOffEnded(host_id, self.device_ok)

    async def power_on(self, host_id: int, system_uuid: str, still: Still) -> PowerOnEnded:
        if why := still():
            return PowerOnEnded(host_id, False, why)
        self.told.append(f"on {host_id} {system_uuid}")
        return PowerOnEnded(host_id, self.device_ok)


def switch_off(world: World, act: PowerOffHost = ACT, is_noted: bool = False) -> PowerOffEnded:
    leases, devices = cast(Leases, world), cast(FenceDevices, world)
    return asyncio.run(
        power_off_host(act, "uuid", lambda: world.lives, leases, devices, world, is_noted)
    )


@pytest.mark.parametrize(("on_disk", "ok"), [((5, 99), True), ((6, 99), False), (None, False)])
def test_a_host_that_asks_for_it_lives_and_renews_but_has_not_joined_anew(
    on_disk: tuple[int, int] | None, ok: bool
) -> None:
    assert switch_off(World(on_disk=on_disk), replace(ACT, asked=True)).ok is ok


def test_the_log_is_told_before_the_device() -> None:
    world = World()
    assert switch_off(world).ok
    assert world.told == ["intent 2: all silent", "off 2 uuid 0"]


@pytest.mark.parametrize(
    ("world", "why"),
    [
        (World(log_problem="the storage hangs"), "could not be written"),
        (World(on_disk=(6, 77)), "host id on disk"),
        (World(on_disk=(5, 78)), "host id on disk"),
        (World(on_disk=None), "host id on disk"),
        (World(lives="it lives"), "it lives"),
    ],
)
def test_what_has_changed_since_the_decision_forbids_the_order(world: World, why: str) -> None:
    ended = switch_off(world)
    assert not ended.ok and ended.withdrawn and why in ended.detail
    assert not any(line.startswith("off") for line in world.told)
    if not world.log_problem:
        assert world.told[-1] == f"withdrawn 2: {ended.detail}", "its intent has an end"


def test_an_order_that_is_overtaken_at_the_device_is_noted_as_withdrawn() -> None:
    world = World(overtaken="it lives")
    assert switch_off(world).withdrawn
    assert world.told[1:] == ["off 2 uuid 0", "withdrawn 2: withdrawn: it lives"]


def test_the_intent_of_orders_that_were_given_before_stays_open() -> None:
    world = World(overtaken="it lives")
    assert switch_off(world, replace(ACT, attempt=1), is_noted=True).withdrawn
    assert world.told == ["off 2 uuid 1"]


def test_the_orders_of_one_act_are_noted_once() -> None:
    world = World()
    assert switch_off(world, replace(ACT, attempt=1), is_noted=True).ok
    assert world.told == ["off 2 uuid 1"]


def test_a_device_that_refuses_is_told() -> None:
    assert not switch_off(World(device_ok=False), replace(ACT, attempt=2)).ok


def switch_on(world: World) -> PowerOnEnded:
    leases, devices = cast(Leases, world), cast(FenceDevices, world)
    return asyncio.run(
        power_on_host(PowerOnHost(2), "uuid", lambda: world.lives, leases, devices, world)
    )


def test_a_host_is_switched_on_under_the_fence_lease_and_noted() -> None:
    world = World(fence_held=False)
    assert switch_on(world).ok
    assert world.told == ["on 2 uuid", "back 2: switched on again"]
    held = World()
    assert switch_on(held).ok and held.told == world.told


def test_a_host_is_not_switched_on_without_the_fence_lease() -> None:
    world = World(fence_held=False, fence_given=False)
    assert not switch_on(world).ok and world.told == []


def test_what_failed_is_not_noted_as_back_and_what_was_not_noted_failed() -> None:
    world = World(device_ok=False)
    assert not switch_on(world).ok and world.told == ["on 2 uuid"]
    assert not switch_on(World(log_problem="no")).ok


def test_a_host_that_is_back_is_not_switched_on() -> None:
    world = World(lives="host 2 is back")
    assert switch_on(world) == PowerOnEnded(2, False, "host 2 is back") and world.told == []


def test_a_failed_act_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    asyncio.run(note_failed(NoteFenceFailed(2, "it still reads on"), world))
    assert world.told == ["failed 2: it still reads on"]
    asyncio.run(note_failed(NoteFenceFailed(2, "x"), World(log_problem="the disk hangs")))
    assert "the disk hangs" in caplog.text

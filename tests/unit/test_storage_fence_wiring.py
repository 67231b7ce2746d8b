# SPDX-License-Identifier: LGPL-2.1-or-later
"""When the agent fences the storage: behind a freeing, or while the storage keeps the fence lease
from it; each time only what is proven off at that moment, and is still to be taken over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from agent import actions
from agent.actions import ActionRunner
from agent.beat import Agent
from agent.fence.storage import StorageFence, storage_fence
from agent.last_look import LastLook
from agent.ports import FenceDevices, FenceLog, Hypervisors, Leases
from agent.run import Reload
from agent.vm.definition import load_definition
from agent.vm.hypervisors import LibvirtHypervisors
from broker.client.link import Link
from broker.config.load import load
from broker.config.reload import needs_restart
from broker.config.sections import Config
from scoring.decision import Action, FreeHostId, StartVm, TakeFenceLease
from scoring.hosts.state import Takeover
from scoring.observation import (
    FenceLeaseAnswer,
    HostIdFreed,
    Power,
    PowerAnswer,
    StartResult,
    VmStartEnded,
)
from scoring.state import AgentState
from tests.unit.builders import NOW_S, RULES, state_of

TARGET = 2
FREE = FreeHostId(TARGET, 5, 77, NOW_S - 1, evidence="off, off")
FREES = Takeover(TARGET, NOW_S - 60, freeing=True)
TAKES = Takeover(TARGET, NOW_S - 60, taking_fence=True)
OFF = PowerAnswer(TARGET, Power.OFF, NOW_S, identity_proven=True)


class World:
    """Leases, fence devices, fence log and storage at once; `told`: what they were asked for.

    `powers`: what the device says, one reading after the other, the last one for ever.
    `lease_after`: how often the power is read before the fence lease is given; None: at once.
    """

    fence_held = True

    def __init__(
        self,
        powers: Sequence[PowerAnswer] = (OFF,),
        freed: bool = True,
        lease_after: int | None = None,
    ) -> None:
        self.powers, self.freed = list(powers), freed
        self.lease_after = lease_after
        self.told: list[str] = []
        self.others: tuple[str, ...] = ()

    def know(self, uuids: object) -> None:
        pass

    async def note(self, *_: object, **__: object) -> str:
        return ""

    async def free_host_id(self, act: FreeHostId, still: Any) -> HostIdFreed:
        self.told.append("free")
        return HostIdFreed(act.host_id, self.freed, "" if self.freed else "it renewed")

    def freeing_is_recorded(self) -> None:
        pass

    async def take_fence(self) -> FenceLeaseAnswer:
        while self.lease_after is not None and self.told.count("power") < self.lease_after:
            await asyncio.sleep(0.001)
        if self.lease_after is not None:
            # Time for what must not be done any more.
            await asyncio.sleep(0.05)
        return FenceLeaseAnswer(True, NOW_S)

    async def read_power(self, host: int, uuid: str) -> PowerAnswer:
        self.told.append("power")
        return self.powers.pop(0) if len(self.powers) > 1 else self.powers[0]

    def find(
        self, host: int, name: str, deadline_s: float, others: Collection[str] = ()
    ) -> tuple[str, ...]:
        self.told.append(f"find {name}")
        self.others = tuple(others)
        return ("its client",)

    def cut(self, host: int, name: str, found: Sequence[str], deadline_s: float) -> None:
        self.told.append(f"cut {found[0]}")


def done(
    world: World, action: Action, state: AgentState, *more: tuple[Action, AgentState]
) -> list[str]:
    """What was asked for while the action was carried out; `more`: others behind it."""

    async def run() -> list[str]:
        runner = ActionRunner(
            cast(Hypervisors, None),
            cast(Leases, world),
            cast(FenceDevices, world),
            cast(FenceLog, world),
            StorageFence("ceph", world, 60.0),
        )
        runner.hostnames = {1: "host1", TARGET: "host2", 3: "host2.b"}
        for each, decided in ((action, state), *more):
            runner.last_look.take(decided, asyncio.get_running_loop().time())
            runner.begin(each)
            while runner.busy:
                await asyncio.sleep(0.001)
            assert len(runner.take_outcomes()) == 1
        return world.told

    return asyncio.run(run())


def quick(**changed: Any) -> AgentState:
    """A takeover under way, whose readings of the power need not be far apart."""
    rules = replace(RULES, timing=replace(RULES.timing, power_reread=0.001))
    return replace(state_of(takeover=replace(TAKES, **changed)), rules=rules)


def test_the_storage_is_told_which_names_are_other_hosts() -> None:
    world = World()
    done(world, FREE, state_of(takeover=FREES))
    assert world.others == ("host1", "host2.b")


def test_what_a_freed_host_held_is_cut_by_a_proof_of_its_own() -> None:
    """The reading that the freeing went by is older than what was found."""
    told = done(World(), FREE, state_of(takeover=FREES))
    assert told == ["free", "find host2", "power", "cut its client"]


@pytest.mark.parametrize(
    "power",
    [
        replace(OFF, power=Power.ON),
        replace(OFF, power=Power.UNKNOWN),
        replace(OFF, identity_proven=False),
    ],
)
def test_nothing_is_cut_where_the_host_is_not_proven_off(power: PowerAnswer) -> None:
    assert done(World([power]), FREE, state_of(takeover=FREES)) == ["free", "find host2", "power"]


def test_nothing_is_cut_where_the_id_was_not_freed() -> None:
    assert done(World(freed=False), FREE, state_of(takeover=FREES)) == ["free"]


def test_nothing_is_cut_where_the_takeover_was_withdrawn() -> None:
    state = state_of(takeover=replace(FREES, withdrawn="it lives"))
    assert "cut its client" not in done(World(), FREE, state)


def test_a_fencer_s_id_that_was_freed_cuts_nothing() -> None:
    """This host does not hold the fence lease then."""
    act = replace(FREE, host_id=3, fencer=True)
    state = state_of(takeover=replace(TAKES, fencer=replace(FREES, host_id=3)))
    assert done(World(), act, state) == ["free"]


def test_a_lease_that_is_given_soon_is_no_reason_to_cut() -> None:
    assert done(World(), TakeFenceLease(), quick()) == []


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "FENCE_LEASE_SLOW_S", 0.0)


class Blocked(World):
    """The first acquire of the fence lease waits for the cut, and a little longer."""

    async def take_fence(self) -> FenceLeaseAnswer:
        while "cut its client" not in self.told:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        return FenceLeaseAnswer(True, NOW_S)


CUT = ["find host2", "power", "power", "cut its client"]


class Starts:
    """The hypervisor of VM 1; it starts at once, and writes that down."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __call__(self, vm: int) -> Starts:
        return self

    async def start(self, what_ran: object, registry: int) -> VmStartEnded:
        self.world.told.append("start")
        return VmStartEnded(StartResult.STARTED)


@pytest.mark.parametrize(
    ("powers", "held", "told"),
    [
        ([OFF], True, ["free", "find host2", "power", "cut its client", "start"]),
        ([replace(OFF, power=Power.ON)], True, ["free", "find host2", "power", "start"]),
        ([OFF], False, ["free", "find host2", "power", "start"]),
    ],
)
def test_a_start_waits_for_what_is_cut_for_the_id_that_was_freed(
    powers: list[PowerAnswer], held: bool, told: list[str]
) -> None:
    """The lease is known to be free as soon as the id is, and the start withdraws the takeover: a
    QEMU that is started then would find the image locked."""

    class Slow(World):
        def find(
            self, host: int, name: str, deadline_s: float, others: Collection[str] = ()
        ) -> tuple[str, ...]:
            time.sleep(0.1)
            return super().find(host, name, deadline_s)

    world = Slow(powers)

    async def run() -> None:
        runner = ActionRunner(
            cast(Hypervisors, Starts(world)),
            cast(Leases, world),
            cast(FenceDevices, world),
            cast(FenceLog, world),
            StorageFence("ceph", world, 5.0),
        )
        runner.hostnames = {TARGET: "host2"}
        clock = asyncio.get_running_loop().time
        runner.last_look.take(state_of(takeover=FREES), clock())
        runner.begin(FREE)
        while "free" not in world.told:
            await asyncio.sleep(0.001)
        world.fence_held = held
        withdrawn = replace(FREES, withdrawn="starting the VM here")
        runner.last_look.take(state_of(takeover=withdrawn), clock())
        runner.begin(StartVm())
        while runner.busy:
            await asyncio.sleep(0.001)

    asyncio.run(run())
    assert world.told == told


@pytest.mark.usefixtures("at_once")
def test_a_lease_that_the_storage_keeps_back_is_helped_by_two_readings() -> None:
    assert done(Blocked(), TakeFenceLease(), quick()) == CUT


@pytest.mark.usefixtures("at_once")
def test_what_was_cut_for_the_lease_is_not_looked_for_behind_the_freeing() -> None:
    told = done(Blocked(), TakeFenceLease(), quick(), (FREE, state_of(takeover=FREES)))
    assert told == [*CUT, "free"]


@pytest.mark.usefixtures("at_once")
def test_it_is_in_the_next_takeover_of_that_host() -> None:
    again = (TakeFenceLease(), quick(taking_fence=False)), (FREE, state_of(takeover=FREES))
    told = done(Blocked(), TakeFenceLease(), quick(), *again)
    assert told == [*CUT, "free", "find host2", "power", "cut its client"]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "last", [replace(OFF, power=Power.ON), replace(OFF, identity_proven=False)]
)
def test_both_readings_must_say_so(last: PowerAnswer) -> None:
    told = done(World([OFF, last], lease_after=2), TakeFenceLease(), quick())
    assert told == ["find host2", "power", "power"]


@pytest.mark.usefixtures("at_once")
def test_a_takeover_that_was_withdrawn_meanwhile_cuts_nothing() -> None:
    told = done(World(lease_after=2), TakeFenceLease(), quick(withdrawn="it lives"))
    assert told == ["find host2", "power", "power"]


@pytest.mark.usefixtures("at_once")
def test_a_lease_that_is_taken_for_nobody_cuts_nothing() -> None:
    class Slow(World):
        async def take_fence(self) -> FenceLeaseAnswer:
            for _ in range(20):
                await asyncio.sleep(0.001)
            return FenceLeaseAnswer(True, NOW_S)

    assert done(Slow(), TakeFenceLease(), quick(taking_fence=False)) == []


# --- the last look -------------------------------------------------------------------------


def asked(state: AgentState | None, host: int = TARGET, view_ago_s: float = 0.0) -> str:
    async def run() -> str:
        look = LastLook(lambda: False)
        if state is not None:
            look.take(state, asyncio.get_running_loop().time() - view_ago_s)
        return look.still_taking_fence(host)

    return asyncio.run(run())


def test_the_fence_lease_is_still_being_taken_for_that_host_by_one_that_looks_around() -> None:
    """Without the lease, which is what is waited for."""
    assert asked(quick()) == ""
    assert asked(None) == "it is decided no longer"
    assert asked(quick(), host=3) == "it is decided no longer"
    assert asked(quick(taking_fence=False)) == "it is decided no longer"
    assert asked(quick(withdrawn="it lives")) == "it lives"
    late_s = RULES.timing.suspect_after
    assert "not looked around" in asked(quick(), view_ago_s=late_s + 0.01)


# --- a reload ------------------------------------------------------------------------------


class Machines:
    """The hypervisors; they take any configuration."""

    def reconfigure(self, config: Config) -> None:
        pass


def test_a_reload_uses_the_storage_fence_of_the_file_and_a_bad_one_keeps_it(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one names another program, and a third one is not TOML."""
    monkeypatch.setattr("agent.run.fence_devices", lambda config: World())

    def write(name: str) -> None:
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n')
        program.chmod(0o755)
        argv = f'["{program}", "{{action}}", "{{name}}"]'
        site.write_text(f'{text}[storage-fence]\ntype = "command"\nargv = {argv}\n')

    async def run() -> str:
        before = load(str(site))
        runner = ActionRunner(
            cast(Hypervisors, None),
            cast(Leases, World()),
            cast(FenceDevices, World()),
            cast(FenceLog, World()),
            storage_fence(before),
        )
        runner.hostnames = {TARGET: "host2"}
        agent = Agent(RULES, cast(Link, None), runner, "kvm", migration_possible=False)
        machines = cast(LibvirtHypervisors, Machines())
        reload = Reload(str(site), before, load_definition(before), machines, agent)
        write("second")
        assert needs_restart(before, load(str(site))) == []
        reload()
        assert agent.config_problem == ""
        site.write_text("[[[")
        reload()
        assert "is not TOML" in agent.config_problem
        runner.last_look.take(state_of(takeover=FREES), asyncio.get_running_loop().time())
        runner.begin(FREE)
        while runner.busy:
            await asyncio.sleep(0.001)
        return (tmp_path / "calls").read_text()

    text = site.read_text()
    write("first")
    assert asyncio.run(run()) == "second check host2\nsecond cut host2\n"

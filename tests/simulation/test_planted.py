# SPDX-License-Identifier: LGPL-2.1-or-later
"""Breaches that were once planted and went unseen: each is planted again, and seen.

Most are acts that the product does not do and nothing in it can be bent to do, so they are done
in its name, where it would do them (`world.shoots`, `world.began`, the ports).
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from agent.beat import Agent
from agent.fence.driver import always
from broker.lockspace.rejoin import Rejoin
from scoring.decision import Code, FreeHostId
from scoring.hosts import evidence
from scoring.observation import FenceAsk, OrderKind
from scoring.vm import machine, unstoppable
from scoring.vm.turn import VmTurn
from scoring.vm_facts import Health, VmStatus
from tests.simulation.bmc import fence_levels
from tests.simulation.host import Host
from tests.simulation.laws import LATE_S, Broken
from tests.simulation.ports import SimEngineMonitor
from tests.simulation.vm_laws import IDLE_S
from tests.simulation.world import Settings, World

#: Breaches that both a scenario and a seed must see.
both = pytest.mark.parametrize("world", ["scenario", "seed"], indirect=True)


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Three hosts, the VM up and healthy on one of them. As in each scenario one fault is open and
    every beat is stepped; as in a seed, one has ended before it, and what is quiet is passed over.
    """
    world = World(Settings(hosts=3), random.Random(1))
    world.fault_began("test")
    world.power_all_on(1.0)
    world.run(150.0)
    assert owner(world).vm_healthy
    if getattr(request, "param", "scenario") == "seed":
        world.fault_ended()
        world.fault_began("another")
        world.run = functools.partial(world.run, leaps=True)  # type: ignore[method-assign]
    yield world
    world.close()


def owner(world: World) -> Host:
    host = world.owner()
    assert host is not None
    return host


def others(world: World) -> list[Host]:
    return [host for host in world.hosts.values() if host is not owner(world)]


def broken(world: World, law: str, within_s: float = 1.0) -> None:
    """Time passes until that law is broken."""
    with pytest.raises(Broken) as caught:
        world.run(within_s)
    assert caught.value.law == law, caught.value


def shot(world: World, target: Host) -> None:
    """Somebody who holds the fence lease switches a host off."""
    asker = next(host for host in world.hosts.values() if host is not target)
    asker.fence_held = True
    world.shoots(asker, target)


def within(world: World, host: Host, act: Coroutine[Any, Any, Any]) -> None:
    """Something is done on a host, in its agent's name."""
    assert host.loop is not None
    world.timeline.call_within(host.loop, host.processes["agent"].begin, act)


# --- who must not be switched off ------------------------------------------------------------


@both
def test_an_owner_whose_agent_alone_is_dead(world: World) -> None:
    """The owner's broker writes and answers, and its VM is healthy."""
    target = owner(world)
    target.agent_wanted = False
    target.crash("agent")
    world.run(60.0)
    assert target.vm_healthy
    shot(world, target)
    broken(world, "fenced")


@both
def test_an_owner_without_daemons_whose_sanlock_renews(world: World) -> None:
    target = owner(world)
    world.wish_daemons(target, False)
    world.run(60.0)
    assert target.vm_healthy
    shot(world, target)
    broken(world, "fenced")


@both
@pytest.mark.parametrize("apart_s", [6.0, 12.0])
def test_an_owner_whose_kernel_outlived_its_daemons(world: World, apart_s: float) -> None:
    """The daemons die, then the cable breaks: the host's renewal is not old enough, whatever else
    is."""
    target = owner(world)
    world.wish_daemons(target, False)
    world.run(apart_s)
    target.network_up, target.gateway_answers = False, 0.0
    world.run(11.0)
    assert target.vm_healthy
    shot(world, target)
    broken(world, "fenced")


def test_an_owner_whose_kernel_answers_while_its_storage_hangs(world: World) -> None:
    """The owner's daemons are dead, and its last renewal is younger than sanlock's patience."""
    target = owner(world)
    world.wish_daemons(target, False)
    target.break_storage("hang")
    world.run(12.0)
    shot(world, target)
    broken(world, "fenced")


def test_a_kernel_that_is_not_asked_is_a_breach(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes each silent broker for a machine that hangs shoots the living."""
    monkeypatch.setattr(evidence, "why_not_hung", lambda *given: "")
    world.wish_daemons(owner(world), False)
    with pytest.raises(Broken, match="fenced"):
        world.run(40.0)


def test_an_owner_with_slow_storage_and_no_network(world: World) -> None:
    """Slow is not silent: each of its writes lands."""
    target = owner(world)
    target.network_up, target.gateway_answers = False, 0.0
    target.break_storage("slow", 1.0)
    world.run(20.0)
    assert target.vm_healthy
    shot(world, target)
    broken(world, "fenced")


@both
def test_an_owner_that_a_third_host_hears(world: World) -> None:
    """The link to the one who shoots is cut, and its storage hangs."""
    target = owner(world)
    asker, _ = others(world)
    world.cut_links.add((asker.number, target.number))
    target.break_storage("hang")
    world.run(20.0)
    shot(world, target)
    broken(world, "fenced")


def test_the_earlier_version_is_not_judged_by_what_a_third_host_hears(world: World) -> None:
    """The earlier version does not ask the other hosts: the law is younger than it."""
    target = owner(world)
    asker, _ = others(world)
    world.cut_links.add((asker.number, target.number))
    target.break_storage("hang")
    world.run(30.0)
    asker.decides_earlier = asker.fence_held = True
    world.shoots(asker, target)
    assert "can be heard" not in str(world.laws.broken)


def test_an_owner_without_daemons_whose_sanlock_renews_slowly(world: World) -> None:
    """Each renewal takes three seconds to the volume, and lands."""
    target = owner(world)
    world.wish_daemons(target, False)
    target.break_storage("slow", 3.0, ("leases",))
    world.run(60.0)
    assert target.vm_healthy
    assert target.renews_since_s() is not None
    shot(world, target)
    broken(world, "fenced")


def test_a_host_that_was_heard_too_lately(world: World) -> None:
    """The host hangs, but not for long enough: its slot was written within the window."""
    target = owner(world)
    target.freeze(50.0)
    world.run(8.0)
    shot(world, target)
    broken(world, "fenced")


def test_a_host_that_hangs_may_be_switched_off(world: World) -> None:
    """The checkers are not content with nothing: this one is nobody's breach."""
    target = owner(world)
    target.freeze(50.0)
    world.run(30.0)
    assert [shot.target for shot in world.shots] == [target.name]


def test_an_owner_without_storage_whose_vm_is_well_and_cannot_be_ended(world: World) -> None:
    """The VM's disk is elsewhere: that its process could not be ended is no reason to end it."""
    target = owner(world)
    target.qemu_unkillable = True
    target.break_storage("hang", parts=("whiteboard", "leases"))
    world.run(40.0)
    assert target.vm_healthy
    shot(world, target)
    broken(world, "fenced")


def test_an_owner_without_storage_whose_sick_vm_cannot_be_ended(world: World) -> None:
    """The checkers are not content with nothing: this one runs nothing of use any more."""
    target = owner(world)
    target.qemu_unkillable = True
    target.break_storage("hang")
    world.run(60.0)
    assert [shot.target for shot in world.shots] == [target.name]


# --- who asks to be switched off -------------------------------------------------------------


def asks_with_reason(world: World) -> Host:
    """The owner asks to be switched off, and with reason; nobody does it."""
    target = owner(world)
    for host in others(world):
        world.wish_daemons(host, False)
    target.qemu_unkillable = True
    assert target.qemu is not None
    target.qemu.is_hung = True
    world.run(700.0)
    return target


def test_a_host_that_asks_with_reason_may_be_switched_off(world: World) -> None:
    target = asks_with_reason(world)
    shot(world, target)
    world.run(1.0)


def test_a_host_that_asks_although_its_vm_is_well(world: World) -> None:
    """The host's word alone is not enough."""
    target = asks_with_reason(world)
    assert target.qemu is not None
    target.qemu.is_hung = False
    shot(world, target)
    broken(world, "fenced")


def test_a_host_that_asks_although_its_vm_can_be_ended(world: World) -> None:
    target = asks_with_reason(world)
    target.qemu_unkillable = False
    shot(world, target)
    broken(world, "fenced")


def test_a_host_with_a_sick_vm_that_does_not_ask(world: World) -> None:
    """A sick VM alone is not enough either: its host must ask."""
    target = owner(world)
    target.qemu_unkillable = True
    assert target.qemu is not None
    target.qemu.is_hung = True
    world.run(200.0)
    shot(world, target)
    broken(world, "fenced")


def test_a_host_that_asks_and_is_put_into_maintenance(world: World) -> None:
    target = asks_with_reason(world)
    world.set_local_maintenance(target, True)
    shot(world, target)
    broken(world, "fenced")


@pytest.mark.parametrize("what", ["all", "not announced", "another's lease"])
def test_a_fencer_is_freed_without_a_trace(world: World, what: str) -> None:
    """The fencer was off, and nothing of it is left; but a fencer that is back would not know of
    the write."""
    host, target = others(world)
    target.power_off("test")
    world.run(3.0)
    delta = world.leases.delta(target.host_id)
    fence = world.leases.resources["fence"]
    fence.owner, fence.generation = target.host_id, delta.generation
    if what == "another's lease":
        fence.owner = owner(world).host_id
    assert host.loop is not None
    read_s = host.loop.time()
    act = FreeHostId(target.host_id, delta.generation, delta.timestamp, read_s, fencer=True)
    if what != "not announced":
        broker = world.brokers[host.number]
        broker.this_host.agent.freeing = lambda: (target.host_id, True)  # type: ignore[method-assign]
        world.run(2.0)
    world.freeing(host, act)
    if what == "all":
        world.run(1.0)
    else:
        broken(world, "freed-off")


def test_a_host_whose_ask_is_not_true_of_its_patience(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product asks at once, and the others believe it."""
    monkeypatch.setattr(unstoppable, "_has_to_ask", lambda *_: True)
    target = owner(world)
    target.qemu_unkillable = True
    assert target.qemu is not None
    target.qemu.is_hung = True
    broken(world, "fenced", 700.0)


def test_the_word_of_a_broker_whose_agent_lives(world: World) -> None:
    target = owner(world)
    target.stopped_until_s = 0.0
    assert target.qemu is not None
    target.qemu.is_hung = True
    world.run(100.0)
    broker = world.brokers[target.number]
    word = FenceAsk(agent_dead_s=5000.0, bad_s=5000.0)
    broker.this_host.sick_vm.ask = lambda *_: word  # type: ignore[method-assign]
    # The others may take it at its word before we do it in their name.
    with pytest.raises(Broken, match="law 'fenced'"):
        world.run(3.0)
        shot(world, target)
        world.run(1.0)


# --- global maintenance, with what once hid the breach ----------------------------------------


def refused_order(world: World, host: Host) -> None:
    """Global maintenance is set, and an order that is refused for it."""
    world.set_global_maintenance(True)
    world.run(10.0)
    world.order(host, OrderKind.MIGRATE)
    world.run(3.0)


@both
@pytest.mark.parametrize("act", ["start", "switch a host off"])
def test_global_after_a_refused_order(world: World, act: str) -> None:
    host = owner(world)
    refused_order(world, host)
    world.began(host, act)
    broken(world, "global")


def test_global_after_an_order_of_another_kind(world: World) -> None:
    """Who was told to start the VM was not told to switch anybody off."""
    host = owner(world)
    world.set_global_maintenance(True)
    world.run(10.0)
    world.order(host, OrderKind.START)
    world.began(host, "switch a host off")
    broken(world, "global")


def test_global_where_a_host_is_switched_on(world: World) -> None:
    """Through the port."""
    asker, target = owner(world), others(world)[0]
    target.power_off("test")
    world.set_global_maintenance(True)
    world.run(10.0)
    devices = fence_levels(world, asker, 8.0)
    within(world, asker, devices.power_on(target.host_id, target.system_uuid, always))
    broken(world, "global")


def test_switched_on_where_a_person_switched_it_off(world: World) -> None:
    """He may have his hands in it; and the cluster has not meant to switch it off."""
    asker, target = owner(world), others(world)[0]
    target.power_off("by hand")
    asker.fence_held = True
    devices = fence_levels(world, asker, 8.0)
    within(world, asker, devices.power_on(target.host_id, target.system_uuid, always))
    broken(world, "switched-on")


@both
@pytest.mark.parametrize("act", ["start", "switch a host off", "switch a host on"])
def test_global_on_a_host_with_slow_storage(world: World, act: str) -> None:
    """The host reads slowly, but it reads."""
    host = others(world)[0]
    host.break_storage("slow", 0.5)
    world.run(5.0)
    world.set_global_maintenance(True)
    world.run(20.0)
    world.began(host, act)
    broken(world, "global")


def test_what_was_ordered_may_be_done_in_global_maintenance(world: World) -> None:
    """An operator's own order is no breach."""
    host = owner(world)
    world.set_global_maintenance(True)
    world.run(10.0)
    world.order(host, OrderKind.SHUTDOWN)
    world.run(30.0)
    assert world.owner() is None


@both
def test_local_where_the_vm_is_moved_to(world: World) -> None:
    target = others(world)[0]
    world.set_local_maintenance(target, True)
    world.run(10.0)
    world.migrate(owner(world), target.name)
    broken(world, "local")


# --- rest, and none ---------------------------------------------------------------------------


@both
def test_quiet_where_the_process_ends(world: World) -> None:
    world.fault_ended()
    world.run(world.bound_s() + 5.0, leaps=True)
    owner(world).end_qemu("planted", VmStatus.DOWN, "shut down")
    broken(world, "quiet")


def test_quiet_within_a_scenario(world: World) -> None:
    """A scenario's fault is open from its first line to its last: what counts is that all hosts are
    fit."""
    world.run(world.bound_s() + 5.0)
    world.began(owner(world), "migrate")
    broken(world, "quiet")


@both
def test_up_in_the_middle_of_a_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody starts the VM, and faults go on elsewhere."""
    monkeypatch.setattr(machine, "may_start_here", lambda turn: False)
    owner(world).power_off("test")
    broken(world, "up", IDLE_S + 100.0)


@both
def test_up_where_it_is_sick_and_nothing_is_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that takes every guest for a healthy one."""

    async def good(monitor: SimEngineMonitor) -> tuple[Health, str | None]:
        return Health.GOOD, None

    monkeypatch.setattr(SimEngineMonitor, "_health", good)
    monkeypatch.setattr(machine, "must_end", lambda turn: False)
    qemu = owner(world).qemu
    assert qemu is not None
    qemu.is_hung = True
    broken(world, "up", IDLE_S + 100.0)


# --- a VM without its lease --------------------------------------------------------------------


def started_past_the_lock_driver(world: World) -> Host:
    world.set_global_maintenance(True)
    world.run(5.0)
    owner(world).end_qemu("test", VmStatus.DOWN, "powered off")
    host = world.hosts[1]
    world.start_by_hand(host, locked=False)
    world.run(5.0)
    world.set_global_maintenance(False)
    return host


def test_leased_where_a_host_says_nothing_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    because = VmTurn.because

    def silent(turn: VmTurn, code: Code, text: str) -> None:
        if code is not Code.VM_UNPROTECTED:
            because(turn, code, text)

    monkeypatch.setattr(VmTurn, "because", silent)
    started_past_the_lock_driver(world)
    broken(world, "leased", 60.0)


def test_leased_where_it_had_the_lease_and_lost_it(world: World) -> None:
    """Who started it is no excuse any more."""
    host = started_past_the_lock_driver(world)
    world.run(60.0)
    assert host.qemu is not None and host.qemu.by_hand
    host.pause_qemu()
    host.resume_qemu(0.0)
    host.qemu.has_lease = False
    world.vm_changed(host)
    broken(world, "leased")


# --- laws 7 and 8 -----------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["start", "shut down", "power off", "migrate"])
def test_unanswered_by_libvirt(world: World, act: str) -> None:
    """Nobody knows what the VM does there."""
    host = others(world)[0]
    host.libvirt_hangs = True
    world.run(15.0)
    world.began(host, act)
    broken(world, "unanswered")


@pytest.mark.parametrize("act", ["start", "switch a host off"])
def test_unanswered_by_the_storage(world: World, act: str) -> None:
    host = others(world)[0]
    host.break_storage("hang")
    world.run(15.0)
    world.began(host, act)
    broken(world, "unanswered")


@pytest.mark.parametrize("part", ["whiteboard", "leases"])
def test_unanswered_by_a_part_of_the_storage(world: World, part: str) -> None:
    host = others(world)[0]
    host.break_storage("hang", parts=(part,))
    world.run(15.0)
    world.began(host, "start")
    broken(world, "unanswered")


def test_beat_that_waits_for_a_hung_call(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Agent.step

    async def waits(agent: Agent) -> None:
        await asyncio.sleep(LATE_S + 5.0)
        await step(agent)

    monkeypatch.setattr(Agent, "step", waits)
    broken(world, "beat", 30.0)


@pytest.mark.parametrize("fault", ["hang", "error"])
def test_beat_goes_on_while_the_storage_hangs(world: World, fault: str) -> None:
    """The checker is not content with nothing: this is what the product is built for."""
    host = others(world)[0]
    host.libvirt_hangs = True
    host.break_storage(fault)
    world.run(60.0)


# --- a host id that is taken back too soon ---------------------------------------------------


def test_sanlock_that_is_asked_at_once_on_the_same_boot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sanlock died and was started anew; with its fixed name it takes the id back, which frees the
    lease that the QEMU of before still uses. Then the daemons die."""
    monkeypatch.setattr(Rejoin, "look", lambda rejoin, lease, now_s, process: "")
    target = owner(world)
    target.crash_sanlock()
    world.run(8.0)
    target.daemons_wanted = False
    target.crash("broker")
    target.crash("agent")
    broken(world, "not-down", 20.0)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each law on several VMs is seen to catch a breach that is planted: done in an agent's name, where
an agent would do it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from broker.peers import vm_places
from broker.peers.vm_place import SeenHost, VmPlace
from broker.wire.exchange import Report, VmReportOnWire
from scoring.decision import Code
from scoring.hosts.liveness import Liveness
from scoring.vm.state import StateName
from scoring.vm.turn import VmTurn
from scoring.vm_facts import Pause, VmStatus, Want
from tests.simulation import vm_laws
from tests.simulation.host import Host
from tests.simulation.laws import Broken
from tests.simulation.vm_laws import ALONE_S, NOTICE_S, ROOM_KEPT_S, WELL_BEFORE_S
from tests.simulation.vm_ports import SimVmsMonitor
from tests.simulation.vms import Vms
from tests.simulation.world import Settings, World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Three hosts of 16 GiB, the engine up on one; no agent knows of another VM, so that what is
    done to it is the test's doing. What an agent would claim is not asked."""
    monkeypatch.setattr(Vms, "must_claim", False)
    monkeypatch.setattr(Vms, "_let_brokers_read", lambda self: None)
    world = World(Settings(hosts=3, memory_mb=16_384), random.Random(1))
    world.fault_began("test")
    world.power_all_on(1.0)
    world.run(150.0)
    owner = world.owner()
    assert owner is not None and owner.vm_healthy
    yield world
    world.close()


def add(world: World, name: str, **fields: Any) -> int:
    """A VM that everybody has known for a while."""
    world.vms.change(name, **fields)
    world.run(NOTICE_S + 1.0)
    number = world.vms.named(name)
    assert number is not None
    return number


def up(world: World, host: Host, vm: int, healthy: bool = True) -> None:
    """Have the VM run there without a start by the product."""
    host.create_qemu(vm=vm)
    host.resume_qemu(world.timeline.now_s if healthy else float("inf"), vm)
    world.run(NOTICE_S)


def broken(world: World, law: str, within_s: float = 1.0) -> None:
    """Time passes until that law is broken."""
    with pytest.raises(Broken) as caught:
        world.run(within_s)
    assert caught.value.law == law, caught.value


def hosts(world: World) -> list[Host]:
    """The one that runs the engine first."""
    return sorted(world.hosts.values(), key=lambda host: not host.runs_vm)


def test_a_host_whose_sanlock_renews_for_a_vm_beside_the_engine(world: World) -> None:
    """The host's daemons are dead, the VM is well there, and its id was renewed a moment ago."""
    asker, target = hosts(world)[:2]
    vm = add(world, "db", memory_mb=1024)
    up(world, target, vm)
    world.wish_daemons(target, False)
    world.run(60.0)
    while world.timeline.now_s - target.sanlock_answers().last_renewal_s > 2.0:
        world.run(1.0)
    assert target.is_healthy(vm) and not target.runs_vm
    asker.fence_held = True
    world.shoots(asker, target)
    broken(world, "fenced")


def test_a_vm_that_runs_twice(world: World) -> None:
    vm = add(world, "db", memory_mb=1024)
    _, one, other = hosts(world)
    up(world, one, vm)
    qemu = other.create_qemu(vm=vm)
    qemu.running = qemu.has_lease = True
    other.watch.vm_changed(other, vm)
    broken(world, "one-vm")


def test_a_vm_without_its_lease(world: World) -> None:
    vm = add(world, "db", memory_mb=1024)
    one = hosts(world)[1]
    one.create_qemu(vm=vm).running = True
    one.watch.vm_changed(one, vm)
    broken(world, "leased")


@pytest.mark.parametrize("is_well", [True, False])
def test_a_host_that_asks_to_be_switched_off_beside_another_vm(world: World, is_well: bool) -> None:
    vm = add(world, "db", memory_mb=1024)
    target, *rest = hosts(world)
    up(world, target, vm)
    for host in rest:
        world.wish_daemons(host, False)
    target.qemu_unkillable = True
    assert target.qemu is not None
    target.qemu.is_hung = True
    world.run(700.0)
    if not is_well:
        target.qemus[vm].is_hung = True
        world.run(NOTICE_S)
    rest[0].fence_held = True
    world.shoots(rest[0], target)
    if is_well:
        broken(world, "fenced")
    else:
        world.run(1.0)


def test_the_lease_of_one_vm_does_not_protect_another(world: World) -> None:
    """Two VMs may run on two hosts; each has a lease of its own."""
    db, web = add(world, "db", memory_mb=1024), add(world, "web", memory_mb=1024)
    _, one, other = hosts(world)
    up(world, one, db)
    up(world, other, web)
    resources = world.leases.resources
    assert (resources["vm-2"].owner, resources["vm-3"].owner) == (one.host_id, other.host_id)


def test_a_start_before_its_time(world: World) -> None:
    sso = add(world, "sso", memory_mb=1024)
    db = add(world, "db", memory_mb=1024, after=(sso,))
    _, one, other = hosts(world)
    up(world, one, sso, healthy=False)
    world.began(other, "start", db)
    broken(world, "order")


def test_a_start_after_what_it_waits_for(world: World) -> None:
    """A start is right when the other VM is healthy, is wanted down, or was waited for."""
    sso = add(world, "sso", memory_mb=1024)
    db = add(world, "db", memory_mb=1024, after=(sso,))
    _, one, other = hosts(world)
    up(world, one, sso)
    world.began(other, "start", db)
    world.run(1.0)
    one.qemus[sso].is_hung = True
    world.run(200.0)
    world.began(other, "start", db)
    world.run(1.0)


def test_a_start_into_memory_that_is_not_there(world: World) -> None:
    big, db = add(world, "big", memory_mb=12_000), add(world, "db", memory_mb=4096)
    _, one, _ = hosts(world)
    up(world, one, big)
    world.began(one, "start", db)
    broken(world, "room")


def test_a_vm_that_may_overcommit_may(world: World) -> None:
    big = add(world, "big", memory_mb=12_000)
    db = add(world, "db", memory_mb=4096, overcommit=True)
    _, one, _ = hosts(world)
    up(world, one, big)
    world.began(one, "start", db)
    world.run(1.0)


def test_a_move_into_memory_that_is_not_there(world: World) -> None:
    """What is on its way there takes room already."""
    big, db = add(world, "big", memory_mb=9000), add(world, "db", memory_mb=7000)
    owner, one, other = hosts(world)
    up(world, one, big)
    up(world, owner, db)
    world.migrate(one, other.name, big)
    world.migrate(owner, other.name, db)
    broken(world, "room")


def test_a_start_beside_what_must_be_apart(world: World) -> None:
    web1 = add(world, "web1", memory_mb=1024)
    web2 = add(world, "web2", memory_mb=1024, apart=(web1,))
    _, one, _ = hosts(world)
    up(world, one, web1)
    world.began(one, "start", web2)
    broken(world, "rules")


def test_a_start_away_from_what_must_be_together(world: World) -> None:
    web = add(world, "web", memory_mb=1024)
    cache = add(world, "cache", memory_mb=1024, together=(web,))
    _, one, other = hosts(world)
    up(world, one, web)
    world.began(other, "start", cache)
    broken(world, "rules")


def pair(world: World) -> tuple[int, int]:
    """Two VMs that must be together, and are."""
    web = add(world, "web", memory_mb=1024)
    cache = add(world, "cache", memory_mb=1024, together=(web,))
    one = hosts(world)[1]
    up(world, one, web)
    up(world, one, cache)
    return web, cache


def test_a_pair_leaves_a_host_that_is_drained_one_by_one(world: World) -> None:
    web, cache = pair(world)
    _, one, other = hosts(world)
    world.set_local_maintenance(one, True)
    world.run(5.0)
    for vm in (web, cache):
        world.laws.moves(one, other, vm)
        world.migrate(one, other.name, vm)
        world.run(20.0)
    assert other.runs(web) and other.runs(cache)


def test_one_of_a_pair_that_leaves_its_mate(world: World) -> None:
    """Nothing drives it out."""
    web, _ = pair(world)
    _, one, other = hosts(world)
    world.laws.moves(one, other, web)
    broken(world, "rules")


def test_a_pair_that_is_drained_to_two_hosts(world: World) -> None:
    web, cache = pair(world)
    owner, one, other = hosts(world)
    world.set_local_maintenance(one, True)
    world.run(5.0)
    world.migrate(one, other.name, web)
    world.run(20.0)
    world.laws.moves(one, owner, cache)
    broken(world, "rules")


def test_a_start_on_a_host_that_is_not_its_own(world: World) -> None:
    _, one, other = hosts(world)
    db = add(world, "db", memory_mb=1024, only=(one.host_id,))
    world.began(other, "start", db)
    broken(world, "rules")


def test_a_start_of_what_is_wanted_down(world: World) -> None:
    db = add(world, "db", memory_mb=1024, want=Want.DOWN)
    world.began(hosts(world)[1], "start", db)
    broken(world, "rules")


def test_a_start_that_nobody_was_told_of(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vms, "must_claim", True)
    db = add(world, "db", memory_mb=1024)
    world.began(hosts(world)[1], "start", db)
    broken(world, "claimed")


def test_a_vm_that_goes_here_and_there(world: World) -> None:
    db = add(world, "db", memory_mb=1024)
    _, one, other = hosts(world)
    up(world, one, db)
    world.migrate(one, other.name, db)
    world.run(20.0)
    assert world.vms.moves[db] == 1 and other.runs(db)
    world.migrate(other, one.name, db)
    broken(world, "still")


def test_a_vm_that_is_drained_may_go_on(world: World) -> None:
    db = add(world, "db", memory_mb=1024)
    _, one, other = hosts(world)
    up(world, one, db)
    world.migrate(one, other.name, db)
    world.run(20.0)
    world.set_local_maintenance(other, True)
    world.migrate(other, one.name, db)
    world.run(20.0)
    assert world.vms.moves[db] == 2


def test_a_vm_that_nobody_starts_though_it_could_be(world: World) -> None:
    add(world, "db", memory_mb=1024)
    broken(world, "alone", WELL_BEFORE_S + ALONE_S + 5.0)


def test_a_vm_that_has_no_place_is_not_waited_for(world: World) -> None:
    add(world, "db", memory_mb=60_000)
    world.run(WELL_BEFORE_S + ALONE_S + 5.0)


def test_a_missing_engine_takes_its_room_first(world: World) -> None:
    """A VM that has no room beside it is not waited for (seed 521 of a260011)."""
    owner, *others = hosts(world)
    sso = add(world, "sso", memory_mb=1024)
    for host in others:
        host.power_off("cut")
    world.vms.change("sso", memory_mb=int(owner.free_memory_mb))
    assert sso in world.laws.vms.true_plan().order, "beside the engine that runs"
    owner.end_qemu("killed", VmStatus.DOWN_UNEXPECTED, "crashed")
    assert sso in world.laws.vms.true_plan().order, "beside the engine that comes back"
    assert owner.total_mb is not None
    owner.total_mb -= 1024.0
    assert sso in world.laws.vms.true_plan().short


def test_the_room_of_a_vm_that_left_is_kept_for_a_while(world: World) -> None:
    """A host waits for a VM that was shut down there to show up elsewhere, before it stands back
    from it and gives its room away (seed 140 of a93b380)."""
    _, one, _ = hosts(world)
    db = add(world, "db", memory_mb=12_000, priority=80, only=(one.host_id,))
    add(world, "web", memory_mb=12_000, priority=10, only=(one.host_id,))
    world.run(WELL_BEFORE_S)
    world.vms.trouble_s[one.number, db] = world.timeline.now_s
    world.run(ROOM_KEPT_S)
    broken(world, "alone", ALONE_S + 5.0)


@pytest.mark.parametrize("what", ["missing", "sick"])
def test_a_vm_that_nobody_helps_while_something_else_is_wrong(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """In the middle of a run, and a third host has no storage all the time."""
    monkeypatch.setattr(vm_laws, "IDLE_S", 200.0)
    db = add(world, "db", memory_mb=1024)
    _, one, other = hosts(world)
    other.break_storage("hang")
    if what == "sick":
        up(world, one, db, healthy=False)
    broken(world, "up", 230.0)


@pytest.mark.parametrize("why", ["wanted down", "global maintenance", "paused", "no place"])
def test_a_vm_that_nobody_has_to_help(
    world: World, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr(vm_laws, "IDLE_S", 100.0)
    db = add(world, "db", memory_mb=60_000 if why == "no place" else 1024)
    _, one, other = hosts(world)
    other.break_storage("hang")
    match why:
        case "wanted down":
            world.vms.change("db", want=Want.DOWN)
        case "global maintenance":
            world.set_global_maintenance(True)
        case "paused":
            up(world, one, db)
            one.qemus[db].pause = Pause.USER
            one.pause_qemu(db)
    world.run(130.0)


def test_a_vm_that_is_not_healthy_in_the_end(world: World) -> None:
    """The VM runs and hangs, and no host acts on it."""
    db = add(world, "db", memory_mb=1024)
    up(world, hosts(world)[1], db, healthy=False)
    world.fault_ended()
    world.run(world.bound_s() + 1.0)
    world.laws.must_be_up()
    broken(world, "placed")


def test_a_healthy_vm_that_is_ended(world: World) -> None:
    db = add(world, "db", memory_mb=1024)
    one = hosts(world)[1]
    up(world, one, db)
    world.run(20.0)
    world.began(one, "power off", db)
    broken(world, "healthy")


def test_the_memory_of_a_host_is_what_its_vms_leave(world: World) -> None:
    """In whole steps, and never below nothing."""
    owner, one, _ = hosts(world)
    big = add(world, "big", memory_mb=9000)
    assert one.free_memory_mb == 15_360 and owner.free_memory_mb == 11_264
    up(world, one, big)
    assert one.free_memory_mb == 6336
    one.memory_mb = 1000.0
    assert one.free_memory_mb == 960


# --- what an agent, a broker or a start says or does of one of several VMs ------------------------


@pytest.fixture
def known() -> Iterator[tuple[World, int, Host]]:
    """Three hosts that know "db": the cluster, its number, and the host that runs it."""
    world = World(Settings(hosts=3, memory_mb=16_384), random.Random(1))
    world.fault_began("test")
    world.power_all_on(1.0)
    world.vms.change("db", memory_mb=1024)
    world.run(200.0)
    vm = world.vms.named("db")
    assert vm is not None
    owner = world.owner(vm)
    assert owner is not None and owner.is_healthy(vm)
    yield world, vm, owner
    world.close()


def test_two_agents_that_call_one_vm_up(
    known: tuple[World, int, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them the same, and not two VMs on two hosts, which is as it should be."""
    world, vm, owner = known
    liar = next(host for host in world.hosts.values() if host is not owner)
    up = StateName.ENGINE_UP.value
    reported = World.reported

    def report(self: World, host: Host, report: Report) -> None:
        if host is liar:
            vms = tuple(replace(one, state=up) for one in report.vms if one.number == vm)
            report = replace(report, vms=vms or (VmReportOnWire(vm, up),))
        reported(self, host, report)

    world.run(30.0)
    monkeypatch.setattr(World, "reported", report)
    broken(world, "two-up", 30.0)


def test_a_vm_that_runs_and_is_called_down(
    known: tuple[World, int, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent is taken for down: only the daemons of its owner are away."""
    world, _, owner = known

    def as_it_was(hosts: Iterable[SeenHost], *_: object) -> VmPlace:
        up = [host for host in hosts if host.vm == "up" and host.liveness is not Liveness.SILENT]
        return VmPlace(True, up[0].host_id) if up else VmPlace(False)

    monkeypatch.setattr(vm_places, "vm_place", as_it_was)
    world.wish_daemons(owner, False)
    broken(world, "not-down", 60.0)


def test_a_vm_without_its_lease_of_which_nothing_is_said(
    known: tuple[World, int, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    because = VmTurn.because

    def silent(turn: VmTurn, code: Code, text: str) -> None:
        if code is not Code.VM_UNPROTECTED:
            because(turn, code, text)

    monkeypatch.setattr(VmTurn, "because", silent)
    world, vm, owner = known
    world.set_global_maintenance(True)
    world.run(10.0)
    owner.end_qemu("by hand", VmStatus.DOWN, "shut down", vm=vm)
    world.run(5.0)
    world.start_by_hand(owner, locked=False, vm=vm)
    world.run(10.0)
    world.set_global_maintenance(False)
    broken(world, "leased", 60.0)


def test_a_vm_that_boots_an_older_disk(
    known: tuple[World, int, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody notices that it goes on in an image that its record does not name."""
    monkeypatch.setattr(SimVmsMonitor, "_compare_disks", lambda self, vm: None)
    world, vm, owner = known
    world.vms.snapshot(owner, vm)
    world.run(20.0)
    owner.end_qemu("crashed", VmStatus.DOWN_UNEXPECTED, "its process died", vm=vm)
    broken(world, "disks", 120.0)

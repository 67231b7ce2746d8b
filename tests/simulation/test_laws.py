# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each checker sees a breach of its law: a bug is planted in product or world, and found."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest

from broker.peers.vm_place import SeenHost, VmPlace
from broker.this_host import place_seen
from broker.wire.exchange import Report
from scoring.decision import FreeHostId
from scoring.hosts.liveness import Liveness
from scoring.vm import drain, gates, health, isolation, left_behind, machine, start
from scoring.vm.state import StateName
from scoring.vm.turn import VmTurn
from scoring.vm_facts import VmStatus
from tests.simulation import ports
from tests.simulation.disks import BASE
from tests.simulation.host import Host
from tests.simulation.laws import Broken
from tests.simulation.lockspace import Daemon
from tests.simulation.world import Settings, World
from tests.unit.builders import replaced


@pytest.fixture
def world() -> Iterator[World]:
    """Three hosts, the VM up and healthy on one of them for half a minute."""
    world = World(Settings(hosts=3), random.Random(1))
    world.fault_began("test")
    world.power_all_on(1.0)
    world.run(150.0)
    assert owner(world).vm_healthy
    yield world
    world.close()


def owner(world: World) -> Host:
    host = world.owner()
    assert host is not None
    return host


def other(world: World) -> Host:
    return next(host for host in world.hosts.values() if host is not owner(world))


def broken(world: World, law: str, within_s: float = 300.0) -> None:
    """Time passes until that law is broken."""
    with pytest.raises(Broken) as caught:
        world.run(within_s)
    assert caught.value.law == law, caught.value


def test_one_vm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """sanlock gives the lease to everyone: the second QEMU is seen the moment it runs."""
    monkeypatch.setattr(Daemon, "_may_take", lambda self, resource: True)
    monkeypatch.setattr(machine, "lease_allows", lambda turn: True)
    owner(world).freeze(30.0)
    broken(world, "one-vm")


def test_planned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that shuts down and stops its VM, though another one could take it."""
    monkeypatch.setattr(drain, "targets", lambda turn: [])
    monkeypatch.setattr(drain, "TARGET_PATIENCE_S", 0.0)
    world.shut_down(owner(world), reboots=True)
    broken(world, "planned", 20.0)


def test_leased(world: World) -> None:
    """A guest that executes while its QEMU has lost the lease."""
    qemu = owner(world).qemu
    assert qemu is not None
    qemu.has_lease = False
    world.laws.vm_changed()
    broken(world, "leased", 1.0)


def test_fresh_of_a_memory_image(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that lets libvirt resume what it finds, after the VM has run elsewhere."""
    monkeypatch.setattr(ports, "FORCE_BOOT", False)
    monkeypatch.setattr(left_behind, "clear", lambda turn: None)
    owner(world).save_qemu()
    world.run(60.0)
    owner(world).power_off("test")
    broken(world, "fresh")


def test_fresh_of_a_paused_vm(world: World) -> None:
    """One that stood still while the VM ran elsewhere is resumed: the lease does not refuse it."""
    first = owner(world)
    first.pause_qemu()
    world.wish_daemons(first, False)
    world.run(60.0)
    owner(world).end_qemu("test", VmStatus.DOWN, "shut down")
    first.resume_qemu(0.0)
    broken(world, "fresh", 1.0)


def test_freed_off_while_it_is_on(world: World) -> None:
    """A BMC of the right machine that lies "off" is beyond what the product can see; we do."""
    victim = owner(world)
    victim.bmc.fault = "says-off"
    victim.break_storage("hang")
    victim.network_up = False
    broken(world, "freed-off")


def test_freed_off_looks_at_the_moment_of_the_proof(world: World) -> None:
    """Off now is not enough: it must have been off when it was read."""
    asker, target = owner(world), other(world)
    assert asker.loop is not None
    target.power_off("test")
    early_s = asker.loop.time() - 5.0
    world.freeing(asker, FreeHostId(target.host_id, 1, 1, early_s))
    broken(world, "freed-off", 1.0)


def test_global(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that does not look at global maintenance."""
    monkeypatch.setattr(gates, "global_maintenance", lambda turn: None)
    monkeypatch.setattr(gates, "usual", lambda turn: None)
    world.set_global_maintenance(True)
    world.run(10.0)
    owner(world).power_off("test")
    broken(world, "global")


def test_local(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that does not look at local maintenance."""
    monkeypatch.setattr(gates, "local_maintenance", lambda turn: None)
    for host in world.hosts.values():
        if host is not owner(world):
            world.set_local_maintenance(host, True)
    monkeypatch.setattr(start, "others", lambda turn: [])
    world.run(10.0)
    owner(world).power_off("test")
    broken(world, "local")


def test_healthy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that shuts the VM down as soon as another host scores more."""
    monkeypatch.setattr(machine, "move", lambda turn: StateName.ENGINE_STOP)
    broken(world, "healthy")


def drained_by_a_restart(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner drains by a stop and a start, and its core stops the VM at once."""
    monkeypatch.setattr(machine, "move", lambda turn: StateName.ENGINE_STOP)
    world.set_local_maintenance(owner(world), True, restart=True)


def test_restarted_where_no_migration_was_tried(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    drained_by_a_restart(world, monkeypatch)
    broken(world, "restarted")


def test_restarted_where_no_other_host_can_start_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = owner(world)
    for other in world.hosts.values():
        if other is not host:
            world.set_local_maintenance(other, True)
    host.move_failed = True
    drained_by_a_restart(world, monkeypatch)
    broken(world, "restarted")


def test_healthy_where_only_the_other_hosts_do_not_reach_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A core that takes its own network for bad: its users reach the VM that it stops."""
    monkeypatch.setattr(isolation, "is_cut_off", lambda turn: True)
    monkeypatch.setattr(isolation, "pause_s", lambda turn, target: 1.0)
    world.guest_closed_to = "hosts"
    broken(world, "healthy")


def test_isolated_where_it_is_the_same_everywhere(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall shuts all hosts out: the VM would be reached nowhere else."""
    monkeypatch.setattr(isolation, "is_cut_off", lambda turn: True)
    monkeypatch.setattr(isolation, "pause_s", lambda turn, target: 1.0)
    world.guest_closed_to = "users"
    broken(world, "isolated")


def test_isolated_where_no_host_has_a_better_network(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A core that believes hosts which are cut off themselves."""
    look = isolation.look

    def credulous(turn: VmTurn) -> isolation.Finding:
        turn.host.live = tuple(replaced(p, way_out=True, uplink_up=True) for p in turn.live)
        turn._there.clear()
        return look(turn)

    monkeypatch.setattr(isolation, "look", credulous)
    monkeypatch.setattr(isolation, "pause_s", lambda turn, target: 1.0)
    for host in world.hosts.values():
        host.unplug(True)
    broken(world, "isolated")


def test_blameless(world: World) -> None:
    """A host id that is freed under a living host: sanlock ends its VM."""
    world.leases.delta(owner(world).host_id).timestamp = 0
    broken(world, "blameless")


def test_two_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that says EngineUp all the time."""
    host = other(world)
    report = Report(3400, StateName.ENGINE_UP.value, (), (), 1)
    for _ in range(3):
        world.laws.reported(host, report)
    monkeypatch.setattr(world, "reported", lambda host, report: None)
    broken(world, "two-up", 30.0)


def test_quiet(world: World) -> None:
    """Something is started long after the last fault."""
    world.fault_ended()
    world.run(world.bound_s() + 5.0, leaps=True)
    world.began(owner(world), "migrate")
    broken(world, "quiet", 1.0)


def test_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody ever starts the VM again."""
    monkeypatch.setattr(machine, "may_start_here", lambda turn: False)
    owner(world).power_off("test")
    world.fault_ended()
    world.run(world.bound_s() + 5.0)
    world.laws.must_be_up()
    broken(world, "up", 1.0)


def test_up_looks_at_the_vm_with_its_users_eyes(world: World) -> None:
    """Healthy, and nobody gets there."""
    world.guest_closed_to = "users"
    world.laws.must_be_up()
    broken(world, "up", 1.0)


def test_clean_sees_a_failed_daemon(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision that raises ends the agent: a bug, whoever starts it again."""

    def fails(turn: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(health, "judge", fails)
    broken(world, "clean", 20.0)


def test_clean_sees_a_task_that_is_left(world: World) -> None:
    """A task that does not end with its process."""
    import asyncio

    async def stays() -> None:
        while True:
            try:
                await asyncio.sleep(3600.0)
            except asyncio.CancelledError:
                continue

    host = owner(world)
    process = host.processes["agent"]
    task = host.loop.create_task(stays()) if host.loop else None
    assert task is not None
    process.own(task)
    world.run(1.0)
    with pytest.raises(Broken, match="tasks left"):
        world.stop()
    task.get_coro().close()


def test_not_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent is taken for down, as it once was: only the daemons of the owner are away."""

    def as_it_was(hosts: Iterable[SeenHost], *_: object) -> VmPlace:
        up = [host for host in hosts if host.vm == "up" and host.liveness is not Liveness.SILENT]
        return VmPlace(True, up[0].host_id) if up else VmPlace(False)

    monkeypatch.setattr(place_seen, "vm_place", as_it_was)
    world.wish_daemons(owner(world), False)
    broken(world, "not-down", 30.0)


def test_not_down_is_not_said_of_a_host_whose_daemons_are_away(world: World) -> None:
    gone = owner(world)
    world.wish_daemons(gone, False)
    for _ in range(60):
        world.run(5.0)
        place = world.told_place(other(world))
        assert place is not None and place.up is not False
    assert place is not None and (place.up, place.likely) == (None, gone.host_id)
    assert "its sanlock renews" in place.known
    assert place.known.endswith("the VM most likely runs there")


def test_disks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this product did: a start of the definition, whatever ran last."""
    monkeypatch.setattr(ports, "started_image", lambda what_ran: BASE)
    world.snapshot(owner(world), shared=True)
    world.run(5.0)
    owner(world).power_off("test")
    broken(world, "disks")


def test_freed_off_when_the_write_lands_late(world: World) -> None:
    """Off when it began is not enough: its host must not be back when it lands."""
    fencer, target = owner(world), other(world)
    world.freed(fencer, FreeHostId(target.host_id, 1, 1, 0.0))
    broken(world, "freed-off", 1.0)

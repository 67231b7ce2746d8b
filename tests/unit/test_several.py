# SPDX-License-Identifier: LGPL-2.1-or-later
"""Several hosts decide about several VMs: placing, claiming, the order of starts, moves."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from scoring.observation import Order, OrderKind
from scoring.vm.state import StateName
from scoring.vm_facts import ENGINE, VmSpec, Want
from tests.fakes.hosts import Hosts, in_state

LONG = 650


def vm(number: int, memory_mb: int = 1024, **rules: object) -> VmSpec:
    return VmSpec(number, f"vm{number}", memory_mb, **rules)  # type: ignore[arg-type]


def started(hosts: Hosts) -> list[int]:
    return [vm for _, vm, _ in hosts.starts]


def codes(hosts: Hosts, host: int, vm: int) -> set[str]:
    last = hosts.hosts[host].last
    assert last is not None
    return {reason.code.value for reason in last.reasons if reason.vm == vm}


def test_a_cluster_that_begins_starts_each_vm_once_and_in_order() -> None:
    db, sso, web = vm(2, priority=90), vm(3, after=(2,)), vm(4, after=(3,))
    hosts = Hosts((db, sso, web), {1: 8192, 2: 8192, 3: 8192})
    hosts.run(40)
    assert sorted(started(hosts)) == [1, 2, 3, 4]
    at_s = {vm: at_s for at_s, vm, _ in hosts.starts}
    assert at_s[2] + 5 <= at_s[3] and at_s[3] + 5 <= at_s[4]
    assert sorted(hosts.where()) == [1, 2, 3, 4]


def test_a_new_vm_is_not_started_while_a_host_may_run_it_unasked() -> None:
    """Somebody added it while libvirt ran it on host 3, without a lease: a start elsewhere before
    that host has read the registry would be the second one."""
    hosts = Hosts((vm(2),), {1: 8192, 2: 8192, 3: 8192})
    hosts.hosts[3].vms[2] = 0.0
    hosts.hosts[3].has_read = False
    hosts.run(10)
    assert started(hosts) == [1] and "not-enough-data" in codes(hosts, 1, 2)
    hosts.hosts[3].has_read = True
    hosts.run(30)
    assert started(hosts) == [1] and hosts.where()[2] == 3


def test_a_host_that_never_reads_the_registry_keeps_no_vm_down() -> None:
    hosts = Hosts((vm(2),), {1: 8192, 2: 8192, 3: 8192})
    hosts.hosts[3].has_read = False
    hosts.run(14)
    assert 2 not in started(hosts)
    hosts.run(10)
    assert 2 in started(hosts)
    hosts.die(hosts.where()[2])
    began_s = hosts.now_s
    hosts.run(14)
    assert hosts.starts[-1][1] == 2, "one that ran before is known to all"
    assert hosts.starts[-1][0] - began_s < 14


def test_all_vms_of_a_dead_host_are_spread_over_the_others() -> None:
    hosts = Hosts(tuple(vm(n, 2048) for n in range(2, 8)), {1: 16384, 2: 8192, 3: 8192})
    for number in range(1, 8):
        hosts.put(number, 1)
    hosts.run(10)
    assert hosts.starts == []
    hosts.die(1)
    hosts.run(15)
    where = hosts.where()
    assert sorted(where) == list(range(1, 8)) and set(where.values()) == {2, 3}
    assert len(hosts.starts) == 7
    assert max(at_s for at_s, _, _ in hosts.starts) - min(at_s for at_s, _, _ in hosts.starts) <= 4


def test_no_more_is_started_than_memory_is_there_and_the_most_urgent_has_it() -> None:
    specs = tuple(vm(n, 2048, priority=n * 10) for n in range(2, 8))
    hosts = Hosts(specs, {1: 16384, 2: 5120, 3: 4096})
    for number in range(1, 8):
        hosts.put(number, 1)
    hosts.run(5)
    hosts.die(1)
    hosts.run(60)
    assert all(hosts.free_mb(host) >= 0 for host in hosts.hosts.values())
    assert sorted(hosts.where()) == [1, 4, 5, 6, 7]
    assert "no-place" in codes(hosts, 2, 2) and "no-place" in codes(hosts, 3, 3)


def test_a_vm_goes_on_without_what_it_comes_after() -> None:
    hosts = Hosts((vm(2), vm(3, after=(2,))), {1: 8192, 2: 8192})
    hosts.sick.add(2)
    hosts.run(100)
    assert 3 not in started(hosts) and "after-waiting" in codes(hosts, 1, 3) | codes(hosts, 2, 3)
    hosts.run(120)
    assert 3 in started(hosts)


def test_what_has_no_place_is_not_waited_for() -> None:
    hosts = Hosts((vm(2, 65536), vm(3, after=(2,))), {1: 8192, 2: 8192})
    hosts.run(20)
    assert 3 in started(hosts) and 2 not in started(hosts)


def test_rules_of_place_are_kept() -> None:
    specs = (vm(2, apart=(3,)), vm(3), vm(4, together=(3,)), vm(5, only=(2,)))
    hosts = Hosts(specs, {1: 8192, 2: 8192, 3: 8192})
    hosts.run(30)
    where = hosts.where()
    assert where[2] != where[3] and where[4] == where[3] and where[5] == 2
    hosts.die(2)
    hosts.run(30)
    assert 5 not in hosts.where()


def test_a_vm_is_not_parted_from_one_that_may_run_on_a_silent_host() -> None:
    """Nobody reports the VM of a host that is silent; the lease says that it may run there."""
    hosts = Hosts((vm(2), vm(3, together=(2,), want=Want.DOWN)), {1: 8192, 2: 8192, 3: 8192})
    hosts.put(ENGINE, 1)
    hosts.put(2, 2)
    hosts.run(5)
    hosts.fall_silent(2)
    hosts.run(15)
    hosts.specs[3] = vm(3, together=(2,))
    hosts.run(40)
    assert started(hosts) == []
    assert "together-waiting" in codes(hosts, 1, 3) | codes(hosts, 3, 3)
    hosts.die(2)
    hosts.run(20)
    where = hosts.where()
    assert sorted(started(hosts)) == [2, 3] and where[2] == where[3]


def test_a_vm_is_not_started_beside_one_that_may_run_here() -> None:
    """libvirt does not tell the state of the VM from which it must be apart."""
    hosts = Hosts((vm(2), vm(3, apart=(2,), only=(1,), want=Want.DOWN)), {1: 8192, 2: 8192})
    hosts.put(ENGINE, 2)
    hosts.put(2, 1)
    hosts.run(5)
    hosts.hosts[1].unknown.add(2)
    hosts.specs[3] = vm(3, apart=(2,), only=(1,))
    hosts.run(40)
    assert started(hosts) == [] and "apart-waiting" in codes(hosts, 1, 3)


def test_one_that_is_wanted_down_while_it_boots_is_stopped() -> None:
    hosts = Hosts((vm(2),), {1: 8192, 2: 8192})
    while 2 not in hosts.where():
        hosts.run(1)
    (state,) = [h.state.vms[2] for h in hosts.hosts.values() if 2 in h.vms]
    assert state.name in (StateName.ENGINE_START, StateName.ENGINE_STARTING)
    hosts.specs[2] = vm(2, want=Want.DOWN)
    hosts.run(4)
    assert 2 not in hosts.where() and started(hosts).count(2) == 1


def test_one_that_is_wanted_down_is_stopped_and_not_started() -> None:
    hosts = Hosts((vm(2),), {1: 8192, 2: 8192})
    hosts.run(20)
    assert 2 in hosts.where()
    hosts.specs[2] = vm(2, want=Want.DOWN)
    hosts.run(20)
    assert 2 not in hosts.where() and started(hosts).count(2) == 1
    hosts.specs[2] = vm(2)
    hosts.run(20)
    assert 2 in hosts.where() and started(hosts).count(2) == 2


def test_a_start_that_fails_goes_to_the_next_host() -> None:
    hosts = Hosts((vm(2, prefer=(1,)),), {1: 8192, 2: 8192})
    hosts.hosts[1].fails = {2}
    hosts.run(30)
    assert hosts.where()[2] == 2


#: Host 2 has room for one of them, host 1 for none.
ROOM_FOR_ONE = (vm(2, memory_mb=4096, priority=80), vm(3, memory_mb=4096, priority=10))


def test_a_start_that_fails_where_no_other_host_has_room_is_tried_again_there() -> None:
    """The room is not given to a VM of lower priority."""
    hosts = Hosts(ROOM_FOR_ONE, {1: 1024, 2: 4096})
    hosts.put(ENGINE, 1)
    hosts.hosts[2].fails = {2}
    hosts.run(12)
    assert "retries-exhausted" in codes(hosts, 2, 2) and 3 not in hosts.where()
    hosts.hosts[2].fails = set()
    hosts.run(60)
    assert hosts.where()[2] == 2


def test_a_vm_that_ends_where_no_other_host_has_room_is_started_there_at_once() -> None:
    hosts = Hosts(ROOM_FOR_ONE, {1: 1024, 2: 4096})
    hosts.put(ENGINE, 1)
    hosts.run(20)
    assert hosts.where()[2] == 2
    hosts.end(2, unexpectedly=True)
    hosts.run(5)
    assert hosts.where()[2] == 2


@pytest.mark.parametrize(
    ("other", "second", "places"),
    [
        (vm(3, prefer=(3, 4), together=(2,)), 1, 1),
        (vm(3, prefer=(4, 3), apart=(2,)), 1, 2),
        (vm(3, prefer=(4, 3), apart=(2,)), 2, 2),
    ],
    ids=["together", "apart on one host", "apart on two hosts"],
)
def test_two_vms_of_one_rule_do_not_yield_to_each_other_for_ever(
    other: VmSpec, second: int, places: int
) -> None:
    """Both claim room at the same time, from one host or from two, where their rule allows it for
    one of them only (seed 329 of 654116f)."""
    hosts = Hosts((vm(2, prefer=(4, 3)), other), dict.fromkeys(range(1, 5), 8192))
    hosts.put(ENGINE, 3)
    hosts.put(2, 1)
    hosts.put(3, second)
    hosts.run(10)
    for leaving in {1, second}:
        hosts.hosts[leaving].maintenance = True
    hosts.run(60)
    where = hosts.where()
    assert {where[2], where[3]} <= {3, 4} and len({where[2], where[3]}) == places


def test_a_host_that_is_drained_hands_its_vms_over_two_at_a_time() -> None:
    specs = tuple(vm(n, priority=n) for n in range(2, 7))
    hosts = Hosts(specs, {1: 16384, 2: 16384, 3: 16384})
    for number in range(1, 7):
        hosts.put(number, 1)
    hosts.run(10)
    hosts.hosts[1].maintenance = True
    hosts.run(40)
    assert 1 not in hosts.where().values() and len(hosts.moves) == 6 and hosts.starts == []
    at_s = [at_s for at_s, _, _, _ in hosts.moves]
    assert max(at_s.count(second) for second in at_s) == 2
    assert [moved for _, moved, _, _ in hosts.moves][:3] == [1, 6, 5]


def test_the_others_leave_a_host_whose_engine_cannot_be_ended() -> None:
    hosts = Hosts((vm(2), vm(3, only=(1,))), {1: 16384, 2: 16384})
    for number in (1, 2, 3):
        hosts.put(number, 1)
    hosts.run(10)
    state = hosts.hosts[1].state
    patience_s = state.rules.timing.force_stop_patience
    engine = replace(state.engine, unstopped_since_s=hosts.now_s)
    hosts.hosts[1].state = replace(state, vms={**state.vms, ENGINE: engine})
    hosts.sick.add(ENGINE)
    hosts.run(int(patience_s) - 2)
    assert hosts.moves == []
    hosts.run(20)
    assert hosts.where()[2] == 2 and hosts.where()[3] == 1
    assert "drain-waiting" in codes(hosts, 1, 3)


def test_a_host_that_is_drained_by_stops_stops_one_vm_after_the_other() -> None:
    hosts = Hosts((vm(2, priority=90), vm(3)), {1: 16384, 2: 16384})
    for number in (1, 2, 3):
        hosts.put(number, 1)
    hosts.run(10)
    hosts.hosts[1].maintenance = hosts.hosts[1].may_restart = True
    hosts.migration_possible = False
    hosts.run(60)
    assert hosts.where() == {1: 2, 2: 2, 3: 2} and hosts.moves == []
    assert [number for _, number, _ in hosts.starts] == [1, 2, 3]
    at_s = [at_s for at_s, _, _ in hosts.starts]
    assert at_s[0] < at_s[1] < at_s[2]


def test_at_rest_nothing_moves() -> None:
    hosts = Hosts(tuple(vm(n, 512 * n) for n in range(2, 8)), {1: 16384, 2: 16384, 3: 12288})
    hosts.run(60)
    before = hosts.where()
    hosts.run(LONG)
    assert hosts.where() == before and hosts.moves == []
    assert all(host.state.claims == () for host in hosts.hosts.values())


def test_a_vm_goes_back_to_where_it_is_liked_when_it_may() -> None:
    hosts = Hosts((vm(2, prefer=(1,), failback=True), vm(3, prefer=(1,))), {1: 8192, 2: 8192})
    for number in (1, 2, 3):
        hosts.put(number, 2)
    hosts.run(LONG)
    assert hosts.where()[2] == 1 and hosts.where()[3] == 2 and len(hosts.moves) == 1


def test_two_that_must_be_apart_part() -> None:
    hosts = Hosts((vm(2, apart=(3,), priority=90), vm(3)), {1: 8192, 2: 8192})
    for number in (1, 2, 3):
        hosts.put(number, 1)
    hosts.run(LONG)
    assert hosts.where()[2] == 1 and hosts.where()[3] == 2 and len(hosts.moves) == 1


def test_a_host_of_the_previous_version_keeps_the_engine_and_gets_nothing_else() -> None:
    hosts = Hosts((vm(2), vm(3)), {1: 8192, 2: 8192})
    hosts.hosts[1].speaks = 1
    hosts.put(ENGINE, 1)
    hosts.run(30)
    # Host 1 decides by this version here; what matters is what host 2 makes of its slot.
    assert hosts.hosts[2].last is not None
    assert all(order == (2,) for order in hosts.hosts[2].last.plan.order.values())


def test_a_vm_that_has_left_the_registry_is_left_alone() -> None:
    hosts = Hosts((vm(2), vm(3)), {1: 8192, 2: 8192})
    hosts.run(20)
    where = hosts.where()[2]
    hosts.specs[2] = vm(2, want=Want.DOWN)
    hosts.forgotten.add(2)
    hosts.run(20)
    assert in_state(hosts, where, 2) is None and 3 in hosts.where()


def test_a_write_that_is_not_acknowledged_begins_nothing() -> None:
    hosts = Hosts((vm(2),), {1: 8192, 2: 8192})
    for host in hosts.hosts.values():
        host.write_fails = True
    hosts.run(30)
    assert started(hosts) == []
    assert "room-claimed" in codes(hosts, 1, 2) | codes(hosts, 2, 2)


@pytest.mark.parametrize("seed", range(8))
def test_random_clusters_recover_within_their_memory_and_rules(seed: int) -> None:
    chance = random.Random(seed)
    number_of_hosts = chance.randint(2, 5)
    numbers = range(2, chance.randint(4, 12))
    specs = tuple(
        vm(
            n,
            chance.choice((512, 1024, 3072)),
            priority=chance.randint(0, 100),
            after=tuple(chance.sample(range(2, n), 1)) if n > 3 and chance.random() < 0.3 else (),
            apart=(n + 1,) if n + 1 in numbers and chance.random() < 0.2 else (),
            overcommit=False,
        )
        for n in numbers
    )
    memory = {n: chance.choice((8192, 12288)) for n in range(1, number_of_hosts + 1)}
    hosts = Hosts(specs, memory)
    hosts.run(60)
    _within_memory(hosts)
    hosts.die(chance.randint(1, number_of_hosts))
    for _ in range(80):
        hosts.beat()
        _within_memory(hosts)
    where = hosts.where()
    for v in specs:
        assert not any(where.get(v.number, -v.number) == where.get(mate) for mate in v.apart)
    plans = [host.last.plan for host in hosts.hosts.values() if host.alive and host.last]
    missing = {ENGINE, *numbers} - where.keys()
    assert all(missing <= plan.short.keys() for plan in plans)
    assert len({vm for _, vm, _ in hosts.starts}) >= len(where)


def _within_memory(hosts: Hosts) -> None:
    engine = [h for h in hosts.hosts.values() if ENGINE in h.vms]
    for host in hosts.hosts.values():
        # The engine alone is started whatever room there is, as the reference does.
        assert hosts.free_mb(host) >= 0 or host in engine


def test_the_machine_of_a_vm_that_is_elsewhere_is_forgotten() -> None:
    hosts = Hosts((vm(2),), {1: 8192, 2: 8192})
    hosts.run(60)
    other = 3 - hosts.where()[2]
    assert in_state(hosts, other, 2) is None
    assert in_state(hosts, hosts.where()[2], 2) is StateName.ENGINE_UP


def refusal(hosts: Hosts, host: int, order: Order) -> str:
    """What becomes of an order within a while."""
    hosts.hosts[host].order = order
    hosts.run(20)
    answer = hosts.hosts[host].state.vms[order.vm].answers[-1]
    assert answer.number == order.number
    return "" if answer.ok else answer.text


def test_an_operator_moves_one_vm_and_no_other() -> None:
    hosts = Hosts((vm(2), vm(3)), {1: 8192, 2: 8192})
    for number in (1, 2, 3):
        hosts.put(number, 1)
    hosts.run(10)
    assert refusal(hosts, 1, Order(1, OrderKind.MIGRATE, 2, vm=3)) == ""
    assert hosts.where() == {1: 1, 2: 1, 3: 2}


def test_an_order_says_why_a_host_takes_no_vm() -> None:
    specs = (vm(2, 4096), vm(3, only=(1,)), vm(4, apart=(5,)), vm(5))
    hosts = Hosts(specs, {1: 16384, 2: 3072, 3: 8192})
    for number in (1, 2, 3, 4):
        hosts.put(number, 1)
    hosts.put(5, 2)
    hosts.hosts[3].speaks = 1
    hosts.run(10)

    def says(number: int, target: int, vm: int) -> str:
        return refusal(hosts, 1, Order(number, OrderKind.MIGRATE, target, vm=vm))

    assert says(1, 2, 2) == "host (id 2) has less memory free than vm2 needs"
    assert says(2, 2, 3) == "vm3 must not run on host (id 2) (only)"
    assert says(3, 2, 4) == "host (id 2) may not run vm4 now: ha-agent why vm4"
    assert says(4, 3, 2).startswith("host (id 3) runs an earlier version")
    assert "ha-agent vm start NAME" in refusal(hosts, 1, Order(5, OrderKind.START, vm=2))
    assert hosts.moves == []


def test_an_ordered_move_whose_room_is_not_granted_is_refused_in_time() -> None:
    hosts = Hosts((vm(2), vm(3)), {1: 8192, 2: 8192})
    for number in (1, 2, 3):
        hosts.put(number, 1)
    hosts.run(10)
    hosts.hosts[1].write_fails = True
    said = refusal(hosts, 1, Order(1, OrderKind.MIGRATE, 2, vm=2))
    assert said == "the room on the target is claimed by other VMs" and hosts.moves == []


def test_huge_pages_are_counted_apart() -> None:
    hosts = Hosts((vm(2, 2048, pages_kb=2048), vm(3, 2048, pages_kb=2048)), {1: 4096, 2: 4096})
    hosts.hosts[2].huge_mb = 2048
    hosts.run(30)
    where = hosts.where()
    assert [number for number in (2, 3) if number in where] == [2] and where[2] == 2
    assert "no-place" in codes(hosts, 1, 3)


def test_a_vm_leaves_a_host_that_is_much_worse() -> None:
    hosts = Hosts((vm(2), vm(3)), {1: 8192, 2: 8192})
    hosts.put(ENGINE, 2)
    for number in (2, 3):
        hosts.put(number, 1)
    hosts.run(LONG)
    assert hosts.moves == []
    hosts.hosts[1].load = 0.8
    hosts.run(120)
    assert hosts.where() == {1: 2, 2: 2, 3: 2}


def test_two_that_must_be_together_come_together() -> None:
    hosts = Hosts((vm(2, together=(3,), priority=90), vm(3)), {1: 8192, 2: 8192})
    for number, host in ((1, 1), (2, 1), (3, 2)):
        hosts.put(number, host)
    hosts.run(LONG)
    assert hosts.where() == {1: 1, 2: 1, 3: 1}


def test_a_vm_leaves_a_host_that_it_may_not_run_on() -> None:
    hosts = Hosts((vm(2),), {1: 8192, 2: 8192})
    for number in (1, 2):
        hosts.put(number, 1)
    hosts.specs[2] = vm(2, only=(2,))
    hosts.run(LONG)
    assert hosts.where()[2] == 2


def test_one_host_pursues_the_dead_one_for_all_vms() -> None:
    hosts = Hosts((vm(2), vm(3)), {1: 8192, 2: 8192, 3: 8192})
    for number, host in ((1, 2), (2, 1), (3, 1)):
        hosts.put(number, host)
    hosts.devices = frozenset({1, 2, 3})
    hosts.run(10)
    hosts.fall_silent(1)
    hosts.run(8)
    # Host 2 comes first by its id; host 3 leaves it its time.
    assert {host for host, _ in hosts.asked} == {2}
    assert "takeover-turn" in codes(hosts, 3, 2) and "takeover-turn" in codes(hosts, 3, 3)
    # What is about the dead host is said of no VM.
    assert "power-asked" in codes(hosts, 2, 0) and hosts.starts == []
    assert not codes(hosts, 2, 2) & codes(hosts, 2, 0)


def test_four_start_at_a_time() -> None:
    hosts = Hosts(tuple(vm(n, 512) for n in range(2, 9)), {1: 16384})
    hosts.slow = True
    hosts.run(20)
    state = hosts.hosts[1].state
    assert sum(vm.name is StateName.ENGINE_START for vm in state.vms.values()) <= 5
    assert {"starts-waiting"} <= set.union(*(codes(hosts, 1, n) for n in range(2, 9)))


def test_a_claim_that_ranks_first_waits_and_one_that_ranks_last_gives_way() -> None:
    """Two hosts send a VM each to a third one, which has room for one of them."""
    specs = (vm(2, 2048, priority=90), vm(3, 2048))
    hosts = Hosts(specs, {1: 8192, 2: 8192, 3: 2560})
    for number, host in ((1, 1), (2, 1), (3, 2)):
        hosts.put(number, host)
    hosts.run(10)
    hosts.hosts[1].order = Order(1, OrderKind.MIGRATE, 3, vm=2)
    hosts.hosts[2].order = Order(1, OrderKind.MIGRATE, 3, vm=3)
    for _ in range(40):
        hosts.beat()
        _within_memory(hosts)
    assert [moved for _, moved, _, _ in hosts.moves] == [2]
    answer = hosts.hosts[2].state.vms[3].answers[-1]
    assert answer.ok is False


def test_an_engine_that_is_wanted_down_is_stopped_as_well() -> None:
    hosts = Hosts((vm(2),), {1: 8192, 2: 8192})
    hosts.run(20)
    assert ENGINE in hosts.where()
    hosts.specs[ENGINE] = vm(ENGINE, want=Want.DOWN)
    hosts.run(30)
    assert ENGINE not in hosts.where() and "wanted-down" in codes(hosts, 1, ENGINE)


def test_a_vm_that_ends_of_itself_is_started_elsewhere() -> None:
    hosts = Hosts((vm(2),), {1: 8192, 2: 8192})
    hosts.run(20)
    where = hosts.where()[2]
    hosts.end(2, unexpectedly=True)
    hosts.run(30)
    assert hosts.where()[2] == 3 - where
    assert in_state(hosts, where, 2) is StateName.ENGINE_UNEXPECTEDLY_DOWN


def test_without_the_whiteboard_nothing_is_missing() -> None:
    hosts = Hosts((vm(2),), {1: 8192, 2: 8192})
    hosts.hosts[1].blind = hosts.hosts[2].blind = True
    hosts.run(30)
    assert hosts.starts == []


def test_a_host_that_may_run_nothing_is_no_place() -> None:
    hosts = Hosts((vm(2),), {1: 8192, 2: 8192})
    hosts.hosts[1].lock_driver = False
    hosts.run(30)
    assert hosts.where()[2] == 2


def test_what_is_left_of_a_vm_is_ended() -> None:
    hosts = Hosts((vm(2),), {1: 8192})
    hosts.specs[2] = vm(2, want=Want.DOWN)
    hosts.run(10)
    hosts.leftovers.add(2)
    hosts.run(1)
    assert "leftover-vm" in codes(hosts, 1, 2)


def test_one_that_may_overcommit_is_moved_to_a_full_host() -> None:
    hosts = Hosts((vm(2, 4096, overcommit=True),), {1: 8192, 2: 2048})
    for number in (1, 2):
        hosts.put(number, 1)
    hosts.run(10)
    hosts.hosts[1].maintenance = True
    hosts.run(20)
    assert hosts.where()[2] == 2


def test_room_that_a_moving_vm_takes_is_not_given_to_a_missing_one() -> None:
    """Host 2 has room for one of them: the one that was claimed for it first."""
    specs = (vm(2, 2048), vm(3, 2048, pages_kb=2048), vm(4, 2048), vm(5, 2048, pages_kb=2048))
    hosts = Hosts(specs, {1: 8192, 2: 3072, 3: 512})
    for host in hosts.hosts.values():
        host.huge_mb = 2048 if host.host_id < 3 else 0
    hosts.specs[4] = vm(4, 2048, want=Want.DOWN)
    hosts.specs[5] = vm(5, 2048, pages_kb=2048, want=Want.DOWN)
    for number in (1, 2, 3):
        hosts.put(number, 1)
    hosts.run(10)
    hosts.arrives_late = True
    hosts.hosts[1].order = Order(1, OrderKind.MIGRATE, 2, vm=2)
    hosts.run(2)
    hosts.hosts[1].order = Order(2, OrderKind.MIGRATE, 2, vm=3)
    hosts.run(2)
    hosts.specs[4], hosts.specs[5] = vm(4, 2048), vm(5, 2048, pages_kb=2048)
    for _ in range(12):
        hosts.beat()
        _within_memory(hosts)
        assert hosts.where().get(4) != 2 and hosts.where().get(5) != 2

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where missing VMs go: each rule of the plan, and what must hold for any cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.vm.plan import (
    NO_PLAN,
    Host,
    NoPlace,
    Plan,
    after_each_death,
    n_plus_1,
    place,
    short_of,
    without_place,
)
from scoring.vm.spec import apart_of, cycle, in_order, together_of
from scoring.vm_facts import VmSpec, Want

GIB = 1024


def host(host_id: int, free_gib: float = 16, **change: Any) -> Host:
    return replace(
        Host(host_id, score=3400, total_mb=64 * GIB, free_mb=int(free_gib * GIB)),
        **change,
    )


def vm(number: int, gib: float = 4, **change: Any) -> VmSpec:
    return replace(VmSpec(number, f"vm{number}", int(gib * GIB)), **change)


def plan(specs: list[VmSpec], hosts: list[Host], **given: object) -> Plan:
    missing = frozenset(v.number for v in specs)
    return place(specs, hosts, **{"missing": missing, **given})  # type: ignore[arg-type]


# --- who is served first ----------------------------------------------------------------


def numbers(specs: list[VmSpec]) -> list[int]:
    return [v.number for v in in_order(specs)]


def test_the_more_urgent_then_the_larger_then_the_lower_number() -> None:
    assert numbers([vm(1, 2), vm(2, 2, priority=90), vm(3, 4), vm(4, 2)]) == [2, 3, 1, 4]


def test_what_others_wait_for_is_as_urgent_as_they_are() -> None:
    web, sso, db = vm(1, priority=90, after=(2,)), vm(2, after=(3,)), vm(3, 1, priority=10)
    assert numbers([web, sso, db, vm(4, priority=80)]) == [3, 2, 1, 4]


def test_a_circle_is_found_and_delays_nobody() -> None:
    circle = [vm(1, after=(2,)), vm(2, after=(3,)), vm(3, after=(1,)), vm(4, after=(4, 9))]
    assert cycle(circle) == (1, 2, 3)
    assert cycle([vm(4, after=(4,))]) == (4,)
    assert cycle([vm(1, after=(2, 3)), vm(2, after=(3,)), vm(3), vm(4, after=(2,))]) == ()
    assert sorted(numbers(circle)) == [1, 2, 3, 4]
    assert numbers(circle) == numbers(circle[::-1])


def test_a_vm_outside_of_a_circle_that_waits_for_it() -> None:
    specs = [vm(1, after=(2,)), vm(2, after=(3,)), vm(3, after=(2,))]
    assert cycle(specs) == (2, 3)


def test_rules_hold_both_ways() -> None:
    specs = [vm(1, apart=(2, 2, 1, 99)), vm(2), vm(3, together=(4,)), vm(4, together=(5,)), vm(5)]
    assert apart_of(specs)[2] == {1} and apart_of(specs)[1] == {2}
    assert together_of(specs)[3] == {4, 5} and together_of(specs)[5] == {3, 4}
    assert not together_of(specs)[1]


# --- which host -------------------------------------------------------------------------


def test_nothing_missing_is_no_plan() -> None:
    assert place([vm(1)], [host(1)], frozenset()) == NO_PLAN


def test_what_is_wanted_down_gets_no_place_and_is_not_short() -> None:
    assert plan([vm(1, want=Want.DOWN)], [host(1)]) == NO_PLAN


def test_equal_hosts_follow_by_who_ran_it_last_then_by_id() -> None:
    assert plan([vm(1)], [host(3), host(2, last_ran={1: 7}), host(1)]).order == {1: (2, 1, 3)}


def test_scores_count_in_steps() -> None:
    worse = host(1, score=3000)
    assert plan([vm(1)], [worse, host(2)]).order == {1: (2, 1)}
    assert plan([vm(1)], [replace(worse, score=3001), host(2)]).order == {1: (1, 2)}


def test_what_a_vm_lacks_there_counts_for_it_alone() -> None:
    there = host(1, lacks={1: 1000})
    assert plan([vm(1), vm(2, 1)], [there, host(2, 16)]).order == {1: (2, 1), 2: (1, 2)}


def test_the_host_that_keeps_most_free_comes_first() -> None:
    assert plan([vm(1)], [host(1, 8), host(2, 16)]).order == {1: (2, 1)}
    assert plan([vm(1)], [host(1, 16), host(2, 17)]).order == {1: (1, 2)}, "less than a 16th"


def test_each_takes_its_room_from_those_after_it() -> None:
    got = plan([vm(1, 10), vm(2, 8), vm(3, 8)], [host(1, 16), host(2, 12)])
    assert got.order == {1: (1, 2), 2: (2,)}
    assert got.short == {3: 2 * GIB}, "6 GiB are left on host 1, 4 on host 2"


def test_huge_pages_are_a_pool_of_their_own() -> None:
    specs = [vm(1, 4, pages_kb=2048), vm(2, 4)]
    got = plan(specs, [host(1, 4, free_huge_mb=4 * GIB), host(2, 1)])
    assert got.order == {1: (1,), 2: (1,)}
    assert plan([specs[0]], [host(2, 16)]).short == {1: 4 * GIB}


def test_overcommit_starts_where_it_would_fit_best() -> None:
    specs = [vm(1, 20, overcommit=True)]
    assert plan(specs, [host(1, 4), host(2, 16)]).order == {1: (2, 1)}
    assert plan(specs, [host(1, 4), host(2, 32)]).order == {1: (2,)}, "it does not where it fits"


def test_a_host_that_pauses_keeps_the_room_only_where_no_other_has_any() -> None:
    pausing = host(1, 16, pausing=frozenset({1}))
    specs = [vm(1, 12, priority=80), vm(2, 12, priority=10)]
    alone = plan(specs, [pausing, host(2, 4)])
    assert (alone.order, alone.short) == ({1: (1,)}, {2: 8 * GIB})
    assert plan(specs, [pausing, host(2, 12)]).order == {1: (2,), 2: (1,)}
    crowded = [replace(specs[0], overcommit=True)]
    assert plan(crowded, [pausing, host(2, 4)]).order == {1: (2,)}, "it need not wait"


@pytest.mark.parametrize(
    "unable",
    [
        {"open": False},
        {"speaks": 1},
        {"barred": frozenset({1})},
        {"score": 0},
        {"lacks": {1: 3400}},
        {"free_mb": 100},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_host_that_cannot_run_it_is_not_in_the_order(unable: dict[str, Any]) -> None:
    assert plan([vm(1)], [host(1, **unable), host(2, 8)]).order == {1: (2,)}


def test_where_no_host_may_run_it_the_whole_vm_is_short() -> None:
    assert plan([vm(1, only=(9,))], [host(1)]).short == {1: 4 * GIB}
    assert plan([vm(1)], []).short == {1: 4 * GIB}
    assert plan([vm(1)], [host(1, -2)]).short == {1: 4 * GIB}, "a host is at most full"


def test_only_and_prefer() -> None:
    hosts = [host(1), host(2), host(3)]
    assert plan([vm(1, only=(3, 2))], hosts).order == {1: (2, 3)}
    assert plan([vm(1, prefer=(3, 2))], hosts).order == {1: (3, 2, 1)}


def test_apart_counts_who_runs_and_who_is_placed() -> None:
    specs = [vm(1, apart=(2, 3)), vm(2), vm(3)]
    got = place(specs, [host(1, vms=frozenset({2})), host(2), host(3, 8)], frozenset({1, 3}))
    assert got.order == {1: (2, 3), 3: (1, 3)}


def test_together_follows_who_runs_already() -> None:
    specs = [vm(1), vm(2, together=(1,))]
    got = place(specs, [host(1), host(2, 8, vms=frozenset({1}))], frozenset({2}))
    assert got.order == {2: (2,)}


def test_the_first_of_those_that_must_be_together_chooses_a_host_for_all() -> None:
    specs = [vm(1, 8, together=(2,)), vm(2, 6)]
    got = plan(specs, [host(1, 12), host(2, 15, score=2900)])
    assert got.order == {1: (2,), 2: (2,)}
    assert plan(specs, [host(1, 12), host(2, 10)]).short == {2: 2 * GIB}, "then the first at least"


def test_a_claim_keeps_its_room_and_its_host() -> None:
    specs = [vm(1, 8), vm(2, 8, priority=90)]
    got = plan(specs, [host(1, 12), host(2, 10)], claims={1: 1})
    assert got.order == {2: (2,), 1: (1,)}


def test_a_claim_on_a_host_that_cannot_run_it_keeps_nothing() -> None:
    specs = [vm(1, only=(2,))]
    assert plan(specs, [host(1), host(2)], claims={1: 1}).order == {1: (2,)}
    assert plan(specs, [host(2)], claims={1: 1}).order == {1: (2,)}


def test_without_its_claim_a_vm_would_lose_its_place() -> None:
    """The last in line has started first, and its host keeps less free: the first would go to the
    only host that has room for the second."""
    specs = [vm(1, 4, priority=90), vm(2, 13), vm(3, 8, priority=10)]
    hosts = [host(1, 16), host(2, 15)]
    first = plan(specs, hosts)
    assert {number: ids[0] for number, ids in first.order.items()} == {1: 1, 2: 2, 3: 1}
    hosts = started(hosts, specs[2], 1)
    assert place(specs, hosts, frozenset({1, 2})).short == {2: 2 * GIB}
    again = place(specs, hosts, frozenset({1, 2}), {1: 1, 2: 2})
    assert {number: ids[0] for number, ids in again.order.items()} == {1: 1, 2: 2}


# --- if a host died -----------------------------------------------------------------------


def test_who_would_have_no_place_if_a_host_died() -> None:
    specs = [vm(1, 8), vm(2, 8), vm(3, 2)]
    hosts = [host(1, 3, vms=frozenset({1, 3})), host(2, 2, vms=frozenset({2})), host(3, 8)]
    assert n_plus_1(specs, hosts, frozenset()) == {}
    full = [*hosts[:2], host(3, 2)]
    assert n_plus_1(specs, full, frozenset()) == {1: {1: 6 * GIB}, 2: {2: 5 * GIB}}


def test_who_has_no_place_anyway_is_named_for_no_host() -> None:
    specs = [vm(1, 8), vm(2, 8)]
    hosts = [host(1, 2, vms=frozenset({1})), host(2, 4)]
    assert n_plus_1(specs, hosts, frozenset({2})) == {1: {1: 4 * GIB}}


def lost(
    specs: list[VmSpec], hosts: list[Host], missing: frozenset[int] = frozenset()
) -> Mapping[int, tuple[NoPlace, ...]]:
    plans = after_each_death(specs, hosts, missing)
    return without_place(plans, specs, place(specs, hosts, missing))


def test_who_has_no_place_is_named_with_the_host_that_comes_closest() -> None:
    specs = [vm(1, 8), vm(2, 6, priority=90), vm(3, 4, only=(9,))]
    hosts = [host(1, vms=frozenset({1, 2})), host(2, 3), host(3, 4), host(4, 4)]
    assert lost(specs, hosts) == {
        1: (NoPlace(2, 6 * GIB, 2 * GIB, 3), NoPlace(1, 8 * GIB, 4 * GIB, 3))
    }
    assert short_of(plan(specs, hosts[1:]), specs)[-1] == NoPlace(3, 4 * GIB, 4 * GIB, None)
    assert short_of(NO_PLAN, specs) == ()


def test_a_host_without_a_vm_costs_nobody_a_place_unless_a_missing_one_would_go_there() -> None:
    specs = [vm(1, 4), vm(2, 8)]
    hosts = [host(1, 2, vms=frozenset({1})), host(2, 6), host(3, 8)]
    assert lost(specs, hosts) == {}
    assert after_each_death(specs, hosts, frozenset())[1].order == {1: (3, 2)}
    found = lost(specs, hosts, frozenset({2}))
    assert found[3] == (NoPlace(2, 8 * GIB, 2 * GIB, 2),), "it would go to host 3"


# --- for any cluster ----------------------------------------------------------------------

HOST_IDS = range(1, 6)
VM_NUMBERS = range(1, 9)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[VmSpec], list[Host], frozenset[int]]:
    """VMs, hosts and who is missing; each rule in some of them."""
    few_vms = st.lists(st.sampled_from(VM_NUMBERS), max_size=2, unique=True).map(tuple)
    few_hosts = st.lists(st.sampled_from(HOST_IDS), max_size=3, unique=True).map(tuple)
    specs = [
        VmSpec(
            number,
            f"vm{number}",
            draw(st.integers(1, 12)) * GIB,
            pages_kb=draw(st.sampled_from((4, 4, 4, 2048))),
            priority=draw(st.sampled_from((10, 50, 90))),
            after=draw(few_vms),
            apart=draw(few_vms),
            together=draw(few_vms) if draw(st.integers(0, 3)) == 0 else (),
            only=draw(few_hosts) if draw(st.integers(0, 3)) == 0 else (),
            prefer=draw(few_hosts),
        )
        for number in range(1, draw(st.integers(1, len(VM_NUMBERS))) + 1)
    ]
    hosts = [
        Host(
            host_id,
            score=draw(st.sampled_from((0, 1800, 3000, 3400))),
            total_mb=64 * GIB,
            free_mb=draw(st.integers(-1, 32)) * GIB,
            free_huge_mb=draw(st.integers(0, 16)) * GIB,
            open=draw(st.integers(0, 5)) > 0,
            barred=frozenset(draw(few_vms)) if draw(st.integers(0, 3)) == 0 else frozenset(),
            pausing=frozenset(draw(few_vms)) if draw(st.integers(0, 3)) == 0 else frozenset(),
            last_ran=dict.fromkeys(draw(few_vms), draw(st.integers(1, 9))),
        )
        for host_id in range(1, draw(st.integers(1, len(HOST_IDS))) + 1)
    ]
    missing = {v.number for v in specs}
    for v in specs:
        if draw(st.integers(0, 2)) == 0:
            at = draw(st.integers(0, len(hosts) - 1))
            hosts[at] = replace(hosts[at], vms=hosts[at].vms | {v.number})
            missing.discard(v.number)
    return specs, hosts, frozenset(missing)


def started(hosts: list[Host], v: VmSpec, host_id: int) -> list[Host]:
    """The hosts once that one shows the VM."""
    free = "free_huge_mb" if v.huge else "free_mb"
    return [
        replace(h, vms=h.vms | {v.number}, **{free: getattr(h, free) - v.memory_mb})
        if h.host_id == host_id
        else h
        for h in hosts
    ]


@given(clusters(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(cluster, random) -> None:  # type: ignore[no-untyped-def]
    specs, hosts, missing = cluster
    once = place(specs, hosts, missing)
    random.shuffle(specs)
    random.shuffle(hosts)
    assert place(specs, hosts, missing) == once


@given(clusters())
def test_every_missing_vm_is_in_the_order_or_short(cluster) -> None:  # type: ignore[no-untyped-def]
    specs, hosts, missing = cluster
    got = place(specs, hosts, missing)
    assert got.order.keys() | got.short.keys() == missing
    assert not got.order.keys() & got.short.keys()
    assert all(ids and len(set(ids)) == len(ids) for ids in got.order.values())
    assert all(mb > 0 for mb in got.short.values())


@given(clusters())
def test_no_host_gets_more_than_it_has_and_no_rule_is_broken(cluster) -> None:  # type: ignore[no-untyped-def]
    specs, hosts, missing = cluster
    known = {v.number: v for v in specs}
    got = place(specs, hosts, missing)
    apart, before = apart_of(specs), {h.host_id: h for h in hosts}
    for h in hosts:
        here = [known[n] for n, ids in got.order.items() if ids[0] == h.host_id]
        ordinary = sum(v.memory_mb for v in here if not v.huge)
        huge = sum(v.memory_mb for v in here if v.huge)
        assert ordinary <= max(h.free_mb, 0) and huge <= h.free_huge_mb
        there = h.vms | {v.number for v in here}
        for v in here:
            assert not v.only or h.host_id in v.only
            assert not apart[v.number] & there
            assert h.open and h.score > 0 and v.number not in h.barred
    together = together_of(specs)
    at = {n: {h.host_id for h in hosts if n in h.vms} for n in known}
    at |= {n: {ids[0]} for n, ids in got.order.items()}
    for n, ids in got.order.items():
        mates = [at[mate] for mate in together[n] if at[mate]]
        assert not mates or any(ids[0] in where for where in mates)
        assert ids[0] in before


@given(clusters(), st.randoms(use_true_random=False))
def test_whoever_had_a_place_keeps_it_in_whatever_order_they_start(cluster, random) -> None:  # type: ignore[no-untyped-def]
    specs, hosts, missing = cluster
    known = {v.number: v for v in specs}
    first = place(specs, hosts, missing)
    waiting = {n: ids[0] for n, ids in first.order.items()}
    while waiting:
        number = random.choice(sorted(waiting))
        hosts = started(hosts, known[number], waiting.pop(number))
        missing = missing - {number}
        again = place(specs, hosts, missing, waiting)
        assert {n: again.order[n][0] for n in waiting} == waiting


# --- small VMs, and such as are being started ---------------------------------------------


def test_small_vms_that_ran_nowhere_are_spread() -> None:
    specs = [vm(n, 0.25) for n in range(1, 7)]
    found = plan(specs, [host(1), host(2), host(3)])
    first = [order[0] for order in found.order.values()]
    assert [first.count(host_id) for host_id in (1, 2, 3)] == [2, 2, 2]


def test_small_vms_go_back_to_where_they_ran() -> None:
    specs = [vm(n, 0.25) for n in range(1, 4)]
    found = plan(specs, [host(1), host(2, last_ran={1: 3, 2: 3, 3: 3})])
    assert {order[0] for order in found.order.values()} == {2}


@pytest.mark.parametrize("elsewhere_gib", [1, 16], ids=["no room elsewhere", "room elsewhere"])
def test_a_vm_whose_own_process_has_taken_its_memory_is_not_short(elsewhere_gib: float) -> None:
    """The VM is claimed, its host has started it, and does not show it as up yet."""
    found = plan([vm(1, 4)], [host(1, 1), host(2, elsewhere_gib)], claims={1: 1})
    assert found.short == {} and found.order[1][0] == 1

# SPDX-License-Identifier: LGPL-2.1-or-later
"""With `balance` a full host gives VMs away until the hosts are even; then nothing moves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.vm_facts import ENGINE, VmSpec
from tests.fakes.hosts import Hosts
from tests.unit.draws import draws

LONG = 700


def vm(number: int, memory_mb: int = 2048, **rules: object) -> VmSpec:
    return VmSpec(number, f"vm{number}", memory_mb, **rules)  # type: ignore[arg-type]


def cluster(*specs: VmSpec, balance: bool = True, second_mb: int = 16_384) -> Hosts:
    """Two hosts; everything is on the first one, but for the engine."""
    hosts = Hosts(specs, {1: 16_384, 2: second_mb}, balance=balance)
    hosts.put(ENGINE, 2)
    for spec in specs:
        hosts.put(spec.number, 1)
    return hosts


def test_the_one_goes_that_leaves_most_where_it_is_scarcest_and_then_nothing_moves() -> None:
    hosts = cluster(vm(2, 8192), vm(3, 4096), vm(4, 1024))
    hosts.run(LONG)
    # 13 GiB of 16 are used here, 1 there. Without the 4 GiB one 7 are free here, and 11 there: the
    # 1 GiB one has 10 free there then, 3 more than here. The 8 GiB one would have 2, 5 less.
    assert [(moved, target) for _, moved, _, target in hosts.moves] == [(3, 2), (4, 2)]
    hosts.run(2 * LONG)
    assert len(hosts.moves) == 2


def test_of_equal_moves_the_smaller_vm_goes_and_then_the_lower_number() -> None:
    hosts = cluster(vm(2), vm(3), vm(4), vm(5))
    hosts.run(LONG)
    assert [moved for _, moved, _, _ in hosts.moves] == [2]
    hosts = cluster(vm(2, 2100), vm(3, 2050), vm(4, 2100), vm(5, 2050))
    hosts.run(LONG)
    assert [moved for _, moved, _, _ in hosts.moves] == [3]


def test_without_it_nothing_moves() -> None:
    hosts = cluster(vm(2, 8192), vm(3, 4096), balance=False)
    hosts.run(LONG)
    assert hosts.moves == []


@pytest.mark.parametrize(
    "specs",
    [
        (vm(2, 4096, prefer=(1,)), vm(3, 4096, only=(1,))),
        (vm(2, 4096), vm(3, 4096, together=(2,))),
        (vm(2, 14_336),),
        (vm(2, 1024), vm(3, 1024)),
    ],
    ids=["it likes its host", "its mate is there", "the other would be as full", "too little"],
)
def test_what_would_be_worse_or_the_same_elsewhere_stays(specs: tuple[VmSpec, ...]) -> None:
    hosts = cluster(*specs)
    hosts.run(LONG)
    assert [move for move in hosts.moves if move[1] != ENGINE] == []


def test_a_host_that_scores_less_is_no_relief() -> None:
    hosts = cluster(vm(2, 4096), vm(3, 4096))
    hosts.hosts[2].load = 0.7
    hosts.run(LONG)
    assert [move for move in hosts.moves if move[1] != ENGINE] == []


def test_huge_pages_are_not_balanced_and_do_not_hold_others() -> None:
    hosts = cluster(vm(2, 4096, pages_kb=2048), vm(3, 8192), vm(4, 4096))
    for host in hosts.hosts.values():
        host.huge_mb = 8192
    hosts.run(LONG)
    assert [moved for _, moved, _, _ in hosts.moves] == [4]


def test_only_the_fullest_host_gives_a_vm_away() -> None:
    hosts = Hosts(
        tuple(vm(n, 4096) for n in range(2, 8)), {1: 16_384, 2: 16_384, 3: 16_384}, balance=True
    )
    hosts.put(ENGINE, 3)
    for number in (2, 3, 4):
        hosts.put(number, 1)
    for number in (5, 6, 7):
        hosts.put(number, 2)
    hosts.run(LONG)
    assert [(moved, source) for _, moved, source, _ in hosts.moves][:1] == [(2, 1)]


@pytest.mark.slow
@settings(max_examples=draws(12))
@given(
    sizes=st.lists(st.sampled_from([512, 1024, 2048, 4096, 8192]), min_size=1, max_size=7),
    rooms=st.lists(st.sampled_from([16_384, 24_576, 32_768]), min_size=2, max_size=4),
    chance=st.randoms(use_true_random=False),
)
def test_each_move_raises_the_row_of_free_shares_and_they_end(
    sizes: list[int], rooms: list[int], chance: object
) -> None:
    hosts = Hosts(
        tuple(vm(n, mb) for n, mb in enumerate(sizes, 2)), dict(enumerate(rooms, 1)), balance=True
    )
    hosts.put(ENGINE, 1)
    for spec in hosts.specs.values():
        able = [h for h in hosts.hosts.values() if hosts.free_mb(h) >= spec.memory_mb]
        if able:
            hosts.put(spec.number, chance.choice(able).host_id)  # type: ignore[attr-defined]
    rows = [_row(hosts)]
    for _ in range(2 * len(sizes)):
        before = len(hosts.moves)
        hosts.run(LONG)
        # A whole LONG without a move: nothing waits any more, nothing will change by itself.
        if len(hosts.moves) == before:
            break
        rows.append(_row(hosts))
    assert rows == sorted(rows) and len(set(map(tuple, rows))) == len(rows)
    before = len(hosts.moves)
    hosts.run(LONG)
    assert len(hosts.moves) == before


def _row(hosts: Hosts) -> list[int]:
    return sorted(hosts.free_mb(host) * 16 // host.memory_mb for host in hosts.hosts.values())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one claim allows after one reading of the slots."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scoring.vm.claims import WAIT_BEATS, Verdict, standing, verdict
from scoring.vm.plan import Host
from scoring.vm.spec import in_order
from scoring.vm_facts import Claim, VmSpec

TARGET = Host(9, 3400, 64, 10, free_huge_mb=10)
MINE = Claim(1, 9, by=1, until_s=60)
#: Served second; takes 6 MiB as the others do.
ORDER = {v.number: v for v in in_order([VmSpec(n, f"vm{n}", 6) for n in (1, 2)])}


def after(*others: Claim, waited: int = 0, target: Host = TARGET) -> Verdict:
    return verdict(MINE, others, target, ORDER, waited)


def test_alone_it_begins_where_it_fits() -> None:
    assert after() is Verdict.BEGIN
    assert after(target=replace(TARGET, free_mb=6)) is Verdict.BEGIN
    assert after(target=replace(TARGET, free_mb=5)) is Verdict.WITHDRAW


def test_who_is_served_later_is_waited_for_a_while() -> None:
    later = Claim(2, 9, by=2, until_s=60)
    assert after(later) is Verdict.WAIT
    assert after(later, waited=WAIT_BEATS) is Verdict.WITHDRAW
    assert after(later, target=replace(TARGET, free_mb=12)) is Verdict.BEGIN


def test_nobody_waits_where_it_would_not_fit_alone() -> None:
    assert after(Claim(2, 9, 2, 60), target=replace(TARGET, free_mb=5)) is Verdict.WITHDRAW


def test_who_is_served_first_is_given_way() -> None:
    second = Claim(2, 9, by=2, until_s=60)
    assert verdict(second, [MINE], TARGET, ORDER, 0) is Verdict.WITHDRAW


@pytest.mark.parametrize("overcommit", [False, True])
@pytest.mark.parametrize(("rule", "host_id"), [("apart", 9), ("together", 8)])
def test_a_claim_against_a_rule_is_waited_for_or_given_way(
    rule: str, host_id: int, overcommit: bool
) -> None:
    """There is room for both; whether a VM may overcommit does not matter."""
    room = replace(TARGET, free_mb=0 if overcommit else 64)
    order = {
        1: VmSpec(1, "vm1", 6, overcommit=overcommit, **{rule: (2,)}),  # type: ignore[arg-type]
        2: VmSpec(2, "vm2", 6, overcommit=overcommit),
    }
    second = Claim(2, host_id, by=2, until_s=60)
    assert verdict(MINE, [second], room, order, 0) is Verdict.WAIT
    assert verdict(MINE, [second], room, order, WAIT_BEATS) is Verdict.WITHDRAW
    assert verdict(second, [MINE], room, order, 0) is Verdict.WITHDRAW
    allowed = replace(second, host_id=17 - host_id)
    assert verdict(MINE, [allowed], room, order, 0) is Verdict.BEGIN


def test_what_does_not_touch_this_memory_is_in_nobody_s_way() -> None:
    elsewhere, shown = Claim(2, 8, 2, 60), Claim(2, 9, 2, 60)
    assert after(elsewhere) is Verdict.BEGIN
    assert after(shown, target=replace(TARGET, vms=frozenset({2}))) is Verdict.BEGIN
    huge = {**ORDER, 2: replace(ORDER[2], pages_kb=2048)}
    assert verdict(MINE, [shown], TARGET, huge, 0) is Verdict.BEGIN


def test_the_same_vm_counts_once_whoever_claims_it() -> None:
    target = replace(TARGET, free_mb=12)
    twice = (Claim(2, 9, 2, 60), Claim(2, 9, 3, 60), Claim(1, 9, 3, 60))
    assert after(*twice, target=target) is Verdict.BEGIN


def test_a_vm_that_this_host_does_not_know_takes_everything() -> None:
    unknown = Claim(77, 9, 2, 60)
    assert after(unknown, target=replace(TARGET, free_mb=60)) is Verdict.WITHDRAW


def test_overcommit_does_not_ask_for_room() -> None:
    order = {**ORDER, 1: replace(ORDER[1], overcommit=True)}
    assert verdict(MINE, [Claim(2, 9, 2, 60)], TARGET, order, 0) is Verdict.BEGIN


def test_a_vm_of_huge_pages_looks_at_those() -> None:
    order = {**ORDER, 1: replace(ORDER[1], pages_kb=2048)}
    assert verdict(MINE, [], replace(TARGET, free_mb=0), order, 0) is Verdict.BEGIN
    assert verdict(MINE, [], replace(TARGET, free_huge_mb=5), order, 0) is Verdict.WITHDRAW


def test_a_claim_ends_by_itself() -> None:
    assert standing([MINE, replace(MINE, until_s=10)], 10) == (MINE,)

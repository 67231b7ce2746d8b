# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything that must be true before a host is switched off, and how often that may be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.hosts.evidence import (
    RENEWAL_SEEN_LATE_S,
    may_power_off,
    renewal_patience_s,
    renews,
)
from scoring.hosts.fence_rate import fence_wait, is_noted
from scoring.hosts.state import Takeover
from scoring.observation import FenceRecord, FenceStep, Power, PowerAnswer
from tests.unit.builders import NOW_S, RULES, TIMING, evidence, lease_of

TARGET = 2
ON = PowerAnswer(TARGET, Power.ON, NOW_S - 1, identity_proven=True)
HANGS = Takeover(TARGET, NOW_S - 60, power=ON, fence_since_s=NOW_S - 2, renewal=(5, 77))


def missing(takeover: Takeover = HANGS, now_s: float = NOW_S, **changed: Any) -> list[str]:
    rules = changed.pop("rules", RULES)
    conditions = may_power_off(takeover, evidence(TARGET, **changed), now_s, rules)
    assert all(condition.value for condition in conditions), "each says its value"
    return [condition.name for condition in conditions if not condition.holds]


def test_what_must_not_be_set_is_said_to_be_set_or_not() -> None:
    """`no-global-maintenance: False` in the record of a fence says the opposite of what held."""
    for is_set, says in ((False, "not set"), (True, "set"), (None, "not known")):
        conditions = may_power_off(HANGS, evidence(TARGET, global_maintenance=is_set), NOW_S, RULES)
        (one,) = (each for each in conditions if each.name == "no-global-maintenance")
        assert (one.value, one.holds) == (says, is_set is False)


def test_a_host_whose_every_witness_is_silent_may_be_switched_off() -> None:
    assert missing() == []


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("allowed", {"rules": replace(RULES, fence_power_off=False)}),
        ("no-global-maintenance", {"global_maintenance": True}),
        ("no-global-maintenance", {"global_maintenance": None}),
        ("not-stopped-in-order", {"peer": {"stopped": True}}),
        ("not-in-maintenance", {"peer": {"maintenance": True}}),
        ("lease-owner-known", {"lease": lease_of(3)}),
        ("lease-owner-known", {"lease": lease_of(TARGET, known=False)}),
        ("network-witness", {"peer": {"heartbeat_s": None}}),
        ("nobody-hears-it", {"heard_by": ("host3 (id 3)",)}),
        ("does-not-answer", {"peer": {"unanswered_since_s": None}}),
        ("does-not-answer", {"peer": {"unanswered_since_s": NOW_S - 9.999}}),
        ("own-storage-fine", {"looked_since_s": None}),
        ("own-storage-fine", {"looked_since_s": NOW_S - 9.999}),
        ("slot-stands-still", {"slot_since_s": None}),
        ("slot-stands-still", {"slot_since_s": NOW_S - 9.999}),
        ("does-not-renew", {"peer": {"renewal_s": NOW_S - 24.999}}),
        ("fence-lease-held", {"fence_lease_held": False}),
        ("reads-on-while-holding", {"takeover": replace(HANGS, power=None)}),
        (
            "reads-on-while-holding",
            {"takeover": replace(HANGS, power=replace(ON, power=Power.UNKNOWN))},
        ),
        (
            "reads-on-while-holding",
            {"takeover": replace(HANGS, power=replace(ON, identity_proven=False))},
        ),
        ("reads-on-while-holding", {"takeover": replace(HANGS, fence_since_s=None)}),
        ("reads-on-while-holding", {"takeover": replace(HANGS, fence_since_s=NOW_S - 0.999)}),
        (
            "reads-on-while-holding",
            {
                "takeover": replace(
                    HANGS, power=replace(ON, read_s=NOW_S - 10.001), fence_since_s=NOW_S - 20
                )
            },
        ),
    ],
)
def test_each_of_them_alone_forbids_it(name: str, changed: dict[str, Any]) -> None:
    given = dict(changed)
    assert missing(given.pop("takeover", HANGS), **given) == [name]


def test_the_times_count_from_exactly_fence_after_on() -> None:
    at_s = NOW_S - TIMING.fence_after
    assert missing(peer={"unanswered_since_s": at_s}, slot_since_s=at_s, looked_since_s=at_s) == []
    assert missing(peer={"renewal_s": NOW_S - 25}) == []
    old = replace(HANGS, power=replace(ON, read_s=NOW_S - 10), fence_since_s=NOW_S - 10)
    assert missing(old) == []


def test_sanlock_is_given_the_time_of_a_renewal_and_never_less_than_fence_after() -> None:
    """sanlock renews every 2 * io_timeout: 20 s by default."""
    assert renewal_patience_s(RULES) == 25
    assert renewal_patience_s(replace(RULES, io_timeout_s=2.0)) == TIMING.fence_after
    assert renewal_patience_s(replace(RULES, io_timeout_s=4.0)) == TIMING.fence_after


@pytest.mark.parametrize(
    ("io_timeout_s", "owner_s", "patience_s"), [(10, 20, 50), (10, 5, 25), (10, 0, 25), (2, 2, 10)]
)
def test_a_host_id_is_renewed_by_the_io_timeout_of_its_own_sanlock(
    io_timeout_s: float, owner_s: float, patience_s: float
) -> None:
    """The hosts' may differ, by mistake: one that renews every 40 s was switched off after 25."""
    rules = replace(RULES, io_timeout_s=io_timeout_s)
    lease = replace(lease_of(TARGET), owner_io_timeout_s=owner_s)
    for young_s, lacks in ((0.001, ["does-not-renew"]), (0.0, [])):
        peer = {"renewal_s": NOW_S - patience_s + young_s}
        assert missing(lease=lease, rules=rules, peer=peer) == lacks


def test_a_log_that_cannot_be_read_forbids_it() -> None:
    assert missing(fence_log=None) == ["fence-log-readable"]


# --- how often ----------------------------------------------------------------------------


def intent(ago_s: float, target: int = 3, boot_id: str = "a") -> FenceRecord:
    return FenceRecord(1, FenceStep.INTENT, 1, target, NOW_S - ago_s, True, boot_id)


def wait_s(*log: FenceRecord) -> float:
    peer = evidence(TARGET).peer
    assert peer is not None
    return fence_wait(log, peer, NOW_S, RULES)[0]


def test_after_each_host_the_next_one_is_left_alone_for_twice_as_long() -> None:
    first_s = TIMING.fence_backoff
    assert wait_s(intent(10)) == first_s - 10
    assert wait_s(intent(first_s)) == 0
    assert wait_s(intent(300), intent(10, boot_id="b")) == 2 * first_s - 10
    assert missing(fence_log=(intent(10),)) == ["not-too-often"]
    assert missing(fence_log=(intent(first_s),)) == []


def test_so_many_within_an_hour_and_no_more() -> None:
    log = tuple(intent(ago_s, boot_id=str(ago_s)) for ago_s in (3000, 2000, 1000))
    assert wait_s(*log) == 600
    assert missing(fence_log=log) == ["not-too-often"]
    assert wait_s(*log[1:]) <= 0
    many = tuple(intent(ago_s, boot_id=str(ago_s)) for ago_s in (3500, 3000, 2000, 1000))
    assert wait_s(*many) == 600, "the third last one must be an hour ago"


def test_an_order_that_was_withdrawn_was_none() -> None:
    first = intent(10)
    over = replace(first, step=FenceStep.FAILED, withdrawn=True)
    assert wait_s(first, over) == 0
    assert wait_s(first, replace(over, withdrawn=False)) > 0, "it may have been given"
    assert wait_s(first, replace(over, by=7)) > 0, "another host's was"
    assert wait_s(first, over, replace(first, at_s=NOW_S - 5)) == TIMING.fence_backoff - 5
    assert wait_s(over) == 0


def test_the_orders_of_one_act_need_one_record() -> None:
    first = intent(10)
    about = (first.by, first.target, first.boot_id)
    assert is_noted((first,), *about)
    assert is_noted((first, replace(first, by=7, step=FenceStep.FAILED)), *about)
    for log in (None, (), (first, replace(first, step=FenceStep.FAILED))):
        assert not is_noted(log, *about)
    for other in (replace(first, by=7), replace(first, target=7), replace(first, boot_id="x")):
        assert not is_noted((other,), *about)


def test_where_two_saw_different_renewals_the_later_one_counts() -> None:
    """The broker reads the lease every second, the agent asks when it must know."""
    seen = replace(HANGS, renewal_since_s=NOW_S - 60)
    assert missing(seen) == []
    renewed: dict[str, Any] = {"peer": {"renewal_s": NOW_S - 2, "renewal_timestamp": 87}}
    assert missing(seen, **renewed) == ["does-not-renew"]
    older: dict[str, Any] = {"peer": {"renewal_s": NOW_S - 80, "renewal_timestamp": 67}}
    assert missing(seen, **older) == []
    assert missing(replace(seen, renewal_since_s=NOW_S - 2), **older) == ["does-not-renew"]
    assert missing(replace(seen, renewal_since_s=None), **older) == ["does-not-renew"]


def test_the_hour_is_over_after_an_hour() -> None:
    assert wait_s(intent(3600)) == 0
    assert wait_s(intent(3599.9), intent(70, boot_id="b")) == 50


def test_only_intents_count() -> None:
    for step in (FenceStep.DEAD, FenceStep.BACK, FenceStep.FAILED):
        assert wait_s(replace(intent(1), step=step)) == 0


def test_orders_that_repeat_one_act_count_once() -> None:
    assert wait_s(intent(200), intent(150), intent(100)) <= 0


def test_who_finishes_what_another_host_began_needs_no_new_leave() -> None:
    """The fencer died between its intent and its order."""
    assert wait_s(intent(1, TARGET, "its-boot")) == 0
    assert wait_s(intent(1, TARGET, "an earlier boot")) == TIMING.fence_backoff - 1


@given(st.lists(st.tuples(st.floats(0, 7200), st.integers(3, 9)), max_size=12))
def test_never_more_than_so_many_within_any_hour(shots: list[tuple[float, int]]) -> None:
    """Whatever is in the log: with leave now, at most fences_per_hour - 1 were before."""
    log = tuple(intent(ago_s, target, f"boot {ago_s}") for ago_s, target in shots)
    if wait_s(*log) <= 0:
        within = {(r.target, r.boot_id) for r in log if NOW_S - r.at_s < 3600}
        assert len(within) < RULES.fences_per_hour


@pytest.mark.parametrize(
    ("renewal_s", "slot_since_s", "renewed"),
    [
        (NOW_S - 12, NOW_S - 60, True),
        (None, NOW_S - 60, False),
        (NOW_S - 12, None, False),
        # Seen late, it may be the last one of a host that died.
        (NOW_S - 12, NOW_S - 12 - RENEWAL_SEEN_LATE_S, False),
        # Five looks of a second each, and not one more: a longer one is a live host's.
        (NOW_S - 12, NOW_S - 12 - 5.5, True),
        (NOW_S - renewal_patience_s(RULES), NOW_S - 600, False),
    ],
)
def test_a_host_renews_while_it_is_silent_only_by_what_came_after_its_silence(
    renewal_s: float | None, slot_since_s: float | None, renewed: bool
) -> None:
    assert renews(renewal_s, slot_since_s, NOW_S, RULES) is renewed

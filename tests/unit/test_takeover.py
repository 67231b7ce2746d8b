# SPDX-License-Identifier: LGPL-2.1-or-later
"""The takeover protocol: what proves a host off, and everything that must not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.decision import (
    AskPower,
    Code,
    DropFenceLease,
    FreeHostId,
    NoteFenceFailed,
    PowerOffHost,
    TakeFenceLease,
)
from scoring.hosts.evidence import OFFS_NEEDED, may_free
from scoring.hosts.state import Takeover
from scoring.hosts.takeover import (
    ASK_PAUSE_MAX_S,
    ASKS_AT_FULL_RATE,
    ATTEMPTS_NOTED,
    ORDER_PAUSE_MAX_S,
    order_pause_s,
    step,
    with_lease,
    with_order,
    with_power,
)
from scoring.observation import (
    FenceRecord,
    FenceStep,
    LeaseAnswer,
    Power,
    PowerAnswer,
    PowerOffEnded,
)
from tests.unit.builders import NOW_S, RULES, TIMING, evidence, free_lease, lease_of, off

DEAD = 2
START = Takeover(DEAD, NOW_S - 10)
#: Everything is proven: off before the fence lease was given, and once more after.
PROVEN = replace(
    START,
    offs=(off(DEAD, NOW_S - 3), off(DEAD, NOW_S - 1)),
    power=off(DEAD, NOW_S - 1),
    fence_since_s=NOW_S - 2,
)


def power(status: Power, read_s: float = NOW_S, proven: bool = True) -> PowerAnswer:
    return PowerAnswer(DEAD, status, read_s, identity_proven=proven, detail="what the device says")


def walk(takeover: Takeover, **changed: Any) -> tuple[Takeover, tuple[object, ...], list[Code]]:
    """One step with the fence lease held, unless `given` says otherwise."""
    now_s, rules = changed.pop("now_s", NOW_S), changed.pop("rules", RULES)
    after, actions, reasons = step(takeover, evidence(DEAD, **changed), now_s, rules)
    assert reasons, "always say why"
    return after, actions, [reason.code for reason in reasons]


# --- power readings -----------------------------------------------------------------------


def test_readings_of_off_are_collected_up_to_two() -> None:
    takeover = START
    for number in range(1, 5):
        takeover = with_power(takeover, off(DEAD, NOW_S + number), TIMING)
        assert len(takeover.offs) == min(number, OFFS_NEEDED)
    assert [o.read_s for o in takeover.offs] == [NOW_S + 3, NOW_S + 4]


def test_the_time_between_two_readings_begins_when_the_first_was_answered() -> None:
    slow = replace(off(DEAD, NOW_S), answered_s=NOW_S + 0.6)
    due_s = NOW_S + 0.6 + TIMING.power_reread
    takeover = with_power(START, slow, TIMING)
    early = with_power(takeover, off(DEAD, due_s - 0.001), TIMING)
    assert early.offs == (slow,)
    assert len(with_power(takeover, off(DEAD, due_s), TIMING).offs) == 2
    for now_s, asks in ((due_s - 0.001, False), (due_s, True)):
        _, actions, _ = walk(takeover, now_s=now_s, fence_lease_held=True)
        assert (AskPower(DEAD) in actions) is asks


@pytest.mark.parametrize("spacing_s", [0.0, 0.5, TIMING.power_reread - 0.001])
def test_two_readings_too_near_each_other_count_as_one(spacing_s: float) -> None:
    takeover = with_power(START, off(DEAD, NOW_S), TIMING)
    takeover = with_power(takeover, off(DEAD, NOW_S + spacing_s), TIMING)
    assert len(takeover.offs) == 1


def test_two_readings_power_reread_apart_count_as_two() -> None:
    takeover = with_power(START, off(DEAD, NOW_S), TIMING)
    assert len(with_power(takeover, off(DEAD, NOW_S + TIMING.power_reread), TIMING).offs) == 2


def test_a_reading_that_comes_late_and_was_taken_earlier_does_not_count() -> None:
    takeover = with_power(START, off(DEAD, NOW_S), TIMING)
    assert with_power(takeover, off(DEAD, NOW_S - 5), TIMING).offs == takeover.offs


@pytest.mark.parametrize(
    "spoiler", [power(Power.ON), power(Power.UNKNOWN), power(Power.OFF, proven=False)]
)
def test_any_other_answer_undoes_all_readings_of_off(spoiler: PowerAnswer) -> None:
    after = with_power(PROVEN, spoiler, TIMING)
    assert after.offs == ()
    assert after.power == spoiler


def test_answers_other_than_off_are_counted_and_one_off_ends_the_count() -> None:
    takeover = START
    for number in range(1, 4):
        takeover = with_power(takeover, power(Power.ON, NOW_S + number), TIMING)
        assert takeover.not_off == number
    assert with_power(takeover, off(DEAD, NOW_S + 9), TIMING).not_off == 0


def test_a_lease_answer_that_is_not_known_or_of_another_owner_shows_no_renewal() -> None:
    seen = with_lease(START, lease_of(DEAD))
    assert seen.renewal == (5, 77)
    for answer in (lease_of(3, owner_timestamp=99), replace(lease_of(DEAD), known=False)):
        changed = replace(answer, owner_timestamp=99)
        assert with_lease(seen, changed) == seen


def test_an_answer_ends_the_asking() -> None:
    asking = replace(START, asking_power=True)
    for answer in (power(Power.ON), power(Power.OFF), power(Power.UNKNOWN)):
        assert not with_power(asking, answer, TIMING).asking_power


# --- what must be true before a host id is freed ------------------------------------------


def holds(takeover: Takeover = PROVEN, **changed: Any) -> dict[str, bool]:
    now_s = changed.pop("now_s", NOW_S)
    conditions = may_free(takeover, evidence(DEAD, **changed), now_s, RULES)
    return {c.name: c.holds for c in conditions}


def test_a_host_id_may_be_freed_when_all_is_proven() -> None:
    assert all(holds().values())


@pytest.mark.parametrize(
    ("broken", "takeover", "changed"),
    [
        ("no-global-maintenance", PROVEN, {"global_maintenance": True}),
        ("no-global-maintenance", PROVEN, {"global_maintenance": None}),
        ("fence-lease-held", PROVEN, {"fence_lease_held": False}),
        ("power-off-read-twice", replace(PROVEN, offs=PROVEN.offs[1:]), {}),
        ("read-while-holding", replace(PROVEN, fence_since_s=None), {}),
        ("read-while-holding", replace(PROVEN, fence_since_s=NOW_S - 0.999), {}),
        ("read-fresh", PROVEN, {"now_s": NOW_S - 1 + RULES.io_timeout_s + 0.001}),
        (
            "device-proven-its",
            replace(PROVEN, offs=(off(DEAD, NOW_S - 3, proven=False), PROVEN.offs[1])),
            {},
        ),
        ("no-sign-of-life-since", PROVEN, {"slot_since_s": NOW_S - 3}),
        ("no-sign-of-life-since", PROVEN, {"peer": {"heartbeat_s": NOW_S - 2.5}}),
        ("lease-owner-known", PROVEN, {"lease": lease_of(3)}),
        ("lease-owner-known", PROVEN, {"lease": lease_of(DEAD, known=False)}),
        ("lease-owner-known", PROVEN, {"lease": free_lease()}),
        ("lease-owner-known", PROVEN, {"lease": lease_of(DEAD, owner_generation=0)}),
    ],
)
def test_each_missing_precondition_alone_forbids_the_freeing(
    broken: str, takeover: Takeover, changed: dict[str, Any]
) -> None:
    assert [name for name, value in holds(takeover, **changed).items() if not value] == [broken]
    _, actions, _ = walk(takeover, **changed)
    assert not any(isinstance(action, FreeHostId) for action in actions)


def test_a_hosts_first_generation_counts_as_one() -> None:
    assert holds(lease=lease_of(DEAD, owner_generation=1))["lease-owner-known"]


def test_nothing_read_proves_nothing() -> None:
    values = holds(START)
    failing = {"power-off-read-twice", "read-while-holding", "read-fresh", "device-proven-its"}
    assert {name for name, value in values.items() if not value} == failing


def test_a_reading_counts_up_to_io_timeout_and_no_longer() -> None:
    last_s = PROVEN.offs[-1].read_s
    assert holds(now_s=last_s + RULES.io_timeout_s)["read-fresh"]
    assert not holds(now_s=last_s + RULES.io_timeout_s + 0.001)["read-fresh"]


def test_a_reading_taken_the_moment_the_fence_lease_was_given_counts() -> None:
    assert holds(replace(PROVEN, fence_since_s=NOW_S - 1))["read-while-holding"]


def test_preconditions_say_their_value() -> None:
    for condition in may_free(START, evidence(DEAD, global_maintenance=None), NOW_S, RULES):
        assert condition.value


# --- the steps ----------------------------------------------------------------------------


def test_the_first_step_asks_the_device_and_nothing_else() -> None:
    after, actions, codes = walk(START, fence_lease_held=False)
    assert actions == (AskPower(DEAD),)
    assert after.asking_power
    assert codes == [Code.POWER_ASKED]


def test_a_device_is_not_asked_again_while_it_has_not_answered() -> None:
    after, actions, _ = walk(replace(START, asking_power=True), fence_lease_held=False)
    assert actions == ()
    assert after.asking_power


def test_the_first_off_asks_for_the_fence_lease_once() -> None:
    once_off = with_power(START, off(DEAD, NOW_S - 0.5), TIMING)
    after, actions, codes = walk(once_off, fence_lease_held=False)
    assert actions == (TakeFenceLease(),)
    assert codes == [Code.POWER_OFF_ONCE, Code.FENCE_LEASE_ASKED]
    assert walk(after, fence_lease_held=False)[1] == ()


def test_power_is_read_again_power_reread_after_the_last_reading() -> None:
    once_off = replace(with_power(START, off(DEAD, NOW_S), TIMING), fence_since_s=NOW_S)
    assert walk(once_off, now_s=NOW_S + TIMING.power_reread - 0.001)[1] == ()
    assert walk(once_off, now_s=NOW_S + TIMING.power_reread)[1] == (AskPower(DEAD),)


def test_two_offs_before_the_fence_lease_was_given_need_a_third() -> None:
    early = replace(PROVEN, fence_since_s=NOW_S - 0.5)
    _, actions, _ = walk(early)
    assert actions == (AskPower(DEAD),)
    third = with_power(early, off(DEAD, NOW_S), TIMING)
    assert [type(a) for a in walk(third)[1]] == [FreeHostId]


def test_a_fence_lease_that_is_held_already_counts_from_the_step_that_finds_it() -> None:
    """The lease was taken for an act that is forgotten by now: a freeing that the storage held up,
    or another host that is being switched on."""
    found, actions, _ = walk(replace(PROVEN, fence_since_s=None))
    assert actions == (AskPower(DEAD),), "what was read before proves nothing"
    third = with_power(found, off(DEAD, NOW_S + 0.125), TIMING)
    assert [type(a) for a in walk(third, now_s=NOW_S + 0.125)[1]] == [FreeHostId]


def test_the_proof_frees_the_host_id_with_what_must_still_be_true_on_disk() -> None:
    after, actions, codes = walk(PROVEN)
    (act,) = actions
    assert isinstance(act, FreeHostId)
    assert "power-off-read-twice: 2 of 2" in act.evidence
    bare = FreeHostId(DEAD, generation=5, timestamp=77, off_read_s=NOW_S - 1)
    assert replace(act, evidence="") == bare, "found off, not switched off by us"
    assert after.freeing
    assert codes == [Code.PROVEN_OFF]


def test_a_host_id_is_freed_once() -> None:
    after, _, _ = walk(PROVEN)
    assert walk(after) == (after, (), [Code.PROVEN_OFF])


def test_a_stale_proof_is_read_again_and_never_used() -> None:
    late_s = NOW_S - 1 + RULES.io_timeout_s + 1
    _, actions, _ = walk(PROVEN, now_s=late_s)
    assert actions == (AskPower(DEAD),)


def test_after_a_failure_nothing_is_done_until_the_pause_is_over() -> None:
    paused = replace(START, not_before_s=NOW_S + 5, problem="the fence lease was not given")
    assert walk(paused) == (paused, (), [Code.TAKEOVER_PAUSED])
    _, _, reasons = step(paused, evidence(DEAD), NOW_S + 2, RULES)
    assert reasons[0].text == "the fence lease was not given; next try in 3 s"
    assert walk(paused, now_s=NOW_S + 5)[1] == (AskPower(DEAD),)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (power(Power.ON), Code.POWER_ON),
        (power(Power.UNKNOWN), Code.POWER_UNKNOWN),
        (power(Power.OFF, proven=False), Code.POWER_UNKNOWN),
        (power(Power.ON, proven=False), Code.POWER_UNKNOWN),
    ],
)
def test_an_answer_that_proves_nothing_is_told_and_asked_again(
    answer: PowerAnswer, code: Code
) -> None:
    takeover = with_power(START, answer, TIMING)
    # Not switched off itself: that is another matter.
    rules = replace(RULES, fence_power_off=False)
    after, actions, codes = walk(takeover, fence_lease_held=False, now_s=NOW_S + 1, rules=rules)
    assert actions == (AskPower(DEAD),)
    assert codes[0] is code
    assert after.offs == ()


# --- switching off a host that hangs with its power on --------------------------------------

#: The power reads on, and did so while the fence lease was held.
HANGS = replace(
    START, power=power(Power.ON, NOW_S - 1), fence_since_s=NOW_S - 2, renewal=(5, 77), not_off=3
)
QUICK = replace(RULES, io_timeout_s=2.0)


def order(**changed: Any) -> PowerOffHost | None:
    _, actions, _ = walk(changed.pop("takeover", HANGS), **changed)
    return next((a for a in actions if isinstance(a, PowerOffHost)), None)


def test_a_host_that_hangs_is_switched_off_with_what_must_still_be_true() -> None:
    after, actions, codes = walk(HANGS)
    (act,) = actions
    assert isinstance(act, PowerOffHost)
    assert (act.host_id, act.attempt, act.slot) == (DEAD, 0, 500)
    assert (act.generation, act.timestamp) == (5, 77)
    assert "does-not-renew" in act.evidence
    assert after.switching_off and codes == [Code.POWER_OFF_ORDERED]
    assert walk(after) == (after, (), [Code.POWER_OFF_ORDERED])


def test_before_it_is_switched_off_the_fence_lease_is_taken_and_its_power_read_once_more() -> None:
    early = replace(HANGS, fence_since_s=None)
    after, actions, codes = walk(early, fence_lease_held=False)
    assert TakeFenceLease() in actions
    assert Code.FENCE_LEASE_ASKED in codes
    held = replace(after, taking_fence=False, fence_since_s=NOW_S, asking_power=False)
    assert walk(held)[1] == (AskPower(DEAD),)
    assert order(takeover=with_power(held, power(Power.ON, NOW_S), TIMING)) is not None


def test_what_comes_of_an_order() -> None:
    asked, _, _ = walk(HANGS)
    taken = with_order(asked, PowerOffEnded(DEAD, True), NOW_S, TIMING)
    assert not taken.switching_off and taken.attempts == 1 and taken.ordered_s == NOW_S
    assert walk(taken)[1] == (AskPower(DEAD),), "an order proves nothing"
    before = replace(asked, offs=PROVEN.offs, problem="no answer", not_off=3)
    after = with_order(before, PowerOffEnded(DEAD, True), NOW_S, TIMING)
    assert (after.power, after.offs, after.problem, after.not_off) == (None, (), "", 0)
    first = with_power(replace(taken, asking_power=False), off(DEAD, NOW_S + 1), TIMING)
    both = with_power(first, off(DEAD, NOW_S + 2), TIMING)
    _, actions, _ = walk(both, now_s=NOW_S + 2)
    (act,) = actions
    assert isinstance(act, FreeHostId) and act.ordered


def test_a_host_that_still_reads_on_is_given_time_and_then_another_order() -> None:
    taken = with_order(walk(HANGS)[0], PowerOffEnded(DEAD, True), NOW_S, TIMING)
    patience_s = TIMING.power_off_patience
    late_s = NOW_S + patience_s + 2
    soon = with_power(taken, power(Power.ON, NOW_S + patience_s - 1), TIMING)
    _, actions, codes = walk(soon, now_s=NOW_S + patience_s - 0.001)
    assert not any(isinstance(a, PowerOffHost | DropFenceLease) for a in actions)
    assert Code.POWER_OFF_ORDERED in codes
    _, actions, codes = walk(soon, now_s=late_s - 0.001)
    assert not any(isinstance(a, PowerOffHost) for a in actions)
    assert DropFenceLease() in actions, "another host may try meanwhile"
    assert Code.TAKEOVER_PAUSED in codes
    again = order(takeover=soon, now_s=late_s)
    assert again is not None and again.attempt == 1


def failed(takeover: Takeover, times: int = 1) -> Takeover:
    for _ in range(times):
        ended = PowerOffEnded(DEAD, False, "the BMC is busy")
        takeover = with_order(takeover, ended, NOW_S, TIMING)
    return takeover


def test_an_order_that_failed_leaves_what_was_read() -> None:
    after = failed(replace(walk(HANGS)[0], withdrawn="so"))
    assert after.power == HANGS.power and after.problem == "the BMC is busy"
    assert after.ordered_s is None and after.attempts == after.tries == 1
    assert not after.withdrawn and not after.switching_off


def test_the_pauses_between_orders_grow_and_never_end() -> None:
    assert [order_pause_s(n) for n in (1, 2, 3, 4, 5, 6, 7)] == [2, 4, 8, 16, 32, 60, 60]
    assert order_pause_s(10_000) == ORDER_PAUSE_MAX_S
    for tries in (1, 2, 50):
        after = failed(HANGS, tries)
        due_s = NOW_S + order_pause_s(tries)
        assert after.next_order_s == due_s
        on = replace(after, power=power(Power.ON, due_s - 1), fence_since_s=due_s - 2)
        assert order(takeover=on, now_s=due_s - 0.001) is None
        again = order(takeover=on, now_s=due_s)
        assert again is not None and again.attempt == tries


def test_in_the_pause_the_fence_lease_is_another_host_s() -> None:
    after = failed(HANGS)
    paused, actions, codes = walk(after, now_s=NOW_S + 1)
    assert actions == (DropFenceLease(),)
    assert codes == [Code.POWER_ON, Code.TAKEOVER_PAUSED]
    given_back, actions, _ = walk(paused, now_s=NOW_S + 1.9, fence_lease_held=False)
    assert actions == (), "it is not taken again, and the device is left alone"
    _, actions, _ = walk(given_back, now_s=NOW_S + 2, fence_lease_held=False)
    assert TakeFenceLease() in actions


def test_in_the_pause_a_device_is_asked_seldom() -> None:
    """The device may be busy with too many questions."""
    after = failed(HANGS, 5)
    soon_s = HANGS.power.over_s + ASK_PAUSE_MAX_S if HANGS.power else 0.0
    assert AskPower(DEAD) not in walk(after, now_s=soon_s - 0.1)[1]
    assert AskPower(DEAD) in walk(after, now_s=soon_s)[1]


def test_one_that_is_found_off_in_the_pause_is_taken_over_at_once() -> None:
    after = failed(HANGS, 5)
    once = with_power(after, off(DEAD, NOW_S + 1), TIMING)
    _, actions, _ = walk(once, now_s=NOW_S + 1.5)
    assert DropFenceLease() not in actions
    _, actions, _ = walk(once, now_s=NOW_S + 1.5, fence_lease_held=False)
    assert actions == (TakeFenceLease(),)


def test_an_order_that_was_withdrawn_is_no_attempt_but_has_its_pause() -> None:
    ended = PowerOffEnded(DEAD, False, "withdrawn: it lives", withdrawn=True)
    after = with_order(walk(HANGS)[0], ended, NOW_S, TIMING)
    assert (after.attempts, after.tries, after.next_order_s) == (0, 1, NOW_S + 2)
    assert after.problem == "withdrawn: it lives" and after.ordered_s is None


def test_people_are_told_once_that_the_orders_come_to_nothing() -> None:
    two = failed(HANGS, ATTEMPTS_NOTED - 1)
    assert not any(isinstance(a, NoteFenceFailed) for a in walk(two)[1])
    three = failed(HANGS, ATTEMPTS_NOTED)
    without, actions, _ = walk(three, fence_lease_held=False)
    assert actions == () and not without.gave_up, "only under the fence lease"
    after, actions, _ = walk(three)
    assert actions == (NoteFenceFailed(DEAD, "the BMC is busy"), DropFenceLease())
    assert walk(after)[1] == (DropFenceLease(),)
    ignored = replace(three, problem="")
    assert NoteFenceFailed(DEAD, "it still reads on") in walk(ignored)[1]


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"peer": {"unanswered_since_s": None}}, Code.OWNER_ANSWERS),
        ({"heard_by": ("host3 (id 3)",)}, Code.OWNER_ANSWERS),
        ({"peer": {"renewal_s": NOW_S - 24}}, Code.OWNER_RENEWS),
        ({"peer": {"heartbeat_s": None}}, Code.FENCE_FORBIDDEN),
        ({"peer": {"stopped": True}}, Code.FENCE_FORBIDDEN),
        ({"peer": {"maintenance": True}}, Code.FENCE_FORBIDDEN),
        ({"rules": replace(RULES, fence_power_off=False)}, Code.FENCE_FORBIDDEN),
        ({"slot_since_s": NOW_S - 9.9}, Code.FENCE_WAITING),
        ({"looked_since_s": NOW_S - 9.9}, Code.FENCE_WAITING),
        ({"peer": {"unanswered_since_s": NOW_S - 9.9}}, Code.FENCE_WAITING),
        ({"fence_log": None}, Code.FENCE_HELD_BACK),
        (
            {"fence_log": (FenceRecord(1, FenceStep.INTENT, 1, 3, NOW_S - 9, True, "boot"),)},
            Code.FENCE_HELD_BACK,
        ),
        ({"global_maintenance": True}, Code.FENCE_FORBIDDEN),
        ({"global_maintenance": None}, Code.FENCE_FORBIDDEN),
    ],
)
def test_what_keeps_a_host_from_being_switched_off_is_told(
    changed: dict[str, Any], code: Code
) -> None:
    assert order(**dict(changed)) is None
    assert code in walk(HANGS, **dict(changed))[2]


@pytest.mark.parametrize(
    "forbids",
    [
        {"peer": {"stopped": True}},
        {"peer": {"maintenance": True}},
        {"rules": replace(RULES, fence_power_off=False)},
    ],
)
@pytest.mark.parametrize(
    ("early", "told"),
    [
        ({"peer": {"renewal_s": NOW_S - 24}}, Code.OWNER_RENEWS),
        ({"peer": {"unanswered_since_s": NOW_S - 9.9}}, None),
        ({"slot_since_s": NOW_S - 9.9}, None),
        ({"looked_since_s": NOW_S - 9.9}, None),
    ],
)
def test_nobody_is_called_for_a_host_that_does_not_hang_yet(
    forbids: dict[str, Any], early: dict[str, Any], told: Code | None
) -> None:
    """`systemctl stop` on the VM's host sent a critical notice within five seconds."""
    changed = {**forbids, **early, "peer": {**forbids.get("peer", {}), **early.get("peer", {})}}
    assert order(**changed) is None
    codes = walk(HANGS, **changed)[2]
    assert Code.FENCE_FORBIDDEN not in codes
    assert told is None or told in codes


def test_a_host_without_a_slot_is_not_switched_off() -> None:
    assert order(peer={}) is not None
    _, actions, codes = step(HANGS, replace(evidence(DEAD), peer=None), NOW_S, RULES)[:3]
    assert not any(isinstance(a, PowerOffHost) for a in actions) and codes


def test_the_renewal_counts_from_when_it_was_first_seen_as_it_is_on_disk() -> None:
    """The broker's word counts for the renewal it speaks of, and for no other."""
    stale = {"peer": {"renewal_s": NOW_S - 60, "renewal_timestamp": 70}}
    late = replace(HANGS, renewal_since_s=NOW_S - 24)
    assert order(takeover=late, **dict(stale)) is None
    long = replace(HANGS, renewal_since_s=NOW_S - 25)
    assert order(takeover=long, **dict(stale)) is not None
    assert order(takeover=replace(HANGS, renewal=None)) is None, "never looked at"


def test_looks_at_the_lease_tell_when_the_owner_renewed() -> None:
    first = with_lease(START, lease_of(DEAD, NOW_S - 30))
    assert (first.renewal, first.renewal_since_s) == ((5, 77), NOW_S - 30)
    assert with_lease(first, lease_of(DEAD, NOW_S - 10)) == first
    renewed = with_lease(first, lease_of(DEAD, NOW_S - 5, owner_timestamp=97))
    assert (renewed.renewal, renewed.renewal_since_s) == ((5, 97), NOW_S - 5)
    unknown = LeaseAnswer(False, NOW_S)
    assert with_lease(first, unknown) == first
    assert with_lease(first, lease_of(3)) == first


def test_a_device_that_says_nothing_new_is_spared() -> None:
    """Several hosts may ask it for minutes; but nothing waits when its word is needed."""
    rules = replace(RULES, fence_power_off=False)
    told = replace(START, power=power(Power.ON, NOW_S), not_off=ASKS_AT_FULL_RATE)
    assert walk(told, now_s=NOW_S + 1, rules=rules)[1] == (AskPower(DEAD),)
    often = replace(told, not_off=ASKS_AT_FULL_RATE + 1)
    assert walk(often, now_s=NOW_S + 1.9, rules=rules)[1] == ()
    assert walk(often, now_s=NOW_S + 2, rules=rules)[1] == (AskPower(DEAD),)
    ever = replace(told, not_off=1000)
    assert walk(ever, now_s=NOW_S + ASK_PAUSE_MAX_S - 0.1, rules=rules)[1] == ()
    assert walk(ever, now_s=NOW_S + ASK_PAUSE_MAX_S, rules=rules)[1] == (AskPower(DEAD),)
    old = replace(HANGS, power=power(Power.ON, NOW_S - 4), fence_since_s=NOW_S - 2, not_off=1000)
    assert walk(old)[1] == (AskPower(DEAD),)


answers = st.builds(
    PowerAnswer,
    host_id=st.just(DEAD),
    power=st.sampled_from([Power.OFF, Power.OFF, Power.OFF, Power.ON, Power.UNKNOWN]),
    read_s=st.floats(NOW_S - 20, NOW_S),
    identity_proven=st.sampled_from([True, True, True, False]),
)


@given(
    st.lists(answers, max_size=6),
    st.none() | st.floats(NOW_S - 20, NOW_S),
    st.booleans(),
    st.sampled_from([False, False, True, None]),
)
def test_whatever_was_read_a_host_id_is_freed_only_under_proof(
    readings: list[PowerAnswer],
    fence_since_s: float | None,
    held: bool,
    global_maintenance: bool | None,
) -> None:
    """DESIGN's law 3, written down a second time, independent of may_free."""
    takeover = replace(START, fence_since_s=fence_since_s)
    for reading in readings:
        takeover = with_power(takeover, reading, TIMING)
    _, actions, _ = walk(takeover, fence_lease_held=held, global_maintenance=global_maintenance)
    ordered = [action for action in actions if isinstance(action, PowerOffHost)]
    if ordered:
        assert held and global_maintenance is False
        assert takeover.power is not None and takeover.power.power is Power.ON
        assert fence_since_s is not None and takeover.power.read_s >= fence_since_s
    freed = [action for action in actions if isinstance(action, FreeHostId)]
    if not freed:
        return
    assert held
    assert global_maintenance is False
    last_s = freed[0].off_read_s
    assert fence_since_s is not None
    assert fence_since_s <= last_s <= NOW_S
    assert NOW_S - last_s <= RULES.io_timeout_s
    good = [r for r in readings if r.power is Power.OFF and r.identity_proven]
    spoiled_at = max((i for i, r in enumerate(readings) if r not in good), default=-1)
    run = readings[spoiled_at + 1 :]
    assert any(r.read_s == last_s for r in run)
    assert any(r.read_s <= last_s - TIMING.power_reread for r in run)

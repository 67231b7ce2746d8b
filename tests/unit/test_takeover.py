# SPDX-License-Identifier: LGPL-2.1-or-later
"""The takeover protocol: what proves a host off, and everything that must not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.decision import AskPower, Code, FreeHostId, TakeFenceLease
from scoring.observation import Power, PowerAnswer
from scoring.state import Takeover
from scoring.takeover import OFFS_NEEDED, may_free, step, with_power
from tests.unit.builders import NOW_S, RULES, TIMING, free_lease, lease_of, off

DEAD = 2
START = Takeover(DEAD, NOW_S - 10)
LEASE = lease_of(DEAD)
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
    """One step with the fence lease held, unless told otherwise."""
    given: dict[str, Any] = {
        "lease": LEASE,
        "fence_lease_held": True,
        "global_maintenance": False,
        "now_s": NOW_S,
        "rules": RULES,
        **changed,
    }
    after, actions, reasons = step(takeover, **given)
    assert reasons, "always say why"
    return after, actions, [reason.code for reason in reasons]


# --- power readings -----------------------------------------------------------------------


def test_readings_of_off_are_collected_up_to_two() -> None:
    takeover = START
    for number in range(1, 5):
        takeover = with_power(takeover, off(DEAD, NOW_S + number), TIMING)
        assert len(takeover.offs) == min(number, OFFS_NEEDED)
    assert [o.read_s for o in takeover.offs] == [NOW_S + 3, NOW_S + 4]


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


def test_an_answer_ends_the_asking() -> None:
    asking = replace(START, asking_power=True)
    for answer in (power(Power.ON), power(Power.OFF), power(Power.UNKNOWN)):
        assert not with_power(asking, answer, TIMING).asking_power


# --- what must be true before a host id is freed ------------------------------------------


def holds(takeover: Takeover = PROVEN, **changed: Any) -> dict[str, bool]:
    given: dict[str, Any] = {
        "lease": LEASE,
        "fence_lease_held": True,
        "global_maintenance": False,
        "now_s": NOW_S,
        "rules": RULES,
        **changed,
    }
    return {c.name: c.holds for c in may_free(takeover, **given)}


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
        ("lease-owner-known", PROVEN, {"lease": lease_of(3)}),
        ("lease-owner-known", PROVEN, {"lease": lease_of(DEAD, known=False)}),
        ("lease-owner-known", PROVEN, {"lease": free_lease()}),
        ("lease-owner-known", PROVEN, {"lease": lease_of(DEAD, owner_generation=0)}),
    ],
)
def test_each_missing_precondition_alone_forbids_the_freeing(
    broken: str, takeover: Takeover, changed: dict[str, Any]
) -> None:
    given = {"lease": LEASE, "fence_lease_held": True, "global_maintenance": False, **changed}
    assert [name for name, value in holds(takeover, **given).items() if not value] == [broken]
    _, actions, _ = walk(takeover, **given)
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
    for condition in may_free(START, LEASE, False, None, NOW_S, RULES):
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


def test_the_proof_frees_the_host_id_with_what_must_still_be_true_on_disk() -> None:
    after, actions, codes = walk(PROVEN)
    assert actions == (FreeHostId(DEAD, generation=5, timestamp=77, off_read_s=NOW_S - 1),)
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
    _, _, reasons = step(paused, LEASE, False, False, NOW_S + 2, RULES)
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
    after, actions, codes = walk(takeover, fence_lease_held=False, now_s=NOW_S + 1)
    assert actions == (AskPower(DEAD),)
    assert codes == [code]
    assert after.offs == ()


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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""EngineStart: the VM is being started here."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from scoring.decision import (
    AskLease,
    Code,
    StartVm,
)
from scoring.observation import (
    StartResult,
    VmStartEnded,
)
from scoring.vm.state import StateName
from tests.unit.builders import (
    MOMENT_S,
    NOW_S,
    UNKNOWN,
    UP,
    Life,
    acting,
    codes,
    down,
    free_lease,
    in_state,
    kinds,
    local,
    may_start,
    peer,
    starts,
)

S = StateName


def test_a_start_under_way_is_waited_for_whatever_else_happens() -> None:
    """Leaving would forget it: the VM may come up at any moment."""
    for observed in (
        {"stopping": True},
        {"global_maintenance": True},
        {"newer_versions": (3,)},
        {"storage_good_since_s": None},
    ):
        decision = in_state(
            S.ENGINE_START, local(UNKNOWN), for_s=500, remembered=acting(), **observed
        )
        assert decision.state.engine.name is S.ENGINE_START
        assert decision.actions == ()
        assert codes(decision) == [Code.STARTING]


def test_a_start_that_went_well_leads_to_engine_starting() -> None:
    outcome = VmStartEnded(StartResult.STARTED)
    decision = in_state(S.ENGINE_START, for_s=3, remembered=acting(retries=2), outcomes=(outcome,))
    assert decision.state.engine.name is S.ENGINE_STARTING
    assert decision.state.engine.retries == 0
    assert not decision.state.engine.acting
    assert decision.state.engine.acted_s == NOW_S
    # The sample in this beat was taken before the start had ended: it says nothing yet.
    assert codes(decision) == [Code.STARTED, Code.AWAITING_SAMPLE]


@pytest.mark.parametrize(
    ("result", "retries"),
    [(StartResult.FAILED, 1), (StartResult.LEASE_HELD, 0), (StartResult.IMAGE_LOCKED, 0)],
)
def test_a_start_that_failed_leads_back_to_engine_down(result: StartResult, retries: int) -> None:
    decision = in_state(
        S.ENGINE_START, for_s=3, remembered=acting(), outcomes=(VmStartEnded(result, "why"),)
    )
    assert decision.state.engine.name is S.ENGINE_DOWN
    assert decision.state.engine.retries == retries
    assert decision.actions == ()
    assert "why" in decision.reasons[0].text


def test_a_locked_image_is_tried_again_every_two_seconds_and_bars_no_host() -> None:
    """The lock of a dead host outlives it, by the storage's own time: each try would else cost 50
    points, and the fourth bars the host for ten minutes."""
    life = Life()
    outcomes: tuple[Any, ...] = ()
    tried_s: list[float] = []
    while len(tried_s) < 20:
        decision = life.beat(*outcomes)
        outcomes = ()
        if AskLease in kinds(decision):
            outcomes = (free_lease(life.now_s),)
        if StartVm in kinds(decision):
            tried_s.append(life.now_s)
            decision = life.beat(VmStartEnded(StartResult.IMAGE_LOCKED, "gluster has it"))
            assert decision.state.engine.name is S.ENGINE_DOWN
            assert decision.score.value == 3400
            held = next(r for r in decision.reasons if r.code is Code.IMAGE_LOCKED)
            assert "gluster has it" in held.text
    assert all(2 <= later - at <= 5 for at, later in pairwise(tried_s)), tried_s
    assert life.state.engine.locked_since_s is not None
    life.beat(VmStartEnded(StartResult.STARTED))
    assert life.state.engine.locked_since_s is None


def test_the_wait_for_a_locked_image_says_since_when() -> None:
    remembered = {
        "locked_since_s": NOW_S - 30,
        "locked_s": NOW_S - 1,
        "locked_by": "gluster has it",
    }
    decision = in_state(S.ENGINE_DOWN, for_s=40, remembered=remembered)
    assert StartVm not in kinds(decision)
    text = next(r.text for r in decision.reasons if r.code is Code.IMAGE_LOCKED)
    assert "for 30 s" in text and "gluster has it" in text


def test_the_lock_of_a_vm_that_runs_elsewhere_is_no_riddle() -> None:
    ended = VmStartEnded(StartResult.IMAGE_LOCKED, "why")
    runs = peer(2, 3400, UP)
    decision = in_state(
        S.ENGINE_START, for_s=3, remembered=acting(), live=[runs], outcomes=(ended,)
    )
    assert decision.state.engine.locked_since_s is None
    assert decision.reasons[0].code is Code.IMAGE_LOCKED


def test_a_start_not_yet_asked_for_gives_way_to_the_guards() -> None:
    decision = in_state(S.ENGINE_START, local(maintenance=True))
    assert decision.state.engine.name is S.LOCAL_MAINTENANCE
    assert decision.actions == ()


def test_a_start_is_begun_in_the_beat_that_allowed_it_or_not_at_all() -> None:
    """However the host came to be in EngineStart without one under way."""
    decision = in_state(S.ENGINE_START, for_s=5, live=[peer(2, 9000)])
    assert decision.state.engine.name is S.ENGINE_DOWN
    assert decision.actions == ()
    assert codes(decision) == [Code.START_FAILED, Code.BETTER_HOST]


def test_failed_starts_cost_50_each_then_everything_for_600_seconds() -> None:
    """Four failures in a row: 3350, 3300, 3250, 0; a full score again 600 s after the last."""
    life = Life()
    scores: list[int] = []
    outcomes: tuple[Any, ...] = ()
    while len(scores) < 4:
        decision = life.beat(*outcomes)
        outcomes = ()
        if AskLease in kinds(decision):
            outcomes = (free_lease(life.now_s),)
        if StartVm in kinds(decision):
            decision = life.beat(VmStartEnded(StartResult.FAILED, "no such disk"))
            assert Code.START_FAILED in codes(decision)
            assert decision.score.penalties[0].why.endswith("the last: no such disk")
            scores.append(decision.score.value)
        assert life.now_s < 100
    assert scores == [3350, 3300, 3250, 0]
    failed_s = life.now_s
    assert life.state.engine.last_failure_s == failed_s
    while life.now_s < failed_s + 599:
        decision = life.beat()
        assert StartVm not in kinds(decision)
        assert decision.score.value == 0
        assert Code.RETRIES_EXHAUSTED in codes(decision)
    decision = life.beat()
    assert decision.score.value == 3400
    assert (decision.state.engine.retries, decision.state.engine.last_failure) == (0, "")


def test_retries_expire_exactly_600_seconds_after_the_last_failure() -> None:
    def remembered(ago_s: float) -> dict[str, Any]:
        return may_start(retries=4, last_failure_s=NOW_S - ago_s)

    assert "pausing for 200 s" in down(remembered=remembered(400)).reasons[0].text
    waiting = down(remembered=remembered(600 - MOMENT_S))
    assert codes(waiting) == [Code.RETRIES_EXHAUSTED]
    assert not starts(waiting)
    assert starts(down(remembered=remembered(600)))


def test_up_to_three_failed_starts_leave_a_host_in_the_race() -> None:
    decision = down(remembered=may_start(retries=3, last_failure_s=NOW_S - 10))
    assert starts(decision)
    assert decision.score.value == 3250

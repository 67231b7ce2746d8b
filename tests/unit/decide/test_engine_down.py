# SPDX-License-Identifier: LGPL-2.1-or-later
"""EngineDown: whether the VM is to be started at all."""

from __future__ import annotations

from typing import Any

import pytest

from scoring.decision import (
    Code,
)
from scoring.vm.state import StateName
from tests.unit.builders import (
    BOOTING,
    DOWN,
    MOMENT_S,
    NOW_S,
    TIMING,
    UNKNOWN,
    UP,
    codes,
    down,
    local,
    may_start,
    peer,
    replaced,
    starts,
)

S = StateName


def test_a_host_alone_starts_the_vm() -> None:
    decision = down()
    assert starts(decision)
    assert codes(decision) == [Code.LEASE_FREE, Code.STARTING]


def test_the_best_host_starts_the_vm() -> None:
    assert starts(down(live=[peer(2, 3399), peer(3, 0)]))


def test_a_better_live_host_is_left_to_start_the_vm() -> None:
    decision = down(live=[peer(2, 3401)])
    assert not starts(decision)
    assert codes(decision) == [Code.BETTER_HOST]
    assert "host2 (id 2) is better: 3401 points, 3400 here" in decision.reasons[0].text


@pytest.mark.parametrize(
    "unfit",
    [
        {"stopped": True},
        {"maintenance": True},
        {"engine": UNKNOWN},
        {"score": 0},
    ],
)
def test_a_better_host_that_cannot_run_the_vm_is_not_waited_for(unfit: dict[str, Any]) -> None:
    assert starts(down(live=[peer(2, **{"score": 9000, **unfit})]))


def test_a_better_host_that_is_silent_is_not_waited_for() -> None:
    assert starts(down(silent=[peer(2, 9000)]))


def test_a_vm_that_runs_on_a_live_host_is_left_there() -> None:
    decision = down(live=[peer(2, 0, UP)])
    assert codes(decision) == [Code.UP_ELSEWHERE]
    assert decision.state.engine.name is S.ENGINE_DOWN
    assert decision.state.engine.missing_since_s is None


def test_a_vm_that_a_silent_host_says_it_runs_is_not_believed() -> None:
    assert starts(down(silent=[peer(2, 3400, UP)]))


def test_a_vm_that_shows_up_here_is_watched_over() -> None:
    decision = down(local(BOOTING))
    assert decision.state.engine.name is S.ENGINE_STARTING
    assert decision.actions == ()


@pytest.mark.parametrize("since_s", [None, NOW_S])
def test_nothing_is_started_while_the_storage_is_unreadable_or_just_back(
    since_s: float | None,
) -> None:
    decision = down(storage_good_since_s=since_s)
    assert not starts(decision)
    code = Code.STORAGE_UNREADABLE if since_s is None else Code.NOT_ENOUGH_DATA
    assert codes(decision) == [code]


def test_a_host_looks_for_as_long_as_a_silent_peer_needs_to_be_told_from_a_live_one() -> None:
    looks_s = TIMING.suspect_after + TIMING.beat
    assert not starts(down(storage_good_since_s=NOW_S - looks_s + MOMENT_S))
    assert starts(down(storage_good_since_s=NOW_S - looks_s))


def test_a_peer_that_may_be_alive_is_waited_for() -> None:
    decision = down(uncertain=[peer(2, 10)])
    assert codes(decision) == [Code.NOT_ENOUGH_DATA]


def test_nothing_is_started_while_it_is_not_known_whose_storage_this_is() -> None:
    decision = down(unsure=(2, 5))
    assert not starts(decision)
    assert codes(decision) == [Code.NOT_ENOUGH_DATA]
    assert "host(s) 2, 5" in decision.reasons[0].text
    assert decision.score.value > 0


@pytest.mark.parametrize("joined", [False, None])
def test_nothing_is_started_before_the_lockspace_is_joined(joined: bool | None) -> None:
    decision = down(lockspace_joined=joined)
    assert codes(decision) == [Code.LOCKSPACE_NOT_JOINED]
    # Who is known to be unable to start it is no candidate; who does not know yet may be.
    assert decision.score.value == (0 if joined is False else 3400)


@pytest.mark.parametrize(
    "state",
    [
        S.ENGINE_START,
        S.ENGINE_STARTING,
        S.ENGINE_STOP,
        S.ENGINE_FORCE_STOP,
        S.ENGINE_MIGRATING_AWAY,
    ],
)
def test_a_host_that_has_the_vm_in_its_hands_is_waited_for(state: StateName) -> None:
    decision = down(live=[peer(2, 10, state=state.value)])
    assert codes(decision) == [Code.BUSY_ELSEWHERE]
    assert starts(down(silent=[peer(2, 10, state=state.value)]))


def test_a_host_that_moves_the_vm_is_waited_for_until_the_end_that_it_named() -> None:
    moving = peer(2, 10, state=S.ENGINE_MIGRATING_AWAY.value, moving_until_s=NOW_S + MOMENT_S)
    waiting = down(live=[moving])
    assert codes(waiting) == [Code.BUSY_ELSEWHERE]
    assert "for 0 s at most" in waiting.reasons[0].text
    assert starts(down(live=[replaced(moving, moving_until_s=NOW_S)]))


@pytest.mark.parametrize("state", ["", S.ENGINE_DOWN.value, S.ENGINE_UP.value, "of a later age"])
def test_a_host_in_any_other_state_is_not_waited_for(state: str) -> None:
    assert starts(down(live=[peer(2, 10, state=state)]))


def test_a_last_host_starts_the_vm_with_no_points_left() -> None:
    poor = local(network=0.0, bridge_up=False, config_up_to_date=False, cpu_load=2.0)
    decision = down(poor)
    assert starts(decision)


def test_a_sample_taken_before_the_last_action_ended_is_not_judged() -> None:
    """A start that has just ended would be begun once more on the VM's state before it."""
    for engine in (DOWN, UP):
        decision = down(local(engine), remembered=may_start(acted_s=NOW_S))
        assert decision.state.engine.name is S.ENGINE_DOWN
        assert codes(decision) == [Code.AWAITING_SAMPLE]
    assert starts(down(remembered=may_start(acted_s=NOW_S - MOMENT_S)))


def test_a_sample_that_claims_to_be_from_the_future_is_no_younger_than_now() -> None:
    decision = down(local(engine_taken_s=NOW_S + 99), remembered=may_start(acted_s=NOW_S))
    assert codes(decision) == [Code.AWAITING_SAMPLE]


def test_nothing_is_started_while_another_action_is_under_way() -> None:
    decision = down(remembered=may_start(acting=True))
    assert codes(decision) == [Code.AWAITING_SAMPLE]
    assert decision.actions == ()

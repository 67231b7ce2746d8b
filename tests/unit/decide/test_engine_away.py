# SPDX-License-Identifier: LGPL-2.1-or-later
"""EngineMaybeAway and EngineUnexpectedlyDown: the VM left, or died."""

from __future__ import annotations

from typing import Any

import pytest

from scoring.decision import (
    Code,
)
from scoring.vm.state import StateName
from tests.unit.builders import (
    BOOTING,
    DIED,
    MOMENT_S,
    NOW_S,
    TIMING,
    UNKNOWN,
    UP,
    codes,
    in_state,
    local,
    peer,
)

S = StateName


def test_a_vm_that_left_has_40_seconds_to_show_up_elsewhere() -> None:
    waiting = in_state(S.ENGINE_MAYBE_AWAY, for_s=40 - MOMENT_S, live=[peer(2)])
    assert waiting.state.engine.name is S.ENGINE_MAYBE_AWAY
    assert codes(waiting) == [Code.AWAY_WAITING]
    over = in_state(S.ENGINE_MAYBE_AWAY, for_s=40, live=[peer(2)])
    assert over.state.engine.name is S.ENGINE_UNEXPECTEDLY_DOWN
    assert over.state.engine.since_s == NOW_S
    assert codes(over)[0] is Code.AWAY_TIMEOUT


def test_a_vm_that_shows_up_elsewhere_has_moved() -> None:
    decision = in_state(S.ENGINE_MAYBE_AWAY, for_s=40, live=[peer(2, 3400, UP)])
    assert decision.state.engine.name is S.ENGINE_DOWN
    assert codes(decision)[0] is Code.UP_ELSEWHERE


@pytest.mark.parametrize("name", [S.ENGINE_MAYBE_AWAY, S.ENGINE_UNEXPECTEDLY_DOWN])
def test_a_vm_that_is_here_again_is_watched_over(name: StateName) -> None:
    decision = in_state(name, local(BOOTING), for_s=9999)
    assert decision.state.engine.name is S.ENGINE_STARTING


def test_a_host_where_the_vm_died_stays_away_from_it_for_560_seconds() -> None:
    waiting = in_state(
        S.ENGINE_UNEXPECTEDLY_DOWN, local(DIED), for_s=560 - MOMENT_S, live=[peer(2)]
    )
    assert waiting.state.engine.name is S.ENGINE_UNEXPECTEDLY_DOWN
    assert waiting.score.value == 0
    assert codes(waiting) == [Code.UNEXPECTED_DOWN_WAITING]
    over = in_state(S.ENGINE_UNEXPECTEDLY_DOWN, local(DIED), for_s=560, live=[peer(2, 3399)])
    assert over.state.engine.name is S.ENGINE_DOWN
    assert over.score.value == 3400
    assert codes(over)[0] is Code.UNEXPECTED_DOWN_OVER


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"live": [peer(2, 0)]},
        {"live": [peer(2, stopped=True), peer(3, maintenance=True)]},
        {"live": [peer(2, engine=UNKNOWN)]},
        {"silent": [peer(2, 3400)]},
        {"storage_good_since_s": NOW_S - TIMING.suspect_after},
    ],
)
def test_the_last_host_does_not_wait_for_nobody(others: dict[str, Any]) -> None:
    decision = in_state(S.ENGINE_UNEXPECTEDLY_DOWN, local(DIED), **others)
    assert decision.state.engine.name is S.ENGINE_DOWN
    assert codes(decision)[0] is Code.LAST_HOST


@pytest.mark.parametrize(
    "not_sure",
    [
        {"uncertain": [peer(2)]},
        {"storage_good_since_s": None},
        {"live": [peer(2, 1)]},
        {"storage_good_since_s": NOW_S - TIMING.suspect_after + MOMENT_S},
    ],
)
def test_a_host_that_is_not_sure_to_be_the_last_one_waits(not_sure: dict[str, Any]) -> None:
    decision = in_state(S.ENGINE_UNEXPECTEDLY_DOWN, local(DIED), **not_sure)
    assert decision.state.engine.name is S.ENGINE_UNEXPECTEDLY_DOWN

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of this host costs points in each beat, and says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scoring.decision import Code, StartVm
from scoring.vm.state import StateName
from scoring.vm_facts import Obstacle, Unfit
from tests.unit.builders import (
    DOWN,
    RULES,
    UP,
    codes,
    in_state,
    kinds,
    local,
    peer,
    replaced,
)

S = StateName


def test_a_fence_path_that_does_not_work_costs_what_is_configured() -> None:
    weights = replace(RULES.weights, fence_path_score_penalty=200)
    given: dict[str, Any] = {"remembered": {"rules": replace(RULES, weights=weights)}}
    for ok, score in ((False, 3200), (True, 3400), (None, 3400)):
        decision = in_state(S.ENGINE_DOWN, local(fence_path_ok=ok), **given)
        assert decision.score.value == score


def test_a_host_that_left_the_lockspace_but_runs_the_vm_keeps_its_score() -> None:
    decision = in_state(S.ENGINE_UP, local(UP), lockspace_joined=False)
    assert decision.score.value == 3400


@pytest.mark.parametrize(
    ("sample", "part"),
    [
        ({"network": 0.0}, "network"),
        ({"bridge_up": False}, "bridge"),
        ({"mem_free_mb": 1.0}, "memory"),
        ({"cpu_load": 0.9}, "load"),
        ({"config_up_to_date": False}, "config"),
    ],
)
def test_every_sample_of_this_host_reaches_its_score(sample: dict[str, Any], part: str) -> None:
    fine = {"network": 1.0, "bridge_up": True, "mem_free_mb": 8000.0, "cpu_load": 0.1}
    here = local(DOWN, **{**fine, "config_up_to_date": True, **sample})
    decision = in_state(S.ENGINE_DOWN, here, live=[peer(2, engine=UP)])
    assert [penalty.name for penalty in decision.score.penalties] == [part]


def test_a_host_outside_the_lockspace_scores_0_and_says_so() -> None:
    decision = in_state(S.ENGINE_DOWN, lockspace_joined=False)
    assert decision.score.value == 0
    (penalty,) = decision.score.penalties
    assert (penalty.name, penalty.points) == ("lockspace", RULES.weights.base_score)
    assert penalty.why


def test_a_host_without_the_lock_driver_scores_0_and_one_that_does_not_tell_does_not() -> None:
    without = in_state(S.ENGINE_DOWN, local(DOWN, lock_driver=False))
    assert without.score.value == 0
    assert [penalty.name for penalty in without.score.penalties] == ["lock-driver"]
    assert StartVm not in kinds(without)
    for told in (None, True):
        assert in_state(S.ENGINE_DOWN, local(DOWN, lock_driver=told)).score.value > 0
    running = in_state(S.ENGINE_UP, local(UP, lock_driver=False))
    assert running.score.value > 0, "the VM that runs here is not chased away"


@pytest.mark.parametrize("obstacle", Obstacle)
def test_a_host_with_an_obstacle_scores_0_and_starts_nothing(obstacle: Obstacle) -> None:
    given = local(DOWN, unfit=(Unfit(obstacle, "what to do"),))
    decision = in_state(S.ENGINE_DOWN, given)
    assert decision.score.value == 0
    assert [(p.name, p.why) for p in decision.score.penalties] == [(obstacle.value, "what to do")]
    assert codes(decision) == [Code(obstacle.value)]
    assert not decision.actions
    running = in_state(S.ENGINE_UP, replaced(given, engine=UP))
    assert running.score.value > 0, "the VM that runs here is not chased away"


def test_two_obstacles_are_both_named() -> None:
    both = (Unfit(Obstacle.CANNOT_START, "no bridge"), Unfit(Obstacle.HELD_BACK, "an overlay"))
    decision = in_state(S.ENGINE_DOWN, local(DOWN, unfit=both))
    assert [p.why for p in decision.score.penalties] == ["no bridge", "an overlay"]
    assert codes(decision) == [Code.CANNOT_START, Code.HELD_BACK]

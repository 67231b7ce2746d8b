# SPDX-License-Identifier: LGPL-2.1-or-later
"""The durations: DESIGN's defaults, and the relations that must hold between them."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from scoring.rules import Rules, Weights
from scoring.timing import START_RETRIES_MAX, Timing

NAMES = [f.name for f in fields(Timing)]


def test_the_defaults_are_the_promised_ones() -> None:
    timing = Timing()
    assert timing.beat == 1
    assert timing.suspect_after == 3
    assert timing.fence_after == 10
    assert timing.move_dwell == 30
    assert timing.engine_starting == 600
    assert timing.bad_health == 300
    assert timing.maybe_away == 40
    assert timing.unexpected_down == 560
    assert timing.retry_expiry == 600
    assert timing.load_window == 900
    assert timing.stop_grace == 300
    assert START_RETRIES_MAX == 3


def test_the_default_weights_are_the_references() -> None:
    weights = Weights()
    assert (weights.base_score, weights.network_score_penalty) == (3400, 1600)
    assert (weights.not_uptodate_config_penalty, weights.mgmt_bridge_score_penalty) == (1000, 600)
    assert (weights.free_memory_score_penalty, weights.cpu_load_score_penalty) == (400, 1000)
    assert weights.engine_retry_score_penalty == 50
    assert (weights.cpu_load_penalty_min, weights.cpu_load_penalty_max) == (0.4, 0.9)
    assert Rules().move_threshold == 800
    assert Rules().io_timeout_s == 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, -1, 86_401, math.nan, math.inf])
def test_a_duration_out_of_bounds_is_refused_by_its_key(name: str, value: float) -> None:
    if value == 0 and name in ("force_stop_patience", "agent_dead_after", "storage_patience"):
        assert getattr(Timing(**{name: value}), name) == 0, "never"
        return
    with pytest.raises(ValueError, match=f"^{name.replace('_', '-')} is "):
        Timing(**{name: value})


def test_the_longest_duration_is_a_day() -> None:
    assert Timing(load_window=86_400).load_window == 86_400


def test_a_peer_may_miss_one_beat_without_being_suspected() -> None:
    assert Timing(beat=1.5, suspect_after=3).suspect_after == 3
    with pytest.raises(ValueError, match="suspect-after must be at least two beats"):
        Timing(beat=1.6, suspect_after=3)


def test_nobody_is_fenced_before_being_suspected() -> None:
    assert Timing(suspect_after=10, fence_after=10).fence_after == 10
    with pytest.raises(ValueError, match="fence-after must not be shorter"):
        Timing(suspect_after=11, fence_after=10)


def test_one_question_that_is_lost_is_no_isolation() -> None:
    assert Timing(isolation_after=4, outside_interval=2).isolation_after == 4
    with pytest.raises(ValueError, match="isolation-after must be at least twice"):
        Timing(isolation_after=3.9, outside_interval=2)


@pytest.mark.parametrize(
    ("after_s", "interval_s", "seldom_s"), [(15, 2, 7.5), (60, 2, 12), (15, 7.5, 7.5)]
)
def test_what_the_others_saw_last_is_never_old_enough_to_count_as_silence(
    after_s: float, interval_s: float, seldom_s: float
) -> None:
    timing = Timing(isolation_after=after_s, outside_interval=interval_s)
    assert timing.outside_seldom == seldom_s

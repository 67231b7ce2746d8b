# SPDX-License-Identifier: LGPL-2.1-or-later
"""Durations in buckets: bounded, and honest about what they do not know."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.daemon.histogram import BOUNDS_S, Histogram


def test_nothing_counted_is_not_known() -> None:
    assert (Histogram().count, Histogram().quantile_s(0.5)) == (0, None)


def test_a_bound_belongs_to_its_bucket_and_the_last_bucket_has_none() -> None:
    times = Histogram()
    for seconds in (0.001, 0.0011, 11.0, -1.0):
        times.add(seconds)
    assert times.counts[BOUNDS_S.index(0.001)] == 1
    assert times.counts[BOUNDS_S.index(0.0025)] == 1
    assert times.counts[-1] == 1
    assert times.counts[0] == 1, "a negative one is none at all"
    assert (times.count, times.max_s) == (4, 11.0)


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_no_less_than_that_part_of_all(seconds: list[float], part: float) -> None:
    times = Histogram()
    for one in seconds:
        times.add(one)
    found = times.quantile_s(part)
    assert found is not None and found <= times.max_s == max(seconds)
    assert sum(one <= found for one in seconds) >= part * len(seconds) - 1e-9
    assert abs(times.sum_s - sum(seconds)) < 1e-6 * max(1.0, sum(seconds))

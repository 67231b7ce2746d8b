# SPDX-License-Identifier: LGPL-2.1-or-later
"""Durations in fixed buckets: small and bounded, in the form that Prometheus reads. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

#: Upper bounds in seconds; the last bucket has none.
BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Histogram:
    """Counts durations. `bounds_s`: upper bounds in order. `counts`: one for each bound, and one
    for longer durations."""

    def __init__(self, bounds_s: Sequence[float] = BOUNDS_S) -> None:
        self.bounds_s = tuple(bounds_s)
        self.counts = [0] * (len(self.bounds_s) + 1)
        self.sum_s = 0.0
        self.max_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration; a negative one counts as 0."""
        seconds = max(0.0, seconds)
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds
        self.max_s = max(self.max_s, seconds)

    @property
    def count(self) -> int:
        """The number of counted durations."""
        return sum(self.counts)

    def quantile_s(self, part: float) -> float | None:
        """The upper bound of the bucket that holds this quantile, at most the largest duration
        counted; None while nothing was counted."""
        count = self.count
        if count == 0:
            return None
        seen = 0
        for bound_s, number in zip((*self.bounds_s, float("inf")), self.counts, strict=True):
            seen += number
            if seen >= part * count:
                return min(bound_s, self.max_s)
        return self.max_s

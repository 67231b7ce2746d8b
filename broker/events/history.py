# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every host's score over the last minutes and the last day, and the host of the engine: the
dashboard draws it. No I/O; it is lost when the broker ends."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

from broker.wire.history import HistorySeries

#: Name, seconds of a step, number of steps: 15 minutes and 24 hours.
SERIES = (("minutes", 5.0, 180), ("day", 300.0, 288))
#: More hosts have no history: it takes half a MiB for so many.
HOSTS_MAX = 256
_NONE = 0xFFFF


class _Series:
    def __init__(self, step_s: float, steps: int) -> None:
        self.step_s = step_s
        self.steps = steps
        self._now: int | None = None
        self._scores: dict[int, array[int]] = {}
        self._engine = array("H", [_NONE] * steps)

    def take(self, scores: Mapping[int, int | None], engine: int | None, now_s: float) -> None:
        """Take in a look; the last one within a step is what the step shows."""
        step = int(now_s // self.step_s)
        if self._now is not None:
            for passed in range(max(self._now + 1, step - self.steps + 1), step + 1):
                for ring in (self._engine, *self._scores.values()):
                    ring[passed % self.steps] = _NONE
        self._now = step
        place = step % self.steps
        self._engine[place] = _NONE if engine is None else engine
        for host, score in scores.items():
            if host not in self._scores:
                if len(self._scores) >= HOSTS_MAX:
                    continue
                self._scores[host] = array("H", [_NONE] * self.steps)
            self._scores[host][place] = _NONE if score is None else min(score, _NONE - 1)

    def shown(self) -> HistorySeries:
        """The samples, oldest first."""
        first = 0 if self._now is None else self._now + 1

        def ordered(ring: array[int]) -> list[int | None]:
            turned = [ring[(first + n) % self.steps] for n in range(self.steps)]
            return [None if value == _NONE else value for value in turned]

        scores = {host: ordered(ring) for host, ring in sorted(self._scores.items())}
        return HistorySeries(self.step_s, scores, ordered(self._engine))


class History:
    """All series."""

    def __init__(self) -> None:
        self._series = {name: _Series(step_s, steps) for name, step_s, steps in SERIES}

    def take(self, scores: Mapping[int, int | None], engine: int | None, now_s: float) -> None:
        """Take in one look at the cluster. A score None: that host is silent. `engine`: the host
        that has it up, 0: none, None: unknown."""
        for series in self._series.values():
            series.take(scores, engine, now_s)

    def shown(self) -> dict[str, HistorySeries]:
        """The series by name."""
        return {name: series.shown() for name, series in self._series.items()}

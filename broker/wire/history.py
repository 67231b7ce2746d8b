# SPDX-License-Identifier: LGPL-2.1-or-later
"""The scores and the engine's place over the last day, as the broker's API gives them out."""

from __future__ import annotations

from msgspec import Struct


class HistorySeries(Struct, frozen=True):
    """Samples, the oldest first, `step_s` apart; the last is now. `scores`: by host id, null:
    unknown, or that host was silent. `engine`: id of the host that had it up, 0: none had, null:
    unknown."""

    step_s: float
    scores: dict[int, list[int | None]]
    engine: list[int | None]


class AvailabilityStrip(Struct, frozen=True):
    """How much of the last time the engine was available, as the answering host saw it. Whole
    seconds in each step of `step_s`, the oldest first; the last is now. `up_s`: up, and not known
    to be unhealthy; `down_s`: down or unhealthy; `unknown_s`: it was not known. What is missing of
    `step_s` was not watched."""

    step_s: float
    up_s: list[int]
    down_s: list[int]
    unknown_s: list[int]


class History(Struct, frozen=True):
    """Scores of the last 15 minutes and the last day, since the broker started at most;
    `availability`: of the last day (`day`) and the last 30 days (`month`), over restarts."""

    minutes: HistorySeries
    day: HistorySeries
    availability: dict[str, AvailabilityStrip] = {}

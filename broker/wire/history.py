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


class History(Struct, frozen=True):
    """Scores of the last 15 minutes and the last day, since the broker started at most."""

    minutes: HistorySeries
    day: HistorySeries

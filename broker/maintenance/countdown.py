# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long a maintenance mode still lasts, as this host counts it. Pure.

The rules are those of the mode (broker/whiteboard/mode.py): a host that sees a mode for the first
time takes the rest from the wall clock, and from then on counts by its own monotonic clock.
"""

from __future__ import annotations

from broker.whiteboard.mode import Mode

#: A mode that ends within so long, or within a tenth of its time, ends soon.
SOON_S = 600.0
#: No host ends a mode that it has not seen for so long: a host whose wall clock is ahead must give
#: the others the time to object that they count longer.
SEEN_MIN_S = 10.0


class Countdown:
    """How long the mode that is set still lasts, by this host's monotonic clock."""

    def __init__(self) -> None:
        self.mode: Mode | None = None
        self._end_s = float("inf")
        self._seen_s = 0.0
        self._warned = False

    def look(
        self, mode: Mode | None, now_s: float, wall_s: float, began_after_s: float | None = None
    ) -> None:
        """Take in the present mode; one that was seen before goes on being counted. The mode was
        set after `began_after_s`, whatever the wall clock says; None: when is not known."""
        if mode != self.mode:
            self.mode, self._seen_s, self._warned = mode, now_s, False
            self._end_s = float("inf") if mode is None else now_s + mode.left_s(wall_s)
            if began_after_s is not None and mode is not None and mode.lasts_s is not None:
                self._end_s = max(self._end_s, began_after_s + mode.lasts_s)

    def left_s(self, now_s: float) -> float | None:
        """Seconds until it ends, at least 0; None without a mode or without an end."""
        return None if self._end_s == float("inf") else max(0.0, self._end_s - now_s)

    def is_over(self, now_s: float) -> bool:
        """Whether it has ended by itself."""
        return now_s >= max(self._end_s, self._seen_s + SEEN_MIN_S)

    def ends_soon(self, now_s: float) -> bool:
        """Whether little of it is left (SOON_S)."""
        left_s = self.left_s(now_s)
        if left_s is None or self.mode is None or self.mode.lasts_s is None:
            return False
        return left_s <= min(SOON_S, self.mode.lasts_s / 10)

    def warns_once(self, now_s: float) -> bool:
        """Whether it ends soon; true once for each mode."""
        if self._warned or not self.ends_soon(now_s):
            return False
        self._warned = True
        return True

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Since when something is as it is. Pure."""

from __future__ import annotations

from collections.abc import Hashable


class Since:
    """Is shown a value again and again. `at_least`: it was so already at the first look."""

    def __init__(self) -> None:
        self._value: Hashable = None
        self._since_s: float | None = None
        self.at_least = False

    def look(self, value: Hashable, now_s: float) -> None:
        """The value as it is now."""
        if self._since_s is None or value != self._value:
            self.at_least = self._since_s is None
            self._value, self._since_s = value, now_s

    def for_s(self, value: Hashable, now_s: float) -> float | None:
        """For how long it has been that value; None before the first look, 0 where it has just
        become it."""
        if self._since_s is None:
            return None
        return now_s - self._since_s if value == self._value else 0.0

    def is_since_before(self, value: Hashable) -> bool:
        """Whether it has been that value since before the first look."""
        return self.at_least and value == self._value

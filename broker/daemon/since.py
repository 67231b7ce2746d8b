# SPDX-License-Identifier: LGPL-2.1-or-later
"""Remembers since when a value has been the same. Pure."""

from __future__ import annotations

from collections.abc import Hashable


class Since:
    """Gets a value again and again. `at_least`: the value has not changed since the first look."""

    def __init__(self) -> None:
        self._value: Hashable = None
        self._since_s: float | None = None
        self.at_least = False

    def look(self, value: Hashable, now_s: float) -> None:
        """Take in the present value."""
        if self._since_s is None or value != self._value:
            self.at_least = self._since_s is None
            self._value, self._since_s = value, now_s

    def for_s(self, value: Hashable, now_s: float) -> float | None:
        """For how long the value has been this one; None before the first look, 0 where it has just
        changed to it."""
        if self._since_s is None:
            return None
        return now_s - self._since_s if value == self._value else 0.0

    def is_since_before(self, value: Hashable) -> bool:
        """Whether the value has been this one since before the first look."""
        return self.at_least and value == self._value


def age_s(at_s: float | None, now_s: float) -> float | None:
    """How long ago that was; None where it never was."""
    return None if at_s is None else now_s - at_s

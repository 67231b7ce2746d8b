# SPDX-License-Identifier: LGPL-2.1-or-later
"""A measured figure, and the line that shows it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure; `target` None: shown for information.

    `worst`: the largest value is held against the target, not the median.
    """

    name: str
    unit: str
    values: list[float]
    target: float | None = None
    worst: bool = False

    @property
    def shown(self) -> float:
        """The value that counts."""
        return max(self.values) if self.worst else statistics.median(self.values)

    @property
    def holds(self) -> bool:
        return self.target is None or self.shown <= self.target

    def line(self) -> str:
        """Name, value, spread over the runs, target."""
        spread = f"{min(self.values):.2f}..{max(self.values):.2f} of {len(self.values)}"
        target = "" if self.target is None else f"  target {self.target:g}"
        verdict = "" if self.holds else "  MISSED"
        head = f"{self.name:46} {self.shown:9.2f} {self.unit:8}"
        return f"{head} ({spread}){target}{verdict}"

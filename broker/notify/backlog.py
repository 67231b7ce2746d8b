# SPDX-License-Identifier: LGPL-2.1-or-later
"""The queue of one channel, and how fast it may be emptied. Pure."""

from __future__ import annotations

from collections import deque

from broker.notify.limits import Limits
from broker.notify.message import StampedNotice


class Backlog:
    """A bounded queue that becomes a digest when it is long. `dropped`: notices without room."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: list[StampedNotice] = []
        self._lost = 0
        self._sent_s: deque[float] = deque(maxlen=limits.burst)
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, stamped: StampedNotice) -> None:
        """Queue a notice; where there is no room the oldest of the least severe ones is dropped."""
        self._waiting.append(stamped)
        if len(self._waiting) > self._limits.queue:
            self._waiting.remove(min(self._waiting, key=lambda each: each.notice.severity))
            self.dropped += 1
            self._lost += 1

    def take(self, everything: bool = False) -> tuple[tuple[StampedNotice, ...], int]:
        """The notices of the next message, and how many were lost before it. Without
        `everything`, a short queue gives one notice; an empty one gives none."""
        whole = everything or self._lost or len(self._waiting) >= self._limits.digest_from
        count = len(self._waiting) if whole else 1
        taken, self._waiting = tuple(self._waiting[:count]), self._waiting[count:]
        lost, self._lost = self._lost, 0
        return taken, lost

    def drop_all(self) -> int:
        """Empty the queue; returns how many notices were in it. They count as dropped."""
        count = len(self._waiting)
        self.dropped += count
        self._waiting, self._lost = [], 0
        return count

    def sent(self, now_s: float) -> None:
        """A message went out."""
        self._sent_s.append(now_s)

    def not_before_s(self) -> float:
        """When the next message may go out."""
        if len(self._sent_s) < self._limits.burst:
            return float("-inf")
        return self._sent_s[0] + self._limits.window_s

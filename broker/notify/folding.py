# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same thing is told once in a while, however often it happens. Pure.

What was held back is told when the time is up, with how often it was: the last word on a
thing is never swallowed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from broker.events.notice import Told
from broker.wire.kinds import Kind


@dataclass(slots=True)
class _Known:
    since_s: float
    last: Told
    held: int = 0


class Folding:
    """Remembers at most `size_max` notices; `held`: how many were held back in all."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._known: OrderedDict[tuple[Kind, str, str], _Known] = OrderedDict()
        self.held = 0

    def take(self, told: Told, now_s: float) -> Told | None:
        """The notice to be sent now; None while the same one went out lately."""
        notice = told.notice
        key = (notice.kind, notice.subject, notice.detail)
        known = self._known.get(key)
        if known is not None:
            known.held += 1
            known.last = told
            self.held += 1
            return None
        while len(self._known) >= self._size_max:
            self._known.popitem(last=False)
        self._known[key] = _Known(now_s, told)
        return told

    def due(self, now_s: float, repeat_after_s: float) -> list[Told]:
        """What was held back and whose time is up; the rest is forgotten with its time."""
        out = []
        while self._known:
            key, known = next(iter(self._known.items()))
            if now_s - known.since_s < repeat_after_s:
                break
            del self._known[key]
            if known.held:
                out.append(replace(known.last, repeats=known.held))
                self._known[key] = _Known(now_s, known.last)
        return out

    def next_s(self, repeat_after_s: float) -> float | None:
        """When `due` must be asked again; None while nothing is remembered."""
        first = next(iter(self._known.values()), None)
        return None if first is None else first.since_s + repeat_after_s

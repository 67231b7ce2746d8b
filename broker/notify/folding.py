# SPDX-License-Identifier: LGPL-2.1-or-later
"""A notice that repeats is sent once per interval, however often it comes. Pure.

Repeats that were held back are sent when the interval is over, as one notice with their number:
the last notice about a subject is never lost.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from broker.events.notice import FactValue
from broker.notify.message import StampedNotice
from broker.wire.kinds import Kind


@dataclass(slots=True)
class _Known:
    since_s: float
    last: StampedNotice
    held: int = 0


class Folding:
    """Remembers at most `size_max` notices; `held`: how many were held back since the start. The
    same sentence on two VMs is two notices."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._known: OrderedDict[tuple[Kind, str, str, FactValue], _Known] = OrderedDict()
        self.held = 0

    def take(self, stamped: StampedNotice, now_s: float) -> StampedNotice | None:
        """The notice to be sent now; None while one of its kind and text was sent lately."""
        notice = stamped.notice
        key = (notice.kind, notice.subject, notice.detail, notice.facts.get("vm"))
        known = self._known.get(key)
        if known is not None:
            known.held += 1
            known.last = stamped
            self.held += 1
            return None
        while len(self._known) >= self._size_max:
            self._known.popitem(last=False)
        self._known[key] = _Known(now_s, stamped)
        return stamped

    def due(self, now_s: float, repeat_after_s: float) -> list[StampedNotice]:
        """The held-back notices whose interval is over; notices without repeats are forgotten
        then."""
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
        """When `due` must be called again; None while nothing is remembered."""
        first = next(iter(self._known.values()), None)
        return None if first is None else first.since_s + repeat_after_s

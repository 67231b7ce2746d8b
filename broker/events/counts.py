# SPDX-License-Identifier: LGPL-2.1-or-later
"""Counts what has happened since the broker started: transitions, failovers, fences. No I/O.

The phases of a failover to this host, in seconds:

away    the engine was last known up elsewhere, until its start began here: detection, proof
start   until it runs here under its lease
boot    until it is healthy
total   all of it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from broker.daemon.histogram import Histogram
from broker.events.notice import Notice
from broker.wire.kinds import Kind
from scoring.vm.state import StateName

#: A takeover takes seconds, one by sanlock's time alone minutes.
FAILOVER_BOUNDS_S = (0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0)
PHASES = ("away", "start", "boot", "total")
#: The notice of an outcome -> its name.
FENCE_OUTCOMES: Mapping[Kind, str] = {
    Kind.FENCE_ATTEMPTED: "attempted",
    Kind.FENCE_PROVEN: "proven",
    Kind.FENCE_FAILED: "failed",
    Kind.FENCE_HELD_BACK: "held-back",
    Kind.FENCE_SWITCHED_ON: "switched-on",
}
_STATES = frozenset(state.value for state in StateName)


class EventCounts:
    """Gets every notice of this host, with the time, and counts."""

    def __init__(self) -> None:
        self.transitions: Counter[tuple[str, str]] = Counter()
        self.fences: Counter[str] = Counter(dict.fromkeys(FENCE_OUTCOMES.values(), 0))
        self.failovers = 0
        self.phases = {phase: Histogram(FAILOVER_BOUNDS_S) for phase in PHASES}
        self._begun_s: float | None = None
        self._started_s: float | None = None

    def take(self, notice: Notice, now_s: float) -> None:
        """Count the notice, if its kind is counted."""
        facts = notice.facts
        match notice.kind:
            case Kind.STATE_TRANSITION if "vm" in facts:
                # A VM of the registry: these figures are the engine's.
                pass
            case Kind.STATE_TRANSITION:
                self._transition(str(facts.get("from")), str(facts.get("to")), now_s)
            case Kind.FAILOVER_STARTED:
                self._begun_s, self._started_s = now_s, None
                self._add("away", facts.get("away_s"))
            case Kind.FAILOVER_DONE:
                self.failovers += 1
                self._add("total", facts.get("duration_s"))
                if self._started_s is not None:
                    self._add("boot", now_s - self._started_s)
                self._begun_s = self._started_s = None
            case kind if kind in FENCE_OUTCOMES:
                self.fences[FENCE_OUTCOMES[kind]] += 1
            case _:
                pass

    def _transition(self, old: str, new: str, now_s: float) -> None:
        # Unknown states of a newer agent are one series, not any number of them.
        names = tuple(name if name in _STATES else "other" for name in (old, new))
        self.transitions[names[0], names[1]] += 1
        if new == StateName.ENGINE_STARTING and self._begun_s is not None:
            self._started_s = now_s
            self._add("start", now_s - self._begun_s)
        elif new == StateName.ENGINE_DOWN:
            self._started_s = None

    def _add(self, phase: str, seconds: object) -> None:
        if isinstance(seconds, int | float):
            self.phases[phase].add(float(seconds))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happened in the cluster, as this host saw it: a bounded ring that the command line, the
dashboard and the API read.

Rules of this file:

1. Each notice is an event, whatever the rules of the notifications say, and so is a notice that
   another host sends. Besides: the peers' transitions, fences and maintenance modes, as their
   slots show them.
2. `add` is synchronous, costs O(1) and never raises: it is called from the beat.
3. An id grows with each event. The first one of a broker's life is its start as UTC
   milliseconds, or the one after the last that was kept: ids grow over a restart too.
4. A reader that was too slow, or asks for older events than were kept, learns that some are
   missing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from itertools import islice

from broker.daemon.log_lines import fields
from broker.events.kept import KeptEvents
from broker.events.notice import Notice
from broker.wire.events import EVENTS_VERSION, Event, EventList
from broker.wire.kinds import Kind, Severity

log = logging.getLogger("ha-broker.events")

#: How many events are remembered; a failover makes about twenty.
EVENTS_MAX = 1000
#: The longest time that a request for newer events is held back.
WAIT_MAX_S = 25.0


class Extra(StrEnum):
    """Kinds of events that are no notices."""

    BROKER_STARTED = "broker-started"
    MAINTENANCE_SET = "maintenance-set"
    MAINTENANCE_ENDED = "maintenance-ended"


assert not {extra.value for extra in Extra} & {kind.value for kind in Kind}


class Events:
    """The ring. `wall`: UTC seconds since 1970. `host_id`, `name`: this host's. `kept`: the file
    that keeps them over restarts; None: none."""

    def __init__(
        self,
        wall: Callable[[], float],
        host_id: int,
        name: str,
        size_max: int = EVENTS_MAX,
        kept: KeptEvents | None = None,
    ) -> None:
        self._wall = wall
        self._host_id, self._name = host_id, name
        self._kept = kept
        self._ring: deque[Event] = deque(() if kept is None else kept.load(), maxlen=size_max)
        last = self._ring[-1].id if self._ring else 0
        self._next_id = max(last + 1, int(wall() * 1000))
        self._news = asyncio.Event()

    @property
    def problem(self) -> str:
        """Why events are not kept over a restart at the moment; empty while they are."""
        return "" if self._kept is None else self._kept.problem

    def add(
        self, notice: Notice, kind: str | None = None, severity: Severity | None = None
    ) -> None:
        """Add an event. `kind`, `severity`: in place of the notice's own."""
        about = notice.facts.get("host_id")
        if about is None and notice.subject == self._name:
            about = self._host_id
        at_s = self._wall()
        event = Event(
            id=self._next_id,
            time=_iso(at_s),
            kind=kind or notice.kind.value,
            severity=(notice.severity if severity is None else severity).word,
            host=notice.subject,
            host_id=about if isinstance(about, int) else None,
            text=notice.detail,
            facts=dict(notice.facts),
        )
        self._ring.append(event)
        if self._kept is not None:
            self._kept.keep(event)
        self._log(event)
        self._next_id += 1
        self._news.set()
        self._news = asyncio.Event()

    def _log(self, event: Event) -> None:
        """Log a line for the event; this host's transitions are logged by its agent."""
        if event.kind == Kind.STATE_TRANSITION and event.host_id == self._host_id:
            return
        level = logging.INFO if event.severity == "info" else logging.WARNING
        extra = fields(
            event=event.kind,
            severity=event.severity,
            event_id=event.id,
            host=event.host,
            host_id=event.host_id,
            reason=event.facts.get("code"),
        )
        log.log(level, "%s: %s", event.kind, _sentence(event), extra=extra)

    def after(self, event_id: int, count_max: int = EVENTS_MAX) -> EventList:
        """The events that came after that id, oldest first, the `count_max` oldest of them; 0:
        all that are remembered."""
        first = self._ring[0].id if self._ring else self._next_id
        skip = bisect_right(self._ring, event_id, key=lambda event: event.id)
        is_known = skip > 0 and self._ring[skip - 1].id == event_id
        missed = event_id not in (0, first - 1) and not is_known
        if missed:
            skip = 0
        found = tuple(islice(self._ring, skip, skip + count_max))
        last = found[-1].id if found else self._next_id - 1
        return EventList(EVENTS_VERSION, found, last, missed)

    async def newer(self, event_id: int, wait_s: float, count_max: int = EVENTS_MAX) -> EventList:
        """The events after that id as soon as there is one; none after `wait_s`, WAIT_MAX_S at
        most."""
        if not (found := self.after(event_id, count_max)).events:
            try:
                async with asyncio.timeout(min(wait_s, WAIT_MAX_S)):
                    await self._news.wait()
            except TimeoutError:
                return found
            found = self.after(event_id, count_max)
        return found


def _sentence(event: Event) -> str:
    vm = event.facts.get("vm")
    if vm and str(vm) not in event.text:
        # A transition alone does not name its VM.
        return f"{event.host}: {vm}: {event.text}"
    return event.text if event.host in event.text else f"{event.host}: {event.text}"


def _iso(at_s: float) -> str:
    """UTC, ISO 8601 with milliseconds."""
    ms = int(at_s * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms // 1000)) + f".{ms % 1000:03d}Z"

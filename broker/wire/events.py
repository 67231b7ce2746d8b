# SPDX-License-Identifier: LGPL-2.1-or-later
"""The events of a host as programs read them; their shape is documented in docs/events.md."""

from __future__ import annotations

from msgspec import Struct

EVENTS_VERSION = 1


class Event(Struct, frozen=True):
    """Something that happened, docs/events.md. `id` grows. `time`: UTC by the clock of the
    answering host, ISO 8601. `host`: the host or thing it is about; `host_id`: None where that is
    no host. `text`: a sentence, for a transition "OldState-NewState"."""

    id: int
    time: str
    kind: str
    severity: str
    host: str
    host_id: int | None
    text: str
    facts: dict[str, str | int | float | bool | None]


class EventList(Struct, frozen=True):
    """Events, oldest first. `last`: the id to ask with for those after them. `missed`: some events
    after the id that was asked with are no longer known."""

    version: int
    events: tuple[Event, ...]
    last: int
    missed: bool

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What became of notifications, as the status and the test of them say."""

from __future__ import annotations

from msgspec import Struct


class TransportStatus(Struct, frozen=True):
    """A channel for notices. `sent`, `failed`: messages; `dropped`, `queued`: notices. Ages in
    seconds; `last_error` is empty once a later message was sent."""

    sent: int
    failed: int
    dropped: int
    queued: int
    last_error: str
    last_error_age_s: float | None
    last_sent_age_s: float | None


class NotifyStatus(Struct, frozen=True):
    """Notifications: notices that came up (`told`) since the broker started, `dropped` before they
    reached a channel, `folded` into one that was sent lately. `problem`: what is wrong with
    templates, rules or secrets, empty when nothing is. `transports`: by channel."""

    told: int = 0
    dropped: int = 0
    folded: int = 0
    problem: str = ""
    transports: dict[str, TransportStatus] = {}


class NotifyOutcome(Struct, frozen=True):
    """The result of one attempt. `error`: empty when it is `ok`; `final`: another try is of no
    use."""

    ok: bool
    error: str
    took_s: float
    final: bool = False


class NotifyTest(Struct, frozen=True):
    """The result of a test of the notifications, by channel."""

    outcomes: dict[str, NotifyOutcome]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Port to the lockspace: this host's id, joined once and kept for as long as the host lives."""

from __future__ import annotations

from typing import Protocol

from broker.lockspace.hosts import Witness
from broker.lockspace.own_id import FenceOwner
from broker.lockspace.renewals import Renewals

#: How often it is looked how the id stands, and how often while something holds its joining back.
RETRY_S = 2.0
HELD_LOOK_S = 0.25
#: For one reading of delta leases.
DISK_DEADLINE_S = 2.0
#: The problem of an id that is to stay out, where nothing else holds it back.
RELEASED = "the host id is given back for local maintenance; ha-agent maintenance none joins again"


class LockspaceError(Exception):
    """The lockspace cannot be joined, and trying again will not help: what and why."""


class Lockspace(Protocol):
    """Port to the lockspace.

    `witnesses`: what sanlock knows of each host id. `renewals`: when each was last renewed, from
    that and from disk; it is run by itself. `renewed_s`: when this host's own id was last
    renewed on disk, by this host's monotonic clock; None while that is not known. For the broker
    to set: `no_join`: an id that is not joined is not joined now; one that is stays so.
    `stay_out`: besides, it is given back, unless a process holds a lease under it. `hold`: why an
    id that is not joined is not joined now, besides those; empty: nothing. `watch_fence`: look
    who owns the fence lease; `fence_owner`: who does, None: not known.
    """

    joined: bool | None
    problem: str
    witnesses: dict[int, Witness]
    renewals: Renewals
    renewed_s: float | None
    no_join: bool
    stay_out: bool
    hold: str
    watch_fence: bool
    fence_owner: FenceOwner | None

    async def run(self) -> None:
        """Keep the id joined for ever; LockspaceError where only a person can help."""

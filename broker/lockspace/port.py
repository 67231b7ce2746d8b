# SPDX-License-Identifier: LGPL-2.1-or-later
"""Port to the lockspace: this host's id, joined once and kept for as long as the host lives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode
from broker.lockspace.hosts import Witness
from broker.lockspace.own_id import FenceOwner
from broker.lockspace.renewals import Renewals

#: The interval of looks at the id, and the interval while something delays its joining.
RETRY_S = 2.0
HELD_LOOK_S = 0.25
#: Time for one read of delta leases.
DISK_DEADLINE_S = 2.0
#: The problem of an id that is to stay out, where nothing else holds it back.
RELEASED = "the host id is given back for local maintenance; ha-agent maintenance none joins again"


class LockspaceError(HaError):
    """The lockspace cannot be joined, and another try will not help: the message says why."""

    code = ExitCode.LOCKSPACE


class Lockspace(Protocol):
    """Port to the lockspace.

    `witnesses`: sanlock's knowledge of each host id. `renewals`: when each was last renewed, from
    that and from disk; it runs by itself. `renewed_s`: when this host's own id was last
    renewed on disk, by this host's monotonic clock; None while that is unknown. Set by the broker:
    `no_join`: do not join an id that is not joined; a joined one stays.
    `stay_out`: also give the id back, unless a process holds a lease under it. `hold`: another
    reason not to join the id now; empty: none. `watch_fence`: look up the owner of the fence lease;
    `fence_owner`: that owner, None: unknown. `wanted_leases`: the leases that must be there, with
    their alignment units. `lost_leases`: those that are not there: name -> what is in its place.
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
    wanted_leases: Callable[[], Mapping[str, int]]
    lost_leases: Mapping[str, str]

    async def run(self) -> None:
        """Keep the id joined for ever; LockspaceError where only a person can help."""

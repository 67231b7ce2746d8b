# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides whether another host may still free this host's id. Pure.

A fencer frees the id of a host whose power it has read as off. Its write may land minutes later:
the kernel keeps it while a path to the storage is away, and killing the process does not take it
back. If the host has come back by then and runs the VM under that id, the VM loses its lease while
it runs. So a host that is back does not join before the act is over.

Rules of this file:

1. An act is under way while the newest record of the fence log says so, or the slot of the host
   that acts. Both are read again after this host has joined: the record is written before
   the fencer reads the id for the last time, so one of the two sees the other.
2. It is over when they no longer say so.
3. Where no host is left to say it: the process that frees the id holds the fence lease, and the
   kernel closes its connection to sanlock only when no write of it is left. So it is over when
   that host no longer owns the fence lease. This does not hold where this host owned the fence
   lease itself, and its id is freed for it (scoring/hosts/dead_fencer.py): then rule 4 is left.
4. Where that host is gone: a host that has booted, or joined, anew has lost its writes. One
   whose id has stood still for sanlock's host-dead time was reset by its watchdog.
5. What rules 3 and 4 find must have been so for one io_timeout: a write of a host that is gone
   and that the storage itself delays is expected to have landed by then (docs/decisions/0038).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from broker.lockspace.renewals import Renewals
from broker.whiteboard.lines import Freeing
from scoring.lease_times import host_dead_s


@dataclass(frozen=True, slots=True)
class FenceOwner:
    """The owner of the fence lease on disk; `host_id` 0: nobody."""

    host_id: int
    generation: int


class OwnId:
    """Follows the acts of other hosts that concern this host's id."""

    def __init__(self, io_timeout_s: float) -> None:
        self._io_timeout_s = io_timeout_s
        self._ended_s: dict[Freeing, float] = {}

    def look(
        self,
        acts: Iterable[Freeing],
        owner: FenceOwner | None,
        renewals: Renewals,
        boots: Mapping[int, str],
        now_s: float,
    ) -> Freeing | None:
        """The first of these acts that may still land; None: none can.

        `owner` None: unknown. `boots`: each host's boot id, as its slot has it.
        """
        under_way, ended_s = None, {}
        for act in acts:
            if self._has_ended(act, owner, renewals, boots.get(act.by, ""), now_s):
                ended_s[act] = self._ended_s.get(act, now_s)
                if now_s - ended_s[act] >= self._io_timeout_s:
                    continue
            under_way = under_way or act
        self._ended_s = ended_s
        return under_way

    def _has_ended(
        self,
        act: Freeing,
        owner: FenceOwner | None,
        renewals: Renewals,
        boot_id: str,
        now_s: float,
    ) -> bool:
        if act.boot_id and boot_id and boot_id != act.boot_id:
            return True
        if not act.under_lease:
            owner = None
        if owner is not None and (owner.host_id != act.by or 0 < act.generation < owner.generation):
            return True
        renewal = renewals.table.get(act.by)
        if renewal is None:
            return False
        dead_s = host_dead_s(self._io_timeout_s)
        return (
            renewal.timestamp == 0
            or 0 < act.generation < renewal.generation
            or now_s - renewal.changed_s >= dead_s
        )

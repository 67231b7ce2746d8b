# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides whether another host may still free this host's id. Pure.

A fencer frees the id of a host whose power it has read as off. Its write may land minutes later:
the kernel keeps it while a path to the storage is away, and killing the process does not take it
back. If the host has come back by then and runs the VM under that id, the VM loses its lease while
it runs. So a host that comes back does not join before such a freeing is over.

Rules of this file:

1. A freeing is under way while the newest record of the fence log says so, or the slot of the
   fencer. Both are read again after this host has joined: the record is written before the fencer
   reads the id for the last time, so at least one of the two hosts sees the other.
2. It is over when neither says so any more.
3. If the fencer does not live any more, it is over when that host no longer owns the fence lease:
   the process that frees the id holds that lease, and the kernel closes its connection to sanlock
   only when no write of it is left. This does not apply if this host itself owned the fence lease,
   and its id is freed for that reason (scoring/hosts/dead_fencer.py); then only rule 4 applies.
4. It is over when the fencer has booted or joined anew, since its writes are lost then; or when the
   fencer's id was not renewed for sanlock's host-dead time, since its watchdog has reset it then.
5. The finding of rule 3 or 4 must have lasted for one io_timeout: by then a write that the storage
   itself delays is expected to have landed (docs/decisions/0038).
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
        """The first of these freeings whose write may still land; None: there is none.

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

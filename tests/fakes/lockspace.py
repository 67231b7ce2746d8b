# SPDX-License-Identifier: LGPL-2.1-or-later
"""A lockspace that is joined, or not, as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from broker.lockspace.hosts import Witness
from broker.lockspace.own_id import FenceOwner
from broker.lockspace.renewals import Renewals


class FakeLockspace:
    """Lockspace port."""

    def __init__(self, joined: bool | None = True) -> None:
        self.joined = joined
        self.problem = "" if joined else "not joined yet"
        self.witnesses: dict[int, Witness] = {}
        self.on_disk: dict[int, tuple[int, int]] = {}
        self.renewals = Renewals(self._read)
        self.renewed_s: float | None = None
        self.no_join = self.stay_out = self.watch_fence = False
        self.hold = ""
        self.fence_owner: FenceOwner | None = None
        self.wanted_leases: Callable[[], Mapping[str, int]] = dict
        self.lost_leases: Mapping[str, str] = {}

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def _read(self, host_ids: Iterable[int]) -> Mapping[int, tuple[int, int]]:
        return self.on_disk

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A whiteboard volume in memory, with faults by name."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.store import StorageTrouble


class MemoryVolume:
    """The shared bytes; several stores may be opened on one volume. `read_only`: each write to it
    fails."""

    def __init__(self, slots: int = 2001) -> None:
        self.data = bytearray(slots * SLOT_BYTES)
        self.read_only = False


class MemoryStore:
    """SlotStore on a MemoryVolume. `fault`: "" (none), "eio", or "hang" (until the deadline)."""

    def __init__(self, volume: MemoryVolume, deadline_s: float = 2.0) -> None:
        self.volume = volume
        self.deadline_s = deadline_s
        self.fault = ""

    async def write(self, slot: int, data: bytes) -> None:
        await self._trouble(f"writing slot {slot}")
        if self.volume.read_only:
            raise StorageTrouble(f"writing slot {slot}: Read-only file system")
        assert len(data) == SLOT_BYTES
        start = slot * SLOT_BYTES
        if start > len(self.volume.data):
            self.volume.data.extend(bytes(start - len(self.volume.data)))
        self.volume.data[start : start + SLOT_BYTES] = data

    async def read(self, slots: Sequence[int]) -> Mapping[int, bytes]:
        await self._trouble("reading slots")
        found = {}
        for slot in slots:
            data = bytes(self.volume.data[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES])
            if data:
                found[slot] = data
        return found

    def at_rest(self) -> bool:
        return True

    async def _trouble(self, what: str) -> None:
        if self.fault == "eio":
            raise StorageTrouble(f"{what}: Input/output error")
        if self.fault == "hang":
            await asyncio.sleep(self.deadline_s)
            raise StorageTrouble(f"{what} has not answered for {self.deadline_s} s", hung=True)

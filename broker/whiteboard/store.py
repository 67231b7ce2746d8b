# SPDX-License-Identifier: LGPL-2.1-or-later
"""The port to the whiteboard's volume, and the volume itself behind it: one thread, and a deadline
for each call."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from broker.daemon.worker import Hung, Worker
from broker.whiteboard.errors import WhiteboardError
from broker.whiteboard.identity import Expected, VolumeKind, check, check_identity
from broker.whiteboard.volume import Volume, VolumeError

#: How often the identity of the open volume is read again: a volume that shrinks or is overwritten
#: is noticed. One read of a block, and no question for its size, which CephFS answers late while a
#: client is silent (record 108).
IDENTITY_AGAIN_S: Final = 60.0


class StorageTrouble(WhiteboardError):
    """A read or write of the whiteboard failed or, `hung`, missed its deadline."""

    def __init__(self, text: str, hung: bool = False) -> None:
        super().__init__(text)
        self.hung = hung


class SlotStore(Protocol):
    """Port to the whiteboard volume; write and read raise StorageTrouble."""

    async def write(self, slot: int, data: bytes) -> None:
        """Write one slot of 4096 bytes."""

    async def read(self, slots: Sequence[int]) -> Mapping[int, bytes]:
        """Read slots; those beyond the end are missing, one cut by the end is short."""

    def at_rest(self) -> bool:
        """Whether no earlier call is under way: a write that was given up may still land."""


class VolumeStore:
    """SlotStore port: a file or block device, with one thread, and a deadline for each call."""

    def __init__(self, path: str, deadline_s: float, wanted: Expected | None = None) -> None:
        """`wanted`: the identity that the volume must have, checked each time it is opened, and
        every IDENTITY_AGAIN_S."""
        self.path = path
        self.deadline_s = deadline_s
        self._wanted = wanted or Expected(VolumeKind.WHITEBOARD)
        self._worker = Worker("whiteboard")
        self._volume: Volume | None = None
        self._checked_s = 0.0

    async def write(self, slot: int, data: bytes) -> None:
        await self._call(f"writing slot {slot}", lambda: self._opened().write_slot(slot, data))

    async def read(self, slots: Sequence[int]) -> Mapping[int, bytes]:
        found: dict[int, bytes] = {}
        await self._call("reading slots", lambda: found.update(self._opened().read_slots(slots)))
        return found

    def at_rest(self) -> bool:
        return not self._worker.busy

    async def _call(self, what: str, function: object) -> None:
        assert callable(function)
        try:
            await self._worker.call(what, self.deadline_s, self._guarded, function)
        except (Hung, VolumeError) as error:
            raise StorageTrouble(str(error), isinstance(error, Hung)) from error

    def _guarded(self, function: object) -> None:
        """Runs in the thread; after a failure the next call opens the volume anew."""
        assert callable(function)
        try:
            function()
        except VolumeError:
            if self._volume is not None:
                self._volume.close()
                self._volume = None
            raise

    def _opened(self) -> Volume:
        if self._volume is None:
            self._volume = Volume(self.path)
            # Where the check fails, `_guarded` closes the volume again.
            check(self._volume, self._wanted)
        elif time.monotonic() - self._checked_s < IDENTITY_AGAIN_S:
            return self._volume
        else:
            check_identity(self._volume, self._wanted)
        self._checked_s = time.monotonic()
        return self._volume

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The port to the whiteboard's volume, and the volume itself behind it: a thread for reads and one
for writes, and a deadline for each call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

from broker.daemon.worker import Hung, Worker
from broker.whiteboard.errors import WhiteboardError
from broker.whiteboard.identity import Expected, VolumeKind, check, check_identity
from broker.whiteboard.volume import Volume, VolumeError

#: How often the identity of the open volume is read again: a volume that shrinks or is overwritten
#: is noticed. One read of a block, and no question for its size, which CephFS answers late while a
#: client is silent (record 108).
IDENTITY_AGAIN_S: Final = 60.0

T = TypeVar("T")


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
    """SlotStore port: a file or block device. Reads and writes have a thread and a descriptor each,
    and a deadline for each call: on Gluster no write is answered for seconds after a host died in
    the middle of one, and reads are (record 98)."""

    def __init__(self, path: str, deadline_s: float, wanted: Expected | None = None) -> None:
        """`wanted`: the identity that the volume must have, checked each time it is opened, and
        every IDENTITY_AGAIN_S."""
        self.path = path
        wanted = wanted or Expected(VolumeKind.WHITEBOARD)
        # The thread that reads keeps the name under which a hang was known before there were two.
        self._reads = _Side("whiteboard", path, deadline_s, wanted, read_only=True)
        self._writes = _Side("whiteboard", path, deadline_s, wanted, read_only=False)

    async def write(self, slot: int, data: bytes) -> None:
        await self._writes.call(
            f"writing slot {slot}", lambda volume: volume.write_slot(slot, data)
        )

    async def read(self, slots: Sequence[int]) -> Mapping[int, bytes]:
        return await self._reads.call("reading slots", lambda volume: volume.read_slots(slots))

    def at_rest(self) -> bool:
        return not self._writes.busy


class _Side:
    """One thread with the volume open, for reads or for writes."""

    def __init__(
        self, name: str, path: str, deadline_s: float, wanted: Expected, *, read_only: bool
    ) -> None:
        self._path = path
        self._deadline_s = deadline_s
        self._wanted = wanted
        self._read_only = read_only
        self._worker = Worker(name)
        self._volume: Volume | None = None
        self._checked_s = 0.0

    @property
    def busy(self) -> bool:
        return self._worker.busy

    async def call(self, what: str, function: Callable[[Volume], T]) -> T:
        """StorageTrouble where it failed, or missed its deadline."""
        try:
            return await self._worker.call(what, self._deadline_s, self._guarded, function)
        except (Hung, VolumeError) as error:
            raise StorageTrouble(str(error), isinstance(error, Hung)) from error

    def _guarded(self, function: Callable[[Volume], T]) -> T:
        """Runs in the thread; after a failure the next call opens the volume anew."""
        try:
            return function(self._opened())
        except VolumeError:
            if self._volume is not None:
                self._volume.close()
                self._volume = None
            raise

    def _opened(self) -> Volume:
        if self._volume is None:
            self._volume = Volume(self._path, read_only=self._read_only)
            # Where the check fails, `_guarded` closes the volume again.
            check(self._volume, self._wanted)
        elif time.monotonic() - self._checked_s < IDENTITY_AGAIN_S:
            return self._volume
        else:
            check_identity(self._volume, self._wanted)
        self._checked_s = time.monotonic()
        return self._volume

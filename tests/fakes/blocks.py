# SPDX-License-Identifier: LGPL-2.1-or-later
"""A volume of blocks in memory, on which a writer can die."""

from __future__ import annotations

from collections.abc import Iterable

from broker.whiteboard.sizes import SLOT_BYTES


class Died(Exception):
    """The writer's host lost its power here."""


class MemoryBlocks:
    """A broker.whiteboard.volume.Volume in memory. `writes_left`: so many writes are made, then the
    writer dies; None: it lives."""

    def __init__(self, size_bytes: int, path: str = "/shared/registry") -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.blocks: dict[int, bytes] = {}
        self.writes_left: int | None = None
        self.written = 0

    def read_slots(self, ids: Iterable[int]) -> dict[int, bytes]:
        whole = self.size_bytes // SLOT_BYTES
        return {number: self.read_at(number * SLOT_BYTES) for number in ids if number < whole}

    def read_at(self, offset: int) -> bytes:
        if offset >= self.size_bytes:
            return b""
        return self.blocks.get(offset, bytes(SLOT_BYTES))

    def write_at(self, offset: int, data: bytes) -> None:
        assert offset % SLOT_BYTES == 0 and len(data) == SLOT_BYTES
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise Died
            self.writes_left -= 1
        self.written += 1
        self.blocks[offset] = data

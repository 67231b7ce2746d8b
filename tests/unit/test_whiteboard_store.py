# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whiteboard's volume behind its threads: what hangs, and what goes on meanwhile."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from broker.whiteboard.slot import EMPTY_SLOT
from broker.whiteboard.store import StorageTrouble, VolumeStore
from broker.whiteboard.volume import Volume

SLOT = b"1|1|5".ljust(4096, b"\0")


def test_reads_go_on_while_a_write_is_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Gluster after a host died in the middle of a write: a host that could not read either
    knew nothing of the dead one, and began anew once the write was answered."""
    path = tmp_path / "whiteboard"
    path.write_bytes(SLOT * 3)
    answered = threading.Event()
    real = Volume.write_slot

    def stalls(volume: Volume, slot: int, data: bytes) -> None:
        answered.wait()
        real(volume, slot, data)

    monkeypatch.setattr(Volume, "write_slot", stalls)

    async def story() -> None:
        store = VolumeStore(str(path), 0.2)
        try:
            with pytest.raises(StorageTrouble, match="writing slot 1 has not answered") as late:
                await store.write(1, EMPTY_SLOT)
            assert late.value.hung
            patient = VolumeStore(str(path), 60.0)
            assert await patient.read([1]) == {1: SLOT}
            store._reads._deadline_s = 60.0
            assert await store.read([1]) == {1: SLOT}
            assert not store.at_rest(), "what was given up may still land"
        finally:
            answered.set()
        while not store.at_rest():
            await asyncio.sleep(0.01)
        assert await store.read([1]) == {1: EMPTY_SLOT}

    asyncio.run(story())


def test_a_volume_that_takes_no_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "whiteboard"
    path.write_bytes(SLOT * 3)

    async def story() -> None:
        store = VolumeStore(str(path), 60.0)
        opened = Volume(str(path), read_only=True)
        store._writes._volume = opened
        with pytest.raises(StorageTrouble):
            await store.write(1, EMPTY_SLOT)
        assert await store.read([1]) == {1: SLOT}

    asyncio.run(story())

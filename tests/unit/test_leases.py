# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fence lease when sanlock takes its time: it holds an acquire back until the last holder
is dead for it. A pipe stands for the connection to its daemon: closed, the lease is released."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest
import sanlock

from agent import leases
from agent.leases import SanlockLeases
from broker.config import Config, HostSection, StorageSection


class SlowSanlock:
    """Its acquire returns when `given` is set. `connection`: the other end of the last one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given = threading.Event()
        self.connection = -1
        monkeypatch.setattr(sanlock, "register", self._register)
        monkeypatch.setattr(sanlock, "acquire", self._acquire)
        monkeypatch.setattr(sanlock, "get_alignment", lambda path: 1 << 20)
        monkeypatch.setattr(sanlock, "read_resource_owners", lambda lockspace, resource, disks: [])

    def _register(self) -> int:
        self.connection, descriptor = os.pipe()
        return descriptor

    def _acquire(self, *_: Any, **__: Any) -> None:
        self.given.wait()

    def is_released(self) -> bool:
        """Waits for the end of the connection, or of what was written into it."""
        return os.read(self.connection, 1) == b""


def fence() -> SanlockLeases:
    storage = StorageSection(whiteboard="/no/whiteboard", leases="/no/leases")
    return SanlockLeases(Config(host=HostSection(id=1, name="one"), storage=storage), 1 << 20)


def test_a_lease_that_comes_too_late_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        slow, ours = SlowSanlock(monkeypatch), fence()
        monkeypatch.setattr(leases, "ACQUIRE_DEADLINE_S", 0.01)
        answer = await ours.take_fence()
        assert not answer.held and not ours.fence_held
        again = await ours.take_fence()
        assert not again.held, "the first try is still under way"
        assert (await ours.ask_engine()).known, "who owns the engine lease is asked meanwhile"
        slow.given.set()
        assert await asyncio.to_thread(slow.is_released)
        assert not ours.fence_held

    asyncio.run(run())


def test_a_lease_that_comes_in_time_is_held_until_it_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        slow, ours = SlowSanlock(monkeypatch), fence()
        slow.given.set()
        assert (await ours.take_fence()).held and ours.fence_held
        await ours.drop_fence()
        assert not ours.fence_held
        assert await asyncio.to_thread(slow.is_released)

    asyncio.run(run())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Wakes those who wait for news: the agent and people, or the writer of this host's slot."""

from __future__ import annotations

import asyncio
import contextlib


class News:
    """`version` grows with each beat, and whenever there is something new in between. `to_publish`:
    set while there is something that the other hosts should read before the next beat."""

    def __init__(self) -> None:
        self.version = 0
        self.to_publish = asyncio.Event()
        self._news = asyncio.Event()

    def announce(self) -> None:
        """Wake the waiters: there is something new to decide on, or to show."""
        self.version += 1
        self._news.set()
        self._news = asyncio.Event()

    def publish(self) -> None:
        """Begin the next beat now: there is something new for the other hosts."""
        self.to_publish.set()

    async def wait(self, than: int, patience_s: float) -> None:
        """Wait until `version` is above `than`, or for `patience_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self.version <= than:
                    await self._news.wait()

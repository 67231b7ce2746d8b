# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's beat: a turn on the storage once a second, earlier when there is something that the
other hosts should read. It keeps its schedule whatever the storage does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from broker.config.in_force import InForce
from broker.daemon.histogram import Histogram

#: The work on the storage, begun at that time.
Turn = Callable[[float], Coroutine[Any, Any, None]]


class Beat:
    """`lateness`: how late each beat began, against its plan. `durations`: how long each took, its
    reads and writes of the storage included. `on_beat`: called after each completed beat."""

    def __init__(
        self,
        in_force: InForce,
        to_publish: asyncio.Event,
        publish_and_read: Turn,
        read_again: Turn,
        after: Callable[[float], None],
    ) -> None:
        """`to_publish`: once set, the next beat begins at once. `after`: called after each turn."""
        self._in_force, self._to_publish = in_force, to_publish
        self._publish_and_read, self._read_again, self._after = publish_and_read, read_again, after
        self.lateness, self.durations = Histogram(), Histogram()
        self.on_beat: Callable[[], None] = lambda: None
        #: The turn on the storage that is under way.
        self._turn: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Publish and read once a beat, for ever; sooner when there is something to publish."""
        loop = asyncio.get_running_loop()
        planned_s = loop.time()
        try:
            while True:
                begun_s, beat_s = loop.time(), self._in_force.timing.beat
                self.lateness.add(begun_s - planned_s)
                # A beat that was missed completely is skipped.
                is_missed = begun_s - planned_s >= beat_s
                next_s = (begun_s if is_missed else planned_s) + beat_s
                await self.once(begun_s, next_s)
                self.durations.add(loop.time() - begun_s)
                self.on_beat()
                planned_s = next_s if await self._rest(next_s) else loop.time()
        finally:
            if self._turn is not None:
                self._turn.cancel()

    async def once(self, now_s: float, until_s: float | None = None) -> None:
        """One turn: this host's slot out, everybody's slots in.

        The turn does not wait for the storage beyond `until_s` (None: it does).
        """
        await self._take_turn(self._publish_and_read, now_s, until_s)
        self._after(now_s)

    async def _rest(self, next_s: float) -> bool:
        """Wait for the next beat; False: news brought it forward to this moment.

        Half a beat before it the peers' slots are read once more: a silence is known half a beat
        earlier.
        """
        loop, second_s = asyncio.get_running_loop(), next_s - self._in_force.timing.beat / 2
        if loop.time() < second_s:
            if await self._news_before(second_s):
                return False
            await self._take_turn(self._read_again, loop.time(), next_s)
        return not await self._news_before(next_s)

    async def _news_before(self, until_s: float) -> bool:
        """Whether something that must be published at once came up before `until_s`."""
        try:
            async with asyncio.timeout_at(until_s):
                await self._to_publish.wait()
        except TimeoutError:
            return False
        self._to_publish.clear()
        return True

    async def _take_turn(self, turn: Turn, now_s: float, until_s: float | None) -> None:
        """Begin a turn on the storage, and wait for its end or `until_s`.

        Each call in it has its deadline. While an earlier turn has not ended none begins.
        """
        if self._turn is not None:
            if not await self._turn_ends(self._turn, until_s):
                return
            now_s = asyncio.get_running_loop().time()
        self._turn = asyncio.ensure_future(turn(now_s))
        await self._turn_ends(self._turn, until_s)

    async def _turn_ends(self, turn: asyncio.Future[None], until_s: float | None) -> bool:
        loop = asyncio.get_running_loop()
        await asyncio.wait((turn,), timeout=None if until_s is None else until_s - loop.time())
        if not turn.done():
            return False
        self._turn = None
        turn.result()
        return True

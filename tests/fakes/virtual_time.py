# SPDX-License-Identifier: LGPL-2.1-or-later
"""asyncio.run in virtual time: what waits costs nothing, and a slow machine changes nothing.

For a test that gives seconds to code with a clock and expects a count, an order or a time. Time
stands still while anything is ready, and then jumps to the next timer. Sockets, processes and
threads are refused (tests/simulation/timeline.py): where they are needed, wait for what must become
true.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.simulation.timeline import HostLoop, Timeline

T = TypeVar("T")

#: Virtual seconds: longer than anything that a test waits for.
PATIENCE_S = 1e6


def run(main: Coroutine[Any, Any, T]) -> T:
    """What it returns or raises. The clock begins at 0; what it leaves behind is cancelled."""
    timeline = Timeline()
    loop = HostLoop(timeline, 0.0, 1.0)  # type: ignore[abstract]
    task = loop.create_task(main)
    _until_done(timeline, task)
    if left := asyncio.all_tasks(loop):
        for other in left:
            other.cancel()
        _until_done(timeline, loop.create_task(_ended(left)))
    assert not loop.problems, loop.problems
    return task.result()


async def _ended(left: set[asyncio.Task[Any]]) -> None:
    await asyncio.wait(left)


def _until_done(timeline: Timeline, work: asyncio.Future[Any]) -> None:
    def halt(_: object) -> None:
        timeline.halted = True

    timeline.halted = False
    work.add_done_callback(halt)
    timeline.run_until(timeline.now_s + PATIENCE_S)
    assert work.done(), f"nothing ended it in {PATIENCE_S:.0f} virtual seconds: {work!r}"

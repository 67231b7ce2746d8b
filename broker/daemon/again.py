# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs again what failed and must go on: a look or a rehearsal that no VM waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

log = logging.getLogger("ha-agent.again")

#: The pause between a failure and the next try.
AGAIN_S = 60.0

Run = Callable[[], Coroutine[Any, Any, None]]


def tasks_again(runs: Mapping[str, Run]) -> list[asyncio.Task[None]]:
    """A task for each of them by name, run again after a failure."""
    return [asyncio.create_task(run_again(name, run), name=name) for name, run in runs.items()]


async def run_again(name: str, run: Run) -> None:
    """Await `run()`, and again AGAIN_S after an error that it does not expect, which is logged
    under `name`. Returns when `run()` does."""
    while True:
        try:
            await run()
            return
        except Exception:
            log.exception("%s failed; it is tried again in %g s", name, AGAIN_S)
        await asyncio.sleep(AGAIN_S)

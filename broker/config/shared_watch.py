# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notices that this host's copy of the shared configuration is another one, for both daemons."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from broker.config.shared import copy_at

LOOK_EVERY_S = 2.0


async def watch_copy(state_dir: str, act: Callable[[], None]) -> None:
    """Call `act` each time that the copy is another one, for ever."""
    path = copy_at(state_dir)
    seen = _seen(path)
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        now = _seen(path)
        if now != seen:
            seen = now
            act()


def _seen(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Waits of a test for what real sockets, processes and threads do in their own time.

A fixed sleep is too short on a busy machine. Where none of them is needed, use virtual time
(tests/fakes/virtual_time.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

#: Long enough for any machine: only a test that fails waits for so long.
PATIENCE_S = 60.0
LOOK_EVERY_S = 0.005


async def until(holds: Callable[[], object]) -> None:
    """Return when it is true; TimeoutError where it never is."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(LOOK_EVERY_S)


def until_now(holds: Callable[[], object]) -> None:
    """Return when it is true, where there is no event loop; TimeoutError where it never is."""
    ends_s = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() >= ends_s:
            raise TimeoutError
        time.sleep(LOOK_EVERY_S)


def was_given_up(detail: str) -> bool:
    """Whether a fence device that hangs was given up at its deadline: by its driver, or, where the
    driver's thread had no core then, by who waits for that thread, half a second later."""
    return "in time" in detail or "has not answered for" in detail


def stop(process: subprocess.Popen[Any]) -> None:
    """Stop a child (SIGSTOP), and return when it stands still: a signal that was sent is not yet
    one that was taken."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

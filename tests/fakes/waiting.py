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


def stop(process: subprocess.Popen[Any]) -> None:
    """Stop a child (SIGSTOP), and return when it stands still: a signal that was sent is not yet
    one that was taken."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

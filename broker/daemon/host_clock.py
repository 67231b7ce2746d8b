# SPDX-License-Identifier: LGPL-2.1-or-later
"""The clock of both daemons: seconds since this host booted, its time asleep included.

A host that is suspended hears nothing, and CLOCK_MONOTONIC, by which asyncio counts, stands still
for it: when it wakes, what it heard an hour ago would be as fresh as a moment before. It would say
that nothing runs, or free the id of a host that has booted since. So the event loops of broker and
agent count by CLOCK_BOOTTIME, which goes on: all that was heard, read and measured is as old as it
is, and each deadline that passed meanwhile is over (docs/decisions/0089).

sanlock, libvirt and systemd count by CLOCK_MONOTONIC: a time of theirs passes `of_monotonic` once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any


def now_s() -> float:
    """Seconds since this host booted, its time asleep included. Any thread may ask."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def of_monotonic(monotonic_s: float) -> float:
    """When it was so long ago by CLOCK_MONOTONIC: its age then counts no time asleep."""
    return monotonic_s + now_s() - time.monotonic()


class HostClockLoop(asyncio.SelectorEventLoop):
    """An event loop that counts by this clock."""

    def time(self) -> float:
        """Now, in seconds; never goes back."""
        return now_s()


def run(main: Coroutine[Any, Any, None]) -> None:
    """asyncio.run on such a loop."""
    with asyncio.Runner(loop_factory=HostClockLoop) as runner:
        runner.run(main)

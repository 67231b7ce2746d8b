# SPDX-License-Identifier: LGPL-2.1-or-later
"""The clock of both daemons: seconds since this host booted, including the time it was suspended.

asyncio counts by CLOCK_MONOTONIC, which stops while a host is suspended. When the host wakes, an
answer of an hour ago would look as fresh as before: the host could report that nothing runs, or
free the id of a host that has booted since. So the event loops of broker and agent count by
CLOCK_BOOTTIME, which does not stop: every answer, read and sample has its true age, and deadlines
that passed meanwhile have ended (docs/decisions/0089).

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
    """A time of CLOCK_MONOTONIC by this clock. Its age does not include the time asleep."""
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

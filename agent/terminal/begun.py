# SPDX-License-Identifier: LGPL-2.1-or-later
"""When the command began: what it promises to end within counts from there, the start of Python
included, which takes seconds on a machine that is busy."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

#: The number of the field `starttime` in proc_pid_stat(5), counted behind the name in brackets.
_STARTTIME = 19

#: How often both clocks are read: a busy machine takes the core away now and then, not each time.
_READINGS = 5


@functools.cache
def command_began_s() -> float:
    """When the kernel started this process, by time.monotonic(); the moment of the first question
    where /proc does not say. A child that is forked later has the answer of its parent."""
    now_s = time.monotonic()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        since_boot_s = int(fields[_STARTTIME]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return now_s
    return min(now_s, since_boot_s + _monotonic_less_boot_s())


def _monotonic_less_boot_s() -> float:
    """What to add to a time since boot, so that it is one of time.monotonic(). A process that waits
    for a core between the two readings finds too little by its wait: the most of several counts."""
    return max(time.monotonic() - time.clock_gettime(time.CLOCK_BOOTTIME) for _ in range(_READINGS))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""sanlock's own times, once, in seconds (its src/timeouts.h).

A host renews its host id every two io_timeouts. When it has not managed to for eight, its sanlock
ends every process that holds a lease; if that fails too, the watchdog resets the host within
another minute. So a host id that was not renewed for all of that time belongs to a host that runs
nothing any more, and the sanlock of the other hosts calls it dead.

    T+0     the last renewal
    T+80    8 * io_timeout (10 s): the processes with leases are ended
    T+140   watchdog_fire_timeout later: the other hosts call this host dead
"""

from __future__ import annotations

#: After this many io_timeouts without a renewal sanlock ends the processes that hold leases.
BUDGET_IO_TIMEOUTS = 8
#: watchdog_fire_timeout.
WATCHDOG_FIRE_S = 60.0


def host_dead_s(io_timeout_s: float) -> float:
    """How long after the last renewal of a host id sanlock calls that host dead."""
    return BUDGET_IO_TIMEOUTS * io_timeout_s + WATCHDOG_FIRE_S

# SPDX-License-Identifier: LGPL-2.1-or-later
"""sanlock's own times, once, in seconds (its src/timeouts.h).

A host renews its host id every two io_timeouts. When it could not for eight, sanlock there ends
every process that holds a lease; when that fails too, the watchdog resets the host within another
minute. So a host id that stood still for all of that time belongs to a host that runs nothing any
more, and sanlock elsewhere calls it dead.

    T+0     the last renewal
    T+80    8 * io_timeout (10 s): the leases here end
    T+140   and watchdog_fire_timeout: the host is dead for all others
"""

from __future__ import annotations

#: So long sanlock keeps the processes that hold leases when it cannot renew.
BUDGET_IO_TIMEOUTS = 8
#: watchdog_fire_timeout.
WATCHDOG_FIRE_S = 60.0


def host_dead_s(io_timeout_s: float) -> float:
    """How long after the last renewal of a host id sanlock calls that host dead."""
    return BUDGET_IO_TIMEOUTS * io_timeout_s + WATCHDOG_FIRE_S

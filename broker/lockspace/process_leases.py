# SPDX-License-Identifier: LGPL-2.1-or-later
"""The sanlock leases of a process, as this host's sanlock knows them."""

from __future__ import annotations

import errno
import time

import sanlock

#: sanlock refuses a question about a process while it answers another one about it (EBUSY);
#: broker and agent both ask. The pause before the question is repeated, and for how long.
BUSY_RETRY_S = 0.05
BUSY_PATIENCE_S = 1.0


def process_leases(pid: int) -> tuple[tuple[str, str], ...] | None:
    """(lockspace, resource) of each lease of a process; None where sanlock does not know it.

    Blocking; raises sanlock.SanlockException where sanlock does not answer.
    """
    until_s = time.monotonic() + BUSY_PATIENCE_S
    while True:
        try:
            held = sanlock.inquire(pid=pid)
            break
        except sanlock.SanlockException as error:
            if abs(error.errno) == errno.ESRCH:
                return None
            if abs(error.errno) != errno.EBUSY or time.monotonic() > until_s:
                raise
        time.sleep(BUSY_RETRY_S)
    return tuple((item["lockspace"].decode(), item["resource"].decode()) for item in held)

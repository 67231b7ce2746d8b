# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which sanlock leases a process holds, as this host's sanlock tells."""

from __future__ import annotations

import errno

import sanlock


def process_leases(pid: int) -> tuple[tuple[str, str], ...] | None:
    """(lockspace, resource) of each lease a process holds; None when sanlock does not know it.

    Blocking; raises sanlock.SanlockException where sanlock does not answer.
    """
    try:
        held = sanlock.inquire(pid=pid)
    except sanlock.SanlockException as error:
        if abs(error.errno) == errno.ESRCH:
            return None
        raise
    return tuple((item["lockspace"].decode(), item["resource"].decode()) for item in held)

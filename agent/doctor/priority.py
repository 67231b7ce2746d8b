# SPDX-License-Identifier: LGPL-2.1-or-later
"""doctor is asked where something is wrong, often on a machine whose cores are all taken: then
Python alone needs seconds of the ten that it has."""

from __future__ import annotations

import os
from contextlib import suppress

#: Above the usual priority, 0: doctor needs a second of a core.
NICE = -10


def go_first() -> None:
    """Raise the priority of this process and of its children to be, where this user may; not that
    of one that was given another priority on purpose."""
    if os.getpriority(os.PRIO_PROCESS, 0) == 0:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, NICE)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Exit codes of `ha-agent` and `ha-broker`, for scripts and units. Never renumbered."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """0 is success; each other number is one kind of failure."""

    OK = 0
    FAILED = 1
    USAGE = 2
    FILE = 3
    CONFIG = 4
    BROKER_DOWN = 5
    ENGINE_DOWN = 6
    STORAGE = 7
    LOCKSPACE = 8
    DEFINITION = 9
    LOCK_DRIVER = 10
    REFUSED = 11
    NOT_SENT = 12
    FENCE = 13
    ENGINE_SICK = 14
    ENGINE_UNKNOWN = 15

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which boot of this host this is."""

from __future__ import annotations

from pathlib import Path


def boot_id() -> str:
    """This boot's id (random(4), /proc/sys/kernel/random/boot_id); "" where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""

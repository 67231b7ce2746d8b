# SPDX-License-Identifier: LGPL-2.1-or-later
"""Identifies the present boot of this host."""

from __future__ import annotations

from pathlib import Path


def boot_id() -> str:
    """The boot's id (random(4), /proc/sys/kernel/random/boot_id); "" where it cannot be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""

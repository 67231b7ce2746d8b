# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory a new VM could get: what the kernel calls available (proc(5), MemAvailable)."""

from __future__ import annotations

import psutil


class MemoryMonitor:
    """MiB available."""

    name = "memory"
    interval_s = 5.0
    deadline_s = 5.0

    async def sample(self) -> float:
        return float(psutil.virtual_memory().available) / 2**20

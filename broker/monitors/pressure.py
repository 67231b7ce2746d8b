# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pressure stall information (the kernel's accounting/psi.rst): how much of the last ten
seconds some task, or all of them, waited for CPU, memory or I/O. Shown, not scored."""

from __future__ import annotations

import re
from pathlib import Path

from broker.monitors.runner import Sampled, Unknown

_LINE = re.compile(r"^(some|full) avg10=([0-9]{1,3}\.[0-9]{1,4}) ", re.MULTILINE)


class PressureMonitor(Sampled):
    """`cpu-some`, `memory-full` and so on -> percent; Unknown where the kernel has none."""

    name = "pressure"
    unit = "percent"
    deadline_s = 5.0

    def __init__(self, interval_s: float = 10.0, proc: Path = Path("/proc")) -> None:
        self.interval_s = interval_s
        self._proc = proc

    async def sample(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for what in ("cpu", "memory", "io"):
            try:
                text = (self._proc / "pressure" / what).read_text()
            except (OSError, UnicodeDecodeError):
                continue
            found |= {f"{what}-{kind}": float(value) for kind, value in _LINE.findall(text)}
        if not found:
            raise Unknown("this kernel has no pressure information (CONFIG_PSI, psi=1)")
        return found

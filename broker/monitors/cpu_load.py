# SPDX-License-Identifier: LGPL-2.1-or-later
"""CPU load of the host without the engine VM's own share, as a mean over the load window.

Both are differences between two samples: ticks of the machine (proc(5), /proc/stat), and CPU
time of the VM as libvirt counts it. Busy is everything but idle and iowait; time that an outer
hypervisor stole counts as busy, since this host could not use it. The ticks of all CPUs together
are the denominator, so a CPU that goes offline takes its share with it. There is no mean before
a full window was seen: half a window after a restart would make the restart cost points.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

from broker.monitors.runner import Sampled, Unknown
from scoring.hosts.score import mean_load

#: user, nice, system, idle, iowait, irq, softirq, steal (proc(5)); guest time is part of user.
_FIELDS = 8
_IDLE = (3, 4)


@dataclass(frozen=True, slots=True)
class Ticks:
    """CPU time since the boot, over all CPUs that are online, in ticks."""

    busy: int
    total: int


def parse_ticks(text: str) -> Ticks:
    """The ticks in the first line of /proc/stat; Unknown where that line has another form."""
    words = text.split("\n", 1)[0].split()
    if len(words) < 1 + 4 or words[0] != "cpu" or not "".join(words[1:]).isdecimal():
        raise Unknown("/proc/stat does not begin with the ticks of all CPUs")
    ticks = [int(word) for word in words[1 : 1 + _FIELDS]]
    idle = sum(ticks[index] for index in _IDLE if index < len(ticks))
    return Ticks(sum(ticks) - idle, sum(ticks))


class CpuLoadMonitor(Sampled):
    """Mean load per CPU, 0..1; Unknown until the first full window.

    `engine_cpu_s`: the process id of the VM and its CPU seconds so far; None without a VM.
    Raises Unknown where they cannot be read: the next sample then spans the time in between.
    """

    name = "cpu_load"
    unit = "fraction"
    deadline_s = 5.0

    def __init__(
        self,
        window_s: float,
        engine_cpu_s: Callable[[], tuple[Hashable, float] | None],
        interval_s: float = 10.0,
        proc: Path = Path("/proc"),
        ticks_per_s: int = os.sysconf("SC_CLK_TCK"),
    ) -> None:
        self.interval_s = interval_s
        self.window_s = window_s
        self._engine_cpu_s = engine_cpu_s
        self._proc = proc
        self._ticks_per_s = ticks_per_s
        self._points: deque[tuple[float, float]] = deque()
        self._last: tuple[Ticks, tuple[Hashable, float] | None] | None = None

    async def sample(self) -> float:
        self._add(asyncio.get_running_loop().time())
        points = list(self._points)
        seen_s = points[-1][0] - points[0][0] if points else 0.0
        if seen_s < self.window_s - self.interval_s:
            raise Unknown(f"{seen_s:.0f} of {self.window_s:.0f} s seen")
        mean = mean_load(points)
        if mean is None:
            raise Unknown("no time has passed between two looks")
        return mean

    def _add(self, now_s: float) -> None:
        try:
            text = (self._proc / "stat").read_text()
        except (OSError, UnicodeDecodeError) as error:
            self._last = None
            raise Unknown(f"{self._proc / 'stat'}: {error}") from None
        now = (parse_ticks(text), self._engine_cpu_s())  # Unknown keeps the last sample
        last, self._last = self._last, now
        if last is None:
            return
        passed = now[0].total - last[0].total
        busy: float = now[0].busy - last[0].busy
        if passed <= 0 or busy < 0:
            # A CPU went offline with its ticks: the next sample has a comparable pair again.
            return
        if now[1] is not None and last[1] is not None and now[1][0] == last[1][0]:
            busy -= max(0.0, now[1][1] - last[1][1]) * self._ticks_per_s
        self._points.append((now_s, min(1.0, max(0.0, busy / passed))))
        while self._points[0][0] < now_s - self.window_s:
            self._points.popleft()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Load per CPU without the engine VM's own share, as a mean over the load window.

Both are differences between two looks: busy ticks of the machine (proc(5), /proc/stat) and
CPU time of the VM's process. A mean exists only once a full window was seen: half a
window after a restart would punish a host for the restart.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import psutil

from scoring.score import mean_load


class CpuLoadMonitor:
    """Mean load per CPU, 0..1; None until the first full window."""

    name = "cpu_load"
    interval_s = 10.0
    deadline_s = 5.0

    def __init__(self, window_s: float, engine_pid: Callable[[], int | None]) -> None:
        self._window_s = window_s
        self._engine_pid = engine_pid
        self._points: deque[tuple[float, float]] = deque()
        self._last: tuple[float, float, int | None, float] | None = None

    async def sample(self) -> float | None:
        self._add(time.monotonic())
        points = list(self._points)
        if not points or points[-1][0] - points[0][0] < self._window_s - self.interval_s:
            return None
        return mean_load(points)

    def _add(self, now_s: float) -> None:
        busy_s, pid, engine_s = self._busy_s(), *self._engine_s()
        last, self._last = self._last, (now_s, busy_s, pid, engine_s)
        if last is None or now_s <= last[0]:
            return
        own_s = max(0.0, engine_s - last[3]) if pid is not None and pid == last[2] else 0.0
        cpus = psutil.cpu_count() or 1
        load = (busy_s - last[1] - own_s) / (now_s - last[0]) / cpus
        self._points.append((now_s, min(1.0, max(0.0, load))))
        while self._points[0][0] < now_s - self._window_s:
            self._points.popleft()

    @staticmethod
    def _busy_s() -> float:
        times = psutil.cpu_times()
        # guest time is part of user time (proc(5)); waiting for disks is not load.
        return float(times.user + times.nice + times.system + times.irq + times.softirq)

    def _engine_s(self) -> tuple[int | None, float]:
        pid = self._engine_pid()
        if pid is None:
            return None, 0.0
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            return None, 0.0
        return pid, float(times.user + times.system)

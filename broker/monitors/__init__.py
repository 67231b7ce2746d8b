# SPDX-License-Identifier: LGPL-2.1-or-later
"""One small file per monitor. A monitor has a name, an interval and an `async sample()`.

`sample()` returns its value; None is "unknown". What it raises is an unknown with the
error as its reason; what does not come back in time is an unknown that says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

log = logging.getLogger("ha-broker.monitors")


class Monitor(Protocol):
    """What the runner needs of a monitor; durations in seconds."""

    name: str
    interval_s: float
    deadline_s: float

    async def sample(self) -> Any:
        """The value now, None when it is not known."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One result: `value` None is unknown, then `problem` may say why."""

    value: Any
    taken_s: float
    took_s: float = 0.0
    problem: str = ""


class MonitorRunner:
    """Keeps every monitor's latest sample; none of them can delay another.

    `on_change`: called with a monitor's name when its value differs from the one before.
    """

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        self._monitors = monitors
        self.on_change: Callable[[str], None] = lambda name: None
        self.latest: dict[str, Sample] = {}

    def value(self, name: str) -> Any:
        """The latest value, None while unknown."""
        sample = self.latest.get(name)
        return None if sample is None else sample.value

    async def run(self) -> None:
        """Sample for ever; ends only by cancellation."""
        async with asyncio.TaskGroup() as group:
            for monitor in self._monitors:
                group.create_task(self._repeat(monitor), name=f"monitor {monitor.name}")

    async def _repeat(self, monitor: Monitor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            value, problem = None, ""
            try:
                async with asyncio.timeout(monitor.deadline_s):
                    value = await monitor.sample()
            except TimeoutError:
                problem = f"no answer within {monitor.deadline_s:g} s"
            except Exception as error:  # a monitor must never end the broker
                problem = f"{type(error).__name__}: {error}"
            old = self.latest.get(monitor.name)
            if problem and (old is None or old.problem != problem):
                log.warning("monitor %s: %s", monitor.name, problem)
            now_s = loop.time()
            # The moment the question was asked: what happened after it may not be in it.
            self.latest[monitor.name] = Sample(value, started_s, now_s - started_s, problem)
            if old is None or old.value != value:
                self.on_change(monitor.name)
            await asyncio.sleep(max(0.0, started_s + monitor.interval_s - now_s))

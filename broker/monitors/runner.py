# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs the monitors, each in its own time. A monitor has a name, a unit, an interval and an
`async sample()`.

`sample()` returns the value; None is "unknown". An exception counts as unknown, with the error as
its reason; so does a sample that misses its deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from broker.daemon.errors import HaError
from broker.daemon.foreign import clean, sentence
from broker.daemon.worker import Hung

log = logging.getLogger("ha-broker.monitors")

#: A monitor that fails is sampled less and less often, but never less often than this.
BACK_OFF_MAX_S = 60.0
#: Least time between two samples of a monitor, however often it is woken.
APART_S = 0.1
#: For one question to libvirt or sanlock about the VM.
LIBVIRT_DEADLINE_S = 3.0


class Verdict(StrEnum):
    """The meaning of a value."""

    OK = "ok"
    BAD = "bad"
    UNKNOWN = "unknown"


class Unknown(HaError):
    """The value cannot be known now: the message says why. The monitor itself works."""


class Monitor(Protocol):
    """The port of a monitor; durations in seconds, `unit` is the unit of its value."""

    name: str
    unit: str
    deadline_s: float

    @property
    def interval_s(self) -> float:
        """How often it is sampled; may change from one sample to the next."""

    async def sample(self) -> Any:
        """The value now; None, or Unknown with its reason, when it is not known."""

    def judge(self, value: Any) -> str:
        """Why a known value is bad; empty when it is not."""


class Sampled:
    """Base of the monitors whose value is never bad by itself."""

    def judge(self, value: Any) -> str:
        """No value is bad."""
        return ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One result: `value` None is unknown. `problem`: why it is unknown or bad.

    `taken_s`: when the question was asked, `took_s`: how long the answer took.
    """

    value: Any
    taken_s: float
    took_s: float = 0.0
    problem: str = ""
    unit: str = ""
    verdict: Verdict = Verdict.OK
    interval_s: float = 0.0


class MonitorRunner:
    """Keeps every monitor's latest sample; none of them can delay another.

    `on_change`: called with a monitor's name when its value differs from the one before.
    """

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        self._monitors = {monitor.name: monitor for monitor in monitors}
        self._wake = {name: asyncio.Event() for name in self._monitors}
        self.on_change: Callable[[str], None] = lambda name: None
        self.latest: dict[str, Sample] = {}

    def value(self, name: str) -> Any:
        """The latest value, None while unknown."""
        sample = self.latest.get(name)
        return None if sample is None else sample.value

    def wake(self, name: str) -> None:
        """Sample now, whatever the interval; nothing is done where there is no such monitor."""
        if name in self._wake:
            self._wake[name].set()

    def replace(self, monitor: Monitor) -> None:
        """Use this monitor from the next turn on, instead of the one of the same name."""
        assert monitor.name in self._monitors, monitor.name
        self._monitors[monitor.name] = monitor
        self.wake(monitor.name)

    async def run(self) -> None:
        """Sample for ever, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name in self._monitors:
                group.create_task(self._repeat(name), name=f"monitor {name}")

    async def _repeat(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            monitor = self._monitors[name]
            self._wake[name].clear()
            started_s = loop.time()
            sample, failed = await self._sample(monitor)
            failures = failures + 1 if failed else 0
            old = self.latest.get(name)
            _log_change(name, old, sample, failed)
            self.latest[name] = sample
            if old is None or old.value != sample.value:
                self.on_change(name)
            next_s = started_s + back_off_s(monitor.interval_s, failures)
            wake = self._wake[name].set
            timer = loop.call_at(next_s, wake) if next_s > loop.time() else loop.call_soon(wake)
            try:
                await self._wake[name].wait()
            finally:
                timer.cancel()
            if loop.time() < started_s + APART_S:
                await asyncio.sleep(started_s + APART_S - loop.time())

    @staticmethod
    async def _sample(monitor: Monitor) -> tuple[Sample, bool]:
        """One sample, and whether the monitor itself failed."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        value, problem, failed = None, "", False
        try:
            async with asyncio.timeout(monitor.deadline_s):
                value = await monitor.sample()
            problem = "" if value is None else monitor.judge(value)
        except Unknown as error:
            problem = sentence(error)
        except TimeoutError:
            problem, failed = f"no answer within {monitor.deadline_s:g} s", True
        except Hung as error:
            problem, failed = sentence(error), True
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The cancelled task is one inside the monitor, not this one.
            problem, failed = "it was cancelled from within", True
        except Exception as error:  # a monitor must never end the broker
            value, problem, failed = None, f"{type(error).__name__}: {sentence(error)}", True
        # The text of a library, of libvirt or of the network is foreign: it is cleaned here.
        problem = clean(problem)
        verdict = Verdict.UNKNOWN if value is None else Verdict.BAD if problem else Verdict.OK
        # The time of the question: what happened after it may not be in the answer.
        took_s = loop.time() - started_s
        interval_s = monitor.interval_s
        return Sample(value, started_s, took_s, problem, monitor.unit, verdict, interval_s), failed


def back_off_s(interval_s: float, failures: int) -> float:
    """The pause before the next turn of a monitor: its interval after the first failure in a row,
    then twice as long each time, up to BACK_OFF_MAX_S."""
    if failures < 2:
        return interval_s
    return max(interval_s, min(BACK_OFF_MAX_S, interval_s * 2.0 ** min(failures - 1, 10)))


def _log_change(name: str, old: Sample | None, new: Sample, failed: bool) -> None:
    """Log a changed verdict; a changed reason alone is not logged, it may change at each sample."""
    if old is not None and old.verdict is new.verdict:
        return
    if new.verdict is Verdict.OK:
        log.log(logging.DEBUG if old is None else logging.INFO, "monitor %s: ok", name)
    else:
        level = logging.WARNING if failed or new.verdict is Verdict.BAD else logging.INFO
        log.log(level, "monitor %s is %s: %s", name, new.verdict.value, new.problem)

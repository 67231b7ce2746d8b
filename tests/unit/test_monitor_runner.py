# SPDX-License-Identifier: LGPL-2.1-or-later
"""The monitors' runner in virtual time: what hangs, crashes or knows nothing says so with its
reason, is asked again later and later, and delays nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from broker.daemon.worker import Hung
from broker.monitors.runner import (
    APART_S,
    BACK_OFF_MAX_S,
    MonitorRunner,
    Sample,
    Sampled,
    Unknown,
    Verdict,
    back_off_s,
)
from tests.simulation.timeline import HostLoop, Process, Timeline


class Scripted(Sampled):
    """A monitor that does what the test says, and notes when it was asked."""

    unit = "pieces"
    deadline_s = 5.0

    def __init__(
        self, name: str, answer: Callable[[], Awaitable[Any]], interval_s: float = 1.0
    ) -> None:
        self.name = name
        self.interval_s = interval_s
        self.answer = answer
        self.asked_s: list[float] = []

    async def sample(self) -> Any:
        self.asked_s.append(asyncio.get_running_loop().time())
        return await self.answer()


async def seven() -> int:
    return 7


async def hang() -> None:
    await asyncio.Event().wait()


async def crash() -> None:
    raise ZeroDivisionError("division by zero")


async def does_not_know() -> None:
    raise Unknown("nobody told me")


async def cancelled_from_within() -> None:
    raise asyncio.CancelledError


async def stuck_in_a_thread() -> None:
    raise Hung("disk", "reading", 12.0)


@contextmanager
def running(*monitors: Scripted) -> Iterator[tuple[Timeline, MonitorRunner]]:
    """The runner of these, at second 0; nothing may have reached the loop or ended a task."""
    timeline = Timeline()
    loop = HostLoop(timeline, 0.0, 1.0)  # type: ignore[abstract]
    ends: list[BaseException | None] = []
    process = Process(loop, "broker", lambda _, error: ends.append(error))
    runner = timeline.call_within(loop, MonitorRunner, monitors)
    timeline.call_within(loop, process.start, runner.run())
    yield timeline, runner
    assert ends == [] and process.failures == [] and loop.problems == []
    process.kill()
    timeline.run_until(timeline.now_s)


def test_a_sample_carries_all_that_there_is_to_know_of_it() -> None:
    async def in_half_a_second() -> int:
        await asyncio.sleep(0.5)
        return 7

    with running(Scripted("slow", in_half_a_second, 4.0)) as (timeline, runner):
        timeline.run_until(1.0)
        wanted = Sample(7, 0.0, 0.5, "", "pieces", Verdict.OK, 4.0)
        assert runner.latest["slow"] == wanted
        timeline.run_until(4.6)
        assert runner.latest["slow"].taken_s == 4.0


def test_a_value_may_be_bad_and_is_a_value_all_the_same() -> None:
    class Judged(Scripted):
        def judge(self, value: Any) -> str:
            return "seven is too many"

    with running(Judged("judged", seven)) as (timeline, runner):
        timeline.run_until(0.0)
        sample = runner.latest["judged"]
        assert (sample.value, sample.verdict) == (7, Verdict.BAD)
        assert sample.problem == "seven is too many"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (hang, "no answer within 5 s"),
        (crash, "ZeroDivisionError: division by zero"),
        (does_not_know, "nobody told me"),
        (cancelled_from_within, "it was cancelled from within"),
        (stuck_in_a_thread, "disk: reading has not answered for 12.0 s"),
    ],
)
def test_what_cannot_be_told_is_unknown_with_its_reason_and_delays_nobody(
    answer: Callable[[], Awaitable[Any]], reason: str
) -> None:
    fine = Scripted("fine", seven)
    with running(Scripted("broken", answer), fine) as (timeline, runner):
        timeline.run_until(60.5)
        sample = runner.latest["broken"]
        assert (sample.value, sample.verdict, sample.problem) == (None, Verdict.UNKNOWN, reason)
        assert fine.asked_s == [float(second) for second in range(61)]


def test_a_judge_that_crashes_makes_its_value_unknown() -> None:
    class Crashing(Scripted):
        def judge(self, value: Any) -> str:
            raise KeyError("level")

    with running(Crashing("crashing", seven)) as (timeline, runner):
        timeline.run_until(0.0)
        sample = runner.latest["crashing"]
        assert (sample.value, sample.problem) == (None, "KeyError: 'level'")


def test_a_failing_monitor_is_asked_less_and_less_often_and_at_once_when_it_is_well() -> None:
    broken = Scripted("broken", crash)
    with running(broken) as (timeline, runner):
        timeline.run_until(200.0)
        assert broken.asked_s == [0, 1, 3, 7, 15, 31, 63, 123, 183]
        broken.answer = seven
        timeline.run_until(250.5)
        assert runner.latest["broken"].verdict is Verdict.OK
        assert broken.asked_s[9:] == [243, 244, 245, 246, 247, 248, 249, 250]


def test_what_a_monitor_does_not_know_is_no_failure_of_it() -> None:
    unsure = Scripted("unsure", does_not_know)
    with running(unsure) as (timeline, _):
        timeline.run_until(30.5)
        assert len(unsure.asked_s) == 31


def test_what_somebody_else_has_said_is_one_clean_line() -> None:
    class Quoting(Scripted):
        def judge(self, value: Any) -> str:
            return "it says \x1b[31mred\u202e"

    async def run() -> None:
        async def unknown() -> None:
            raise Unknown("libvirt:\n\x1b]0;x\x07 no")

        async def crashes() -> None:
            raise ValueError("a\nb")

        for monitor, said in (
            (Scripted("m", unknown), "libvirt: ?]0;x? no"),
            (Scripted("m", crashes), "ValueError: a b"),
            (Quoting("m", seven), "it says ?[31mred?"),
        ):
            sample, _ = await MonitorRunner._sample(monitor)
            assert sample.problem == said

    asyncio.run(run())


def test_the_back_off_is_bounded_and_never_shorter_than_the_interval() -> None:
    assert [back_off_s(2.0, failures) for failures in range(8)] == [2, 2, 4, 8, 16, 32, 60, 60]
    assert back_off_s(0.5, 10**6) == BACK_OFF_MAX_S
    assert back_off_s(3600.0, 5) == 3600.0


def test_a_wake_is_a_look_at_once_and_a_flood_of_them_is_bounded() -> None:
    rare = Scripted("rare", seven, 3600.0)
    with running(rare) as (timeline, runner):
        timeline.run_until(10.0)
        runner.wake("rare")
        runner.wake("nobody of that name")
        timeline.run_until(10.0)
        assert rare.asked_s == [0, 10]
        for step in range(1000):
            timeline.run_until(20.0 + step / 1000)
            runner.wake("rare")
        timeline.run_until(30.0)
        assert len(rare.asked_s) <= 2 + 1 / APART_S + 1
        assert rare.asked_s[-1] >= 20.999, "what the last one told is not missed"


def test_a_wake_cuts_a_back_off_short() -> None:
    broken = Scripted("broken", crash)
    with running(broken) as (timeline, runner):
        timeline.run_until(100.0)
        broken.answer = seven
        runner.wake("broken")
        timeline.run_until(100.0)
        assert runner.value("broken") == 7


def test_a_change_is_told_once() -> None:
    values = iter([1, 1, 2, 2, 2])

    async def next_one() -> int:
        return next(values, 2)

    with running(Scripted("steps", next_one)) as (timeline, runner):
        told: list[str] = []
        runner.on_change = told.append
        timeline.run_until(10.0)
        assert told == ["steps", "steps"]


def test_a_replaced_monitor_is_asked_at_once_and_the_old_one_never_again() -> None:
    old, new = Scripted("one", hang, 60.0), Scripted("one", seven, 30.0)
    with running(old) as (timeline, runner):
        timeline.run_until(20.0)
        assert runner.value("one") is None
        runner.replace(new)
        timeline.run_until(20.0)
        assert (runner.value("one"), runner.latest["one"].interval_s) == (7, 30.0)
        timeline.run_until(100.0)
        assert old.asked_s == [0]
        assert new.asked_s == [20, 50, 80]


def test_the_log_has_a_line_for_each_change_of_verdict_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A reason may be another one with each sample: an age in it, a part of a window."""
    looks = iter(range(1000))

    async def not_yet() -> None:
        raise Unknown(f"{next(looks)} of 900 s seen")

    caplog.set_level(logging.INFO)
    monitor = Scripted("load", not_yet)
    with running(monitor) as (timeline, _):
        timeline.run_until(100.0)
        monitor.answer = seven
        timeline.run_until(200.0)
        monitor.answer = crash
        timeline.run_until(300.0)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "monitor load is unknown: 0 of 900 s seen"),
        ("INFO", "monitor load: ok"),
        ("WARNING", "monitor load is unknown: ZeroDivisionError: division by zero"),
    ]

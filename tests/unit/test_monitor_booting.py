# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM that boots is asked four times a second, and nobody waits for a question that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from broker.config.sections import Config, HealthSection, HostSection, StorageSection
from broker.monitors.booting import BOOT_EVERY_S, BOOT_MAX_S, QUICK_S, Booting
from broker.monitors.health import HealthMonitor
from broker.monitors.runner import MonitorRunner
from scoring.vm_facts import Health
from tests.simulation.timeline import HostLoop, Process, Timeline

FAR_S = 1e6


class Guest:
    """The VM's page: it swallows questions until `up_s`, and answers from then on after
    `takes_s`. A question that was swallowed never gets an answer."""

    def __init__(self, up_s: float, takes_s: float = 0.01) -> None:
        self.up_s, self.takes_s = up_s, takes_s
        self.refuses = False
        self.asked_s: list[float] = []
        self.open = self.open_most = 0

    async def ask(self) -> str | None:
        clock = asyncio.get_running_loop().time
        self.asked_s.append(clock())
        self.open += 1
        self.open_most = max(self.open, self.open_most)
        try:
            if self.refuses:
                return "refused"
            if clock() < self.up_s:
                await asyncio.sleep(FAR_S)
            await asyncio.sleep(self.takes_s)
            return None
        finally:
            self.open -= 1


@pytest.fixture
def timeline() -> Iterator[Timeline]:
    yield Timeline()


def run(timeline: Timeline, until_s: float, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Play it in virtual time; nothing may be left of it."""
    loop = HostLoop(timeline, 0.0, 1.0)  # type: ignore[abstract]
    process = Process(loop, "boot", lambda process, error: None)
    process.start(story())
    timeline.run_until(until_s)
    assert not process.failures and not loop.problems
    process.kill()
    timeline.run_until(until_s + 1.0)
    assert not process.tasks


def health(guest: Guest, every_s: float = 1.0, **given: Any) -> HealthMonitor:
    config = Config(
        host=HostSection(id=1),
        storage=StorageSection(whiteboard="/w", leases="/l"),
        health=HealthSection(tcp="192.0.2.1:80", **given),
    )
    made = HealthMonitor(config, every_s)
    made.problem = guest.ask  # type: ignore[method-assign]
    return made


async def watched(made: HealthMonitor, verdict: Health, seen_s: list[float]) -> None:
    """Run the monitor for ever; note the moments at which its verdict changes to that one."""
    made.ask(True)
    runner = MonitorRunner([made])

    def changed(name: str) -> None:
        if made.verdict[0] is verdict:
            seen_s.append(asyncio.get_running_loop().time())

    runner.on_change = changed
    await runner.run()


@pytest.mark.parametrize("up_s", [3.0, 3.1, 3.2, 7.77])
def test_a_good_answer_is_seen_a_quarter_of_a_second_after_the_guest_gives_it(
    timeline: Timeline, up_s: float
) -> None:
    """Though each question from before hangs."""
    guest = Guest(up_s)
    seen_s: list[float] = []

    async def story() -> None:
        await watched(health(guest), Health.GOOD, seen_s)

    run(timeline, 20.0, story)
    assert len(seen_s) == 1 and up_s <= seen_s[0] <= up_s + 0.3
    assert guest.open_most <= QUICK_S / BOOT_EVERY_S + 2
    later = [at_s for at_s in guest.asked_s if at_s > seen_s[0] + 1.0]
    assert len(later) <= 20.0 - seen_s[0], "once it is well it is asked as before"
    assert guest.open == 0


def test_a_page_that_answers_late_is_waited_for(timeline: Timeline) -> None:
    guest, found = Guest(0.0, takes_s=3.0), []

    async def story() -> None:
        made = health(guest)
        made.ask(True)
        while made.verdict[0] is not Health.GOOD:
            await made.sample()
        found.append(asyncio.get_running_loop().time())

    run(timeline, 10.0, story)
    assert found == [pytest.approx(3.0, abs=0.3)]


def test_more_questions_are_not_more_failures(timeline: Timeline) -> None:
    """The seconds until the health is bad are as many as with fewer questions."""
    guest = Guest(FAR_S)
    bad_s: list[float] = []
    guest.refuses = True

    async def story() -> None:
        await watched(health(guest, failures=3), Health.BAD, bad_s)

    run(timeline, 10.0, story)
    assert 2.0 <= bad_s[0] <= 2.6
    assert len([at_s for at_s in guest.asked_s if at_s < 5.0]) in range(19, 23)


def test_one_that_is_never_well_is_asked_as_rarely_as_others_in_the_end(
    timeline: Timeline,
) -> None:
    guest = Guest(FAR_S)
    guest.refuses = True

    async def story() -> None:
        made = health(guest)
        made.ask(True)
        await MonitorRunner([made]).run()

    run(timeline, BOOT_MAX_S + 100.0, story)
    assert sum(at_s > BOOT_MAX_S + 2.0 for at_s in guest.asked_s) in range(96, 100)


def test_of_a_guest_agent_one_question_at_a_time_is_asked(timeline: Timeline) -> None:
    guest = Guest(FAR_S)

    async def story() -> None:
        boot = Booting(guest.ask, one_at_a_time=True)
        boot.begins()
        for _ in range(8):
            await boot.problem()
        assert guest.open == 1
        boot.ends()
        await asyncio.sleep(0)

    run(timeline, 10.0, story)
    assert len(guest.asked_s) == 1 and guest.open == 0


def test_an_error_of_the_check_itself_is_raised() -> None:
    async def broken() -> str | None:
        raise ValueError("no such check")

    async def story() -> None:
        boot = Booting(broken, one_at_a_time=False)
        boot.begins()
        with pytest.raises(ValueError, match="no such check"):
            await boot.problem()
        boot.ends()

    asyncio.run(story())


def test_a_reload_goes_on_with_the_boot(timeline: Timeline) -> None:
    async def story() -> None:
        old, new = health(Guest(FAR_S)), health(Guest(FAR_S))
        old.ask(True)
        new.go_on_from(old)
        assert (new.interval_s, old.interval_s) == (BOOT_EVERY_S, 1.0)
        new.ask(False)
        assert new.interval_s == 1.0

    run(timeline, 1.0, story)

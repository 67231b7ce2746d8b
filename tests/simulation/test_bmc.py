# SPDX-License-Identifier: LGPL-2.1-or-later
"""The product's own guard of a fence device (agent/fence/guarded.py) in virtual time: identity,
deadlines, errors, and a thread that ends with its process."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.fence import guarded
from agent.fence.driver import always
from agent.fence.guarded import GRACE_S, Identity
from agent.fence.levels import FenceLevels
from scoring.observation import Power, PowerAnswer, PowerOffEnded
from tests.simulation import bmc
from tests.simulation.host import CACHED_S
from tests.simulation.laws import Broken
from tests.simulation.threads import SimTime
from tests.simulation.world import Settings, World

TIMEOUT_S = 8.0


class Site:
    """Two hosts that are on, and what the first one is answered by the BMC of the second."""

    def __init__(self) -> None:
        self.world = World(Settings(hosts=2, migration=False), random.Random(1))
        self.world.fault_began("test")
        self.world.power_all_on(1.0)
        self.world.run(60.0)
        self.asker, self.target = self.world.hosts.values()
        self.devices: FenceLevels = bmc.fence_levels(self.world, self.asker, TIMEOUT_S)
        self.answers: list[Any] = []

    def ask(self, call: Callable[[], Any]) -> None:
        """In the name of the asker's agent."""

        async def ask() -> None:
            self.answers.append(await call())

        loop = self.asker.loop
        assert loop is not None
        self.world.timeline.call_within(loop, self.asker.processes["agent"].begin, ask())

    def read(self, for_s: float = 20.0) -> PowerAnswer:
        """The power of the BMC's host, as it is answered within `for_s`."""
        self.answers.clear()
        self.ask(lambda: self.devices.read_power(self.target.number, self.target.system_uuid))
        self.world.run(for_s)
        (answer,) = self.answers
        assert isinstance(answer, PowerAnswer)
        return answer

    def order_off(self, for_s: float = 20.0) -> None:
        self.answers.clear()
        host, machine = self.target.number, self.target.system_uuid
        self.ask(lambda: self.devices.power_off(host, machine, 0, always))
        self.world.run(for_s)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.world.close()


@pytest.mark.parametrize("number", range(4))
def test_each_order_of_the_bytes_is_its_own(site: Site, number: int) -> None:
    """Firmware sends the bytes whole, with fields reversed, and both of these backwards."""
    device = bmc.SimBmc(site.world, site.asker, site.target, SimTime(lambda: 0.0))
    site.target.number = number
    guid = device.guid()
    assert guid is not None
    assert guarded.whose(guid, site.target.system_uuid)[0] is Identity.PROVEN
    site.target.number = 2


def test_a_healthy_one_is_proven_and_its_answer_is_as_old_as_the_question(site: Site) -> None:
    answer = site.read()
    assert (answer.power, answer.identity_proven) == (Power.ON, True)
    assert answer.over_s - answer.read_s == pytest.approx(bmc.LOGIN_S)


def test_another_machine_is_asked_once_and_no_more(site: Site) -> None:
    site.target.bmc.fault = "foreign-off"
    for _ in range(3):
        answer = site.read()
        assert not answer.identity_proven
        assert "its GUID is" in answer.detail
    assert site.target.bmc.asked == 1


def test_another_machine_gets_no_order(site: Site) -> None:
    site.target.bmc.fault = "foreign"
    site.order_off()
    (ended,) = site.answers
    assert isinstance(ended, PowerOffEnded) and not ended.ok


def test_the_order_to_another_machine_is_a_breach(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps it away is the product's comparison, and nothing of the simulation's."""
    monkeypatch.setattr(guarded, "whose", lambda guid, known: (Identity.PROVEN, ""))
    site.target.bmc.fault = "foreign"
    with pytest.raises(Broken, match="another machine"):
        site.order_off()


@pytest.mark.parametrize(
    ("fault", "said", "took_s"),
    [
        ("silent", "no answer", TIMEOUT_S),
        ("refuses", "wrong password", bmc.LOGIN_S),
        ("hangs", "has not answered for", TIMEOUT_S + GRACE_S),
    ],
)
def test_what_does_not_answer_is_unknown(site: Site, fault: str, said: str, took_s: float) -> None:
    site.target.bmc.fault = fault
    answer = site.read()
    assert answer.power is Power.UNKNOWN
    assert said in answer.detail
    assert answer.over_s - answer.read_s == pytest.approx(took_s)


def test_one_that_hangs_gets_no_further_question_until_it_is_back(site: Site) -> None:
    site.target.bmc.fault = "hangs"
    assert "has not answered for" in site.read(15.0).detail
    site.target.bmc.fault = ""
    assert "has not answered for" in site.read(5.0).detail
    assert site.target.bmc.asked == 1
    site.world.run(bmc.HUNG_S)
    assert site.read().power is Power.ON


def test_an_order_that_is_refused_is_looked_after(site: Site) -> None:
    """The goal is a power: an answer with an error may have been obeyed."""
    site.target.bmc.fault = "off-fails"
    cut_s = bmc.LOGIN_S + 1.0
    site.world.timeline.after(cut_s, site.target.power_off, "of itself, just then")
    site.order_off()
    (ended,) = site.answers
    assert ended.ok


def in_login(site: Site) -> None:
    """The order is under way, and its BMC slow."""
    site.target.bmc.fault = "slow"
    site.order_off(3.0)
    assert not site.answers


def test_an_agent_that_is_killed_gives_no_order_any_more(site: Site) -> None:
    before = threading.active_count()
    in_login(site)
    assert threading.active_count() == before + 1
    site.asker.crash("agent")
    site.world.run(20.0)
    assert site.target.power and threading.active_count() == before


def test_a_host_that_stands_still_gives_its_order_later(site: Site) -> None:
    """The last look asks how old its view is, for such a host knows nothing new."""
    in_login(site)
    site.asker.freeze(30.0)
    site.world.run(29.0)
    assert site.target.power
    with pytest.raises(Broken, match="fenced"):
        site.world.run(5.0)


def test_nothing_is_left_of_a_closed_world() -> None:
    before: set[threading.Thread] = set(threading.enumerate())
    site = Site()
    in_login(site)
    site.world.close()
    assert set(threading.enumerate()) <= before


def test_a_bmc_that_caches_tells_what_was_so_at_that_moment() -> None:
    """A host that was off for two seconds had power fifteen seconds before, and has it again."""
    world = World(Settings(hosts=1), random.Random(1))
    (host,) = world.hosts.values()
    host.power_on()
    world.run(30.0)
    host.power_off("test")
    world.run(2.0)
    assert host.was_on(CACHED_S) and not host.was_on(1.0)
    host.power_on()
    world.run(1.0)
    assert host.was_on(CACHED_S) and not host.was_on(2.0)
    world.run(13.0)
    assert not host.was_on(CACHED_S) and host.was_on(1.0)
    world.run(2.0)
    assert host.was_on(CACHED_S)
    world.close()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's beat keeps its plan, whatever the storage does."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

from tests.simulation.world import Settings, World

UP_S = 90.0
TROUBLE_S = 60
LATE_MAX_S = 0.001


@contextlib.contextmanager
def two_hosts_up() -> Iterator[World]:
    """A cluster of two hosts that has started its VM."""
    world = World(Settings(hosts=2, host_boot_s=20.0), random.Random(3))
    try:
        world.fault_began("test")
        world.power_all_on(1.0)
        world.run(UP_S)
        yield world
    finally:
        world.close()


@pytest.mark.parametrize(
    ("fault", "delay_s"), [("hang", 0.0), ("error", 0.0), ("slow", 0.3), ("slow", 1.4)]
)
def test_storage_in_trouble_delays_no_beat(fault: str, delay_s: float) -> None:
    """Each beat begins as planned and brings the agent a view; what hangs is told with its age,
    and no second question is asked before the first is answered."""
    with two_hosts_up() as world:
        host, broker = world.hosts[1], world.brokers[1]
        world.set_global_maintenance(True)
        world.run(10.0)
        begun, views = broker.lateness.count, broker.view(host.clock_s()).version
        host.break_storage(fault, delay_s)
        world.run(1.0)
        for _ in range(TROUBLE_S):
            before = broker.lateness.count
            world.run(1.0)
            assert broker.lateness.count > before
        assert broker.lateness.count - begun >= TROUBLE_S
        assert broker.view(host.clock_s()).version - views >= TROUBLE_S
        assert broker.lateness.max_s <= LATE_MAX_S
        storage = broker.status(host.clock_s()).storage
        if fault == "hang":
            assert storage.trouble_s is not None and storage.trouble_s > TROUBLE_S - 2
            assert "has not answered for" in storage.problem
        host.break_storage("")
        world.run(5.0)
        storage = broker.status(host.clock_s()).storage
        assert (storage.problem, storage.state) == ("", "ok")


def test_slow_storage_is_written_as_often_as_it_can_be() -> None:
    """A turn that lasts longer than a beat is followed by the next at once."""
    with two_hosts_up() as world:
        host, broker = world.hosts[1], world.brokers[1]
        host.break_storage("slow", 0.7)
        world.run(5.0)
        before = broker.board.write_times.count
        world.run(28.2)
        assert broker.board.write_times.count - before in (19, 20)


def test_an_agent_whose_libvirt_refuses_the_definition_is_no_standby_and_says_why() -> None:
    with two_hosts_up() as world:
        owner = world.owner()
        assert owner is not None
        (heir,) = (host for host in world.hosts.values() if host is not owner)
        broker = world.brokers[heir.number]
        for refused, score in (("libvirt rejects it: XML error", 0), ("", 3400)):
            heir.refused = refused
            world.run(3.0)
            shown = broker.status(heir.clock_s()).hosts[heir.host_id]
            assert shown.score == score
            assert [p.why for p in shown.penalties if p.name == "cannot-start"] == [refused][
                : score == 0
            ]

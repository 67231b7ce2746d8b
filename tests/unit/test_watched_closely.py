# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that is watched closely: when it is overdue with a sign of life, and since when its slot
stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from broker.broker import Broker
from broker.config.cluster_key import ClusterKey
from broker.peers.asker import Pulse
from broker.peers.heartbeat import Heartbeat, heard, signed
from scoring.vm_facts import VmStatus
from tests.fakes.broker import make_broker, report, up
from tests.fakes.slot_store import MemoryVolume


def played(tmp_path: Path, story: Callable[[Broker, Broker], object]) -> None:
    """Host 1 watches host 2, both have beaten three times; then the story."""

    async def run() -> None:
        volume = MemoryVolume()
        one, two = (make_broker(tmp_path, volume, host_id) for host_id in (1, 2))
        one.take_report(structs.replace(report("EngineDown"), watched=(2,)), 1.0)
        for now_s in (1.0, 2.0, 3.0):
            await two.beat(now_s)
            await one.beat(now_s)
        found = story(one, two)
        if asyncio.iscoroutine(found):
            await found

    asyncio.run(run())


def of_two(broker: Broker, now_s: float) -> float | None:
    """overdue_since_s of host 2 in the view of the agent."""
    (peer,) = broker.view(now_s).peers
    return peer.overdue_since_s


def test_a_slot_that_is_a_fifth_of_a_beat_late_is_overdue_and_is_news(tmp_path: Path) -> None:
    async def story(one: Broker, two: Broker) -> None:
        version = one.news.version
        await one._read_again(4.1)
        assert of_two(one, 4.1) is None
        assert one.news.version == version
        await one._read_again(4.2)
        assert of_two(one, 4.2) == 4.0
        assert one.news.version > version
        version = one.news.version
        await two.beat(4.3)
        await one._read_again(4.6)
        assert of_two(one, 4.6) is None
        assert one.news.version > version, "that it lives is news as well"

    played(tmp_path, story)


def test_the_machine_has_answered_when_its_kernel_refused_a_question(tmp_path: Path) -> None:
    def story(one: Broker, two: Broker) -> None:
        assert one.view(3.0).peers[0].machine_heard_s is None
        one.heartbeats.pulses[2] = Pulse(refused_s=2.5)
        (peer,) = one.view(3.1).peers
        assert (peer.machine_heard_s, peer.machine_silent_since_s) == (2.5, None)

    played(tmp_path, story)


def test_the_machine_that_runs_the_engine_is_the_one_to_ask(tmp_path: Path) -> None:
    """The machine is asked also when its slot stands still and no longer says so; a host that runs
    the engine and writes comes before such a one."""

    async def story(one: Broker, two: Broker) -> None:
        assert one.table.machine._asked is None
        two.take_report(report("EngineUp"), 3.5)
        up(two, 4.0)
        await two.beat(4.0)
        await one.beat(4.0)
        assert one.table.machine._asked is not None and one.table.machine._asked.host == 2
        await one.beat(7.0)
        assert one.table.machine._asked.host == 2 and one.table.machine._every_s == 1.0

    played(tmp_path, story)


def test_one_that_is_not_watched_is_never_overdue(tmp_path: Path) -> None:
    async def story(one: Broker, two: Broker) -> None:
        one.take_report(report("EngineDown"), 3.0)
        await one.beat(5.9)
        assert of_two(one, 5.9) is None

    played(tmp_path, story)


def test_who_is_silent_as_an_agent_watches_nobody(tmp_path: Path) -> None:
    async def story(one: Broker, two: Broker) -> None:
        await one.beat(8.0)
        assert one.table.watched == frozenset()

    played(tmp_path, story)


@pytest.mark.parametrize(
    ("written_s", "since_s"),
    [(2.7, 2.7), (1.5, 2.0), (3.2, 3.0), (None, 3.0)],
)
def test_a_slot_stands_still_since_its_host_wrote_it(
    tmp_path: Path, written_s: float | None, since_s: float
) -> None:
    """By at most a beat earlier than it was read here, and never later."""

    async def story(one: Broker, two: Broker) -> None:
        pulse = one.heartbeats.pulses.setdefault(2, Pulse())
        pulse.slot = None if written_s is None else (two.board.written, written_s)
        await one._read_again(3.5)
        assert one.table.seen[2].since_s == since_s
        (peer,) = one.view(3.5).peers
        assert peer.read_s == since_s
        await one._read_again(3.6)
        assert one.table.seen[2].since_s == since_s
        await two.beat(4.0)
        await one.beat(4.1)
        assert one.table.seen[2].since_s == 4.1, "of another slot its word says nothing"

    played(tmp_path, story)


def test_a_host_says_how_long_ago_its_slot_was_acknowledged(tmp_path: Path) -> None:
    def story(one: Broker, two: Broker) -> None:
        now_s = asyncio.get_running_loop().time()
        ago_ms = two.own_slot.written_ago_ms(now_s + 2.0)
        assert ago_ms is not None and ago_ms >= 2000
        assert two.own_slot.written_ago_ms(now_s - 9.0) == 0

    played(tmp_path, story)
    assert make_broker(tmp_path, MemoryVolume()).own_slot.written_ago_ms(5.0) is None


def test_over_http_that_is_not_said_and_not_believed() -> None:
    """No MAC covers it there."""
    key, life = ClusterKey(b"k" * 32), Heartbeat(2, "boot", 7, VmStatus.UP, "0" * 32, written=7)
    said = structs.replace(life, written_ago_ms=900)
    raw = signed(key, said)
    assert b"written_ago_ms" not in raw
    forged = raw[:-1] + b',"written_ago_ms":900}'
    answer = heard(key, forged, 2, "0" * 32)
    assert isinstance(answer, Heartbeat) and answer.written_ago_ms is None

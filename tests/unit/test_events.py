# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happened: the ring, what is asked of it, and what the other hosts' slots add to it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.commands.events import as_line
from broker.broker import Broker
from broker.daemon.exit_codes import ExitCode
from broker.events.notice import Notice
from broker.events.of_peers import PeerEvents
from broker.events.ring import EVENTS_MAX, Events, Extra
from broker.whiteboard.fence_log import LogRecord
from broker.whiteboard.mode import Mode
from broker.whiteboard.slot import SlotReport
from broker.wire.events import Event, EventList
from broker.wire.kinds import Kind
from scoring.observation import FenceStep
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.broker import make_broker, report, served
from tests.fakes.slot_store import MemoryVolume
from tests.unit import commands

NOON_S = 1_800_000_000.25
NOON_ID = 1_800_000_000_250


def note(detail: str) -> Notice:
    return Notice(Kind.PEER_SILENT, "host2", detail, {"host_id": 2})


def ring(size: int = 3) -> Events:
    return Events(lambda: NOON_S, 1, "host1", size)


def texts(found: EventList) -> list[str]:
    return [event.text for event in found.events]


# --- the ring --------------------------------------------------------------------------------


def test_an_event_says_when_what_and_whom() -> None:
    events = ring()
    events.add(note("gone"))
    (event,) = events.after(0).events
    assert event.id == NOON_ID
    assert event.time == "2027-01-15T08:00:00.250Z"
    assert (event.kind, event.severity) == ("peer-silent", "critical")
    assert (event.host, event.host_id) == ("host2", 2)


def test_what_is_about_this_host_has_its_id_and_a_mode_has_none() -> None:
    events = ring()
    events.add(Notice(Kind.AGENT_SILENT, "host1", "silent"))
    events.add(Notice(Kind.MAINTENANCE_OVER, "global maintenance", "over"))
    assert [event.host_id for event in events.after(0).events] == [1, None]


@given(count=st.integers(0, 12), size=st.integers(1, 5), asked=st.integers(-3, 15))
def test_one_who_follows_gets_each_event_once_or_hears_that_he_missed_some(
    count: int, size: int, asked: int
) -> None:
    events = ring(size)
    for number in range(count):
        events.add(note(str(number)))
    after = NOON_ID + asked
    found = events.after(after)
    there = range(max(0, count - size), count)
    if there.start - 1 <= asked < count:
        assert not found.missed
        assert texts(found) == [str(n) for n in there if n > asked]
    else:
        assert found.missed
        assert texts(found) == [str(n) for n in there]
    assert found.last == NOON_ID + count - 1
    assert not events.after(found.last).events
    assert not events.after(found.last).missed


def test_all_that_is_remembered_is_no_less_than_it_should_be() -> None:
    events = ring()
    for number in range(5):
        events.add(note(str(number)))
    assert texts(events.after(0)) == ["2", "3", "4"]
    assert not events.after(0).missed
    assert texts(events.after(0, 2)) == ["2", "3"]
    assert texts(events.after(events.after(0, 2).last)) == ["4"]


def test_a_question_waits_for_news_and_not_for_ever() -> None:
    async def run() -> None:
        events = ring()
        waiting = asyncio.create_task(events.newer(0, 20.0))
        await asyncio.sleep(0)
        events.add(note("now"))
        assert texts(await waiting) == ["now"]
        assert texts(await events.newer(NOON_ID, 0.0)) == []

    asyncio.run(run())


def test_the_ring_is_bounded() -> None:
    events = Events(lambda: NOON_S, 1, "host1")
    for number in range(EVENTS_MAX + 10):
        events.add(note(str(number)))
    assert len(events.after(0).events) == EVENTS_MAX


# --- what the slots tell ------------------------------------------------------------------------


def slot(state: str, **changes: object) -> SlotReport:
    status = EngineStatus(VmStatus.DOWN, Health.BAD, "off")
    extra = {"state": state, "reason": "so"}
    made = SlotReport(2, 7, 3400, status, "host2", extra=extra, extra_trusted=True)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def watch() -> tuple[PeerEvents, Events]:
    events = ring(100)
    return PeerEvents(events, 1, "host1"), events


def look(
    watch: PeerEvents,
    report: SlotReport,
    global_mode: Mode | None = None,
    local_mode: Mode | None = None,
    log: list[LogRecord] | None = None,
    known: bool = True,
) -> None:
    watch.look({2: report}, known, global_mode, local_mode, log)


def test_a_peers_transition_is_an_event_and_its_first_state_is_not(
    watch: tuple[PeerEvents, Events],
) -> None:
    peers, events = watch
    look(peers, slot("EngineDown"))
    look(peers, slot("EngineDown", timestamp=8))
    assert not events.after(0).events
    look(peers, slot("EngineUp", timestamp=9))
    (event,) = events.after(0).events
    assert (event.kind, event.text, event.host_id) == ("state-transition", "EngineDown-EngineUp", 2)
    assert event.facts["reason"] == "so"


def test_a_peer_whose_extra_lines_are_damaged_changes_no_state(
    watch: tuple[PeerEvents, Events],
) -> None:
    peers, events = watch
    look(peers, slot("EngineDown"))
    look(peers, slot("EngineUp", extra_trusted=False))
    assert not events.after(0).events


def test_modes_that_are_set_and_end(watch: tuple[PeerEvents, Events]) -> None:
    peers, events = watch
    mode = Mode("root@host1", "new memory")
    look(peers, slot("EngineDown"), known=False)
    look(peers, slot("EngineDown"), global_mode=mode)
    assert not events.after(0).events, "it was set before this broker looked"
    look(peers, slot("EngineDown"))
    maintained = {"state": "EngineDown", "mode-owner": "root@host2", "mode-reason": "a%3Db"}
    look(peers, slot("EngineDown", maintenance=True, extra=maintained), local_mode=mode)
    assert sorted((event.kind, event.host, event.text) for event in events.after(0).events) == [
        ("maintenance-ended", "global maintenance", "global maintenance has ended"),
        ("maintenance-set", "host1", "local maintenance is set by root@host1: new memory"),
        ("maintenance-set", "host2", "local maintenance is set by root@host2: a=b"),
    ]


def test_fences_by_other_hosts_come_from_the_log_once(watch: tuple[PeerEvents, Events]) -> None:
    peers, events = watch

    def record(number: int, by: int, step: FenceStep) -> LogRecord:
        return LogRecord(number, step, by, f"host{by}", 3, "host3", "", NOON_S, True, "proof")

    old = record(1, 2, FenceStep.INTENT)
    look(peers, slot("EngineDown"), log=[old])
    new, own = record(2, 2, FenceStep.DEAD), record(3, 1, FenceStep.BACK)
    for _ in range(2):
        look(peers, slot("EngineDown"), log=[own, new, old])
    (event,) = events.after(0).events
    assert (event.kind, event.host_id, event.facts["by"]) == ("fence-proven", 3, "host2")


def test_foreign_text_is_one_printable_line(watch: tuple[PeerEvents, Events]) -> None:
    peers, events = watch
    evil = "host2\n\x1b[2J<script>"
    look(peers, slot("EngineDown"))
    look(peers, slot("EngineUp", hostname=evil, extra={"state": "EngineUp", "reason": evil}))
    (event,) = events.after(0).events
    assert event.host.isprintable()
    assert str(event.facts["reason"]).isprintable()


# --- the broker ---------------------------------------------------------------------------------


def test_the_broker_serves_them_and_a_restarted_one_goes_on_with_higher_ids(
    tmp_path: Path,
) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        async def ask(query: str) -> EventList:
            async with session.get(f"http://ha/v1/events{query}") as answer:
                assert answer.status == 200
                return EventList(**(await answer.json()))

        first = await ask("")
        assert [event["kind"] for event in first.events] == [Extra.BROKER_STARTED]  # type: ignore[index]
        waiting = asyncio.create_task(ask(f"?after={first.last}&wait=20"))
        await asyncio.sleep(0)
        broker.take_report(report("EngineDown"), 1.0)
        broker.take_report(report("EngineUp"), 2.0)
        (event,) = (await waiting).events
        assert event["facts"]["code"] == "engine-healthy"  # type: ignore[index]
        async with session.get("http://ha/v1/events?after=x") as answer:
            assert answer.status == 400

    served(tmp_path, test)


def test_what_another_host_tells_the_people_is_an_event_here_too(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        brokers = [make_broker(tmp_path, volume, host_id) for host_id in (1, 2, 3)]
        for now_s in (1.0, 2.0):
            for broker in brokers:
                await broker.beat(now_s)
        for beat in range(3, 16):
            for broker in brokers[:2]:
                await broker.beat(float(beat))
        for broker in brokers[:2]:
            kinds = [(event.kind, event.host_id) for event in broker.events.after(0).events]
            assert ("peer-silent", 3) in kinds

    asyncio.run(run())


# --- the command --------------------------------------------------------------------------------


def command(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """`ha-agent events` of the broker of `served`."""
    program = Path(sys.executable).parent / "ha-agent"
    line = [str(program), "--config", str(tmp_path / "1.toml"), "events", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_command_prints_what_happened_and_goes_on(tmp_path: Path) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        broker.take_report(report("EngineDown"), 1.0)
        broker.take_report(report("EngineUp"), 2.0)
        shown, said = await asyncio.to_thread(command(tmp_path).communicate)
        assert said == ""
        started, moved = shown.splitlines()
        assert "broker-started" in started
        assert moved.endswith(
            "host1  state-transition: EngineDown -> EngineUp because the VM is up and healthy here"
        )
        as_json, _ = await asyncio.to_thread(command(tmp_path, "--json").communicate)
        assert msgspec.json.decode(as_json, type=EventList).last == broker.events.after(0).last

        following = command(tmp_path, "--follow", "--json", "--since", "now")
        assert following.stdout is not None
        await until_asked(broker)
        broker.refuse_config("x.toml: no")
        line = await asyncio.to_thread(following.stdout.readline)
        assert json.loads(line)["kind"] == "config-refused"
        following.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(following.wait) == 0
        following.communicate()

    served(tmp_path, test)


async def until_asked(broker: Broker) -> None:
    """Somebody waits for news."""
    while not broker.events._news._waiters:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "since", ["tomorrow", "-5", "1y", "999999999999d", "2027-13-01", "9999-01-01"]
)
def test_a_beginning_that_is_no_time_is_refused_in_a_line(tmp_path: Path, since: str) -> None:
    make_broker_config(tmp_path)
    done = commands.run("ha-agent", "--config", tmp_path / "1.toml", "events", f"--since={since}")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert "--since" in done.stderr and "Traceback" not in done.stderr


def make_broker_config(tmp_path: Path) -> None:
    async def make() -> None:
        make_broker(tmp_path, MemoryVolume())

    asyncio.run(make())


def test_a_line_for_the_terminal() -> None:
    made = Event(1, "2027-01-15T08:00:00.250Z", "peer-silent", "critical", "host2", 2, "a", {})
    assert as_line(made) == "2027-01-15 08:00:00 UTC  CRITICAL  host2  peer-silent: a"

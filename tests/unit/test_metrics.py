# SPDX-License-Identifier: LGPL-2.1-or-later
"""`/metrics` over a real socket and by prometheus-client's own parsers; page and code together."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from broker.api import families, metrics
from broker.api.families import FAMILIES
from broker.api.metrics import OPENMETRICS, PENALTY_NAMES, PLAIN, Metrics
from broker.broker import Broker
from broker.daemon.version import VERSION
from broker.events.counts import PHASES, EventCounts
from broker.events.notice import Notice
from broker.wire.kinds import Kind
from scoring.observation import FenceStep
from scoring.vm.state import StateName
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.broker import make_broker, report, up
from tests.fakes.listener import Listener
from tests.fakes.slot_store import MemoryVolume
from tests.unit.documents import rows, sections

ROOT = Path(__file__).parents[2]
KINDS = {"gauge", "counter", "histogram"}


def with_hosts(tmp_path: Path, hosts: int, test: Callable[[Broker], Awaitable[None]]) -> None:
    """Host 1, which runs the engine, with peers that have lived for some beats."""

    async def main() -> None:
        volume = MemoryVolume()
        brokers = [make_broker(tmp_path, volume, host) for host in range(1, hosts + 1)]
        for now_s in (1.0, 2.0, 3.0):
            for broker in brokers:
                if broker is brokers[0]:
                    up(broker, now_s)
                broker.take_report(report("EngineUp" if broker is brokers[0] else "EngineDown"), 3)
                await broker.beat(now_s)
        await test(brokers[0])

    asyncio.run(main())


def samples(broker: Broker, now_s: float = 3.0) -> dict[tuple[str, tuple[str, ...]], float]:
    text, _ = Metrics(broker, lambda: now_s).text("")
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in parse_plain(text.decode())
        for sample in family.samples
    }


def test_what_is_known_is_told(tmp_path: Path) -> None:
    async def test(broker: Broker) -> None:
        found = samples(broker)
        assert found["ha_agent_engine_up", ()] == 1
        assert found["ha_agent_engine_host_id", ()] == 1
        assert found["ha_agent_engine_here", ()] == 1
        assert found["ha_agent_engine_lease_held", ()] == 1
        assert found["ha_agent_host_score", ("host2", "2")] == 3400
        assert found["ha_agent_penalty_points", ("load",)] == 7
        assert found["ha_agent_state", ("EngineUp",)] == 1
        states = [value for (name, _), value in found.items() if name == "ha_agent_state"]
        assert len(states) == len(StateName) and sum(states) == 1
        assert found["ha_agent_peer_liveness", ("host3", "3", "live")] == 1
        assert found["ha_agent_peer_witness_age_seconds", ("host3", "3", "whiteboard")] == 0
        assert found["ha_agent_storage_write_seconds_count", ()] == 3
        assert found["ha_agent_build_info", next(k for n, k in found if n.endswith("info"))] == 1

    with_hosts(tmp_path, 3, test)


def test_what_is_not_known_has_no_sample(tmp_path: Path) -> None:
    async def test(broker: Broker) -> None:
        broker.monitors.latest.clear()
        names = {name for name, _ in samples(broker)}
        assert "ha_agent_engine_here" not in names
        assert "ha_agent_lease_budget_seconds" not in names
        witnesses = [k for n, k in samples(broker) if n == "ha_agent_peer_witness_age_seconds"]
        assert {labels[-1] for labels in witnesses} == {"whiteboard"}

    with_hosts(tmp_path, 2, test)


def test_a_silent_host_is_told_as_silent(tmp_path: Path) -> None:
    async def test(broker: Broker) -> None:
        blind = samples(broker, 9.0)
        assert blind["ha_agent_peer_liveness", ("host2", "2", "uncertain")] == 1
        await broker.read(3.5)
        await broker.read(9.0)
        found = samples(broker, 9.5)
        assert found["ha_agent_peer_liveness", ("host2", "2", "silent")] == 1
        assert found["ha_agent_peer_witness_age_seconds", ("host2", "2", "whiteboard")] == 6.0

    with_hosts(tmp_path, 2, test)


def test_a_scrape_reads_no_storage(tmp_path: Path) -> None:
    async def test(broker: Broker) -> None:
        class Forbidden:
            def __getattr__(self, name: str) -> object:
                raise AssertionError(f"a scrape touches the storage: {name}")

        broker.board._store = Forbidden()  # type: ignore[assignment]
        assert samples(broker)["ha_agent_engine_up", ()] == 1

    with_hosts(tmp_path, 2, test)


def test_more_peers_than_there_is_room_for_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "PEERS_MAX", 2)

    async def test(broker: Broker) -> None:
        found = samples(broker)
        assert found["ha_agent_peers_left_out", ()] == 2
        assert len([k for n, k in found if n == "ha_agent_host_score"]) == 3

    with_hosts(tmp_path, 5, test)


@pytest.mark.parametrize(
    "name", ['x"} 1\nha_agent_engine_up 0', "a\\", "\ud800", "é" * 70, "\u202ehost", "a\r\nb"]
)
def test_no_host_name_breaks_the_text(tmp_path: Path, name: str) -> None:
    async def test(broker: Broker) -> None:
        old = broker.board.reports[2]
        broker.board.reports[2] = dataclasses.replace(old, hostname=name)
        found = samples(broker)
        assert found["ha_agent_engine_up", ()] == 1
        text, _ = Metrics(broker, lambda: 3.0).text(OPENMETRICS)
        assert list(parse_open(text.decode()))  # type: ignore[no-untyped-call]

    with_hosts(tmp_path, 2, test)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", PLAIN),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", OPENMETRICS),
        ("application/openmetrics-text; version=x; q=..", OPENMETRICS),
        ("é;;;,,=", PLAIN),
    ],
)
def test_both_formats_are_served_and_parsed(tmp_path: Path, accept: str, kind: str) -> None:
    async def test(broker: Broker) -> None:
        door = Listener(broker)
        try:
            await door.start([("127.0.0.1", 0)])
            url = f"http://127.0.0.1:{door.ports[0]}/metrics"
            async with aiohttp.ClientSession() as session:
                async with session.get(url, headers={"Accept": accept}) as answer:
                    assert answer.status == 200
                    assert answer.headers["Content-Type"] == kind
                    text = await answer.text()
                async with session.post(url) as answer:
                    assert answer.status == 405
        finally:
            await door.close()
        parse = parse_open if kind == OPENMETRICS else parse_plain
        families = {family.name: family for family in parse(text)}
        assert families["ha_agent_api_connections"].samples[0].value == 1
        assert families["ha_agent_transitions"].type == "counter"

    with_hosts(tmp_path, 2, test)


def test_names_follow_the_rules(tmp_path: Path) -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"ha_agent_[a-z]+(_[a-z0-9]+)*", family.name), family.name
        assert not re.search(r"_(ms|milliseconds|minutes|percent|total|count|sum)$", family.name)
        assert family.help.endswith("."), family.name
        # Prometheus shows each help alone.
        assert not re.match(r"(It|Its|And|That|Which|How|What|When|Since|Until)\b", family.help)
        assert not {"le", "quantile", "job", "instance"} & set(family.labels)
    text = Path(families.__file__).read_text() + Path(metrics.__file__).read_text()
    for family in FAMILIES:
        short = family.name.removeprefix("ha_agent_")
        filled = [f'"{short}"', 'monitor_{name}"'] if "monitor_" in short else [f'"{short}"']
        assert sum(text.count(word) for word in filled) >= 2, f"{short} is never filled"


# --- counting -------------------------------------------------------------------------------


def test_a_takeover_is_counted_by_its_phases() -> None:
    counts = EventCounts()

    def change(old: str, new: str, now_s: float) -> None:
        counts.take(Notice(Kind.STATE_TRANSITION, "h", "", {"from": old, "to": new}), now_s)

    change("EngineDown", "EngineStart", 10.0)
    counts.take(Notice(Kind.FAILOVER_STARTED, "h", "", {"away_s": 4.0}), 10.0)
    change("EngineStart", "EngineStarting", 10.6)
    change("EngineStarting", "EngineUp", 17.6)
    counts.take(Notice(Kind.FAILOVER_DONE, "h", "", {"duration_s": 11.6}), 17.6)
    change("EngineUp", "a newer one's state", 18.0)
    assert counts.failovers == 1
    sums = {phase: round(counts.phases[phase].sum_s, 3) for phase in PHASES}
    assert sums == {"away": 4.0, "start": 0.6, "boot": 7.0, "total": 11.6}
    assert counts.transitions["EngineUp", "other"] == 1


def test_a_first_start_is_no_failover() -> None:
    counts = EventCounts()
    facts = {"from": "EngineStart", "to": "EngineStarting"}
    counts.take(Notice(Kind.STATE_TRANSITION, "h", "", facts), 1.0)
    assert counts.phases["start"].count == 0
    assert counts.transitions["EngineStart", "EngineStarting"] == 1


def test_fences_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    async def test(broker: Broker) -> None:
        broker.feed.detector.fenced(FenceStep.INTENT, 2, "host2", True, "")
        broker.feed.detector.fenced(FenceStep.DEAD, 2, "host2", True, "")
        found = samples(broker)
        assert found["ha_agent_fences_total", ("attempted",)] == 1
        assert found["ha_agent_fences_total", ("proven",)] == 1
        assert found["ha_agent_fences_total", ("failed",)] == 0

    with_hosts(tmp_path, 2, test)


# --- what belongs together ---------------------------------------------------------------------


def test_page_and_code_list_the_same_metrics() -> None:
    table = rows(sections(ROOT / "docs" / "metrics.md")["All metrics"])
    described = [(row[0].strip("`"), row[1], re.findall("`([^`]+)`", row[2])) for row in table]
    made = []
    for family in FAMILIES:
        kind = family.kind.__name__.removesuffix("MetricFamily").lower()
        assert kind in KINDS
        made.append((family.shown_name, kind, list(family.labels)))
    assert described == made


def test_the_penalties_are_those_of_the_status_page() -> None:
    table = sections(ROOT / "docs" / "status.md")["penalties"].partition("| when |")[2]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == list(PENALTY_NAMES)


def test_the_version_is_the_project_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def test_an_engine_that_is_not_healthy_is_told_so(tmp_path: Path) -> None:
    async def test(broker: Broker) -> None:
        up(broker, 3.0)
        sample = broker.monitors.latest["engine"]
        bad = EngineStatus(VmStatus.UP, Health.BAD, "up", "no page")
        broker.monitors.latest["engine"] = dataclasses.replace(sample, value=bad)
        found = samples(broker)
        assert (found["ha_agent_engine_up", ()], found["ha_agent_engine_healthy", ()]) == (1, 0)

    with_hosts(tmp_path, 2, test)

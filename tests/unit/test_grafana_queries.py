# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each query of the Grafana dashboard, asked of a real Prometheus that scrapes two brokers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from broker.broker import Broker
from tests.fakes.broker import make_broker, report, up
from tests.fakes.listener import Listener
from tests.fakes.slot_store import MemoryVolume
from tests.unit.documents import queries

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed; scripts/setup does it"
)

JOB = "ha"
#: Panels without data here, and what these brokers have not.
WITHOUT_DATA = {
    "A takeover now would take": "a boot was never measured",
    "Changes of state": "none changed",
    "Free memory": "no monitors",
    "Lease budget left": "no sanlock",
    "Monitors": "no monitors",
    "Notices": "none was sent",
    "Ways to the fence devices": "no fence devices",
}
CONFIG = """global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
- job_name: {job}
  static_configs: [{{targets: [{targets}]}}]
"""


async def beating(broker: Broker) -> None:
    """A broker that beats, with an agent whose VM is up on host 1."""
    loop = asyncio.get_running_loop()
    while True:
        now_s = loop.time()
        if broker.config.host.id == 1:
            up(broker, now_s)
            broker.take_report(report(), now_s)
        await broker.beat(now_s)
        await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def prometheus(folder: Path, targets: list[str]) -> AsyncIterator[str]:
    """The address of one that scrapes these."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        at = f"127.0.0.1:{probe.getsockname()[1]}"
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(job=JOB, targets=", ".join(map(json.dumps, targets))))
    words = (f"--config.file={config}", f"--storage.tsdb.path={folder}/data")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", *words, f"--web.listen-address={at}"], stdout=log, stderr=log
        )
    try:
        yield f"http://{at}"
    finally:
        process.terminate()
        process.wait(20.0)


async def answer(session: aiohttp.ClientSession, at: str, query: str) -> list[Any]:
    """The result of a query; AssertionError with Prometheus' own words where it takes it not."""
    async with session.post(f"{at}/api/v1/query", data={"query": query}) as got:
        found = await got.json()
    assert found["status"] == "success", (query, found)
    return list(found["data"]["result"])


async def all_answers(folder: Path) -> dict[tuple[str, str], list[Any]]:
    volume = MemoryVolume()
    brokers = [make_broker(folder, volume, host_id) for host_id in (1, 2)]
    doors = [Listener(broker) for broker in brokers]
    for door in doors:
        await door.start([("127.0.0.1", 0)])
    targets = [f"127.0.0.1:{door.ports[0]}" for door in doors]
    tasks = [asyncio.create_task(beating(broker)) for broker in brokers]
    try:
        async with prometheus(folder, targets) as at, aiohttp.ClientSession() as session:
            enough = f'min(count_over_time(ha_agent_build_info{{job="{JOB}"}}[1m])) >= 4'
            for _ in range(300):
                with contextlib.suppress(aiohttp.ClientError, KeyError):
                    if await answer(session, at, enough):
                        break
                await asyncio.sleep(0.2)
            # A scrape that this machine had no time for leaves a gap: the next one fills it.
            for _ in range(60):
                found = {
                    (panel, query): await answer(session, at, asked(query))
                    for panel, query in queries()
                }
                if without_data(found) <= set(WITHOUT_DATA):
                    break
                await asyncio.sleep(0.5)
            return found
    finally:
        for task in tasks:
            task.cancel()
        for door in doors:
            await door.close()


def without_data(answers: dict[tuple[str, str], list[Any]]) -> set[str]:
    return {panel for (panel, _), found in answers.items() if not found}


def asked(query: str) -> str:
    """The query as Grafana fills it in."""
    return query.replace("$job", JOB).replace("$__rate_interval", "1m")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], list[Any]]]:
    yield asyncio.run(all_answers(tmp_path_factory.mktemp("prometheus")))


@pytest.mark.slow
def test_prometheus_takes_every_query(answers: dict[tuple[str, str], list[Any]]) -> None:
    assert set(answers) == set(queries())
    assert without_data(answers) <= set(WITHOUT_DATA)


def test_the_answers_are_the_brokers_own(answers: dict[tuple[str, str], list[Any]]) -> None:
    found = {query: result for (_, query), result in answers.items()}
    up = next(result for query, result in found.items() if "max(ha_agent_engine_up" in query)
    assert [each["value"][1] for each in up] == ["1"]
    memory = found['process_resident_memory_bytes{job="$job"}']
    assert len({each["metric"]["instance"] for each in memory}) == 2
    (state,) = next(result for query, result in found.items() if "ha_agent_state" in query)
    assert state["metric"]["state"] == "EngineUp"

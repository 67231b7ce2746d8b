# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a scrape of `/metrics` costs the broker: `python -m tests.bench scrape`."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.api import metrics
from broker.api.metrics import OPENMETRICS, PLAIN, Metrics
from tests.fakes.broker import make_broker, report, up
from tests.fakes.slot_store import MemoryVolume

RUNS = 9
SCRAPES = 30


def cpu_ms(hosts: int, accept: str = PLAIN) -> list[float]:
    """Milliseconds of CPU for one scrape that finds nothing made before, one value a run."""
    return asyncio.run(_cpu_ms(hosts, accept))


async def _cpu_ms(hosts: int, accept: str) -> list[float]:
    with TemporaryDirectory() as folder:
        volume = MemoryVolume()
        brokers = [make_broker(Path(folder), volume, host) for host in range(1, hosts + 1)]
        for now_s in (1.0, 2.0, 3.0):
            for broker in brokers:
                up(broker, now_s)
                broker.take_report(report(), now_s)
                await broker.beat(now_s)
        clock = 3.0

        def tick() -> float:
            nonlocal clock
            clock += metrics.FRESH_S
            return clock

        page = Metrics(brokers[0], tick)
        values = []
        for _ in range(RUNS):
            began_s = time.process_time()
            for _ in range(SCRAPES):
                page.text(accept)
            values.append((time.process_time() - began_s) / SCRAPES * 1e3)
        return values


def rows() -> list[tuple[str, str, list[float], float | None]]:
    """Name, unit, values, target of each figure."""
    return [
        ("a scrape at 3 hosts, CPU", "ms", cpu_ms(3), 5.0),
        ("a scrape at 3 hosts, OpenMetrics, CPU", "ms", cpu_ms(3, OPENMETRICS), 5.0),
        ("a scrape at 100 hosts, CPU", "ms", cpu_ms(100), None),
    ]

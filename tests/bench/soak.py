# SPDX-License-Identifier: LGPL-2.1-or-later
"""Does anything grow? Three hosts run for long, are scraped and asked for their status; memory,
files, threads and tasks are sampled, and a straight line is laid through each.

The first third is not judged: the load monitor's window alone takes a quarter of an hour to
fill, and what Python keeps for reuse is there after minutes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from tests.lab import ask
from tests.lab.cluster import Cluster

from .daemons import Pair, lab, scrape
from .figure import Figure

SAMPLE_S = 10.0
WARM_UP = 1 / 3
#: What a line may rise by from its begin to its end: memory comes in pages and arenas.
GROWTH_MAX = {"RSS broker": 1.0, "RSS agent": 1.0, "files": 1.0, "threads": 1.0, "tasks": 1.0}
UNITS = {"RSS broker": "MB", "RSS agent": "MB"}


def measure(minutes: float) -> Iterator[Figure]:
    """What each line rises by over the judged part of so many minutes, for each host."""
    with lab() as cluster:
        pairs = [Pair.of(cluster, host) for host in cluster.hosts]
        lines = _sampled(cluster, pairs, minutes)
        for name, target in GROWTH_MAX.items():
            grown = [_growth(lines[pair.host][name]) for pair in pairs]
            unit = UNITS.get(name, "")
            last = max(lines[pair.host][name][-1][1] for pair in pairs)
            yield Figure(f"growth in {minutes:g} min: {name} ({last:.1f} at the end)", unit, grown)
            yield Figure(f"  the same, of the worst host: {name}", unit, [max(grown)], target)


def _sampled(
    cluster: Cluster, pairs: list[Pair], minutes: float
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Host -> line -> (seconds, value)."""
    lines = {
        pair.host: {name: list[tuple[float, float]]() for name in GROWTH_MAX} for pair in pairs
    }
    began_s = time.monotonic()
    number = 0
    while (now_s := time.monotonic() - began_s) < minutes * 60.0:
        for pair in pairs:
            tasks = scrape(cluster, pair.host)["ha_agent_tasks"]
            ask.status(cluster, pair.host)
            values: dict[str, float] = {
                "RSS broker": pair.broker.memory_info().rss / 1e6,
                "RSS agent": pair.agent.memory_info().rss / 1e6,
                "files": pair.files(),
                "threads": pair.threads(),
                "tasks": tasks,
            }
            for name, value in values.items():
                lines[pair.host][name].append((now_s, value))
        number += 1
        time.sleep(max(0.0, began_s + number * SAMPLE_S - time.monotonic()))
    return lines


def _growth(line: list[tuple[float, float]]) -> float:
    """What the line of least squares rises by over its judged part."""
    judged = line[int(len(line) * WARM_UP) :]
    seconds, values = zip(*judged, strict=True)
    slope = statistics.linear_regression(seconds, values).slope
    return float(slope * (seconds[-1] - seconds[0]))

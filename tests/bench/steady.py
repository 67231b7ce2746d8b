# SPDX-License-Identifier: LGPL-2.1-or-later
"""What broker and agent cost while nothing happens: CPU, memory, threads, forks, reads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.lab.cluster import Cluster

from .daemons import Pair, begun, cpu_percent, lab, scrape
from .figure import Figure

SETTLE_S = 30.0
CPU_S = 60.0


def measure(minutes: float) -> Iterator[Figure]:
    """Three hosts; forks are counted for so many minutes, CPU before that, untraced."""
    with lab() as cluster:
        time.sleep(SETTLE_S)
        pairs = [Pair.of(cluster, host) for host in cluster.hosts]
        yield from costs(cluster, pairs, CPU_S, cpu_percent_max=1.5, rss_mb_max=120, threads_max=12)
        with ThreadPoolExecutor(len(pairs)) as pool:
            counted = list(pool.map(begun, pairs, [minutes * 60.0] * len(pairs)))
        processes, threads = zip(*counted, strict=True)
        per_minute = [number / minutes for number in processes]
        yield Figure("forks per minute, broker and agent", "", per_minute, 0, worst=True)
        per_minute = [number / minutes for number in threads]
        yield Figure("threads begun per minute", "", per_minute)


def costs(
    cluster: Cluster,
    pairs: list[Pair],
    for_s: float,
    cpu_percent_max: float,
    rss_mb_max: float,
    threads_max: float | None = None,
) -> Iterator[Figure]:
    """What each pair of daemons uses, and what its broker reads."""
    before = [scrape(cluster, pair.host) for pair in pairs]
    cpu = cpu_percent(pairs, for_s)
    after = [scrape(cluster, pair.host) for pair in pairs]
    yield Figure("CPU of broker and agent", "% of 1", cpu, cpu_percent_max, worst=True)
    memory = [pair.rss_mb() for pair in pairs]
    yield Figure("RSS of broker and agent", "MB", memory, rss_mb_max, worst=True)
    each = [process.memory_info().rss / 1e6 for pair in pairs for process in pair.both]
    yield Figure("RSS of the larger of both", "MB", [max(each)])
    threads = [float(pair.threads()) for pair in pairs]
    yield Figure("threads of broker and agent", "", threads, threads_max, worst=True)
    reads = "ha_agent_storage_read_seconds_count"
    beats = "ha_agent_beat_lateness_seconds_count"
    per_beat = [
        (new[reads] - old[reads]) / (new[beats] - old[beats])
        for old, new in zip(before, after, strict=True)
    ]
    # A read more at the edge of the time is not one more a beat.
    yield Figure("sweeps of the slots in use per beat", "", per_beat, 2 + 2 / for_s, worst=True)

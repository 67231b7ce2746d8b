# SPDX-License-Identifier: LGPL-2.1-or-later
"""Figures of the whole chain, on real parts in a lab of three hosts."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.lab.cluster import Cluster
from tests.lab.timeline import cut_and_watch
from tests.lab.watch import EngineWatcher

from .daemons import Pair, cpu_percent
from .daemons import lab as a_lab
from .figure import Figure

STEADY_S = 30.0
STATUS_RUNS = 15
HEALTHY_S = 90.0


def measure(takeovers: int) -> Iterator[Figure]:
    """Bring a lab up, measure, take it down; LabError where that does not work."""
    started = time.monotonic()
    with a_lab() as cluster:
        yield Figure("lab up, engine healthy", "s", [time.monotonic() - started], 90)
        yield _status(cluster)
        yield from _daemons(cluster)
        yield from _takeovers(cluster, takeovers)


def _status(cluster: Cluster) -> Figure:
    values = []
    host = cluster.hosts[0]
    cluster.sh(host, ["ha-agent", "--status"])
    for _ in range(STATUS_RUNS):
        # Timed inside: entering the host's namespaces is not the command's cost.
        script = "s=$(date +%s%N); ha-agent --status >/dev/null; echo $(($(date +%s%N) - s))"
        shown = cluster.sh(host, ["bash", "-c", script])
        values.append(int(shown.stdout) / 1e6)
    return Figure("ha-agent --status, 3 hosts", "ms", values, 300)


def _daemons(cluster: Cluster) -> Iterator[Figure]:
    """CPU time and memory of broker and agent together, per host, in the steady state."""
    pairs = [Pair.of(cluster, host) for host in cluster.hosts]
    spent = [10.0 * percent for percent in cpu_percent(pairs, STEADY_S)]
    yield Figure("CPU of broker and agent per beat of 1 s", "ms", spent, 20)
    yield Figure("memory of broker and agent (RSS)", "MB", [pair.rss_mb() for pair in pairs])
    yield Figure("threads of broker and agent", "", [float(pair.threads()) for pair in pairs])


def _takeovers(cluster: Cluster, count: int) -> Iterator[Figure]:
    names = ("suspected", "proven off", "host id freed", "VM started", "page answers")
    values: dict[str, list[float]] = {name: [] for name in names}
    most = 0
    for _ in range(count):
        with EngineWatcher(cluster) as watcher:
            takeover = cut_and_watch(cluster, watcher, HEALTHY_S)
        most = max(most, watcher.most_running_at_once())
        for name in names:
            at_s = takeover.at_s(name)
            if at_s is not None:
                values[name].append(at_s)
        cluster.power_on(takeover.victim)
        cluster.wait_booted(takeover.victim)
        # The next cut comes at another phase of the beats, with all hosts in their places.
        time.sleep(12.0 + 0.37 * len(values["page answers"]))
    targets = {"VM started": 8.0, "page answers": 15.0}
    for name in names:
        if values[name]:
            yield Figure(f"power cut -> {name}", "s", values[name], targets.get(name))
    yield Figure("most engines running at any moment", "", [float(most)], 1)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Figures of the whole chain, on real parts in a lab of three hosts."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.lab.cluster import Cluster
from tests.lab.timeline import cut_and_watch
from tests.lab.watch import EngineWatcher

Row = tuple[str, str, list[float], float | None]

STEADY_S = 30.0
STATUS_RUNS = 15
HEALTHY_S = 90.0


def measure(takeovers: int) -> Iterator[Row]:
    """Bring a lab up, measure, take it down; LabError where that does not work."""
    parent = Path("/var/tmp/ha-lab")
    parent.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="b-", dir=parent)))
    try:
        started = time.monotonic()
        cluster.up(3)
        yield "lab up, engine healthy", "s", [time.monotonic() - started], 90
        yield _status(cluster)
        yield from _daemons(cluster)
        yield from _takeovers(cluster, takeovers)
    finally:
        cluster.down()
        shutil.rmtree(cluster.directory, ignore_errors=True)


def _status(cluster: Cluster) -> Row:
    values = []
    host = cluster.hosts[0]
    cluster.sh(host, ["ha-agent", "--status"])
    for _ in range(STATUS_RUNS):
        # Timed inside: entering the host's namespaces is not the command's cost.
        script = "s=$(date +%s%N); ha-agent --status >/dev/null; echo $(($(date +%s%N) - s))"
        shown = cluster.sh(host, ["bash", "-c", script])
        values.append(int(shown.stdout) / 1e6)
    return "ha-agent --status, 3 hosts", "ms", values, 300


def _daemons(cluster: Cluster) -> Iterator[Row]:
    """CPU time and memory of broker and agent together, per host, in the steady state."""
    census = cluster.census()
    pairs = []
    for host in cluster.hosts:
        pids = [census.daemon(host, daemon) for daemon in ("broker", "agent")]
        pairs.append([psutil.Process(pid) for pid in pids if pid is not None])
    before = [_cpu_s(pair) for pair in pairs]
    started = time.monotonic()
    time.sleep(STEADY_S)
    wall_s = time.monotonic() - started
    spent = [after - was for after, was in zip(map(_cpu_s, pairs), before, strict=True)]
    yield "CPU of broker and agent per beat of 1 s", "ms", [s / wall_s * 1000 for s in spent], 20
    memory = [sum(p.memory_info().rss for p in pair) / 2**20 for pair in pairs]
    yield "memory of broker and agent (RSS)", "MiB", memory, None
    threads = [float(sum(p.num_threads() for p in pair)) for pair in pairs]
    yield "threads of broker and agent", "", threads, None


def _cpu_s(processes: list[psutil.Process]) -> float:
    return float(sum(t.user + t.system for t in (p.cpu_times() for p in processes)))


def _takeovers(cluster: Cluster, count: int) -> Iterator[Row]:
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
            yield f"power cut -> {name}", "s", values[name], targets.get(name)
    yield "most engines running at any moment", "", [float(most)], 1

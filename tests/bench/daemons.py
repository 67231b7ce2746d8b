# SPDX-License-Identifier: LGPL-2.1-or-later
"""Broker and agent of a lab's hosts, seen from outside: CPU, memory, threads, files, forks."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.lab.cluster import Cluster
from tests.lab.errors import LabError
from tests.lab.layout import API_PORT, OUR_DAEMONS

MEGABYTE = 1e6
SCRAPE_S = 5.0


@contextlib.contextmanager
def lab(hosts: int = 3, vms: int = 1) -> Iterator[Cluster]:
    """A lab of the bench's own, with a healthy engine."""
    parent = Path("/var/tmp/ha-lab")
    parent.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="b-", dir=parent)))
    try:
        cluster.up(hosts, vms=vms)
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(cluster.directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Pair:
    """The two daemons of a host."""

    host: str
    broker: psutil.Process
    agent: psutil.Process

    @staticmethod
    def of(cluster: Cluster, host: str) -> Pair:
        """Both daemons as they run now; LabError where one does not."""
        census = cluster.census()
        found = [census.daemon(host, name) for name in OUR_DAEMONS]
        pids = [pid for pid in found if pid is not None]
        if len(pids) != len(OUR_DAEMONS):
            raise LabError(f"{host}: not both daemons run; see: status")
        return Pair(host, *map(psutil.Process, pids))

    @property
    def both(self) -> Sequence[psutil.Process]:
        """Broker and agent."""
        return self.broker, self.agent

    def cpu_s(self) -> float:
        """CPU time both have used so far."""
        return float(sum(t.user + t.system for t in (p.cpu_times() for p in self.both)))

    def rss_mb(self) -> float:
        """Resident memory of both; pages that they share are counted twice."""
        return float(sum(p.memory_info().rss for p in self.both)) / MEGABYTE

    def threads(self) -> int:
        """Threads of both."""
        return sum(p.num_threads() for p in self.both)

    def files(self) -> int:
        """Open file descriptors of both."""
        return sum(p.num_fds() for p in self.both)


def cpu_percent(pairs: Sequence[Pair], for_s: float) -> list[float]:
    """What each pair uses of one core, over so long."""
    before = [pair.cpu_s() for pair in pairs]
    began_s = time.monotonic()
    time.sleep(for_s)
    took_s = time.monotonic() - began_s
    return [(pair.cpu_s() - was) / took_s * 100 for pair, was in zip(pairs, before, strict=True)]


def begun(pair: Pair, for_s: float) -> tuple[int, int]:
    """(processes, threads) that broker and agent begin within so long.

    strace sees each fork, vfork, clone and clone3 as it is made, however short the child lives.
    """
    pids = [part for process in pair.both for part in ("-p", str(process.pid))]
    calls = "trace=fork,vfork,clone,clone3"
    with tempfile.NamedTemporaryFile("r", suffix=".strace") as log:
        tracer = subprocess.Popen(
            ["strace", "-f", "-qq", "-e", calls, "-e", "signal=none", "-o", log.name, *pids],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, why = tracer.communicate(timeout=for_s)
            raise LabError(f"strace: ended early: {why.strip()}")
        except subprocess.TimeoutExpired:
            tracer.send_signal(signal.SIGINT)
            tracer.wait()
        lines = [line for line in log if "clone" in line or "fork" in line]
    lines = [line for line in lines if "resumed" not in line]
    threads = sum("CLONE_THREAD" in line for line in lines)
    return len(lines) - threads, threads


def scrape(cluster: Cluster, host: str) -> dict[str, float]:
    """The broker's /metrics: name and labels, as they are written there, to value."""
    address = cluster.layout.host(int(host.removeprefix("host"))).address
    curl = ["curl", "-sS", "--max-time", f"{SCRAPE_S:g}"]
    shown = cluster.sh(host, [*curl, f"http://{address}:{API_PORT}/metrics"])
    if shown.returncode != 0:
        raise LabError(f"{host}: /metrics: {shown.stderr.strip()}")
    return {
        sample.name
        + "".join(f",{key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(shown.stdout)
        for sample in family.samples
    }

# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.bench migration [--moves N] [--drains N]`

What a user notices of planned work: 20 requests a second, each on a connection of its own, while
the VM is migrated by `ha-agent migrate`; and how long `ha-agent maintenance local` on the
engine's host takes until that host is empty. Real libvirt, QEMU and sanlock, over TLS and the
lab's network; three hosts in one machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab import ask, configs
from tests.lab.cluster import Cluster
from tests.lab.errors import LabError
from tests.lab.moving import boots, order, others, settled, source_of
from tests.lab.visitors import PER_SECOND, Visitors
from tests.lab.watch import EngineWatcher

GAP_MAX_S = 1.5
DRAIN_MAX_S = 15.0
#: Requests before and after each migration too: its beginning and end are in the picture.
AROUND_S = 1.0
DRAINED_S = 60.0
IN_PLACE_S = 60.0


def main(argv: list[str]) -> int:
    """0 when every figure holds its target, 1 when one does not, 3 where no lab can run."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench migration")
    parser.add_argument("--moves", type=int, default=10, metavar="N")
    parser.add_argument("--drains", type=int, default=5, metavar="N")
    options = parser.parse_args(argv)
    held = []
    try:
        with _lab() as cluster, EngineWatcher(cluster) as watcher:
            before = boots(cluster)
            if options.moves:
                held.append(_moves(cluster, options.moves))
            if options.drains:
                held.append(_drains(cluster, options.drains))
            assert boots(cluster) == before, "the guest was never started again"
        assert watcher.most_running_at_once() <= 1, watcher.history()
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    return int(not all(held))


@contextmanager
def _lab() -> Iterator[Cluster]:
    parent = Path("/var/tmp/ha-lab")
    parent.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="b-", dir=parent)))
    try:
        cluster.up(3)
        for host in cluster.hosts:
            cluster.set_migration(host, configs.MIGRATION_BY_TLS)
        settled(cluster, cluster.wait_healthy(IN_PLACE_S), IN_PLACE_S)
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(cluster.directory, ignore_errors=True)


def _moves(cluster: Cluster, count: int) -> bool:
    gaps, took, asked, failed = [], [], 0, 0
    for number in range(count):
        source = source_of(cluster)
        with Visitors(cluster.switch_pid) as visitors:
            time.sleep(AROUND_S)
            began_s = time.monotonic()
            done = order(cluster, source, "migrate")
            took.append(time.monotonic() - began_s)
            time.sleep(AROUND_S)
        if done.returncode != 0:
            raise LabError(f"ha-agent migrate on {source}: {done.stderr.strip()}")
        gaps.append(visitors.longest_gap_s())
        asked, failed = asked + visitors.asked, failed + len(visitors.failed)
        print(
            f"  {number + 1}/{count}: {source} -> {cluster.engine_host()} in {took[-1]:.2f} s, "
            f"{visitors.asked} requests, {len(visitors.failed)} failed, "
            f"longest gap {gaps[-1]:.2f} s (load {os.getloadavg()[0]:.1f})",
            flush=True,
        )
        settled(cluster, cluster.wait_healthy(IN_PLACE_S), IN_PLACE_S)
    print(f"live migration, {PER_SECOND} requests a second: {failed} of {asked} failed (target 0)")
    print(f"  the order, from the command to its answer: {_spread(took)}")
    return _show("longest gap between two answers", gaps, GAP_MAX_S) and not failed


def _drains(cluster: Cluster, count: int) -> bool:
    took = []
    for number in range(count):
        source = source_of(cluster)
        began_s = time.monotonic()
        done = order(cluster, source, "maintenance", "local", "--for", "1h")
        if done.returncode != 0:
            raise LabError(f"ha-agent maintenance local on {source}: {done.stderr.strip()}")
        ask.until(
            f"{source} is empty",
            DRAINED_S,
            lambda host=source: ask.state(cluster, host) == "LocalMaintenance",  # type: ignore[misc]
        )
        took.append(time.monotonic() - began_s)
        print(f"  {number + 1}/{count}: {source} drained in {took[-1]:.2f} s", flush=True)
        assert cluster.engine_host() in others(cluster, source)
        order(cluster, source, "maintenance", "none")
        settled(cluster, cluster.wait_healthy(IN_PLACE_S), IN_PLACE_S)
    return _show("maintenance local -> drained", took, DRAIN_MAX_S)


def _show(what: str, values: list[float], max_s: float) -> bool:
    """Print the figures of one kind; whether the largest holds."""
    holds = max(values) <= max_s
    print(f"{what}: {_spread(values)}  target max {max_s:g} s  {'held' if holds else 'MISSED'}")
    return holds


def _spread(values: list[float]) -> str:
    each = ", ".join(f"{value:.2f}" for value in sorted(values))
    return f"median {statistics.median(values):.2f} s, max {max(values):.2f} s of {each}"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.bench storages [--storage KIND ...] [--quick]`

One table over the storages that a lab can have: a write and its visibility on another host, joining
the lockspace, taking a lease, a power cut; and, without --quick, one and two of three daemons gone.
A few minutes for each. Prints the load of the machine beside each row: without it no figure means
anything.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from tests.lab import ask
from tests.lab.cluster import Cluster
from tests.lab.errors import LabError, MachineError
from tests.lab.layout import LOCKSPACE
from tests.lab.storages import kinds
from tests.lab.storages.stalls import visibility
from tests.lab.timeline import cut_and_watch
from tests.lab.visitors import Visitors
from tests.lab.watch import EngineWatcher

#: QEMU runs elsewhere so soon after a power cut.
CUT_MAX_S = 8.0
WRITING_S = 15.0
#: sanlock gives up 16 s after the last renewal at io_timeout 2.
AWAY_S = 30.0
BACK_S = 240.0
VISITORS = 4.0
#: The fence lease's place by the sector size.
FENCE_AT = {512: 2 << 20, 4096: 16 << 20}
HEAD = (
    "storage",
    "write ms (p99)",
    "visible ms (p99)",
    "stale",
    "join s",
    "acquire s",
    "power cut to QEMU s",
    "one gone: gap s (failed)",
    "two back: s",
    "load",
)


def main(argv: list[str]) -> int:
    """0 when each storage held its goals, 1 when one did not, 3 where none can be had."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench storages")
    parser.add_argument("--storage", nargs="+", choices=kinds.KINDS, default=kinds.KINDS)
    parser.add_argument("--quick", action="store_true", help="no daemon of the storage is harmed")
    options = parser.parse_args(argv)
    print(_row(HEAD), _row(["-"] * len(HEAD)), sep="\n", flush=True)
    held = []
    for kind in options.storage:
        try:
            cells, good = _measure(kind, options.quick)
        except MachineError as error:
            cells, good = [f"cannot be had here: {error}"], True
        except (LabError, AssertionError) as error:
            cells, good = [f"failed: {error}"], False
        held.append(good)
        print(_row([kind, *cells]), flush=True)
    return int(not all(held))


def _measure(kind: str, quick: bool) -> tuple[list[str], bool]:
    parent = Path("/var/tmp/ha-lab")
    parent.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="b-", dir=parent)))
    try:
        cluster.up(2, storage=kind)
        first, second = cluster.hosts
        seen = visibility(cluster, first, second, WRITING_S)
        cells = [_spread(seen.writes_s), _spread(seen.visible_s), str(seen.stale)]
        cells += [f"{max(_joined_s(cluster, host) for host in cluster.hosts):.1f}"]
        cells += [f"{_acquire_s(cluster):.2f}"]
        _in_place(cluster)
        with EngineWatcher(cluster) as watcher:
            cut_s = cut_and_watch(cluster, watcher, BACK_S)
        started_s = cut_s.at_s("VM started")
        cells += ["not seen" if started_s is None else f"{started_s:.1f}"]
        good = not seen.stale and started_s is not None and started_s <= CUT_MAX_S
        faults = ["not asked for"] * 2 if quick else ["no three daemons"] * 2
        if kind in kinds.THREE and not quick:
            cluster.power_on(cut_s.victim)
            cluster.wait_booted(cut_s.victim)
            _in_place(cluster)
            faults = [_one_gone(cluster, kind), _two_gone(cluster, kind)]
        return [*cells, *faults, f"{os.getloadavg()[0]:.0f}"], good
    finally:
        cluster.down()
        shutil.rmtree(cluster.directory, ignore_errors=True)


def _in_place(cluster: Cluster) -> None:
    for host in cluster.hosts:
        ask.until(f"{host} is in its place", BACK_S, partial(ask.in_place, cluster, host))


def _joined_s(cluster: Cluster, host: str) -> float:
    """How long the host's broker took to join the lockspace, by its log."""
    times = {}
    for line in cluster.log_path(host, "broker").read_text().splitlines():
        for word in ("joining lockspace", "joined lockspace"):
            if word in line and word not in times:
                times[word] = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    return times["joined lockspace"] - times["joining lockspace"]


def _acquire_s(cluster: Cluster) -> float:
    """How long taking a free lease takes, with the start of a process under it."""
    offset = FENCE_AT[kinds.BLOCK.get(cluster.settings.storage, 512)]
    lease = f"{LOCKSPACE}:fence:{cluster.layout.leases}:{offset}"
    taken = []
    for _ in range(3):
        began_s = time.monotonic()
        argv = ["sanlock", "client", "command", "-r", lease, "-c", "/bin/true"]
        done = cluster.sh(cluster.hosts[0], argv)
        taken.append(time.monotonic() - began_s)
        if done.returncode != 0:
            raise LabError(f"acquire: {done.stdout}{done.stderr}")
        time.sleep(1.0)
    return statistics.median(taken)


def _one_gone(cluster: Cluster, kind: str) -> str:
    name = kinds.THREE[kind][0]
    with Visitors(cluster.switch_pid, VISITORS) as visitors:
        time.sleep(2.0)
        cluster.server(name, "kill")
        time.sleep(15.0)
    cluster.server(name, "release")
    time.sleep(10.0)
    return f"{visitors.longest_gap_s():.1f} ({len(visitors.failed)} of {visitors.asked})"


def _two_gone(cluster: Cluster, kind: str) -> str:
    for name in kinds.THREE[kind][:2]:
        cluster.server(name, "freeze")
    time.sleep(AWAY_S)
    for name in kinds.THREE[kind][:2]:
        cluster.server(name, "thaw")
    began_s = time.monotonic()
    cluster.wait_healthy(BACK_S)
    return f"{time.monotonic() - began_s:.0f}"


def _spread(values_s: Sequence[float]) -> str:
    """Median and 99th percentile, ms."""
    values = sorted(1000.0 * value for value in values_s)
    if not values:
        return "none seen"
    return f"{statistics.median(values):.1f} ({values[int(0.99 * (len(values) - 1))]:.1f})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.bench fencing [--cuts N] [--hangs N] [--without-bmc N] [--io-timeout S]`

How long the VM is away when its host dies, hangs, or dies where no BMC can tell: seconds until
a QEMU runs the guest elsewhere, seen by a watcher of all processes at 20 ms. Real sanlock,
libvirt, QEMU and IPMI; three hosts in one machine, two where there is no BMC.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from scoring.lease_times import WATCHDOG_FIRE_S
from tests.lab import ask, boot_journal, configs
from tests.lab.cluster import Cluster
from tests.lab.errors import LabError
from tests.lab.kept import KEPT, keep_logs
from tests.lab.storages import kinds
from tests.lab.timeline import Takeover, cut_and_watch, hang_and_watch
from tests.lab.watch import EngineWatcher

from . import core

HEALTHY_S = 120.0
IN_PLACE_S = 120.0
STEPS = (
    "suspected",
    "fence lease taken",
    "ordered off",
    "proven off",
    "host id freed",
    "engine lease taken",
    "page answers",
)

Watch = Callable[[Cluster, EngineWatcher, float], Takeover]


def main(argv: list[str]) -> int:
    """0 when every figure holds its target, 1 when one does not, 3 where no lab can run."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench fencing")
    parser.add_argument("--cuts", type=int, default=20, metavar="N", help="power cuts, BMC there")
    parser.add_argument("--hangs", type=int, default=5, metavar="N", help="hung hosts, BMC there")
    parser.add_argument(
        "--without-bmc", type=int, default=2, metavar="N", help="power cuts, no BMC anywhere"
    )
    parser.add_argument(
        "--io-timeout", type=int, default=2, metavar="S", help="sanlock's (default %(default)s)"
    )
    options = parser.parse_args(argv)
    io_timeout_s: int = options.io_timeout
    dead_s = 8 * io_timeout_s + WATCHDOG_FIRE_S
    print(f"io_timeout {io_timeout_s} s, {os.cpu_count()} CPUs; {noise()}", flush=True)
    held = []
    try:
        if options.cuts or options.hangs:
            with on_lab(3, io_timeout_s, bmc=True) as cluster:
                cuts = _repeat(cluster, options.cuts, cut_and_watch, HEALTHY_S)
                held.append(_show("power cut, BMC reads off", cuts, p50_s=6.0, max_s=10.0))
                cluster.configure(configs.HASTE)
                hangs = _repeat(cluster, options.hangs, hang_and_watch, HEALTHY_S)
                held.append(_show("hung host, BMC reads on", hangs, max_s=20.0))
        if options.without_bmc:
            with on_lab(2, io_timeout_s, bmc=False) as cluster:
                patience_s = HEALTHY_S + dead_s
                cuts = _repeat(cluster, options.without_bmc, cut_and_watch, patience_s)
                held.append(_show(f"no BMC (dead in {dead_s:g} s)", cuts, max_s=dead_s + 5.0))
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    print(noise())
    return int(not all(held))


@contextmanager
def on_lab(
    hosts: int,
    io_timeout_s: int,
    *,
    bmc: bool,
    vms: int = 1,
    storage: str = kinds.FUSE,
    logs: Path | None = None,
) -> Iterator[Cluster]:
    """A lab that is taken down at the end. `logs`: the folder that gets its hosts' logs then;
    without one they are in KEPT after an error."""
    parent = Path("/var/tmp/ha-lab")
    parent.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="b-", dir=parent)))
    try:
        cluster.up(hosts, io_timeout_s=io_timeout_s, bmc=bmc, vms=vms, storage=storage)
        try:
            yield cluster
        except (LabError, AssertionError):
            if logs is None:
                kept = KEPT / cluster.directory.name
                keep_logs(cluster, kept)
                print(f"bench: the hosts' logs are in {kept}", file=sys.stderr, flush=True)
            raise
    finally:
        if logs is not None:
            keep_logs(cluster, logs)
        cluster.down()
        shutil.rmtree(cluster.directory, ignore_errors=True)


def _repeat(cluster: Cluster, count: int, watch: Watch, within_s: float) -> list[Takeover]:
    found: list[Takeover] = []
    for number in range(count):
        for host in cluster.hosts:
            ask.until(f"{host} is in its place", IN_PLACE_S, partial(ask.in_place, cluster, host))
        # At another phase of the beats and of sanlock's renewals each time.
        time.sleep(random.uniform(0.0, 2.0 * cluster.settings.io_timeout_s))
        load = os.getloadavg()[0]
        with EngineWatcher(cluster) as watcher:
            takeover = watch(cluster, watcher, within_s)
        assert watcher.most_running_at_once() <= 1, watcher.history()
        assert not boot_journal.doubts(boot_journal.read(cluster))
        found.append(takeover)
        runs_s = takeover.at_s("VM started")
        print(f"  {number + 1}/{count}: {runs_s:.2f} s (load {load:.1f})", flush=True)
        cluster.thaw(takeover.victim)
        cluster.power_on(takeover.victim)
        cluster.wait_booted(takeover.victim)
    return found


def _show(what: str, takeovers: list[Takeover], *, max_s: float, p50_s: float = 0.0) -> bool:
    """Print the figures of one kind; whether they hold."""
    times = sorted(s for t in takeovers if (s := t.at_s("VM started")) is not None)
    if not times:
        return not takeovers
    p50, p95 = statistics.median(times), times[math.ceil(0.95 * len(times)) - 1]
    holds = times[-1] <= max_s and (not p50_s or p50 <= p50_s)
    targets = (f"p50 {p50_s:g}, " if p50_s else "") + f"max {max_s:g}"
    print(
        f"{what}: QEMU runs elsewhere after p50 {p50:.2f} s, p95 {p95:.2f} s, "
        f"max {times[-1]:.2f} s of {len(times)}  target {targets}  {'held' if holds else 'MISSED'}"
    )
    parts = []
    for step in STEPS:
        seen = [s for t in takeovers if (s := t.at_s(step)) is not None]
        if seen:
            parts.append(f"{step} {statistics.median(seen):.2f}")
    print("  medians: " + ", ".join(parts), flush=True)
    return holds


def noise() -> str:
    """What the machine's other work does to the figures."""
    values = core.noise_ms()
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return (
        f"noise: a fixed loop takes {statistics.median(values):.2f} ms "
        f"({min(values):.2f}..{max(values):.2f}); load {load}"
    )

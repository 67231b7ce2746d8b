# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.bench storages [--storage KIND ...] [--cuts N] [--quick] [--in-write]
[--logs FOLDER]`

One table over the storages that a lab can have: a write and its visibility on another host, joining
the lockspace, taking a lease, power cuts; and, without --quick, one and two of three daemons gone.
Some minutes for each. Prints the noise of the machine beside each row: without it no figure means
anything. The phases of each power cut are told below the table; --logs keeps each lab's logs.
--in-write: power cuts alone, each in the middle of a write to the whiteboard.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from tests.lab import ask
from tests.lab.cluster import Cluster
from tests.lab.errors import LabError, MachineError
from tests.lab.kept import keep_logs
from tests.lab.layout import LOCKSPACE
from tests.lab.storages import kinds
from tests.lab.storages.in_write import cut_in_write
from tests.lab.storages.stalls import Writer, visibility
from tests.lab.timeline import STEPS, strike_and_watch
from tests.lab.visitors import Visitors
from tests.lab.watch import EngineWatcher

#: QEMU runs elsewhere so soon after a power cut.
CUT_MAX_S = 8.0
#: The longest gap of the page that writes to the VM's disk, one of three daemons killed.
GAP_MAX_S = 3.0
CUTS = 3
WRITING_S = 15.0
#: sanlock gives up 16 s after the last renewal at io_timeout 2.
AWAY_S = 30.0
BACK_S = 240.0
VISITORS = 4.0
DISK_VISITORS = 2.0
ONE_GONE_S = 20.0
#: The fence lease's place by the sector size.
FENCE_AT = {512: 2 << 20, 4096: 16 << 20}
WRITE, VISIBLE, STALE = "write ms (p99)", "visible ms (p99)", "stale reads"
JOIN, ACQUIRE, CUT = "join s", "lease s", "power cut to QEMU s"
GAP, DISK_GAP = "one killed: gap of the page s", "of its disk s"
WROTE, BACK, NOISE = "longest write s", "two back s", "load (waited)"
HEAD = (WRITE, VISIBLE, STALE, JOIN, ACQUIRE, CUT, GAP, DISK_GAP, WROTE, BACK, NOISE)


@dataclass(slots=True)
class Line:
    """What was measured of one storage, by HEAD, and which goals it missed."""

    kind: str
    cells: dict[str, str] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    why: str = ""
    #: The phases of each power cut.
    cuts: list[str] = field(default_factory=list)

    def hold(self, name: str, value: float, most: float) -> None:
        """Hold a figure against its goal."""
        if not value <= most:
            self.missed.append(f"{name} {value:.1f}, goal {most:g}")

    def row(self) -> str:
        """The figures as a line of the table; what was not measured is empty."""
        return _row([self.kind, *(self.cells.get(name, "") for name in HEAD)])


def main(argv: list[str]) -> int:
    """0 when each storage held its goals, 1 when one did not, 3 where none can be had."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench storages")
    parser.add_argument("--storage", nargs="+", choices=kinds.KINDS, default=kinds.KINDS)
    parser.add_argument("--cuts", type=int, default=CUTS, help="power cuts (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="no daemon of the storage is harmed")
    parser.add_argument(
        "--in-write", action="store_true", help="power cuts alone, each within a write"
    )
    parser.add_argument(
        "--logs", type=Path, metavar="FOLDER", help="keep the logs of each lab here"
    )
    options = parser.parse_args(argv)
    print(_row(["storage", *HEAD]), _row(["-"] * (len(HEAD) + 1)), sep="\n", flush=True)
    lines = []
    none_to_be_had = True
    for kind in options.storage:
        line = Line(kind)
        try:
            _measure(line, options.cuts, options.quick, options.in_write, options.logs)
            none_to_be_had = False
        except MachineError as error:
            line.why = f"cannot be had here: {error}"
        except (LabError, AssertionError) as error:
            none_to_be_had = False
            line.missed.append(f"failed: {error}")
        finally:
            # Interrupted, too.
            print(line.row(), flush=True)
        lines.append(line)
    for line in lines:
        for text in (line.why, *line.cuts, *(f"MISSED {missed}" for missed in line.missed)):
            if text:
                print(f"{line.kind}: {text}")
    return 3 if none_to_be_had else int(any(line.missed for line in lines))


def _measure(line: Line, cuts: int, quick: bool, in_write: bool, logs: Path | None) -> None:
    parent = Path("/var/tmp/ha-lab")
    parent.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="b-", dir=parent)))
    try:
        with _noise(line):
            cluster.up(2, storage=line.kind)
            if in_write:
                _power_cuts(line, cluster, cuts, partial(cut_in_write, cluster))
                return
            _speed(line, cluster)
            _power_cuts(line, cluster, cuts, cluster.cut)
            if line.kind in kinds.THREE and not quick:
                _in_place(cluster)
                _one_killed(line, cluster)
                _two_gone(line, cluster)
    finally:
        if logs is not None:
            keep_logs(cluster, logs / line.kind)
        cluster.down()
        shutil.rmtree(cluster.directory, ignore_errors=True)


def _speed(line: Line, cluster: Cluster) -> None:
    first, second = cluster.hosts
    seen = visibility(cluster, first, second, WRITING_S)
    line.cells[WRITE] = _spread(seen.writes_s)
    line.cells[VISIBLE] = _spread(seen.visible_s)
    line.cells[STALE] = f"{seen.stale} of {len(seen.visible_s)}"
    line.hold(STALE, seen.stale, 0)
    line.cells[JOIN] = f"{max(_joined_s(cluster, host) for host in cluster.hosts):.1f}"
    line.cells[ACQUIRE] = f"{_acquire_s(cluster):.2f}"


def _power_cuts(line: Line, cluster: Cluster, cuts: int, strike: Callable[[str], float]) -> None:
    """Each after all hosts are in their places again. `strike`: cuts that host's power."""
    took = []
    for _ in range(cuts):
        _in_place(cluster)
        with EngineWatcher(cluster) as watcher:
            cut = strike_and_watch(cluster, watcher, BACK_S, strike, STEPS)
        took.append(cut.at_s("VM started") or math.inf)
        steps = [f"{step.name} {step.at_s:.1f}" for step in cut.steps if step.at_s is not None]
        line.cuts.append(f"{cut.victim} -> {cut.heir}: {', '.join(steps)}")
        line.cells[CUT] = ", ".join(f"{value:.1f}" for value in took)
        cluster.power_on(cut.victim)
        cluster.wait_booted(cut.victim)
    line.hold(CUT, max(took), CUT_MAX_S)


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


def _one_killed(line: Line, cluster: Cluster) -> None:
    name = kinds.THREE[line.kind][0]
    host = cluster.wait_healthy(BACK_S)
    with (
        Visitors(cluster.switch_pid, VISITORS) as visitors,
        Visitors(cluster.switch_pid, DISK_VISITORS, disk=True) as writing,
        Writer(cluster, host, ONE_GONE_S) as writer,
    ):
        time.sleep(2.0)
        cluster.server(name, "kill")
        time.sleep(ONE_GONE_S - 2.0)
    cluster.server(name, "release")
    line.cells[GAP], line.cells[DISK_GAP] = _gap(visitors), _gap(writing)
    line.cells[WROTE] = f"{writer.longest_s:.1f}"
    line.hold(DISK_GAP, writing.longest_gap_s(), GAP_MAX_S)
    line.hold("requests lost", len(visitors.failed) + len(writing.failed), 0)
    time.sleep(10.0)


def _gap(visitors: Visitors) -> str:
    lost = f", {len(visitors.failed)} of {visitors.asked} lost" if visitors.failed else ""
    return f"{visitors.longest_gap_s():.1f}{lost}"


def _two_gone(line: Line, cluster: Cluster) -> None:
    for name in kinds.THREE[line.kind][:2]:
        cluster.server(name, "freeze")
    time.sleep(AWAY_S)
    for name in kinds.THREE[line.kind][:2]:
        cluster.server(name, "thaw")
    began_s = time.monotonic()
    cluster.wait_healthy(BACK_S)
    line.cells[BACK] = f"{time.monotonic() - began_s:.0f}"


@contextmanager
def _noise(line: Line) -> Iterator[None]:
    """What share of the time somebody waited for a processor, and the load at the end."""
    began_s, waited_s = time.monotonic(), _waited_s()
    try:
        yield
    finally:
        share = (_waited_s() - waited_s) / (time.monotonic() - began_s)
        line.cells[NOISE] = f"{os.getloadavg()[1]:.0f} ({100.0 * share:.0f} %)"


def _waited_s() -> float:
    """How long at least one process of the machine has waited for a processor; NaN where the kernel
    does not tell."""
    try:
        words = Path("/proc/pressure/cpu").read_text().split()
    except OSError:
        return math.nan
    return int(words[4].removeprefix("total=")) / 1e6


def _spread(values_s: Sequence[float]) -> str:
    """Median and 99th percentile, ms."""
    values = sorted(1000.0 * value for value in values_s)
    if not values:
        return "none seen"
    return f"{statistics.median(values):.1f} ({values[int(0.99 * (len(values) - 1))]:.1f})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

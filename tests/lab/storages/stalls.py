# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a storage is like from inside the hosts: how long a write takes and stands still at worst,
and how soon another host sees it. See probe.py."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..cluster import Cluster
from . import kinds

#: Beyond every host's slot of the whiteboard, in the place of a host that no lab has.
PROBE_OFFSET = 60 * 4096

#: A write that takes longer stands still: healthy storages have the 99th percentile below 0.1 s.
STALL_S = 1.0

Seen = tuple[int, float, float]


def place(cluster: Cluster) -> tuple[Path, int]:
    """A block that nobody else writes: a file beside the volumes, on a device an unused slot."""
    if cluster.settings.storage in kinds.BLOCK:
        return cluster.layout.whiteboard, PROBE_OFFSET
    return cluster.shared / "probe", 0


def begin(cluster: Cluster, host: str, what: str, seconds: float) -> subprocess.Popen[str]:
    """Start probe.py in a host."""
    path, offset = place(cluster)
    argv = [sys.executable, "-m", "tests.lab.storages.probe", what, str(path)]
    command, environment = cluster.sh_command(host, [*argv, str(offset), str(seconds)])
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def make_place(cluster: Cluster, host: str) -> None:
    """The probe's block, empty."""
    if cluster.settings.storage not in kinds.BLOCK:
        path, _ = place(cluster)
        script = f"dd if=/dev/zero of={path} bs=4096 count=1 conv=fsync 2>/dev/null"
        cluster.sh(host, ["sh", "-c", script]).check_returncode()


def ended(process: subprocess.Popen[str], within_s: float) -> list[Seen]:
    """What it saw; subprocess.TimeoutExpired or CalledProcessError."""
    try:
        out, err = process.communicate(timeout=within_s)
    finally:
        process.kill()
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, "probe", out, err)
    return [(int(number), began, end) for number, began, end in json.loads(out)]


@dataclass(slots=True)
class Writer:
    """A context manager: a host writes a block again and again, past every cache, while the storage
    is disturbed. `writes`: each of them, once it has ended; `longest_s`: of one write."""

    cluster: Cluster
    host: str
    seconds: float
    writes: list[Seen] = field(default_factory=list)
    longest_s: float = 0.0
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def __enter__(self) -> Writer:
        make_place(self.cluster, self.host)
        self._process = begin(self.cluster, self.host, "write", self.seconds)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self.writes = ended(self._process, self.seconds + 60.0)
        self.longest_s = max(after - before for _, before, after in self.writes)


def beyond(failed: Sequence[float], writes: Sequence[Seen], patience_s: float) -> list[float]:
    """Which requests the storage did not cost: those (monotonic seconds of their beginning) during
    whose patience no write stood still."""
    stalls = [(began, end) for _, began, end in writes if end - began > STALL_S]
    return [
        asked
        for asked in failed
        if not any(began < asked + patience_s and asked < end for began, end in stalls)
    ]


def waited_s(pid: int) -> float:
    """How long the processors of a QEMU have waited for one of the machine's, since it began."""
    waited_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            if (task / "comm").read_text().startswith("CPU "):
                waited_ns += int((task / "schedstat").read_text().split()[1])
    return waited_ns / 1e9


@dataclass(frozen=True, slots=True)
class Visibility:
    """How one host saw what another wrote. `writes_s`: what each write took. `visible_s`: after a
    write had returned, until a read on the other host showed it. `stale`: writes that a read
    did not show which was begun after they had returned."""

    writes_s: tuple[float, ...]
    visible_s: tuple[float, ...]
    stale: int


def judge(writes: Sequence[Seen], reads: Sequence[Seen]) -> Visibility:
    """Compare what was written with what was read."""
    visible = []
    stale = 0
    for number, _, returned_s in writes:
        shown = next((end for seen, _, end in reads if seen >= number), None)
        if shown is None:
            continue
        visible.append(max(0.0, shown - returned_s))
        stale += any(seen < number and began > returned_s for seen, began, _ in reads)
    return Visibility(tuple(end - began for _, began, end in writes), tuple(visible), stale)


def visibility(cluster: Cluster, writer: str, reader: str, seconds: float) -> Visibility:
    """Measure it."""
    make_place(cluster, writer)
    reading = begin(cluster, reader, "read", seconds + 1.0)
    writing = begin(cluster, writer, "write", seconds)
    writes = ended(writing, seconds + 60.0)
    return judge(writes, ended(reading, seconds + 60.0))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cuts a host's power while its broker's write to the whiteboard is under way.

By chance a cut meets such a write once in a few dozen. Here the broker's threads are watched by
what the kernel shows of them; in the middle of a write the storage's client on that host is
stopped, so that the write goes no further while the cables are pulled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from ..cluster import Cluster
from ..errors import LabError

#: pwrite64, pwritev, pwritev2 (x86-64).
_WRITES = frozenset({"18", "296", "328"})
SEEN_SECONDS_MAX = 30.0


def cut_in_write(cluster: Cluster, host: str) -> float:
    """Cut it so; time.monotonic() of that moment. LabError where no write was met."""
    client = cluster.storage_client(host)
    broker = _broker(cluster, host)
    end_s = time.monotonic() + SEEN_SECONDS_MAX
    while time.monotonic() < end_s:
        if not _writes(broker):
            continue
        os.kill(client, signal.SIGSTOP)
        if _writes(broker):
            return cluster.cut(host)
        # Too late: the write had ended before its client was stopped.
        os.kill(client, signal.SIGCONT)
    raise LabError(f"{host}: no write to the whiteboard was met in {SEEN_SECONDS_MAX:.0f} s")


def _broker(cluster: Cluster, host: str) -> int:
    for pid, argv in cluster.census().processes.get(host, []):
        if any(word.endswith("/ha-broker") for word in argv):
            return pid
    raise LabError(f"{host}: no broker runs there")


def _writes(broker: int) -> bool:
    """Whether a thread of the broker is in a write to the whiteboard at this moment."""
    for task in Path(f"/proc/{broker}/task").iterdir():
        with contextlib.suppress(OSError, IndexError, ValueError):
            words = (task / "syscall").read_text().split()
            if words[0] in _WRITES:
                file = Path(f"/proc/{broker}/fd/{int(words[1], 16)}").readlink()
                return file.name == "whiteboard"
    return False

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the engine's own disk tells: a second witness of law 1, beside the process watcher.

Each boot of the guest has one 512-byte record, which it renews every guest.JOURNAL_BEAT_S:
``boot N id BOOT-ID uptime SECONDS alone|overtaken``. Before it renews it reads its record
and the next one: a guest that finds another boot in either ran beside that one, and says
"overtaken". It reads and writes past its page cache (guest.INIT).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .cluster import Cluster
from .guest import JOURNAL_RECORD_BYTES

_RECORD = re.compile(r"boot (\d+) id ([0-9a-f-]{36}) uptime ([0-9.]+) (alone|overtaken)\n")


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot of the guest. `uptime_s`: when it last renewed its record, since its boot."""

    number: int
    boot_id: str
    uptime_s: float
    overtaken: bool


def read(cluster: Cluster) -> list[Boot]:
    """All boots of the engine, oldest first; AssertionError for a record that is not one."""
    boots: list[Boot] = []
    with cluster.disk.open("rb") as disk:
        while data := disk.read(JOURNAL_RECORD_BYTES).rstrip(b"\0"):
            found = _RECORD.fullmatch(data.decode(errors="replace"))
            assert found is not None, f"boot {len(boots) + 1} of the guest wrote {data!r}"
            number, boot_id, uptime_s, alone = found.groups()
            boots.append(Boot(int(number), boot_id, float(uptime_s), alone == "overtaken"))
    return boots


def doubts(boots: list[Boot]) -> list[str]:
    """What speaks against one guest at a time; empty when nothing does."""
    found = [f"boot {boot.number} ran on beside a later one" for boot in boots if boot.overtaken]
    if [boot.number for boot in boots] != list(range(1, len(boots) + 1)):
        found.append(f"the boots are not numbered one by one: {[b.number for b in boots]}")
    if len({boot.boot_id for boot in boots}) != len(boots):
        found.append("two records have one boot id")
    return found

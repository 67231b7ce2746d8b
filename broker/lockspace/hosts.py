# SPDX-License-Identifier: LGPL-2.1-or-later
"""sanlock's knowledge of the hosts: one witness of their life beside the whiteboard. Pure.

A host id is renewed on disk every 2 * io_timeout. sanlock on this host looks at all of them
when it renews its own, so its answer may be as old as that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scoring.lease_times import BUDGET_IO_TIMEOUTS


@dataclass(frozen=True, slots=True)
class HostRenewal:
    """One host id in sanlock's answer: `state` is free, live, fail, dead or unknown."""

    host_id: int
    generation: int
    timestamp: int
    state: str


@dataclass(frozen=True, slots=True)
class Witness:
    """What is known of a host id; `changed_s`: when this host first saw its last renewal."""

    state: str
    generation: int
    timestamp: int
    changed_s: float


def look(
    known: dict[int, Witness], hosts: Iterable[HostRenewal], now_s: float
) -> dict[int, Witness]:
    """The table after one more look; hosts that sanlock no longer knows are removed."""
    table: dict[int, Witness] = {}
    for host in hosts:
        old = known.get(host.host_id)
        same = old is not None and (old.generation, old.timestamp) == (
            host.generation,
            host.timestamp,
        )
        changed_s = old.changed_s if same and old is not None else now_s
        table[host.host_id] = Witness(host.state, host.generation, host.timestamp, changed_s)
    return table


def budget_s(renewed_s: float | None, io_timeout_s: float, now_s: float) -> float | None:
    """How long the storage may still stay away before sanlock ends what runs here under a
    lease; None while this host's last renewal is not known."""
    if renewed_s is None:
        return None
    return max(0.0, BUDGET_IO_TIMEOUTS * io_timeout_s - max(0.0, now_s - renewed_s))


def standing_fields(witness: Witness | None, now_s: float) -> dict[str, Any]:
    """sanlock's word on a host, as fields of its status; None: it has none."""
    if witness is None:
        return {}
    return {"sanlock_state": witness.state, "sanlock_age_s": now_s - witness.changed_s}

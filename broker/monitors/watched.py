# SPDX-License-Identifier: LGPL-2.1-or-later
"""The monitors of this host as the broker uses them: all samples, and the three that it asks for
more than their sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from broker.monitors import MonitorRunner
from broker.monitors.outside import OutsideMonitor
from broker.monitors.way_out import WayOutMonitor
from broker.wire.status import MigrationStatus
from scoring.observation import DomainHere

#: Monitors whose news the other hosts, or this host's agent, wait for.
PUBLISHED_AT_ONCE = frozenset({"engine", "what_runs", "outside", "way_out", "uplink"})


class VmSampler(Protocol):
    """What the monitor of the VM tells beside its status."""

    lease_held: bool | None
    migration: MigrationStatus | None
    facts: DomainHere


@dataclass(frozen=True, slots=True)
class Watched:
    """`outside`, `way_out`: None: this host does not ask the VM where it runs elsewhere."""

    runner: MonitorRunner
    vm: VmSampler
    outside: OutsideMonitor | None = None
    way_out: WayOutMonitor | None = None

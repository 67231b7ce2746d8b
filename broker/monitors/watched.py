# SPDX-License-Identifier: LGPL-2.1-or-later
"""The monitors of this host as the broker uses them: all samples, and the three of which it needs
more than the sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from broker.monitors import MonitorRunner
from broker.monitors.outside import OutsideMonitor
from broker.monitors.way_out import WayOutMonitor
from broker.wire.status import MigrationStatus
from scoring.vm_facts import DomainHere

#: Monitors whose news the other hosts, or this host's agent, wait for.
PUBLISHED_AT_ONCE = frozenset({"engine", "what_runs", "outside", "way_out", "uplink"})


class VmSampler(Protocol):
    """The further results of the VM's monitor, beside the VM's status."""

    lease_held: bool | None
    migration: MigrationStatus | None
    facts: DomainHere


@dataclass(frozen=True, slots=True)
class Watched:
    """`outside`, `way_out`: None: this host does not ask a VM that runs elsewhere."""

    runner: MonitorRunner
    vm: VmSampler
    outside: OutsideMonitor | None = None
    way_out: WayOutMonitor | None = None

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The monitors of this host as the broker uses them: all samples, and those of which it needs more
than the sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from broker.monitors.outside import OutsideMonitor
from broker.monitors.runner import MonitorRunner
from broker.monitors.vms_outside import VmsOutside
from broker.monitors.way_out import WayOutMonitor
from broker.registry.cache import Cached
from broker.vm.domain_facts import Difference
from broker.whiteboard.vm_lines import Differing, Memory
from broker.wire.status import MigrationStatus
from scoring.vm_facts import DomainHere, VmHere

#: Monitors whose news the other hosts, or this host's agent, wait for.
PUBLISHED_AT_ONCE = frozenset({"engine", "vms", "what_runs", "outside", "way_out", "uplink"})


class VmSampler(Protocol):
    """The further results of the VM's monitor, beside the VM's status."""

    lease_held: bool | None
    migration: MigrationStatus | None
    facts: DomainHere


class VmsSampler(Protocol):
    """The protected VMs beside the engine, by number, as they were last sampled here. `memory`: the
    memory of this host that VMs may use. A change is reported as one of the monitor "vms"."""

    @property
    def here(self) -> Mapping[int, VmHere]: ...

    @property
    def differing(self) -> Mapping[int, Differing]: ...

    @property
    def unlike(self) -> Mapping[int, tuple[Difference, ...]]: ...

    @property
    def memory(self) -> Memory: ...

    def watch(self, known: Cached) -> None:
        """Watch the VMs of this registry from now on."""


@dataclass(frozen=True, slots=True)
class Watched:
    """`outside`, `way_out`: None: this host does not ask a VM that runs elsewhere. `vms`: None: it
    looks at no VM beside the engine. `vms_outside`: None: it asks none of those elsewhere."""

    runner: MonitorRunner
    vm: VmSampler
    outside: OutsideMonitor | None = None
    way_out: WayOutMonitor | None = None
    vms: VmsSampler | None = None
    vms_outside: VmsOutside | None = None

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hypervisors of all protected VMs on this host, one for each, with threads of its own."""

from __future__ import annotations

import threading

from agent.leases.sanlock import SanlockLeases
from agent.leases.vm_records import VmRecords
from agent.vm.hypervisor import STARTS_AT_ONCE, LibvirtHypervisor
from agent.vm.protected import RecordedVm
from broker.config.sections import Config
from scoring.vm_facts import ENGINE


class LibvirtHypervisors:
    """Hypervisors port: libvirt. `engine`: that of VM 1."""

    def __init__(
        self,
        config: Config,
        engine: LibvirtHypervisor,
        leases: SanlockLeases,
        records: VmRecords,
    ) -> None:
        self._config = config
        self._leases = leases
        self._records = records
        self._turns = threading.BoundedSemaphore(STARTS_AT_ONCE)
        self._of = {ENGINE: engine}

    def __call__(self, vm: int) -> LibvirtHypervisor:
        """The hypervisor of a VM; always the same object, which knows the calls that hang."""
        if vm not in self._of:
            recorded = RecordedVm(self._config, vm, self._records)
            self._of[vm] = LibvirtHypervisor(self._config, recorded, self._leases, self._turns)
        return self._of[vm]

    def reconfigure(self, config: Config) -> None:
        """Use another configuration for all."""
        self._config = config
        for each in self._of.values():
            each.reconfigure(config)

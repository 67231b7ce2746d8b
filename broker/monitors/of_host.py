# SPDX-License-Identifier: LGPL-2.1-or-later
"""All monitors of this host, made from the configuration, and replaced when it is reloaded."""

from __future__ import annotations

from broker.config.errors import ConfigError
from broker.config.sections import Config, MonitorsSection
from broker.monitors.bridge import BridgeMonitor, UplinkMonitor, vm_bridges
from broker.monitors.can_start import CanStartMonitor
from broker.monitors.cpu_load import CpuLoadMonitor
from broker.monitors.definition import DefinitionMonitor
from broker.monitors.health import HealthMonitor
from broker.monitors.lock_driver import LockDriverMonitor
from broker.monitors.memory import MemoryMonitor, hugepage_kb
from broker.monitors.network import NetworkMonitor
from broker.monitors.outside import OutsideMonitor, OutsideProbe, is_local
from broker.monitors.pressure import PressureMonitor
from broker.monitors.runner import Monitor, MonitorRunner
from broker.monitors.vm import DomainMonitor
from broker.monitors.vms import VmsMonitor, config_of
from broker.monitors.vms_outside import VmsOutside
from broker.monitors.way_out import WayOutMonitor
from broker.monitors.what_runs import WhatRunsMonitor
from broker.registry.record import VmRecord


class HostMonitors:
    """Wires the monitors together. `runner` samples them. `engine`: the VM on this host;
    `what_runs`: how it differs from its definition; `outside`: the VM on another host;
    `way_out`: whether this host's network leads anywhere.

    Making and reloading them raises ConfigError where a file that the configuration names cannot
    be used; a reload has changed nothing then.
    """

    def __init__(self, config: Config) -> None:
        every = config.monitors
        health = HealthMonitor(config, every.health)
        self.engine = DomainMonitor(config, health, every.engine)
        self._network = NetworkMonitor(config.network, every.network)
        self._cpu_load = CpuLoadMonitor(
            config.timing_rules().load_window, self.engine.cpu_s, every.cpu_load
        )
        self.outside = _outside(config)
        self.way_out = WayOutMonitor(lambda: self._network.any_answers())
        self.what_runs = WhatRunsMonitor(config, every.what_runs)
        self.can_start = CanStartMonitor(config, every.can_start)
        #: The VMs beside the engine; None: there is no registry.
        self.vms = (
            VmsMonitor(config, lambda: self.runner.wake("vms")) if config.storage.registry else None
        )
        self.vms_outside = VmsOutside(
            self._probe_of, _deadline_s(config), lambda: self.runner.on_change(self.outside.name)
        )
        self._config = config
        kept: list[Monitor] = [
            self.engine,
            health,
            self._network,
            self._cpu_load,
            self.what_runs,
            self.can_start,
            self.outside,
            self.way_out,
        ]
        if self.vms is not None:
            kept.append(self.vms)
        self.runner = MonitorRunner([*kept, *_made_anew(config, every)])

    def reload(self, config: Config) -> None:
        """Use another configuration; the results so far are kept."""
        every = config.monitors
        health = HealthMonitor(config, every.health)
        is_same_test = config.network.test == self._network.given.test
        windows = self._network.windows if is_same_test else None
        network = NetworkMonitor(config.network, every.network, windows)
        health.go_on_from(self.engine.health)
        self.engine.health, self._network = health, network
        self.engine.interval_s = every.engine
        self.what_runs.interval_s = every.what_runs
        self._cpu_load.interval_s = every.cpu_load
        self._cpu_load.window_s = config.timing_rules().load_window
        # This object stays: the broker sets which place it watches.
        outside = _outside(config)
        self.outside.probe, self.outside.deadline_s = outside.probe, outside.deadline_s
        can_start = CanStartMonitor(config, every.can_start)
        can_start.disks, self.can_start = self.can_start.disks, can_start
        changed: list[Monitor] = [health, network, can_start, *_made_anew(config, every)]
        for monitor in changed:
            self.runner.replace(monitor)
        if self.vms is not None:
            self.vms.reload(config)
        self._config = config
        self.vms_outside.reload(_deadline_s(config))

    def _probe_of(self, record: VmRecord) -> OutsideProbe | None:
        """How a VM beside the engine is asked, while it runs elsewhere; None: only its host can."""
        mine = config_of(self._config, record)
        try:
            return None if is_local(mine.health) else HealthMonitor(mine)
        except (ConfigError, ValueError):
            return None  # its own host says what is wrong with the check


def _outside(config: Config) -> OutsideMonitor:
    probe = None if is_local(config.health) else HealthMonitor(config)
    return OutsideMonitor(probe, _deadline_s(config))


def _deadline_s(config: Config) -> float:
    return config.health.timeout + 5.0


def _made_anew(config: Config, every: MonitorsSection) -> list[Monitor]:
    """The monitors that keep nothing between two samples."""
    return [
        BridgeMonitor(config.network.bridge, every.bridge),
        UplinkMonitor(vm_bridges(config.vm.definition), every.bridge),
        MemoryMonitor(hugepage_kb(config.vm.definition), every.memory),
        PressureMonitor(every.pressure),
        LockDriverMonitor(config.libvirt.qemu_conf, every.lock_driver),
        DefinitionMonitor(config.vm.definition, config.vm.shared_definition, every.definition),
    ]

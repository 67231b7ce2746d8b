# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's eyes on the VMs beside the engine, and the agent's hands on all of them, on a
simulated host. Each VM is watched and started by itself: one that hangs holds no other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from broker.monitors.runner import MonitorRunner
from broker.registry.cache import Cached
from broker.vm.domain_facts import Difference
from broker.whiteboard.vm_lines import Differing, Memory
from scoring.vm_facts import ENGINE, EngineStatus, VmHere, VmStatus
from tests.simulation.disks import BASE
from tests.simulation.host import Host
from tests.simulation.ports import SimEngineMonitor, SimHypervisor, SimLeases

if TYPE_CHECKING:
    from tests.simulation.world import World

#: How often each of them is looked at. No look needs a deadline: each wait in it has an end.
LOOK_EVERY_S = 1.0


class SimVmsMonitor:
    """VmsSampler of one broker process."""

    def __init__(self, world: World, host: Host, runner: MonitorRunner) -> None:
        self._world, self._host, self._runner = world, host, runner
        self.here: dict[int, VmHere] = {}
        self.differing: dict[int, Differing] = {}
        self.unlike: dict[int, tuple[Difference, ...]] = {}
        self._known = Cached()
        #: Since when each has been up here.
        self._up_since_s: dict[int, float] = {}
        self._wakes: dict[int, asyncio.Event] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    @property
    def memory(self) -> Memory:
        """What VMs may take of this host, as it is now: its sample is a second old at most."""
        host = self._host
        if host.total_mb is None or host.libvirt_hangs or not host.libvirt_up:
            return Memory()
        return Memory(host.total_mb, host.free_memory_mb, 0.0)

    def watch(self, known: Cached) -> None:
        """Watch the VMs of this registry from now on."""
        self._known = known
        wanted = [number for number in known.vms if number != ENGINE]
        for number in wanted:
            if number not in self._tasks:
                self._wakes[number] = asyncio.Event()
                task = asyncio.get_running_loop().create_task(self._look_at(number))
                self._tasks[number] = task
        for number in [number for number in self._tasks if number not in wanted]:
            self._tasks.pop(number).cancel()
            self.here.pop(number, None)

    def wake(self, vm: int) -> None:
        """Look at a VM at once: libvirt told of a change of it."""
        if vm in self._wakes:
            self._wakes[vm].set()

    async def _look_at(self, vm: int) -> None:
        monitor, wake = SimEngineMonitor(self._host, vm), self._wakes[vm]
        loop = asyncio.get_running_loop()
        while True:
            wake.clear()
            self._take(vm, monitor, await monitor.sample())
            timer = loop.call_later(LOOK_EVERY_S, wake.set)
            try:
                await wake.wait()
            finally:
                timer.cancel()

    def _take(self, vm: int, monitor: SimEngineMonitor, status: EngineStatus) -> None:
        host, before = self._host, self.here.get(vm)
        migration = monitor.migration
        self.here[vm] = VmHere(
            status,
            asyncio.get_running_loop().time(),
            lease_held=monitor.lease_held,
            migrating_s=None if migration is None else migration.elapsed_s,
            config_up_to_date=True,
            domain=monitor.facts,
            uplink_up=host.bridge_leads_out,
            number=vm,
            migration_possible=self._world.settings.migration,
        )
        self._compare_disks(vm)
        if before is None or before.report != status:
            self._runner.on_change("vms")

    def _compare_disks(self, vm: int) -> None:
        """What its process writes to, beside what its record says as this host knows it. The look
        of a VM that has just come has not ended yet."""
        qemu, record = self._host.qemus.get(vm), self._known.vms.get(vm)
        now_s = asyncio.get_running_loop().time()
        if self.here[vm].report.vm is not VmStatus.UP:
            self._up_since_s.pop(vm, None)
            self.differing.pop(vm, None)
            self.unlike.pop(vm, None)
            return
        if now_s - self._up_since_s.setdefault(vm, now_s) < LOOK_EVERY_S:
            return
        self.unlike[vm] = ()
        recorded = self._world.vms.images.get(vm, BASE)
        if qemu is None or record is None or not record.definitions or qemu.image == recorded:
            self.differing.pop(vm, None)
        else:
            text = f"vda: {qemu.image}, recorded: {recorded}"
            self.differing[vm] = Differing(record.definitions[0].generation, text)


class SimHypervisors:
    """Hypervisors port: a hand on each VM, the same one each time."""

    def __init__(self, world: World, host: Host, leases: SimLeases) -> None:
        self._world, self._host, self._leases = world, host, leases
        self._of: dict[int, SimHypervisor] = {}

    def __call__(self, vm: int) -> SimHypervisor:
        if vm not in self._of:
            self._of[vm] = SimHypervisor(self._world, self._host, self._leases, vm)
        return self._of[vm]

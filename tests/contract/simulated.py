# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sites in virtual time: the first host of a simulated cluster, whose daemons are away."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests.simulation.host import Host
from tests.simulation.lockspace import Membership
from tests.simulation.ports import SimHypervisor, SimLeases, SimLockspace, SimStore
from tests.simulation.timeline import Process
from tests.simulation.world import Settings, World

T = TypeVar("T")

STEP_S = 0.05
PATIENCE_S = 600.0
BOOTED_S = 60.0


class Simulated:
    """A host that is on, and a process on it in which the tests' calls run."""

    host_id = 1
    other_id = 2

    def __init__(self, hosts: int = 2) -> None:
        self.world = World(Settings(hosts=hosts, host_boot_s=20.0, drift=0.0), random.Random(1))
        self.world.fault_began("contract")
        # The laws judge an agent, which begins nothing where libvirt is known to be silent.
        self.world.began = lambda host, act, vm=1: None  # type: ignore[method-assign]
        for host in self.world.hosts.values():
            host.daemons_wanted = False
        self.world.power_all_on(0.0)
        self.world.run(BOOTED_S)
        self.host, self.other = self.world.hosts[1], self.world.hosts[2]
        assert self.host.loop is not None
        self._process = Process(self.host.loop, "contract", lambda process, error: None)

    def close(self) -> None:
        self._process.kill()
        self.world.close()

    def pass_s(self, seconds: float) -> None:
        """Let time go by."""
        self.world.run(seconds)

    def call(self, act: Callable[[], Awaitable[T]]) -> T:
        """What comes of a call, however long it takes in virtual time."""
        found: list[T | BaseException] = []

        async def run() -> None:
            try:
                found.append(await act())
            except Exception as error:
                found.append(error)

        loop = self.host.loop
        assert loop is not None
        self.world.timeline.call_within(loop, self._process.begin, run())
        until_s = self.world.timeline.now_s + PATIENCE_S
        while not found:
            assert self.world.timeline.now_s < until_s, "it does not end"
            self.world.run(STEP_S)
        (answer,) = found
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def join(self, host: Host) -> None:
        """Have its sanlock join the lockspace."""
        assert host.sanlock is not None
        host.sanlock.join()
        while host.sanlock.membership is not Membership.IN:
            self.world.run(1.0)


class SimulatedStore(Simulated):
    """SlotStore."""

    def __init__(self) -> None:
        super().__init__()
        self.store = SimStore(self.host, 0.0)
        self.second = SimStore(self.other, 0.0)

    def fails(self) -> None:
        self.host.break_storage("error")

    def hangs(self) -> None:
        self.host.break_storage("hang")

    def is_well(self) -> None:
        self.host.break_storage("")


class SimulatedLeases(Simulated):
    """Leases, of a host that is in the lockspace."""

    def __init__(self) -> None:
        super().__init__()
        self.join(self.host)
        self.leases = SimLeases(self.world, self.host)

    def leave(self) -> None:
        """Give the host id back."""
        assert self.host.sanlock is not None
        self.host.sanlock.leave_unused()
        self.world.run(5.0)


class SimulatedLockspace(Simulated):
    """Lockspace, of a host that is not in it yet."""

    def __init__(self) -> None:
        super().__init__()
        self.lockspace = SimLockspace(self.host)

    def run(self) -> None:
        """Begin to keep the id joined."""
        loop = self.host.loop
        assert loop is not None
        self.world.timeline.call_within(loop, self._process.begin, self.lockspace.run())


class SimulatedHypervisor(Simulated):
    """Hypervisor; both hosts are in the lockspace."""

    def __init__(self) -> None:
        super().__init__()
        for host in (self.host, self.other):
            self.join(host)
        self.hypervisor = SimHypervisor(self.world, self.host, SimLeases(self.world, self.host))
        self.theirs = SimHypervisor(self.world, self.other, SimLeases(self.world, self.other))

    def run_here(self) -> None:
        self.call(self.hypervisor.start)
        assert self.runs()

    def run_elsewhere(self) -> None:
        self.call(self.theirs.start)
        assert self.other.runs_vm

    def runs(self) -> bool:
        return self.host.runs_vm

    def lose_libvirt(self) -> None:
        self.host.libvirt_up = False

    def hang_libvirt(self) -> None:
        self.host.libvirt_hangs = True

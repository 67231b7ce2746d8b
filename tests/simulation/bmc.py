# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hosts' BMCs as simulated devices, below the product's own guard (agent/fence/guarded.py).

What a device answers is made up here; whose machine it is, until when it is waited for, what an
error is, and that an order is withdrawn in time is the product's own code.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent.fence.driver import DeviceError, Withdrawn, go
from agent.fence.guarded import DeviceSetting, GuardedDevice
from agent.fence.levels import FenceLevels
from agent.ports import Still
from scoring.observation import Power
from tests.simulation.host import CACHED_S, Host
from tests.simulation.threads import SimTime, SimWorker

if TYPE_CHECKING:
    from tests.simulation.world import World

#: From the first packet to the end of the login: of a BMC that is well, and of a slow one.
LOGIN_S = 0.15
SLOW_LOGIN_S = 6.0
HUNG_S = 30.0
#: How long before the power is gone one reads off that reads so too early.
EARLY_S = 0.9


def fence_levels(world: World, host: Host, timeout_s: float) -> FenceLevels:
    """The fence devices that a host is configured with: the BMC of each other one."""
    time = SimTime(host.clock_s)
    return FenceLevels(
        [
            GuardedDevice(
                other.number,
                f"BMC of host {other.number}",
                SimBmc(world, host, other, time),
                DeviceSetting(timeout_s=timeout_s),
                worker=SimWorker,
                clock=time,
            )
            for other in world.hosts.values()
            if other.number != host.host_id
        ],
        host.host_id,
    )


class SimBmc:
    """Driver of one host's BMC, as another host reaches it over the management network. It is a
    login itself; one at a time."""

    def __init__(self, world: World, asker: Host, target: Host, time: SimTime) -> None:
        self._world = world
        self._asker = asker
        self._target = target
        self._time = time
        #: As it was when it was asked: no answer is fresher than its question.
        self._first: Power | None = None

    @contextmanager
    def login(self, timeout_s: float) -> Iterator[SimBmc]:
        self._first = self._power()
        self._log_in(timeout_s)
        yield self

    def _log_in(self, timeout_s: float) -> None:
        fault, bmc = self._fault, self._target.bmc
        bmc.asked += 1
        is_dead = fault == "silent" or (fault == "own-power" and not self._target.power)
        is_dead = is_dead or (fault == "every-other" and bmc.asked % 2 == 1)
        takes_s = SLOW_LOGIN_S if fault == "slow" else LOGIN_S
        takes_s += 2 * self._asker.packet_delay_s
        reached = not is_dead and self._world.reaches(self._asker, self._target, bmc=True)
        if not reached or takes_s >= timeout_s:
            self._time.sleep(timeout_s)
            raise DeviceError("no answer")
        # One that hangs does not come back by itself, whatever deadline it was given.
        self._time.sleep(HUNG_S if fault == "hangs" else takes_s)
        if fault == "hangs":
            raise ConnectionResetError
        if fault == "refuses":
            raise DeviceError("wrong password")

    def guid(self) -> bytes | None:
        if self._fault == "nameless-off":
            return None
        machine = uuid.UUID(self._target.bmc.guid)
        if self._is_foreign:
            machine = uuid.UUID(int=machine.int ^ 1)
        # Firmware disagrees on the order of the bytes.
        whole, fields = machine.bytes, machine.bytes_le
        return (whole, fields, whole[::-1], fields[::-1])[self._target.number % 4]

    def power(self) -> Power:
        power, self._first = self._first or self._power(), None
        if self._fault == "says-on":
            power = Power.ON
        elif self._fault in ("says-off", "foreign-off", "nameless-off"):
            power = Power.OFF
        whose = "another machine" if self._is_foreign else f"host {self._target.number}"
        self._tell(f"reads power {power.value} of {whose}")
        return power

    def lacks(self) -> str | None:
        return ""

    def switch(self, on: bool, still: Still) -> None:
        word, host = ("on" if on else "off"), self._target
        try:
            go(still)
        except Withdrawn:
            self._tell(f"withdraws the order to switch host {host.number} {word}")
            raise
        if self._is_foreign:
            self._world.switches_another(self._asker, host, word)
            return
        if self._fault == f"{word}-fails":
            raise DeviceError("the BMC answers with an error")
        is_ignored = self._fault == f"{word}-ignored"
        if on and not is_ignored:
            if not host.power:
                self._world.began(self._asker, "switch a host on")
                self._world.laws.switches_on(self._asker, host)
            host.power_on()
        elif not on and host.power:
            self._world.shoots(self._asker, host)
            if self._fault == "off-early":
                self._reads_off_early()
            elif not is_ignored:
                self._asker.timeline.after(host.bmc.off_takes_s, host.power_off, "by its BMC")

    def _reads_off_early(self) -> None:
        def goes() -> None:
            self._target.bmc.early_off = False
            self._target.power_off("by its BMC")

        self._target.bmc.early_off = True
        self._asker.timeline.after(EARLY_S, goes)

    def _power(self) -> Power:
        is_on = self._target.power and not self._target.bmc.early_off
        if self._fault == "caches":
            is_on = self._target.was_on(CACHED_S)
        return Power.ON if is_on else Power.OFF

    @property
    def _is_foreign(self) -> bool:
        """Whether the machine that answers is another one."""
        return self._fault in ("foreign", "foreign-off")

    @property
    def _fault(self) -> str:
        """How that host's BMC answers this host."""
        bmc = self._target.bmc
        return bmc.fault_for.get(self._asker.number, bmc.fault)

    def _tell(self, what: str) -> None:
        self._world.tell(self._asker.name, what)

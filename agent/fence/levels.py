# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fence devices of all hosts, level by level: the real FenceDevices.

1. Devices of one level belong together, like the two supplies of one machine: the level is off
   when all of them read off, on when any of them reads on, and an order must be accepted by all.
2. Once one order was withdrawn, no further device gets one.
3. What makes the answer of one device count is in agent/fence/guarded.py.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.fence.guarded import Finding, GuardedDevice, Identity, Privilege
from agent.ports import FencePath, Still
from scoring.observation import Power, PowerAnswer, PowerOffEnded, PowerOnEnded


@dataclass(frozen=True, slots=True)
class DeviceTest:
    """The result of a test of one device. `took_s`: seconds, login included."""

    device: str
    host_id: int
    level: int
    ok: bool
    power: Power
    identity: Identity
    privilege: Privilege
    detail: str
    took_s: float


class FenceLevels:
    """The real FenceDevices. `own_host` is never switched, but its devices can be rehearsed."""

    def __init__(self, devices: Iterable[GuardedDevice], own_host: int) -> None:
        levels: dict[int, dict[int, list[GuardedDevice]]] = {}
        for device in devices:
            levels.setdefault(device.host_id, {}).setdefault(device.level, []).append(device)
        self._levels = {
            host: [by_number[number] for number in sorted(by_number)]
            for host, by_number in levels.items()
        }
        self.rehearsed = frozenset(self._levels)
        self.hosts = self.rehearsed - {own_host}
        self._known_uuids: dict[int, str] = {}
        for host_levels in self._levels.values():
            for device in itertools.chain(*host_levels):
                device.known_uuids = self._known_uuids

    def know(self, system_uuids: Mapping[int, str]) -> None:
        self._known_uuids.update({host: known for host, known in system_uuids.items() if known})

    def _of(self, host_id: int, system_uuid: str) -> Sequence[Sequence[GuardedDevice]]:
        """The levels of a host; the UUID that it published is remembered."""
        self.know({host_id: system_uuid})
        return self._levels.get(host_id, [])

    async def read_power(self, host_id: int, system_uuid: str) -> PowerAnswer:
        loop = asyncio.get_running_loop()
        details: list[str] = []
        unproven: PowerAnswer | None = None
        asked_s = loop.time()
        for level in self._of(host_id, system_uuid):
            # A reading is as old as its question: a slow device's answer may be old, too.
            asked_s = loop.time()
            found = await asyncio.gather(*(device.read(system_uuid) for device in level))
            power, proven = together(found)
            details += [finding.detail for finding in found if finding.detail]
            if power is not Power.UNKNOWN:
                answer = PowerAnswer(
                    host_id, power, asked_s, proven, "; ".join(details), loop.time()
                )
                if proven:
                    return answer
                unproven = unproven or answer
        return unproven or PowerAnswer(
            host_id,
            Power.UNKNOWN,
            asked_s,
            detail="; ".join(details),
            answered_s=loop.time(),
        )

    async def power_off(
        self, host_id: int, system_uuid: str, attempt: int, still: Still
    ) -> PowerOffEnded:
        assert host_id in self.hosts, host_id
        levels = [*self._of(host_id, system_uuid)]
        first = attempt % len(levels)
        details: list[str] = []
        tried = False
        for level in levels[first:] + levels[:first]:
            found = await asyncio.gather(
                *(device.switch(system_uuid, False, still) for device in level)
            )
            done = all(f.usable and (f.ordered or f.power is Power.OFF) for f in found)
            details += [
                _order_text(device, f, "off") for device, f in zip(level, found, strict=True)
            ]
            if done:
                return PowerOffEnded(host_id, True, "; ".join(details))
            tried = tried or any(f.tried for f in found)
            if any(f.withdrawn for f in found):
                return PowerOffEnded(host_id, False, "; ".join(details), withdrawn=not tried)
        return PowerOffEnded(host_id, False, "; ".join(details))

    async def power_on(self, host_id: int, system_uuid: str, still: Still) -> PowerOnEnded:
        assert host_id in self.hosts, host_id
        # From the last level to the first: a BMC answers only once its supply is on again.
        details: list[str] = []
        ok = False
        levels = self._of(host_id, system_uuid)
        for level in reversed(levels):
            found = await asyncio.gather(
                *(device.switch(system_uuid, True, still) for device in level)
            )
            details += [
                _order_text(device, f, "on") for device, f in zip(level, found, strict=True)
            ]
            if any(f.withdrawn for f in found):
                return PowerOnEnded(host_id, False, "; ".join(details))
            already = all(f.usable and f.power is Power.ON for f in found)
            ok = ok or any(f.ordered for f in found)
            ok = ok or (already and level is levels[0])
        return PowerOnEnded(host_id, ok, "; ".join(details))

    async def rehearse(self, host_id: int, system_uuid: str) -> FencePath:
        tests = await self.test(host_id, system_uuid)
        by_level: dict[int, bool] = {}
        for test in tests:
            by_level[test.level] = by_level.get(test.level, True) and test.ok
        detail = "; ".join(test.detail for test in tests if test.detail)
        return FencePath(host_id, any(by_level.values()), detail)

    async def test(self, host_id: int, system_uuid: str) -> Sequence[DeviceTest]:
        """Every device of a host: login, privilege, identity, power; changes nothing."""
        devices = itertools.chain(*self._of(host_id, system_uuid))
        return await asyncio.gather(*(_test(device, system_uuid) for device in devices))


def together(found: Sequence[Finding]) -> tuple[Power, bool]:
    """The power that the devices of one level read together, and whether it counts."""
    on = [finding for finding in found if finding.power is Power.ON]
    if on:
        return Power.ON, any(finding.usable for finding in on)
    if all(finding.power is Power.OFF for finding in found):
        return Power.OFF, all(finding.usable for finding in found)
    return Power.UNKNOWN, False


def _order_text(device: GuardedDevice, found: Finding, order: str) -> str:
    if found.ordered:
        return f"{device.name} took the order {order}"
    return found.detail or f"{device.name} reads {found.power}"


async def _test(device: GuardedDevice, system_uuid: str) -> DeviceTest:
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    found = await device.check(system_uuid)
    lacking = found.privilege is Privilege.LACKING
    ok = found.usable and not lacking and found.power is not Power.UNKNOWN
    return DeviceTest(
        device.name,
        device.host_id,
        device.level,
        ok,
        found.power,
        found.identity,
        found.privilege,
        found.detail if found.detail or ok else f"{device.name}: its power is not known",
        loop.time() - begun_s,
    )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fence devices of all hosts, level by level: the real FenceDevices.

1. Devices of one level belong together, like the two supplies of one machine: the level is off
   when all of them read off, on when any of them reads on, and an order must be accepted by all.
2. A device's answer counts, and an order is given to it, only when its GUID is the UUID that
   the host published, or the configuration trusts it by name. The GUID is read in the same
   login as the power, before the order.
3. A device that shows another machine's GUID is not asked again until the configuration is
   read anew or the host publishes another UUID.
4. Each device has its own thread and its own deadline, and one question at a time: a device
   that hangs does not delay another.
5. No text that leaves this file holds a password.
6. Immediately before each order, after the login, the device's thread asks whether the order must
   still be given: a login may take seconds, and a host that hung may live again meanwhile. Once one
   order was withdrawn, no further device gets one.

Firmware disagrees on the byte order of a GUID (SMBIOS 7.2.1 has its first three fields
little-endian, IPMI sends the whole least significant byte first), so each of these orders
counts as the same machine.
"""

from __future__ import annotations

import asyncio
import base64
import html
import itertools
import json
import logging
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from agent.fence.driver import DeviceError, Driver, Login, Pointless, Withdrawn, always
from agent.ports import FencePath, Still
from broker.daemon.foreign import clean
from broker.daemon.worker import Hung, Worker
from scoring.observation import Power, PowerAnswer, PowerOffEnded, PowerOnEnded

log = logging.getLogger("ha-agent.fence")

ERROR_CHARS_MAX = 300
#: SMBIOS 7.2.1: not present, and not set.
_NO_GUID = (b"\xff" * 16, bytes(16))
#: A driver keeps its deadline itself; one that is late by this much is hung.
GRACE_S = 0.5
#: Time for the power to change after an order that was answered with an error.
SETTLE_S = 2.0
SETTLE_STEP_S = 0.5


class Identity(StrEnum):
    """Whose machine a device switches, as far as this host knows."""

    PROVEN = "proven"
    TRUSTED = "trusted"
    UNKNOWN = "unknown"
    OTHER = "other"


class Privilege(StrEnum):
    """Whether a login would be allowed to switch the power."""

    ENOUGH = "enough"
    LACKING = "lacking"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer of a device. `detail`: what is wrong (empty: nothing). `ordered`: it accepted an
    order. `tried`: an order was sent to it, with any result. `withdrawn`: the order must not be
    given any more. `privilege`: UNKNOWN where the device was not asked for it."""

    power: Power
    identity: Identity
    detail: str = ""
    ordered: bool = False
    privilege: Privilege = Privilege.UNKNOWN
    tried: bool = False
    withdrawn: bool = False

    @property
    def usable(self) -> bool:
        """Whether its answer counts."""
        return self.identity in (Identity.PROVEN, Identity.TRUSTED)


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


class Clock(Protocol):
    """The time of a device's thread, in seconds; the module `time` is one."""

    def monotonic(self) -> float:
        """A time that only grows."""

    def sleep(self, seconds: float, /) -> None:
        """Block the thread for this many seconds."""


#: What to do with a login, given the finding so far and the deadline.
_Then = Callable[[Login, Finding, float], Finding]


class GuardedDevice:
    """One device with its thread, its deadline, its identity and its secrets.

    `name`: its name for people. `secrets`: strings that no text may hold. `timeout_s`: for one
    question, login and `retries` included. `worker`, `clock`: its thread, by a name, and its time.
    """

    def __init__(
        self,
        host_id: int,
        name: str,
        driver: Driver,
        *,
        level: int = 1,
        trusted: bool = False,
        timeout_s: float = 8.0,
        retries: int = 0,
        username: str = "",
        secrets: Iterable[str] = (),
        worker: Callable[[str], Worker] = Worker,
        clock: Clock = time,
    ) -> None:
        self.host_id = host_id
        self.name = name
        self.level = level
        self._driver = driver
        self._trusted = trusted
        self._timeout_s = timeout_s
        self._retries = retries
        self._secrets = _forms(username, secrets)
        self._new_worker, self._clock = worker, clock
        self._worker = worker(name)
        self._turn = asyncio.Lock()
        self._other: tuple[str, str] | None = None
        #: The UUIDs that other hosts published, by host id: they show whose a strange GUID is.
        self.known_uuids: Mapping[int, str] = {}

    async def read(self, system_uuid: str) -> Finding:
        """The power, and whose machine it is."""
        return await self._ask(system_uuid, _look)

    async def check(self, system_uuid: str) -> Finding:
        """The power, whose machine it is, and whether the login may switch the power."""

        def check(login: Login, found: Finding, deadline_s: float) -> Finding:
            found = _look(login, found, deadline_s)
            lacks = login.lacks()
            privilege = Privilege.LACKING if lacks else Privilege.ENOUGH
            if lacks is None:
                privilege = Privilege.UNKNOWN
            detail = found.detail or (f"{self.name}: {clean(lacks)}" if lacks else "")
            return Finding(found.power, found.identity, detail, privilege=privilege)

        return await self._ask(system_uuid, check)

    async def switch(self, system_uuid: str, on: bool, still: Still = always) -> Finding:
        """Order it on or hard off, unless it is so already, or is not proven to be the host's, or
        `still` gives a reason not to."""
        wanted = Power.ON if on else Power.OFF
        tried = False

        def last_look() -> str:
            nonlocal tried
            why = still()
            tried = tried or not why
            return why

        def switch(login: Login, found: Finding, deadline_s: float) -> Finding:
            found = _look(login, found, deadline_s)
            if not found.usable or found.power is wanted:
                return found
            try:
                login.switch(on, last_look)
            except Withdrawn as error:
                detail = f"{self.name}: the order was withdrawn: {error}"
                return replace(found, detail=detail, withdrawn=True)
            except Pointless:
                raise
            except Exception:
                # The power counts, not the answer: some devices refuse to switch off a host that is
                # off already.
                if not _becomes(login, wanted, deadline_s, self._clock):
                    raise
                return Finding(wanted, found.identity)
            return Finding(found.power, found.identity, ordered=True)

        return replace(await self._ask(system_uuid, switch), tried=tried)

    async def _ask(self, system_uuid: str, then: _Then) -> Finding:
        """Log in, find out whose machine it is, and continue with `then`."""
        if self._other is not None and self._other[0] == system_uuid:
            return Finding(Power.UNKNOWN, Identity.OTHER, self._other[1])

        def ask() -> Finding:
            monotonic = self._clock.monotonic
            deadline_s = monotonic() + self._timeout_s
            for left in range(self._retries, -1, -1):
                try:
                    with self._driver.login(deadline_s - monotonic()) as login:
                        return then(login, self._identify(login, system_uuid), deadline_s)
                except Pointless:
                    raise
                except Exception:
                    if not left or monotonic() >= deadline_s:
                        raise
            raise AssertionError("one attempt at least")

        async with self._turn:
            try:
                found = await self._worker.call("the device", self._timeout_s + GRACE_S, ask)
            except Hung as error:
                return Finding(Power.UNKNOWN, Identity.UNKNOWN, str(error))
            except Exception as error:  # pyghmi may raise any exception
                found = Finding(Power.UNKNOWN, Identity.UNKNOWN, f"{self.name}: {self._say(error)}")
            if found.usable and found.power is Power.UNKNOWN and not found.detail:
                found = replace(found, detail=f"{self.name}: its power is neither on nor off")
            # Nearly all of a hundred devices are idle: only a hung thread is kept.
            self._worker = self._new_worker(self.name)
        if found.identity is Identity.OTHER:
            self._other = (system_uuid, found.detail)
            log.error("%s; it is not used until the configuration is read anew", found.detail)
        return found

    def _identify(self, login: Login, system_uuid: str) -> Finding:
        if self._trusted:
            return Finding(Power.UNKNOWN, Identity.TRUSTED)
        guid = login.guid()
        if guid is None or guid in _NO_GUID:
            detail = 'no GUID proves whose machine it is; identity = "trusted" accepts it'
            return Finding(Power.UNKNOWN, Identity.UNKNOWN, f"{self.name}: {detail}")
        identity, detail = whose(guid, system_uuid)
        for host, known in list(self.known_uuids.items()):
            if host == self.host_id or whose(guid, known)[0] is not Identity.PROVEN:
                continue
            if identity is Identity.PROVEN:
                # Boards of one maker may all carry the same UUID; then it proves nothing.
                identity, detail = Identity.UNKNOWN, f"host {host} published the same UUID"
            elif identity is Identity.OTHER:
                detail += f"; that is host {host}: are their addresses swapped?"
        return Finding(Power.UNKNOWN, identity, detail and f"{self.name}: {detail}")

    def _say(self, error: Exception) -> str:
        text = str(error)
        if text in ("", "None"):
            text = "no answer"
        for form in self._secrets:
            text = text.replace(form, "***")
        kind = "" if isinstance(error, DeviceError) else f" ({type(error).__name__})"
        return clean(text, ERROR_CHARS_MAX) + kind


def _look(login: Login, found: Finding, deadline_s: float) -> Finding:
    return Finding(login.power(), found.identity, found.detail)


def _becomes(login: Login, wanted: Power, deadline_s: float, clock: Clock) -> bool:
    """Whether the power is seen to be the wanted one within SETTLE_S."""
    end_s = min(clock.monotonic() + SETTLE_S, deadline_s - SETTLE_STEP_S)
    with suppress(Exception):
        while login.power() is not wanted:
            if clock.monotonic() >= end_s:
                return False
            clock.sleep(SETTLE_STEP_S)
        return True
    return False


def _forms(username: str, secrets: Iterable[str]) -> tuple[str, ...]:
    """Every form in which a library or a device may write the secrets, the longest first."""
    forms: set[str] = set()
    for secret in filter(None, secrets):
        forms |= {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}
        forms |= {repr(secret.encode())[2:-1], html.escape(secret)}
        forms |= {urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret)}
        forms |= {base64.b64encode(t.encode()).decode() for t in (secret, f"{username}:{secret}")}
    return tuple(sorted(forms, key=len, reverse=True))


def whose(guid: bytes, system_uuid: str) -> tuple[Identity, str]:
    """Whether a GUID and a published UUID belong to one machine, and the sentence when not."""
    if not system_uuid:
        return Identity.UNKNOWN, "the host published no machine UUID to compare with"
    try:
        published = uuid.UUID(system_uuid)
    except ValueError:
        return Identity.UNKNOWN, f"the host published {system_uuid!r}, which is no UUID"
    orders = {published.bytes, published.bytes_le, published.bytes[::-1], published.bytes_le[::-1]}
    if guid in orders:
        return Identity.PROVEN, ""
    return Identity.OTHER, f"its GUID is {guid.hex()}, the host published {published}"


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

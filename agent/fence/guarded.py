# SPDX-License-Identifier: LGPL-2.1-or-later
"""One fence device with its guards: whose machine it switches, its deadline, its secrets.

1. A device's answer counts, and an order is given to it, only when its GUID is the UUID that
   the host published, or the configuration trusts it by name. The GUID is read in the same
   login as the power, before the order.
2. A device that shows another machine's GUID is not asked again until the configuration is
   read anew or the host publishes another UUID.
3. Each device has its own thread and its own deadline, and one question at a time: a device
   that hangs does not delay another.
4. No text that leaves this file holds a password.
5. A device that refuses the login is not asked again for a while, longer after each refusal: the
   power of a silent host is read every few seconds, and many BMCs lock an account after three wrong
   passwords.
6. Immediately before each order, after the login, the device's thread asks whether the order must
   still be given: a login may take seconds, and a host that hung may live again meanwhile.

Firmware disagrees on the byte order of a GUID (SMBIOS 7.2.1 has its first three fields
little-endian, IPMI sends the whole least significant byte first), so each of these orders
counts as the same machine.
"""

from __future__ import annotations

import asyncio
import base64
import html
import json
import logging
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from agent.fence.driver import DeviceError, Driver, Login, Pointless, Refused, Withdrawn, always
from agent.ports import Still
from broker.daemon.foreign import clean
from broker.daemon.worker import Hung, Worker
from scoring.observation import Power

log = logging.getLogger("ha-agent.fence")

ERROR_CHARS_MAX = 300
#: SMBIOS 7.2.1: not present, and not set.
_NO_GUID = (b"\xff" * 16, bytes(16))
#: A driver keeps its deadline itself; one that is late by this much is hung.
GRACE_S = 0.5
#: Time for the power to change after an order that was answered with an error.
SETTLE_S = 2.0
SETTLE_STEP_S = 0.5
#: The pause after a refused login; each further one doubles it, up to the longest.
REFUSED_PAUSE_S = 10.0
REFUSED_PAUSE_MAX_S = 60.0


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
    given any more. `privilege`: UNKNOWN where the device was not asked for it. `is_pointless`:
    asking again changes nothing until somebody acts: the password is refused, for example."""

    power: Power
    identity: Identity
    detail: str = ""
    ordered: bool = False
    privilege: Privilege = Privilege.UNKNOWN
    tried: bool = False
    withdrawn: bool = False
    is_pointless: bool = False

    @property
    def usable(self) -> bool:
        """Whether its answer counts."""
        return self.identity in (Identity.PROVEN, Identity.TRUSTED)


class Clock(Protocol):
    """The time of a device's thread, in seconds; the module `time` is one."""

    def monotonic(self) -> float:
        """A time that only grows."""

    def sleep(self, seconds: float, /) -> None:
        """Block the thread for this many seconds."""


#: What to do with a login, given the finding so far and the deadline.
_Then = Callable[[Login, Finding, float], Finding]


@dataclass(frozen=True, slots=True)
class DeviceSetting:
    """How a device is used. `trusted`: its answer counts without a GUID. `timeout_s`: for one
    question, login and `retries` included. `secrets`: strings that no text may hold; `username`
    stands before one of them in the form of HTTP's basic authentication."""

    level: int = 1
    trusted: bool = False
    timeout_s: float = 8.0
    retries: int = 0
    username: str = ""
    secrets: Iterable[str] = ()


_DEFAULT = DeviceSetting()


class GuardedDevice:
    """One device with its thread, its deadline, its identity and its secrets.

    `name`: its name for people. `worker`, `clock`: its thread, by a name, and its time.
    """

    def __init__(
        self,
        host_id: int,
        name: str,
        driver: Driver,
        given: DeviceSetting = _DEFAULT,
        *,
        worker: Callable[[str], Worker] = Worker,
        clock: Clock = time,
    ) -> None:
        self.host_id = host_id
        self.name = name
        self.level = given.level
        self._driver, self._given = driver, given
        self._secrets = _forms(given.username, given.secrets)
        self._new_worker, self._clock = worker, clock
        self._worker = worker(name)
        self._turn = asyncio.Lock()
        self._other: tuple[str, str] | None = None
        self._refused, self._refused_until_s = "", float("-inf")
        self._pause_s = 0.0
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
        """Order it on or hard off, unless it is not proven to be the host's, or `still` gives a
        reason not to. One that reads off is not ordered off. One that reads on is ordered on all
        the same: the order changes nothing where that is true, and some devices report the power of
        many seconds ago.

        A device that did not let this host in is asked once more: an order always comes right after
        a reading, so one that answers every other question would swallow each of them. Not one that
        refused the login: many BMCs lock an account after three wrong passwords. Lasts up to twice
        the device's time."""
        wanted = Power.ON if on else Power.OFF
        tried = was_let_in = False

        def last_look() -> str:
            nonlocal tried
            why = still()
            tried = tried or not why
            return why

        def switch(login: Login, found: Finding, deadline_s: float) -> Finding:
            nonlocal was_let_in
            was_let_in = True
            found = _look(login, found, deadline_s)
            if not found.usable or (found.power is wanted and not on):
                return found
            was_so = found.power is wanted
            try:
                login.switch(on, last_look)
            except Exception as error:
                if not was_so:
                    return failed(login, found, deadline_s, error)
                log.info("%s reads on, and was not ordered on: %s", self.name, self._say(error))
            return found if was_so else Finding(found.power, found.identity, ordered=True)

        def failed(login: Login, found: Finding, deadline_s: float, error: Exception) -> Finding:
            if isinstance(error, Withdrawn):
                detail = f"{self.name}: the order was withdrawn: {error}"
                return replace(found, detail=detail, withdrawn=True)
            # The power counts, not the answer: some devices refuse to switch off a host that is off
            # already.
            is_pointless = isinstance(error, Pointless)
            if is_pointless or not _becomes(login, wanted, deadline_s, self._clock):
                raise error
            return Finding(wanted, found.identity)

        found = await self._ask(system_uuid, switch)
        if not was_let_in and not found.is_pointless and not still():
            found = await self._ask(system_uuid, switch)
        return replace(found, tried=tried)

    async def _ask(self, system_uuid: str, then: _Then) -> Finding:
        """Log in, find out whose machine it is, and continue with `then`."""
        if self._other is not None and self._other[0] == system_uuid:
            return Finding(Power.UNKNOWN, Identity.OTHER, self._other[1])
        monotonic = self._clock.monotonic

        def ask() -> Finding:
            deadline_s = monotonic() + self._given.timeout_s
            for left in range(self._given.retries, -1, -1):
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
            if monotonic() < self._refused_until_s:
                return Finding(Power.UNKNOWN, Identity.UNKNOWN, self._refused, is_pointless=True)
            try:
                found = await self._worker.call("the device", self._given.timeout_s + GRACE_S, ask)
            except Hung as error:
                return Finding(Power.UNKNOWN, Identity.UNKNOWN, str(error))
            except Exception as error:  # pyghmi may raise any exception
                found = Finding(
                    Power.UNKNOWN,
                    Identity.UNKNOWN,
                    f"{self.name}: {self._say(error)}",
                    is_pointless=isinstance(error, Pointless),
                )
                if isinstance(error, Refused):
                    self._pause(found.detail)
            else:
                self._pause_s = 0.0
            if found.usable and found.power is Power.UNKNOWN and not found.detail:
                found = replace(found, detail=f"{self.name}: its power is neither on nor off")
            # Nearly all of a hundred devices are idle: only a hung thread is kept.
            self._worker = self._new_worker(self.name)
        if found.identity is Identity.OTHER:
            self._other = (system_uuid, found.detail)
            log.error("%s; it is not used until the configuration is read anew", found.detail)
        return found

    def _pause(self, refused: str) -> None:
        """Ask the device nothing for a while (rule 5). `refused`: what is answered meanwhile."""
        self._pause_s = min(max(REFUSED_PAUSE_S, 2 * self._pause_s), REFUSED_PAUSE_MAX_S)
        self._refused = refused
        self._refused_until_s = self._clock.monotonic() + self._pause_s

    def _identify(self, login: Login, system_uuid: str) -> Finding:
        if self._given.trusted:
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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the VM answers when it is asked from here while it runs on another host: what its users
would see, as far as another host can tell.

The same question as the health check's, over this host's own network. What it saw counts for one
place alone: one host, one stay.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import urlsplit

from broker.config.sections import HealthSection
from broker.monitors import Unknown
from scoring.observation import OutsideView

#: How often it looks whether there is anything to ask.
IDLE_S = 60.0
#: A VM that answered before, and has not answered a question for so long, may be missed soon.
LATE_S = 1.0


class OutsideProbe(Protocol):
    """Port to the VM as its users reach it."""

    async def problem(self) -> str | None:
        """Why the VM does not answer well when it is asked from this host; None when it does."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the VM is up: the host, and the `last_ran` that it published."""

    owner: int
    stay: int


class OutsideMonitor:
    """`seen`: what was seen of the place that is watched; None while none is."""

    name = "outside"
    unit = ""

    def __init__(self, probe: OutsideProbe | None, deadline_s: float) -> None:
        """`probe` None: only the VM's own host can ask it."""
        self.probe = probe
        self.deadline_s = deadline_s
        self.interval_s = IDLE_S
        self.seen: OutsideView | None = None
        self._why = ""
        self._asked_s: float | None = None

    def is_late(self, now_s: float) -> bool:
        """Whether a VM that has answered before lets a question wait, which is no miss yet."""
        is_known = self.seen is not None and self.seen.good_s is not None
        return is_known and self._asked_s is not None and now_s - self._asked_s >= LATE_S

    def watch(self, place: Place | None, every_s: float) -> bool:
        """Ask the VM there from now on, None: nowhere; whether it must be asked sooner than it
        would be. What was seen of another place is forgotten."""
        if self.probe is None or place is None:
            self.seen, self.interval_s = None, IDLE_S
            return False
        is_sooner = every_s < self.interval_s
        self.interval_s = every_s
        if self.seen is None or (self.seen.owner, self.seen.stay) != (place.owner, place.stay):
            self.seen = OutsideView(place.owner, place.stay)
            is_sooner = True
        return is_sooner

    async def sample(self) -> bool:
        """Whether it answers well; Unknown while there is nothing to ask."""
        before = self.seen
        if before is None or self.probe is None:
            raise Unknown("the VM is up on no other host, or only its own host can ask it")
        self._asked_s = asked_s = asyncio.get_running_loop().time()
        try:
            problem = await self.probe.problem()
        finally:
            self._asked_s = None
        now = self.seen
        if now is None or (now.owner, now.stay) != (before.owner, before.stay):
            raise Unknown("the VM has moved meanwhile")
        self._why = problem or ""
        if problem is None:
            self.seen = OutsideView(now.owner, now.stay, asked_s)
            return True
        since_s = asked_s if now.bad_since_s is None else now.bad_since_s
        self.seen = OutsideView(now.owner, now.stay, now.good_s, since_s)
        return False

    def judge(self, value: bool) -> str:
        """Why it does not answer well."""
        return self._why


def is_local(given: HealthSection) -> bool:
    """Whether only the VM's own host can ask the VM by this check: through QEMU, at an address
    of the host's own, or not at all."""
    if given.page:
        name = urlsplit(given.page).hostname or ""
    elif given.tcp:
        name = urlsplit(f"//{given.tcp}").hostname or ""
    else:
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")

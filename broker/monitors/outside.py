# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the VM, while it runs on another host, answers this host: what its users would see, as
far as another host can know.

It asks the question of the health check over this host's own network. The results count for one
place only: one host, one stay of the VM there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import urlsplit

from broker.config.sections import HealthSection
from broker.monitors.runner import Unknown
from scoring.vm_facts import OutsideView

#: The interval at which it checks whether there is anything to ask.
IDLE_S = 60.0
#: A VM that answered before and leaves a question unanswered for so long may be missed soon.
LATE_S = 1.0


class OutsideProbe(Protocol):
    """Port to the VM as its users reach it."""

    async def problem(self) -> str | None:
        """Why the VM does not answer this host well; None when it does."""


@dataclass(frozen=True, slots=True)
class Place:
    """A stay of the VM: the host, and the `last_ran` that the host published."""

    owner: int
    stay: int


class OutsideMonitor:
    """`seen`: the results for the watched place; None while no place is watched."""

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
        """Whether a VM that answered before leaves a question waiting, which is not yet a miss."""
        is_known = self.seen is not None and self.seen.good_s is not None
        return is_known and self._asked_s is not None and now_s - self._asked_s >= LATE_S

    def watch(self, place: Place | None, every_s: float) -> bool:
        """Ask the VM at that place from now on, None: nowhere. Returns whether it must be asked
        before its next turn. The results for another place are forgotten."""
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
        """Why the VM does not answer well."""
        return self._why


def address_of(given: HealthSection) -> str:
    """Where the VM is asked for its health, as host:port; "": only its own host can ask it."""
    if is_local(given):
        return ""
    parts = urlsplit(given.page or f"tcp://{given.tcp}")
    name = parts.hostname or ""
    port = parts.port or (80 if parts.scheme == "http" else 443)
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def is_local(given: HealthSection) -> bool:
    """Whether only the VM's own host can make this check: through QEMU, at an address of the
    host's own, or not at all."""
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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The network test: which fraction of pings to the configured targets is answered.

Five echo requests half a second apart, each with its own five seconds, as the reference
does. ICMP without privileges needs net.ipv4.ping_group_range (icmp(7)); where that does not
hold for us, a raw socket is tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from icmplib import SocketPermissionError, async_ping

COUNT = 5
APART_S = 0.5
TIMEOUT_S = 5.0


class NetworkMonitor:
    """Fraction 0..1 of answered pings over all targets; None when it could not be asked."""

    name = "network"
    interval_s = 10.0
    deadline_s = COUNT * (APART_S + TIMEOUT_S) + 5.0

    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = targets

    async def sample(self) -> float | None:
        if not self._targets:
            return None
        fractions = await asyncio.gather(*(self._ping(target) for target in self._targets))
        return sum(fractions) / len(fractions)

    async def _ping(self, target: str) -> float:
        try:
            return await self._ask(target, privileged=False)
        except SocketPermissionError:
            return await self._ask(target, privileged=True)

    @staticmethod
    async def _ask(target: str, privileged: bool) -> float:
        host = await async_ping(
            target, count=COUNT, interval=APART_S, timeout=TIMEOUT_S, privileged=privileged
        )
        return float(host.packets_received) / COUNT

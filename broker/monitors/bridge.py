# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the management bridge exists and is up and running (IFF_UP, IFF_RUNNING)."""

from __future__ import annotations

import psutil


class BridgeMonitor:
    """True: up. False: down or not there."""

    name = "bridge"
    interval_s = 2.0
    deadline_s = 5.0

    def __init__(self, bridge: str) -> None:
        self._bridge = bridge

    async def sample(self) -> bool:
        state = psutil.net_if_stats().get(self._bridge)
        return state is not None and bool(state.isup)

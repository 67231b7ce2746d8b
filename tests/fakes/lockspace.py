# SPDX-License-Identifier: LGPL-2.1-or-later
"""A lockspace that is joined, or not, as the test says."""

from __future__ import annotations

import asyncio

from broker.witness import Witness


class FakeLockspace:
    """Lockspace port."""

    def __init__(self, joined: bool | None = True) -> None:
        self.joined = joined
        self.problem = "" if joined else "not joined yet"
        self.witnesses: dict[int, Witness] = {}
        self.renewed_s: float | None = None

    async def run(self) -> None:
        await asyncio.Event().wait()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one dangerous act: freeing a dead host's id. Every condition is checked once more at its
moment.

The decision has checked its own conditions (scoring/hosts/evidence.py); these here are checked
last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from agent.ports import Still
from scoring.decision import FreeHostId
from scoring.observation import HostIdFreed

log = logging.getLogger("ha-agent.freeing")


class DeltaLeases(Protocol):
    """Port to the host ids on the lease volume, without sanlock's daemon."""

    async def read_delta(self, host_id: int) -> tuple[int, int] | None:
        """(generation, timestamp) of a host id on disk; None where it cannot be read."""

    async def release_id(self, act: FreeHostId, still: Still) -> str:
        """Mark a host id as free on disk; returns why that failed, or "". `still` is asked when
        nothing but the write is left to do. Returns when the write has ended: until then it may
        still land, even after its process was killed."""


async def free_host_id(
    act: FreeHostId,
    own_host_id: int,
    io_timeout_s: float,
    fence_held: Callable[[], bool],
    disk: DeltaLeases,
    still: Still,
) -> HostIdFreed:
    """Free the host id if all conditions still hold; ok only when the disk shows it free
    afterwards. `still`: why it must not be freed any more."""
    time_s = asyncio.get_running_loop().time

    def last_look() -> str:
        """The conditions at the moment of the act: nothing is awaited after this."""
        if not act.fencer and not fence_held():
            return "the fence lease is not held"
        age_s = time_s() - act.off_read_s
        if age_s > io_timeout_s:
            return f"the power reading is {age_s:.1f} s old"
        return still()

    problem = await _refusal(act, own_host_id, disk) or last_look()
    if not problem:
        problem = await disk.release_id(act, last_look)
    if problem:
        log.error("host id %d is not freed: %s", act.host_id, problem)
        return HostIdFreed(act.host_id, False, problem)
    freed = was_freed(act, await disk.read_delta(act.host_id))
    if freed.ok:
        log.warning(
            "freed host id %d (generation %d): proven off, fence lease %s",
            act.host_id,
            act.generation,
            "its own" if act.fencer else "held",
        )
    return freed


def was_freed(act: FreeHostId, on_disk: tuple[int, int] | None) -> HostIdFreed:
    """The outcome by what the disk shows. A command that returned 0 is not a fact: a free id has
    timestamp 0 on disk, and the generation that was freed."""
    if on_disk != (act.generation, 0):
        return HostIdFreed(act.host_id, False, f"the id is not free on disk: {on_disk}")
    return HostIdFreed(act.host_id, True)


async def _refusal(act: FreeHostId, own_host_id: int, disk: DeltaLeases) -> str:
    """Why the id must not be freed; empty: the disk shows what it showed at the decision."""
    if act.host_id == own_host_id:
        return "it is this host's own id"
    on_disk = await disk.read_delta(act.host_id)
    if on_disk != (act.generation, act.timestamp):
        return (
            f"its lease on disk shows generation and timestamp {on_disk}, "
            f"expected {(act.generation, act.timestamp)}"
        )
    return ""

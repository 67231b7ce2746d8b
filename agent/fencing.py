# SPDX-License-Identifier: LGPL-2.1-or-later
"""Switching a host off, and on again: what is checked last thing, and what the log is told.

The decision has checked its own conditions (scoring/evidence.py); these are of the moment
of the act. The fence log is written before: who finds an intent without an end knows that
a host may have been switched off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from agent.ports import FenceDevices, FenceLog, Leases
from scoring.decision import NoteFenceFailed, PowerOffHost, PowerOnHost
from scoring.observation import FenceStep, PowerOffEnded, PowerOnEnded

log = logging.getLogger("ha-agent.fencing")


async def power_off_host(
    act: PowerOffHost,
    system_uuid: str,
    slot: Callable[[int], int | None],
    leases: Leases,
    devices: FenceDevices,
    fence_log: FenceLog,
) -> PowerOffEnded:
    """Switch it off if all of it still holds. `slot`: a host's timestamp on the whiteboard now."""
    host = act.host_id
    problem = await fence_log.note(FenceStep.INTENT, host, True, act.evidence)
    if problem:
        return _refused(host, f"the fence log could not be written: {problem}")
    on_disk = await leases.read_delta(host)
    if on_disk != (act.generation, act.timestamp):
        return _refused(
            host,
            f"its host id on disk shows generation and timestamp {on_disk}, "
            f"expected {(act.generation, act.timestamp)}",
        )
    # Nothing is awaited from here to the order: these are true at its moment.
    if slot(host) != act.slot:
        return _refused(host, "its slot on the whiteboard has changed: it lives")
    if not leases.fence_held:
        return _refused(host, "the fence lease is not held")
    log.warning("switching host %d off (order %d): %s", host, act.attempt + 1, act.evidence)
    return await devices.power_off(host, system_uuid, act.attempt)


def _refused(host: int, why: str) -> PowerOffEnded:
    log.error("host %d is not switched off: %s", host, why)
    return PowerOffEnded(host, False, why)


async def power_on_host(
    act: PowerOnHost,
    system_uuid: str,
    leases: Leases,
    devices: FenceDevices,
    fence_log: FenceLog,
) -> PowerOnEnded:
    """Switch a host on again; under the fence lease, since the log is written."""
    if not leases.fence_held:
        answer = await leases.take_fence()
        if not answer.held:
            return PowerOnEnded(act.host_id, False, f"the fence lease: {answer.detail}")
    ended = await devices.power_on(act.host_id, system_uuid)
    if ended.ok:
        problem = await fence_log.note(FenceStep.BACK, act.host_id, True, "switched on again")
        if problem:
            return PowerOnEnded(act.host_id, False, f"the fence log: {problem}")
    return ended


async def note_failed(act: NoteFenceFailed, fence_log: FenceLog) -> None:
    """Tell the log that a host was not switched off after all."""
    log.error("host %d could not be switched off: %s", act.host_id, act.why)
    problem = await fence_log.note(FenceStep.FAILED, act.host_id, True, act.why)
    if problem:
        log.error("the fence log could not be written: %s", problem)

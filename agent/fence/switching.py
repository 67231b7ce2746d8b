# SPDX-License-Identifier: LGPL-2.1-or-later
"""Switches a host off, and on again: the last checks, the order, and the records in the fence log.

The decision has checked its own conditions (scoring/hosts/evidence.py); these here are checked at
the moment of the act, and the device asks `still` once more, right before each order. The fence log
is written before the order: an intent without an end means that a host may have been switched off.
The end of an intent may also be that its order was withdrawn.
"""

from __future__ import annotations

import logging

from agent.ports import FenceDevices, FenceLog, Leases, Still
from broker.wire.exchange import FenceNote
from scoring.decision import NoteFenceFailed, PowerOffHost, PowerOnHost
from scoring.observation import FenceStep, PowerOffEnded, PowerOnEnded

log = logging.getLogger("ha-agent.fencing")


async def power_off_host(
    act: PowerOffHost,
    system_uuid: str,
    still: Still,
    leases: Leases,
    devices: FenceDevices,
    fence_log: FenceLog,
    is_noted: bool = False,
) -> PowerOffEnded:
    """Switch it off if all conditions still hold. `still`: why it must not be switched off any
    more.
    `is_noted`: the log has this host's intent from an earlier order of the same act."""
    host = act.host_id
    if not is_noted:
        problem = await fence_log.note(FenceNote(FenceStep.INTENT, host, True, act.evidence))
        if problem:
            why = f"the fence log could not be written: {problem}"
            log.error("host %d is not switched off: %s", host, why)
            return PowerOffEnded(host, False, why, withdrawn=True)
    on_disk = await leases.read_delta(host)
    why = ""
    # A host that asks to be switched off lives, and renews.
    is_as_decided = on_disk == (act.generation, act.timestamp) or (
        act.asked and on_disk is not None and on_disk[0] == act.generation
    )
    if not is_as_decided:
        why = (
            f"its host id on disk shows generation and timestamp {on_disk}, "
            f"expected {(act.generation, act.timestamp)}"
        )
    why = why or still()
    if why:
        ended = PowerOffEnded(host, False, f"the order was withdrawn: {why}", withdrawn=True)
    else:
        log.warning("switching host %d off (order %d): %s", host, act.attempt + 1, act.evidence)
        ended = await devices.power_off(host, system_uuid, act.attempt, still)
    if ended.withdrawn:
        log.warning("host %d is not switched off: %s", host, ended.detail)
        if act.attempt == 0:
            # Earlier orders of this act were given, so their intent stays open.
            await _note_failed(host, ended.detail, fence_log, withdrawn=True)
    return ended


async def power_on_host(
    act: PowerOnHost,
    system_uuid: str,
    still: Still,
    leases: Leases,
    devices: FenceDevices,
    fence_log: FenceLog,
) -> PowerOnEnded:
    """Switch a host on again, under the fence lease, which is needed to write the log."""
    if not leases.fence_held:
        answer = await leases.take_fence()
        if not answer.held:
            return PowerOnEnded(act.host_id, False, f"the fence lease: {answer.detail}")
    ended = await devices.power_on(act.host_id, system_uuid, still)
    if ended.ok:
        note = FenceNote(FenceStep.BACK, act.host_id, True, "switched on again")
        problem = await fence_log.note(note)
        if problem:
            return PowerOnEnded(act.host_id, False, f"the fence log: {problem}")
    return ended


async def note_failed(act: NoteFenceFailed, fence_log: FenceLog) -> None:
    """Record in the log that a host was not switched off after all."""
    log.error("host %d could not be switched off: %s", act.host_id, act.why)
    await _note_failed(act.host_id, act.why, fence_log)


async def _note_failed(host: int, why: str, fence_log: FenceLog, withdrawn: bool = False) -> None:
    note = FenceNote(FenceStep.FAILED, host, True, why, withdrawn=withdrawn)
    problem = await fence_log.note(note)
    if problem:
        log.error("the fence log could not be written: %s", problem)

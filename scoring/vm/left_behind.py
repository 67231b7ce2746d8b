# SPDX-License-Identifier: LGPL-2.1-or-later
"""Removes what a VM has left behind on a host that does not run it: a process without a living
guest, a memory image, libvirt's autostart.

Such a process prevents every start here. A memory image (managed save) is the guest's memory at the
time when a person, or libvirt-guests at a shutdown, saved the VM here. A start by hand would resume
it: if the VM has run on another host since, old memory would then work on newer disks. This agent's
own start never resumes an image (agent/vm/hypervisor.py), and this file removes it as soon as the
VM runs anywhere, so that no other start finds it.

Rules of this file:

1. In global maintenance, or while a slot cannot be read, nothing is removed.
2. The process of a crashed guest is ended. A process that waits for a guest that no host sends is
   ended only after LEFTOVER_AFTER_S, if it holds no lease and no live host moves the VM.
3. A memory image is removed once the VM is up, here or on a live host; never while it is being
   written.
4. libvirt's autostart is always turned off: this agent decides when the VM is started.
"""

from __future__ import annotations

from dataclasses import replace

from scoring.decision import Code, DisarmDomain, PowerOffVm
from scoring.observation import VmStopEnded
from scoring.vm.state import StateName
from scoring.vm.turn import VmTurn
from scoring.vm_facts import Leftover, Pause

_S = StateName

#: States in which nothing of the VM should be here.
_EMPTY = frozenset(
    {_S.ENGINE_DOWN, _S.ENGINE_UNEXPECTEDLY_DOWN, _S.ENGINE_MAYBE_AWAY, _S.LOCAL_MAINTENANCE}
)
#: A migration that breaks off ends its receiver by itself within moments.
LEFTOVER_AFTER_S = 10.0
#: The pause before libvirt is asked again for something that it did not do.
RETRY_S = 15.0


def clear(turn: VmTurn) -> None:
    """Remove what is left here. Called once a beat, after the states."""
    _end_leftover(turn)
    _disarm(turn)


def _may_act(turn: VmTurn) -> bool:
    is_ended = turn.state.name is _S.AGENT_STOPPED
    return turn.cluster_allows and not is_ended and not turn.state.acting


def _say(turn: VmTurn, code: Code, text: str) -> None:
    """Add a reason in front of the state's reasons, since the last reason must be the state's."""
    turn.reasons.insert(0, turn.reason(code, text))


def _end_leftover(turn: VmTurn) -> None:
    if turn.state.name not in _EMPTY:
        return
    ended = turn.take(VmStopEnded)
    if ended is not None and not ended.ok:
        _say(turn, Code.STOP_FAILED, f"the VM's process could not be ended: {ended.detail}")
    leftover = turn.here.domain.leftover
    if leftover is None or turn.sample_is_stale or not _may_act(turn):
        return
    if leftover is Leftover.NOT_RECEIVED and not _nobody_sends_it(turn):
        return
    if turn.now_s - turn.state.leftover_ended_s < RETRY_S:
        return
    what = turn.here.report.reason or leftover.value
    _say(turn, Code.LEFTOVER_VM, f"a process of the VM is left here ({what}): ending it")
    turn.state = replace(turn.state, leftover_ended_s=turn.now_s)
    turn.act(PowerOffVm())


def _nobody_sends_it(turn: VmTurn) -> bool:
    return (
        turn.now_s - turn.here.domain.leftover_since_s >= LEFTOVER_AFTER_S
        and turn.here.lease_held is False
        and not turn.uncertain
        and not any(turn.at(p).state == _S.ENGINE_MIGRATING_AWAY for p in turn.live)
    )


def _disarm(turn: VmTurn) -> None:
    state, domain = turn.state, turn.here.domain
    has_run = turn.vm_up_here or turn.up_elsewhere() is not None
    is_dead = bool(domain.memory_image) and has_run and domain.pause is not Pause.SAVE
    if domain.memory_image:
        then = "it is discarded" if is_dead else "the next start discards it, for a start is a boot"
        _say(turn, Code.MEMORY_IMAGE, f"a memory image of the VM lies here (managed save): {then}")
    if domain.autostart:
        text = "libvirt would start the VM by itself when this host boots: autostart is turned off"
        _say(turn, Code.AUTOSTART, text)
    if not (is_dead or domain.autostart) or not _may_act(turn):
        return
    if not state.disarming and turn.now_s - state.disarmed_s >= RETRY_S:
        turn.ask(DisarmDomain(image=is_dead))
        turn.state = replace(state, disarming=True)

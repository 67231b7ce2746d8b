# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of the VM is left on a host that does not run it, and would be in the way or worse: a
process without a living guest, a memory image, libvirt's own wish to start it.

A memory image (managed save) is the guest's memory as it was when somebody, or libvirt-guests at a
shutdown, saved the VM here. Whoever starts the VM here without further thought has it resumed:
old memory over disks that are newer, once the VM has run anywhere else. Our own start never
resumes one (agent/vm/hypervisor.py); here one is taken away as soon as the VM has run elsewhere or
runs here, so that no other start finds it.

1. In global maintenance, and while not everything of the whiteboard can be read, nothing is done.
2. A process of a crashed guest is ended. One that waits for a guest that nobody sends is ended only
   when that has been so for LEFTOVER_AFTER_S, it holds no lease, and no live host moves the VM.
3. A memory image goes once the VM is up, here or on a live host; never while one is being written.
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
#: What libvirt did not do is asked of it again after this.
RETRY_S = 15.0


def clear(turn: VmTurn) -> None:
    """Take away what is left here; called once a beat, after the states."""
    _end_leftover(turn)
    _disarm(turn)


def _may_act(turn: VmTurn) -> bool:
    is_ended = turn.state.name is _S.AGENT_STOPPED
    return turn.cluster_allows and not is_ended and not turn.state.acting


def _say(turn: VmTurn, code: Code, text: str) -> None:
    """Before the reasons of the state, the last of which is the one that counts."""
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

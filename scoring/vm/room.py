# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes, keeps and gives up this host's own claims on room, that is on free memory of a host.

Before a VM is started or migrated, the memory for it is claimed, so that two hosts do not use the
same memory. What a claim allows is decided in scoring/vm/claims.py; here is its life.

Rules of this file:

1. A claim counts once the storage has acknowledged it and all slots were read after that
   (`Observation.own_claims`). Before that nothing begins.
2. A claim that was granted stays granted as long as it exists: hosts that claim later see it.
3. A claim is kept while it is wanted, while the start or the migration is under way, and for HOLD_S
   after its host was first seen to show the VM; otherwise it is given up at once.
4. If the engine is the only VM, no other VM competes for memory, and nothing is claimed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from scoring.decision import Code
from scoring.vm.claims import HOLD_S, Verdict, verdict
from scoring.vm.state import Held, StateName
from scoring.vm.turn import VmTurn
from scoring.vm_facts import Claim, VmStatus

#: How long after it was last wanted a claim ends by itself, for the case that its host dies or
#: cannot write.
CLAIM_S = 30.0
#: How long a claim is kept after a successful start or migration while no host shows the VM yet.
SHOWN_WITHIN_S = 15.0
#: The pause of a host that has withdrawn its claim before it claims again.
WITHDRAWN_S = 3.0


def secure(turn: VmTurn, target: int) -> bool:
    """Whether the VM may be brought to `target` now: the memory there is claimed and granted. If
    not, makes the claim and adds the reason for the wait."""
    several = turn.several
    if several is None:
        return True
    turn.wants_room = True
    held, number = turn.state.held, turn.number
    where = several.title(target)
    if held is not None and held.claim.host_id == target and held.granted:
        return True
    if held is None or held.claim.host_id != target:
        if turn.now_s < turn.state.no_claim_until_s:
            turn.because(Code.ROOM_WAITING, f"the room on {where} was claimed by others just now")
            return False
        claim = Claim(number, target, several.own_id, turn.now_s + CLAIM_S)
        turn.state = replace(turn.state, held=Held(claim, turn.observation.sweep))
        several.moving += target != several.own_id
        turn.because(Code.ROOM_CLAIMED, f"claiming the room for it on {where}")
        return False
    stands = any(
        own.number == number and own.host_id == target for own in turn.observation.own_claims
    )
    host = several.hosts.get(target)
    if not stands or host is None:
        turn.because(Code.ROOM_CLAIMED, f"the claim on the room on {where} is being written")
        return False
    others = [c for c in several.claims if (c.number, c.by) != (number, several.own_id)]
    found = verdict(held.claim, others, host, several.specs, held.waited)
    match found:
        case Verdict.BEGIN:
            turn.state = replace(turn.state, held=replace(held, granted=True))
            return True
        case Verdict.WAIT:
            waited = held.waited + (turn.observation.sweep > held.sweep)
            held = replace(held, waited=waited, sweep=turn.observation.sweep)
            turn.state = replace(turn.state, held=held)
            turn.because(Code.ROOM_WAITING, f"other VMs give up the room on {where} first")
        case Verdict.WITHDRAW:
            until_s = turn.now_s + WITHDRAWN_S
            turn.state = replace(turn.state, held=None, no_claim_until_s=until_s)
            turn.because(Code.ROOM_WAITING, f"others have claimed the room on {where}")
        case _:
            assert_never(found)
    return False


def keep(turn: VmTurn) -> None:
    """Keep the claim of this VM, or give it up (rule 3); called once a beat, after the states."""
    held = turn.state.held
    if held is None:
        return
    now_s = turn.now_s
    if turn.wants_room or turn.state.acting:
        claim = held.claim
        if claim.until_s - now_s < CLAIM_S / 2:
            # Each change of a claim makes the broker write the slot at once, so it is renewed
            # seldom.
            claim = replace(claim, until_s=now_s + CLAIM_S)
        used = held.used or turn.state.acting
        if claim is not held.claim or used != held.used:
            turn.state = replace(turn.state, held=replace(held, claim=claim, used=used))
        return
    if not held.used or _came_to_nothing(turn, held.claim.host_id):
        turn.state = replace(turn.state, held=None)
        return
    if held.shown_s is None and _shows(turn, held.claim.host_id):
        held = replace(held, shown_s=now_s)
    until_s = held.claim.until_s if held.shown_s is None else held.shown_s + HOLD_S
    until_s = min(until_s, turn.state.acted_s + SHOWN_WITHIN_S + HOLD_S)
    if now_s >= until_s:
        turn.state = replace(turn.state, held=None)
    else:
        claim = replace(held.claim, until_s=until_s)
        turn.state = replace(turn.state, held=replace(held, claim=claim))


def _shows(turn: VmTurn, target: int) -> bool:
    """Whether the host reports the VM up there."""
    if target == turn.observation.local.host_id:
        return turn.vm_up_here
    peer = next((p for p in turn.live if p.host_id == target), None)
    return peer is not None and turn.at(peer).report.vm is VmStatus.UP


def _came_to_nothing(turn: VmTurn, target: int) -> bool:
    """Whether the start or the migration has ended without the VM on its way to `target`."""
    if turn.sample_is_stale:
        return False
    if target == turn.observation.local.host_id:
        return not turn.vm_up_here
    return turn.vm_up_here and turn.state.name is not StateName.ENGINE_MIGRATING_AWAY

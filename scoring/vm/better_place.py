# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides whether a running VM of the registry should move to another host.

A move costs the VM's users a moment, and one move is often the reason for the next. So a VM moves
only if the move improves a fixed measure, which cannot improve for ever: at rest no VM moves.

Rules of this file:

1. One VM moves at a time. None moves while a missing VM has to be placed, and none that came to its
   host less than SETTLED_S ago.
2. If two VMs break a rule together, the one that is served later moves.
3. A VM that shares a host with VMs with which it must be together does not leave them for a better
   score, a preferred host or free memory: it would have to come back.

The measure, compared in this order:

    rules     the VM breaks a rule of its own where it is (`only`, `apart`, `together`)
    score     its host scores less than the other one by at least `move_threshold`
    liking    with `failback`: the position of its host in `prefer`
    memory    with `balance`: the memory that its host has free (scoring/vm/balance.py)
"""

from __future__ import annotations

from scoring.vm.balance import evener_place, liking
from scoring.vm.placement import Candidate
from scoring.vm.state import StateName
from scoring.vm.targets import targets
from scoring.vm.turn import VmTurn
from scoring.vm_facts import VmSpec

SETTLED_S = 600.0


def better_place(turn: VmTurn) -> tuple[Candidate | None, str]:
    """The host where the measure is better than here, and a text that says in what; None: there is
    no such host."""
    several, v = turn.several, turn.spec
    assert several is not None and v is not None
    if turn.in_state_s < SETTLED_S or _others_come_first(turn):
        return None, ""
    broken = _broken_rule(turn, v)
    if broken:
        return next(iter(targets(turn)), None), broken
    mates = several.relations.together.get(v.number, frozenset())
    if any(several.up_at.get(n) == several.own_id for n in mates):
        return None, ""
    own = several.hosts[several.own_id]
    here = own.score - own.lacks.get(v.number, 0)
    highest = max(host.score for host in several.hosts.values())
    might_go_back = v.failback and liking(v, several.own_id) > 0
    balance = turn.rules.balance
    if highest - here < turn.rules.move_threshold and not might_go_back and not balance:
        return None, ""
    candidates = targets(turn)
    if not candidates:
        return None, ""
    best = max(candidates, key=lambda c: c.score)
    if best.score - here >= turn.rules.move_threshold:
        return best, f"is {best.score - here} points better"
    if v.failback:
        liked = min(candidates, key=lambda c: liking(v, c.host_id))
        if liking(v, liked.host_id) < liking(v, several.own_id):
            return liked, f"is where {v.name} is to run when it can (prefer, failback)"
    if balance and (evener := evener_place(several, v, candidates)) is not None:
        return evener, "has more of its memory free (vm.balance)"
    return None, ""


def _others_come_first(turn: VmTurn) -> bool:
    """Whether another VM moves or is to be placed (rule 1)."""
    several = turn.several
    assert several is not None
    moving = StateName.ENGINE_MIGRATING_AWAY
    return (
        several.moving > (turn.state.held is not None)
        or bool(several.plan.order)
        or any(its.state == moving for peer in turn.live for its in peer.vms.values())
    )


def _broken_rule(turn: VmTurn, v: VmSpec) -> str:
    """How another host would keep the rule that is broken here, as the end of a sentence; empty: no
    rule is broken, or another VM has to move for it (rule 2)."""
    several = turn.several
    assert several is not None
    if v.only and several.own_id not in v.only:
        return f"is one of those that {v.name} must run on (only)"
    served = list(several.specs)
    before = [n for n in served[: served.index(v.number)] if n in several.up_at]
    apart = several.relations.apart.get(v.number, frozenset())
    for n in before:
        if n in apart and several.up_at[n] == several.own_id:
            return f"would keep {v.name} and {several.specs[n].name} apart"
    together = several.relations.together.get(v.number, frozenset())
    for n in before:
        if n in together and several.up_at[n] != several.own_id:
            return f"would bring {v.name} and {several.specs[n].name} together"
    return ""

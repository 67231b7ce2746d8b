# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a running VM of the registry would be better off on another host.

A move costs its users a moment, and one move often is the reason for the next. So a VM moves only
where a fixed measure falls, and the measure cannot fall for ever: at rest nothing moves.

The measure, compared in this order:

    rules     hard rules of the VM that are broken where it is (`only`, `apart`, `together`)
    worse     its host scores so much less than the other one (`move_threshold`)
    liking    with `failback`: how far down in `prefer` its host stands
    memory    with `balance`: what its host has free, next to the others (scoring/vm/balance.py)

Rules of this file:

1. One VM moves at a time, none while a missing VM is to be placed, and none that came to its host
   less than SETTLED_S ago.
2. Of two VMs that break a rule together the one that is served later moves.
3. No VM leaves those with which it must be together for points, for its liking or for memory: it
   would have to come back.
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
    """The host where the measure is smaller than here, and in what; None: there is none."""
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
    several = turn.several
    assert several is not None
    moving = StateName.ENGINE_MIGRATING_AWAY
    return (
        several.moving > (turn.state.held is not None)
        or bool(several.plan.order)
        or any(its.state == moving for peer in turn.live for its in peer.vms.values())
    )


def _broken_rule(turn: VmTurn, v: VmSpec) -> str:
    """What is wrong with where it runs; empty: nothing, or another VM has to go."""
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

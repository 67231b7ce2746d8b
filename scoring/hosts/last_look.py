# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether what is under way must still be done.

A fence device may need seconds from the login to the order, and a host that hung may live again
meanwhile. Who decides is not there at the moment of the act. So as long as an order or a freeing is
under way, each decision looks at all its preconditions once more, and leaves in the memory why it
must not be done any more. The act asks that right before it is done (agent/last_look.py).

Rules:

1. What was withdrawn stays withdrawn until it has ended: a host that lived for a moment is given
   the whole time once more.
2. Not looked at again is only what the act itself makes sure of: the device reads the power in the
   login in which it takes the order, and the age of the readings is counted at the write.
3. A question about the lease that is not answered withdraws nothing, an answer that says otherwise
   does.
"""

from __future__ import annotations

from dataclasses import replace

from scoring.hosts.evidence import Precondition, may_free, may_free_fencer, may_power_off
from scoring.hosts.fencing import evidence_of
from scoring.hosts.state import Takeover
from scoring.hosts.turn import HostTurn
from scoring.observation import LeaseAnswer

#: Rule 2.
_OF_THE_ACT = frozenset({"reads-on-while-holding", "read-fresh"})
_OF_THE_LEASE = "lease-owner-known"


def look_again(turn: HostTurn, lease: LeaseAnswer | None) -> None:
    """Withdraw what is under way and must not be done any more. `lease`: the last answer about the
    lease that the pursued host owned."""
    state = turn.state
    step = state.takeover
    if step is not None and (step.switching_off or step.freeing) and not step.withdrawn:
        step = replace(step, withdrawn=_taken_over(turn, step, lease))
        state = replace(state, takeover=step)
    fencer = None if step is None else step.fencer
    if step is not None and fencer is not None and fencer.freeing and not fencer.withdrawn:
        fencer = replace(fencer, withdrawn=_fencer_freed(turn, step, fencer))
        state = replace(state, takeover=replace(step, fencer=fencer))
    if state.switching_on is not None and not state.on_withdrawn:
        state = replace(state, on_withdrawn=_switched_on(turn, state.switching_on))
    turn.state = state


def _taken_over(turn: HostTurn, step: Takeover, lease: LeaseAnswer | None) -> str:
    known = lease is not None and lease.known
    evidence = evidence_of(turn, step.host_id, lease or LeaseAnswer(False, turn.now_s))
    preconditions = may_power_off if step.switching_off else may_free
    return _missing(preconditions(step, evidence, turn.now_s, turn.rules), known)


def _fencer_freed(turn: HostTurn, step: Takeover, fencer: Takeover) -> str:
    """Why the freeing of the host that owns the fence lease must not go on; empty: it may."""
    lease = step.fence_owner
    known = lease is not None and lease.known
    evidence = evidence_of(turn, fencer.host_id, lease or LeaseAnswer(False, turn.now_s))
    announced, rules = turn.observation.announced, turn.rules
    return _missing(may_free_fencer(fencer, evidence, announced, turn.now_s, rules), known)


def _missing(conditions: tuple[Precondition, ...], lease_known: bool) -> str:
    for condition in conditions:
        passed_over = condition.name in _OF_THE_ACT
        passed_over = passed_over or (condition.name == _OF_THE_LEASE and not lease_known)
        if not condition.holds and not passed_over:
            return f"{condition.name} holds no longer: {condition.value}"
    return ""


def _switched_on(turn: HostTurn, host: int) -> str:
    """Why a host must not be switched on any more."""
    if turn.observation.global_maintenance is not False:
        return "whether global maintenance is set is not known, or it is"
    back = [p for p in (*turn.live, *turn.uncertain) if p.host_id == host or host in p.hears]
    return f"host {host} is back" if back else ""

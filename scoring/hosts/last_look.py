# SPDX-License-Identifier: LGPL-2.1-or-later
"""Withdraws an order or a freeing whose preconditions do not hold any more.

A fence device may need seconds from the login to the order, and a host that hung may live again
meanwhile. The decision that gave the order has long returned by then. So while an order or a
freeing is under way, each decision checks all its preconditions once more, and records in the
memory why it must not be carried out. The agent checks that record immediately before it acts
(agent/last_look.py).

Rules:

1. A withdrawn action stays withdrawn until it has ended: a host that showed life for a moment gets
   the whole waiting time once more.
2. Two preconditions are not checked again here, since the action itself checks them: the device
   reads the power in the same login in which it accepts the order, and the age of the readings is
   checked at the write.
3. A question about the lease that is not answered withdraws nothing. An answer that names another
   owner does.
"""

from __future__ import annotations

from dataclasses import replace

from scoring.hosts.evidence import Precondition, may_free, may_free_fencer, may_power_off
from scoring.hosts.fencing import evidence_of
from scoring.hosts.state import Takeover
from scoring.hosts.turn import HostTurn
from scoring.observation import LeaseAnswer

#: The preconditions that the action itself checks (rule 2).
_CHECKED_BY_THE_ACTION = frozenset({"reads-on-while-holding", "read-fresh"})
#: The precondition that a question about the lease answers (rule 3).
_LEASE_OWNER = "lease-owner-known"


def look_again(turn: HostTurn, lease: LeaseAnswer | None) -> None:
    """Withdraw each action that is under way and must not be carried out any more. `lease`: the
    last answer about the lease that the pursued host owned."""
    state = turn.state
    step = state.takeover
    if step is not None and (step.switching_off or step.freeing) and not step.withdrawn:
        step = replace(step, withdrawn=_why_no_takeover(turn, step, lease))
        state = replace(state, takeover=step)
    fencer = None if step is None else step.fencer
    if step is not None and fencer is not None and fencer.freeing and not fencer.withdrawn:
        fencer = replace(fencer, withdrawn=_why_no_freeing(turn, step, fencer))
        state = replace(state, takeover=replace(step, fencer=fencer))
    if state.switching_on is not None and not state.on_withdrawn:
        state = replace(state, on_withdrawn=_why_not_switch_on(turn, state.switching_on))
    turn.state = state


def _why_no_takeover(turn: HostTurn, step: Takeover, lease: LeaseAnswer | None) -> str:
    """Why the order to switch the pursued host off, or the freeing of its id, must not go on;
    empty: it may."""
    known = lease is not None and lease.known
    evidence = evidence_of(turn, step.host_id, lease or LeaseAnswer(False, turn.now_s))
    preconditions = may_power_off if step.switching_off else may_free
    return _missing(preconditions(step, evidence, turn.now_s, turn.rules), known)


def _why_no_freeing(turn: HostTurn, step: Takeover, fencer: Takeover) -> str:
    """Why the id of the fence lease's owner must not be freed any more; empty: it may."""
    lease = step.fence_owner
    known = lease is not None and lease.known
    evidence = evidence_of(turn, fencer.host_id, lease or LeaseAnswer(False, turn.now_s))
    announced, rules = turn.observation.announced, turn.rules
    return _missing(may_free_fencer(fencer, evidence, announced, turn.now_s, rules), known)


def _missing(conditions: tuple[Precondition, ...], lease_known: bool) -> str:
    """The first condition that does not hold and counts here; empty: none."""
    for condition in conditions:
        is_skipped = condition.name in _CHECKED_BY_THE_ACTION
        is_skipped = is_skipped or (condition.name == _LEASE_OWNER and not lease_known)
        if not condition.holds and not is_skipped:
            return f"{condition.name} holds no longer: {condition.value}"
    return ""


def _why_not_switch_on(turn: HostTurn, host: int) -> str:
    """Why a host must not be switched on any more; empty: it may."""
    if turn.observation.global_maintenance is not False:
        return "global maintenance is set, or it is not known whether it is"
    back = [p for p in (*turn.live, *turn.uncertain) if p.host_id == host or host in p.hears]
    return f"{turn.title(host)} is back" if back else ""

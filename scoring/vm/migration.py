# SPDX-License-Identifier: LGPL-2.1-or-later
"""Limits the time of a migration that is under way: it ends in time, or is cancelled.

While a VM is being migrated its host has to keep it, and no other host may start it. A migration
that never ended would block both. So each migration has an end that all hosts know, even one that
this agent did not begin.
"""

from __future__ import annotations

from dataclasses import replace

from scoring.decision import CancelMigration, Code
from scoring.rules import timeout_key
from scoring.timing import NEVER_S
from scoring.vm import drain
from scoring.vm.turn import VmTurn

#: How long after a cancellation a migration that still goes on is cancelled again.
CANCEL_RETRY_S = 15.0


def watch_over(turn: VmTurn) -> None:
    """Cancel a migration that this agent did not begin, or does not remember, when it is overdue:
    the VM's `migration_timeout_s` after its begin, as one of its own."""
    state, here = turn.state, turn.here
    begun_s = state.since_s if here.migrating_s is None else here.taken_s - here.migrating_s
    assert begun_s is not None
    if state.moving_until_s is None:
        until_s = begun_s + turn.migration_within_s
        turn.state = state = replace(state, moving_until_s=until_s)
    own_left_s = begun_s + turn.migration_timeout_s - turn.now_s
    left_s = min(own_left_s, drain.move_left_s(turn))
    if left_s > 0:
        text = f"the VM is being migrated away; cancelled in {left_s:.0f} s if it does not end"
        turn.because(Code.MIGRATING, text)
    elif own_left_s > 0:
        cancel(turn, drain.NO_MORE_TIME, CancelMigration())
    else:
        is_own = turn.spec is not None and turn.spec.migration_timeout_s is not None
        key = timeout_key(is_own)
        why = f"it takes more than {turn.migration_timeout_s:g} s ({key})"
        cancel(turn, why, CancelMigration())


def cancel(turn: VmTurn, why: str, action: CancelMigration) -> None:
    """Order the cancellation of the migration that is under way, unless it was ordered just now."""
    state = turn.state
    turn.because(Code.MIGRATION_OVERDUE, f"the migration is being cancelled, for {why}")
    is_asked = state.asking_cancel or state.cancelling is not None
    ordered_s = NEVER_S if state.cancelled_s is None else state.cancelled_s
    if not is_asked and turn.now_s - ordered_s >= CANCEL_RETRY_S:
        turn.ask(action)
        turn.state = replace(state, asking_cancel=True)

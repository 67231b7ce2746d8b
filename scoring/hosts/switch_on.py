# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that was switched off is switched on again.

Switching off is for the VM's sake; when the VM runs elsewhere, the cluster wants its host back. The
host that runs the VM now does it, so that one host alone does.
"""

from __future__ import annotations

from dataclasses import replace

from scoring.decision import Code, PowerOnHost, Reason
from scoring.hosts.turn import HostTurn
from scoring.observation import FenceRecord, FenceStep
from scoring.timing import NEVER_S

#: A host that was switched off longer ago is left to people.
SWITCH_ON_WITHIN_S = 3600.0


def again(turn: HostTurn) -> None:
    """A host that was switched off is switched on again by the one that runs its VM now."""
    state, rules = turn.state, turn.rules
    if not rules.fence_power_on or state.switching_on is not None:
        return
    last: dict[int, FenceRecord] = {}
    begun: set[tuple[int, str]] = set()
    for record in turn.observation.fence_log or ():
        act = record.target, record.boot_id
        if record.step is FenceStep.INTENT:
            begun.add(act)
        elif record.step is FenceStep.FAILED:
            begun.discard(act)
        # Found off, and by none of us: whoever switched it off may not want it on. Of one that
        # died after its order the intent is there; the host may be off, and its VM is here.
        if record.step is FenceStep.DEAD and not record.ordered and act not in begun:
            last.pop(record.target, None)
        else:
            last[record.target] = record
    alive = {p.host_id for p in (*turn.live, *turn.uncertain)} | {turn.observation.local.host_id}
    for target, record in last.items():
        tried_s = state.switched_on_s.get(target, NEVER_S)
        if (
            record.step in (FenceStep.INTENT, FenceStep.DEAD)
            and target not in alive
            and target in turn.observation.fence_devices
            and turn.now_s - record.at_s < SWITCH_ON_WITHIN_S
            and turn.now_s - tried_s >= rules.timing.power_on_retry
        ):
            text = f"host {target} was switched off, switching it on again"
            # First: the last reason belongs to the state that the beat ended in.
            turn.reasons.insert(0, Reason(Code.POWER_ON_ORDERED, text))
            turn.actions.append(PowerOnHost(target))
            turn.state = replace(state, switching_on=target, on_withdrawn="")
            return

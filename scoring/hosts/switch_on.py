# SPDX-License-Identifier: LGPL-2.1-or-later
"""Switches a fenced host on again.

A host is switched off so that its VM can run elsewhere; once it does, the cluster needs the host
back as a standby. If every host gave that order, the fence device would get it many times; so only
the host that runs the VM now gives it.
"""

from __future__ import annotations

from dataclasses import replace

from scoring.decision import Code, PowerOnHost, Reason
from scoring.hosts.turn import HostTurn
from scoring.observation import FenceRecord, FenceStep
from scoring.timing import NEVER_S

#: A host that was switched off longer ago is not switched on again: a person has to do it.
SWITCH_ON_WITHIN_S = 3600.0


def again(turn: HostTurn) -> None:
    """Order one fenced host to be switched on, if one is due."""
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
        # A host that was found off, without an order of this cluster, stays off: the person who
        # switched it off may not want it on. If a fencer died after its order, its intent is in
        # the log; then the host may be off by that order, and counts.
        if record.step is FenceStep.DEAD and not record.ordered and act not in begun:
            last.pop(record.target, None)
        else:
            last[record.target] = record
    alive = {p.host_id for p in (*turn.live, *turn.uncertain)} | {turn.observation.local.host_id}
    boots = {p.host_id: p.boot_id for p in turn.observation.peers}
    for target, record in last.items():
        # A host that has booted since is back, whoever switched it on. If it is silent again, this
        # cluster has not switched it off: a person may have, to repair it.
        if record.boot_id and boots.get(target, "") not in ("", record.boot_id):
            continue
        tried_s = state.switched_on_s.get(target, NEVER_S)
        if (
            record.step in (FenceStep.INTENT, FenceStep.DEAD)
            and target not in alive
            and target in turn.observation.fence_devices
            and turn.now_s - record.at_s < SWITCH_ON_WITHIN_S
            and turn.now_s - tried_s >= rules.timing.power_on_retry
        ):
            text = f"{turn.title(target)} was switched off, switching it on again"
            # At the front: the last reason must be that of the state in which the beat ended.
            turn.reasons.insert(0, Reason(Code.POWER_ON_ORDERED, text))
            turn.actions.append(PowerOnHost(target))
            turn.state = replace(state, switching_on=target, on_withdrawn="")
            return

# SPDX-License-Identifier: LGPL-2.1-or-later
"""How often hosts may be switched off.

When many hosts seem dead within a short time, the cause is most likely one that they all have, such
as a broken switch or storage. Switching hosts off does not cure that; it only turns a disturbance
into an outage. So the cluster switches off few hosts, with growing pauses.

Rules of this file:

1. After n hosts of the cluster were switched off within an hour, the pause is fence_backoff,
   doubled n - 1 times.
2. After fences_per_hour of them no further host is switched off until the oldest was an hour ago.
3. An order that another host has begun against the same boot of the target is part of the same
   fencing: it does not count against the host that finishes it. A withdrawn order does not count.
"""

from __future__ import annotations

from scoring.observation import FenceRecord, FenceStep, PeerReport
from scoring.rules import Rules

HOUR_S = 3600.0


def fence_wait(
    fence_log: tuple[FenceRecord, ...], target: PeerReport, now_s: float, rules: Rules
) -> tuple[float, str]:
    """How many seconds must pass until `target` may be switched off (0 or less: it may now),
    and why."""
    this_act = (target.host_id, target.boot_id)
    acts: dict[tuple[tuple[int, str], int], float] = {}
    for record in fence_log:
        act = (record.target, record.boot_id)
        if record.step is FenceStep.INTENT and now_s - record.at_s < HOUR_S and act != this_act:
            acts[act, record.by] = record.at_s
        elif record.withdrawn:
            acts.pop((act, record.by), None)
    last_s: dict[tuple[int, str], float] = {}
    for (act, _), at_s in acts.items():
        last_s[act] = max(at_s, last_s.get(act, at_s))
    shots = sorted(last_s.values())
    if not shots:
        return 0.0, "nobody else was switched off within the hour"
    if len(shots) >= rules.fences_per_hour:
        wait_s = shots[-rules.fences_per_hour] + HOUR_S - now_s
        return (
            wait_s,
            f"{len(shots)} others were switched off within the hour: do all have one fault?",
        )
    wait_s = shots[-1] + rules.timing.fence_backoff * 2 ** (len(shots) - 1) - now_s
    why = f"{len(shots)} other(s) within the hour, the last {now_s - shots[-1]:.0f} s ago"
    return wait_s, why


def is_noted(
    fence_log: tuple[FenceRecord, ...] | None, own_id: int, host_id: int, boot_id: str
) -> bool:
    """Whether the last record of this host about that boot of the target is its intent to switch it
    off. Then a further order needs no record of its own."""
    about = [
        record
        for record in fence_log or ()
        if (record.by, record.target, record.boot_id) == (own_id, host_id, boot_id)
    ]
    return bool(about) and about[-1].step is FenceStep.INTENT

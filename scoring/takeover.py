# SPDX-License-Identifier: LGPL-2.1-or-later
"""Taking over from a silent host that owns the engine lease.

    silent -> ask its power --off--> take the fence lease -> ask again --off--> free its id
                 |  ^                                            |
                 on/unknown: nothing is proven, wait for sanlock's own verdict

Rules:

1. Asking harms nobody and is quick. Freeing a host id is the one dangerous act, and
   `may_free` lists everything that must be true for it, in one place.
2. One "on" or "unknown", or a device that is not proven to be that host's, undoes all
   "off" readings before it.
3. The readings that count are at least power_reread apart, and the last one was taken
   while this agent held the fence lease.
4. A broken fence device slows a takeover down to sanlock's host-dead time; it never
   blocks it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from scoring.decision import Action, AskPower, Code, FreeHostId, Reason, TakeFenceLease
from scoring.observation import LeaseAnswer, Power, PowerAnswer
from scoring.rules import Rules
from scoring.state import Takeover
from scoring.timing import Timing

#: Readings of "off" that prove a power-off.
OFFS_NEEDED = 2


@dataclass(frozen=True, slots=True)
class Precondition:
    """One thing that must be true before a host id is freed, and its value now."""

    name: str
    holds: bool
    value: str


def with_power(takeover: Takeover, answer: PowerAnswer, timing: Timing) -> Takeover:
    """The takeover after one more power reading (rule 2 and 3)."""
    takeover = replace(takeover, asking_power=False, power=answer)
    if answer.power is not Power.OFF or not answer.identity_proven:
        return replace(takeover, offs=())
    offs = takeover.offs
    if offs and answer.read_s - offs[-1].read_s < timing.power_reread:
        return takeover
    return replace(takeover, offs=(*offs, answer)[-OFFS_NEEDED:])


def may_free(
    takeover: Takeover,
    lease: LeaseAnswer,
    fence_lease_held: bool,
    global_maintenance: bool | None,
    now_s: float,
    rules: Rules,
) -> tuple[Precondition, ...]:
    """Everything that must be true before the host id may be freed; the order is the log's."""
    offs = takeover.offs
    last_s = offs[-1].read_s if offs else None
    fence_since_s = takeover.fence_since_s
    return (
        Precondition("no-global-maintenance", global_maintenance is False, str(global_maintenance)),
        Precondition("fence-lease-held", fence_lease_held, str(fence_lease_held)),
        Precondition(
            "power-off-read-twice", len(offs) >= OFFS_NEEDED, f"{len(offs)} of {OFFS_NEEDED}"
        ),
        Precondition(
            "read-while-holding",
            last_s is not None and fence_since_s is not None and last_s >= fence_since_s,
            f"last read at {last_s}, fence lease held since {fence_since_s}",
        ),
        Precondition(
            "read-fresh",
            last_s is not None and now_s - last_s <= rules.io_timeout_s,
            f"last read at {last_s}, now {now_s}, at most {rules.io_timeout_s} s ago",
        ),
        Precondition(
            "device-proven-its",
            bool(offs) and all(off.identity_proven for off in offs),
            "system GUID equals the published one" if offs else "no reading",
        ),
        Precondition(
            "lease-owner-known",
            lease.known and lease.owner == takeover.host_id and lease.owner_generation > 0,
            f"owner {lease.owner}, generation {lease.owner_generation}",
        ),
    )


def step(
    takeover: Takeover,
    lease: LeaseAnswer,
    fence_lease_held: bool,
    global_maintenance: bool | None,
    now_s: float,
    rules: Rules,
) -> tuple[Takeover, tuple[Action, ...], tuple[Reason, ...]]:
    """The next step of the protocol for a silent owner that has a fence device."""
    host, timing = takeover.host_id, rules.timing
    if takeover.freeing:
        return (
            takeover,
            (),
            (Reason(Code.PROVEN_OFF, f"host {host} is proven off, freeing its id"),),
        )
    if now_s < takeover.not_before_s:
        text = f"{takeover.problem}; next try in {takeover.not_before_s - now_s:.0f} s"
        return takeover, (), (Reason(Code.TAKEOVER_PAUSED, text),)

    conditions = may_free(takeover, lease, fence_lease_held, global_maintenance, now_s, rules)
    if all(condition.holds for condition in conditions):
        act = FreeHostId(
            host, lease.owner_generation, lease.owner_timestamp, takeover.offs[-1].read_s
        )
        values = "; ".join(f"{condition.name}: {condition.value}" for condition in conditions)
        text = f"host {host} is proven off, freeing its id ({values})"
        return replace(takeover, freeing=True), (act,), (Reason(Code.PROVEN_OFF, text),)

    actions: list[Action] = []
    reasons: list[Reason] = [_power_reason(takeover)]
    if takeover.offs and not fence_lease_held and not takeover.taking_fence:
        actions.append(TakeFenceLease())
        takeover = replace(takeover, taking_fence=True)
        reasons.append(Reason(Code.FENCE_LEASE_ASKED, "asking for the fence lease"))
    if not takeover.asking_power and _may_ask(takeover, now_s, timing):
        actions.append(AskPower(host))
        takeover = replace(takeover, asking_power=True)
    return takeover, tuple(actions), tuple(reasons)


def _may_ask(takeover: Takeover, now_s: float, timing: Timing) -> bool:
    """Not before power_reread after the last answer: a reading nearer than that cannot count."""
    return takeover.power is None or now_s - takeover.power.read_s >= timing.power_reread


def _power_reason(takeover: Takeover) -> Reason:
    host, answer = takeover.host_id, takeover.power
    if answer is None:
        return Reason(
            Code.POWER_ASKED, f"host {host} is silent, asking its fence device for its power"
        )
    if answer.power is Power.UNKNOWN:
        return Reason(
            Code.POWER_UNKNOWN, f"the fence device of host {host} gives no answer: {answer.detail}"
        )
    if not answer.identity_proven:
        return Reason(
            Code.POWER_UNKNOWN,
            f"the fence device of host {host} is not proven to be its own: {answer.detail}",
        )
    if answer.power is Power.ON:
        return Reason(
            Code.POWER_ON, f"host {host} is silent, yet its power reads on: nothing is proven"
        )
    return Reason(Code.POWER_OFF_ONCE, f"host {host} reads off, reading once more")

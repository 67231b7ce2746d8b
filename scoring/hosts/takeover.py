# SPDX-License-Identifier: LGPL-2.1-or-later
"""Taking over from a silent host that owns the engine lease.

A silent host is not a dead host: if it still runs the VM, a second start would destroy the disk.
sanlock releases the lease by itself, but only after minutes. A fence device can prove within
seconds that the host is off; then its host id is freed, and with it all its leases.

    silent -> ask its power --off--> take the fence lease -> ask again --off--> free its id
                 |  ^                                            |
                 |  +-- on, unknown: nothing is proven; sanlock's host-dead time has to pass
                 on, and every witness silent for fence_after:
                 +-> take the fence lease -> ask again --on--> switch it off -> ask again

Rules:

1. Asking harms nobody and is quick. Freeing a host id and switching a host off are the two actions
   that cannot be undone: `evidence.may_free` and `evidence.may_power_off` list everything that must
   be true for them, each in one place.
2. One "on" or "unknown", or a device that is not proven to be that host's, cancels all earlier
   "off" readings.
3. Two readings count only if at least power_reread passes between the answer of the first and the
   question of the second, and if the second was made while this agent held the fence lease.
4. A broken fence device slows a takeover down to sanlock's host-dead time; it never blocks it.
5. A successful order to switch off proves nothing: only "off", read twice, does.
6. An order that was refused or had no effect is repeated as long as the host is silent, after
   pauses that grow: a device that is busy, or has no session left, may accept the next one.
   Meanwhile the fence lease is given back, since the device may accept another host's order.
7. From a host that has lost the storage the fence lease is taken while its VM is still being ended
   (scoring/hosts/storage_lost.py, rule 7). Where that takes longer it is given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scoring.decision import (
    Action,
    AskPower,
    Code,
    DropFenceLease,
    FreeHostId,
    NoteFenceFailed,
    PowerOffHost,
    Reason,
    TakeFenceLease,
)
from scoring.hosts.evidence import (
    OFFS_NEEDED,
    Evidence,
    Precondition,
    evidence_text,
    may_free,
    may_power_off,
)
from scoring.hosts.fence_rate import fence_wait
from scoring.hosts.state import Takeover
from scoring.hosts.storage_lost import is_just_giving_up
from scoring.observation import LeaseAnswer, Power, PowerAnswer, PowerOffEnded
from scoring.rules import Rules
from scoring.timing import Timing

#: After this many orders without effect it is written to the fence log and notified, once.
ATTEMPTS_NOTED = 3
#: The pause after the first order without effect; each further one doubles it, up to the longest.
ORDER_PAUSE_S = 2.0
ORDER_PAUSE_MAX_S = 60.0
#: A device that keeps answering "on" or nothing is asked less and less often; the longest pause.
ASK_PAUSE_MAX_S = 8.0
#: The number of readings before the pauses grow.
ASKS_AT_FULL_RATE = 10
#: Preconditions that this host's own next steps fulfil; the others depend on the outside world.
_OWN_STEPS = frozenset({"fence-lease-held", "reads-on-while-holding"})
#: Preconditions that may come true with time alone.
_WAITED_FOR = frozenset(
    {"does-not-answer", "own-storage-fine", "slot-stands-still", "does-not-renew"}
)


def with_power(takeover: Takeover, answer: PowerAnswer, timing: Timing) -> Takeover:
    """The takeover after one more power reading (rules 2 and 3)."""
    takeover = replace(takeover, asking_power=False, power=answer)
    if answer.power is not Power.OFF or not answer.identity_proven:
        return replace(takeover, offs=(), not_off=takeover.not_off + 1)
    takeover = replace(takeover, not_off=0)
    offs = takeover.offs
    if offs and answer.read_s - offs[-1].over_s < timing.power_reread:
        return takeover
    return replace(takeover, offs=(*offs, answer)[-OFFS_NEEDED:])


def with_lease(takeover: Takeover, answer: LeaseAnswer) -> Takeover:
    """The takeover after one more look at the owner's host id on disk."""
    if not answer.known or answer.owner != takeover.host_id:
        return takeover
    renewal = (answer.current_generation, answer.owner_timestamp)
    if renewal == takeover.renewal:
        return takeover
    return replace(takeover, renewal=renewal, renewal_since_s=answer.asked_s)


def with_order(
    takeover: Takeover, outcome: PowerOffEnded, now_s: float, timing: Timing
) -> Takeover:
    """The takeover after an order to switch the host off has ended (rule 6).

    A withdrawn order was not given: it lengthens the pause, but is no attempt.
    """
    tries = takeover.tries + 1
    takeover = replace(
        takeover,
        switching_off=False,
        withdrawn="",
        tries=tries,
        attempts=takeover.attempts + (not outcome.withdrawn),
        next_order_s=now_s + order_pause_s(tries),
    )
    if outcome.ok:
        # Readings from before the order prove nothing any more.
        return replace(
            takeover,
            ordered_s=now_s,
            next_order_s=takeover.next_order_s + timing.power_off_patience,
            offs=(),
            power=None,
            not_off=0,
            problem="",
        )
    return replace(takeover, problem=outcome.detail)


def order_pause_s(tries: int) -> float:
    """How long after the order number `tries` the next one is given."""
    return min(ORDER_PAUSE_MAX_S, ORDER_PAUSE_S * 2.0 ** min(tries - 1, 10))


def may_take_effect(takeover: Takeover, now_s: float, timing: Timing) -> bool:
    """Whether an order was accepted so recently that the power may still go off."""
    return takeover.ordered_s is not None and now_s - takeover.ordered_s < timing.power_off_patience


def step(
    takeover: Takeover, evidence: Evidence, now_s: float, rules: Rules
) -> tuple[Takeover, tuple[Action, ...], tuple[Reason, ...]]:
    """The next step for a silent owner that has a fence device."""
    host, title = takeover.host_id, evidence.title(takeover.host_id)
    if takeover.freeing:
        return takeover, (), (Reason(Code.PROVEN_OFF, f"{title} is proven off, freeing its id"),)
    if takeover.switching_off:
        return takeover, (), (Reason(Code.POWER_OFF_ORDERED, f"switching {title} off"),)
    if now_s < takeover.not_before_s:
        text = f"{takeover.problem}; next try in {takeover.not_before_s - now_s:.0f} s"
        return takeover, (), (Reason(Code.TAKEOVER_PAUSED, text),)

    free = may_free(takeover, evidence, now_s, rules)
    if all(condition.holds for condition in free):
        return _free(takeover, evidence, free)
    shoot, reasons = _power_off_is_due(takeover, evidence, now_s, rules)
    if shoot is not None:
        return replace(takeover, switching_off=True, withdrawn=""), (shoot,), tuple(reasons)

    if evidence.fence_lease_held and takeover.fence_since_s is None:
        # This agent took it for an earlier takeover. Readings count from now on.
        takeover = replace(takeover, fence_since_s=now_s)
    actions: list[Action] = []
    pauses = _pauses(takeover, now_s, rules.timing) and not takeover.offs
    if pauses and evidence.fence_lease_held:
        if takeover.attempts >= ATTEMPTS_NOTED and not takeover.gave_up:
            actions.append(NoteFenceFailed(host, takeover.problem or "it still reads on"))
            takeover = replace(takeover, gave_up=True)
        actions.append(DropFenceLease())
    reasons.insert(0, _power_reason(takeover, title))
    if evidence.ask is not None:
        text = f"{title} asks to be switched off: {evidence.ask_in_words}"
        reasons.insert(0, Reason(Code.OWNER_ASKS, text))
    wants_fence = (
        bool(takeover.offs)
        or is_ripe(takeover, evidence, now_s, rules)
        or _is_ripe_soon(takeover, evidence, now_s, rules)
    )
    if evidence.fence_lease_held and not wants_fence and _has_waited(takeover, evidence):
        actions.append(DropFenceLease())
    if wants_fence and not evidence.fence_lease_held and not takeover.taking_fence:
        actions.append(TakeFenceLease())
        takeover = replace(takeover, taking_fence=True)
        reasons.append(Reason(Code.FENCE_LEASE_ASKED, "asking for the fence lease"))
    at_once = wants_fence and evidence.fence_lease_held
    if not takeover.asking_power and may_ask(takeover, now_s, rules.timing, at_once):
        actions.append(AskPower(host))
        takeover = replace(takeover, asking_power=True)
    return takeover, tuple(actions), tuple(reasons)


def _free(
    takeover: Takeover, evidence: Evidence, conditions: tuple[Precondition, ...]
) -> tuple[Takeover, tuple[Action, ...], tuple[Reason, ...]]:
    """Order the host id to be freed; `conditions` all hold."""
    lease, values = evidence.lease, evidence_text(conditions)
    act = FreeHostId(
        takeover.host_id,
        lease.owner_generation,
        lease.owner_timestamp,
        takeover.offs[-1].read_s,
        ordered=takeover.ordered_s is not None,
        evidence=values,
    )
    text = f"{evidence.title(takeover.host_id)} is proven off, freeing its id ({values})"
    takeover = replace(takeover, freeing=True, withdrawn="")
    return takeover, (act,), (Reason(Code.PROVEN_OFF, text),)


def _power_off_is_due(
    takeover: Takeover, evidence: Evidence, now_s: float, rules: Rules
) -> tuple[PowerOffHost | None, list[Reason]]:
    """The order to switch the host off, if all its preconditions hold; else the reason why not."""
    host, timing = takeover.host_id, rules.timing
    power, title = takeover.power, evidence.title(takeover.host_id)
    if power is None or power.power is not Power.ON or not power.identity_proven:
        return None, []
    if may_take_effect(takeover, now_s, timing):
        text = f"{title} was switched off, reads on still"
        return None, [Reason(Code.POWER_OFF_ORDERED, text)]
    if _pauses(takeover, now_s, timing):
        why = takeover.problem or "it took the order and reads on still"
        left_s = takeover.next_order_s - now_s
        text = (
            f"{title} is not off after {takeover.tries} order(s) ({why}); next order in "
            f"{left_s:.0f} s, until then another host may try"
        )
        return None, [Reason(Code.TAKEOVER_PAUSED, text)]
    conditions = may_power_off(takeover, evidence, now_s, rules)
    lacking = [condition for condition in conditions if not condition.holds]
    if lacking:
        reason = _why_not_yet(takeover, evidence, lacking, now_s, rules)
        return None, [] if reason is None else [reason]
    lease, peer = evidence.lease, evidence.peer
    assert peer is not None
    order = PowerOffHost(
        host,
        takeover.attempts,
        peer.timestamp,
        lease.owner_generation,
        lease.owner_timestamp,
        evidence_text(conditions),
        asked=evidence.ask is not None,
    )
    why = "hangs with its power on" if evidence.ask is None else "asks for it"
    if evidence.word is not None:
        why = "has lost the storage and has given its VMs up"
    text = f"{title} {why}, switching it off ({evidence_text(conditions)})"
    return order, [Reason(Code.POWER_OFF_ORDERED, text)]


def _why_not_yet(
    takeover: Takeover,
    evidence: Evidence,
    lacking: Sequence[Precondition],
    now_s: float,
    rules: Rules,
) -> Reason | None:
    """Why the host is not switched off now, by the first precondition that does not hold. None: it
    is one that this host's own next steps fulfil; or one that forbids it, before it is time: a host
    whose daemons were stopped does not hang yet, and people are called for one that does."""
    missing = _first_to_say(lacking)
    if missing is None:
        return None
    title, detail = evidence.title(takeover.host_id), f"{missing.name} ({missing.value})"
    if evidence.ask is None and evidence.word is None:
        if evidence.answers:
            text = f"{title} answers on the network: its storage is in trouble, not the host"
            return Reason(Code.OWNER_ANSWERS, f"{text}; its own sanlock ends its VM")
        if evidence.heard_by:
            text = f"{title} answers {', '.join(evidence.heard_by)} on the network"
            return Reason(Code.OWNER_ANSWERS, f"{text}: this host is deaf, it is not dead")
    if missing.name == "does-not-renew":
        text = f"{title} is silent, but its host id was renewed: {missing.value}"
        return Reason(Code.OWNER_RENEWS, text)
    if missing.name in ("not-too-often", "fence-log-readable"):
        wait_s = 0.0
        if evidence.fence_log is not None and evidence.peer is not None:
            wait_s, _ = fence_wait(evidence.fence_log, evidence.peer, now_s, rules)
        left = f", in {wait_s:.0f} s at the earliest" if wait_s > 0 else ""
        text = f"{title} is not switched off now: {missing.value}{left}"
        return Reason(Code.FENCE_HELD_BACK, text)
    if missing.name in _WAITED_FOR:
        text = f"{title} is switched off when this has lasted long enough: {detail}"
        return Reason(Code.FENCE_WAITING, text)
    if missing.name in _OWN_STEPS:
        return None
    return Reason(Code.FENCE_FORBIDDEN, f"{title} must not be switched off: {detail}")


def _first_to_say(lacking: Sequence[Precondition]) -> Precondition | None:
    first = lacking[0]
    early = next((condition for condition in lacking if condition.name in _WAITED_FOR), first)
    if early is first or early.name == "does-not-renew":
        return early
    return None


def _pauses(takeover: Takeover, now_s: float, timing: Timing) -> bool:
    """Whether this host gives no order now, since its last one had no effect."""
    return now_s < takeover.next_order_s and not may_take_effect(takeover, now_s, timing)


def is_ripe(takeover: Takeover, evidence: Evidence, now_s: float, rules: Rules) -> bool:
    """Whether only this host's own steps are missing before the host can be switched off."""
    if _pauses(takeover, now_s, rules.timing):
        return False
    if takeover.power is None:
        # After an accepted order the power is read again, under the same fence lease.
        return takeover.ordered_s is not None
    if takeover.power.power is not Power.ON:
        return False
    missing = {c.name for c in may_power_off(takeover, evidence, now_s, rules) if not c.holds}
    return missing <= _OWN_STEPS


def _is_ripe_soon(takeover: Takeover, evidence: Evidence, now_s: float, rules: Rules) -> bool:
    """Whether only the last statement of a host that has lost the storage is missing, and this
    host's own steps (rule 7)."""
    word = evidence.giving_up
    if word is None or not is_just_giving_up(word, now_s, rules):
        return False
    return is_ripe(takeover, replace(evidence, word=word), now_s, rules)


def _has_waited(takeover: Takeover, evidence: Evidence) -> bool:
    """Whether the fence lease was taken for a host that does not give its VM up after all."""
    return evidence.giving_up is not None and takeover.ordered_s is None


def may_ask(takeover: Takeover, now_s: float, timing: Timing, at_once: bool) -> bool:
    """Whether the fence device may be asked now: power_reread after its last answer, since an
    earlier reading would not count. A device that has answered nothing new for long is asked less
    often, unless `at_once`: the next step needs the reading.
    """
    if takeover.power is None:
        return True
    pause_s = timing.power_reread
    if _pauses(takeover, now_s, timing):
        # Too many questions may be what keeps the device from the order.
        pause_s = ASK_PAUSE_MAX_S
    elif not at_once and takeover.not_off > ASKS_AT_FULL_RATE:
        doublings = min(takeover.not_off - ASKS_AT_FULL_RATE, 10)
        pause_s = min(ASK_PAUSE_MAX_S, pause_s * 2**doublings)
    return now_s - takeover.power.over_s >= pause_s


def _power_reason(takeover: Takeover, title: str) -> Reason:
    """What the last power reading means, as a reason. `title`: the host for people."""
    answer = takeover.power
    if answer is None:
        return Reason(Code.POWER_ASKED, f"asking the fence device of {title} for its power")
    if answer.power is Power.UNKNOWN:
        return Reason(
            Code.POWER_UNKNOWN, f"the fence device of {title} gives no answer: {answer.detail}"
        )
    if not answer.identity_proven:
        return Reason(
            Code.POWER_UNKNOWN,
            f"the fence device of {title} is not proven to be its own: {answer.detail}",
        )
    if answer.power is Power.ON:
        return Reason(Code.POWER_ON, f"the power of {title} reads on: its death is not proven")
    why = f" ({takeover.problem})" if takeover.problem else ""
    return Reason(Code.POWER_OFF_ONCE, f"{title} reads off, reading once more{why}")

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pursues a silent host: collects the proof that it is dead, once for all VMs that wait for it.

A VM whose lease is owned by a silent host can start only when that host is proven dead, or when
sanlock calls it dead. There is one fence lease, and a fence device bears few sessions; if each VM
collected the proof itself, they would stand in each other's way. So each VM only names the host
whose death it waits for, and this file pursues that host.

Rules of this file:

1. One host is pursued at a time. It stays the same one as long as a VM waits for it. If its
   readings prove nothing, or it seems to live, the next host that a VM waits for has its turn.
   What was ordered for the first host is remembered until its next turn. A host without a fence
   device never has a turn while another one is waited for: nothing can be proven of it. A host
   that may be switched off by this host's next step is not left before that.
2. A takeover is remembered only while a VM waits for it. When no VM waits any more, an order or a
   freeing that is under way is withdrawn, and its outcome is waited for: no device is asked twice
   at once.
3. A host that cannot write the whiteboard pursues nobody: each act needs a record in the fence log
   first, and until then it would keep the fence lease from a host that can write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from scoring.decision import Code, DropFenceLease
from scoring.hosts import dead_fencer, takeover
from scoring.hosts.evidence import FREE_BEATS, Evidence, renews
from scoring.hosts.fence_ask import others_reached, reached_by, reached_s, spec_of
from scoring.hosts.state import HostState, Takeover
from scoring.hosts.storage_lost import gives_up, is_giving_up
from scoring.hosts.turn import HostTurn, name_of
from scoring.observation import (
    FenceLeaseAnswer,
    FenceOwnerAnswer,
    HostIdFreed,
    LeaseAnswer,
    Outcome,
    PowerAnswer,
    PowerOffEnded,
    PowerOnEnded,
)
from scoring.timing import Timing
from scoring.vm_facts import ENGINE, called

#: After so many readings in a row that prove nothing the next host has its turn.
FRUITLESS = 3


def take_in(turn: HostTurn, outcomes: Iterable[Outcome]) -> None:
    """Update the memory about hosts by the actions that have ended."""
    for outcome in outcomes:
        turn.state = _with_outcome(turn.state, outcome, turn.now_s, turn.rules.timing)


def _with_outcome(state: HostState, outcome: Outcome, now_s: float, timing: Timing) -> HostState:
    """The memory after an action has ended."""
    if isinstance(outcome, PowerOnEnded):
        switched_on_s = {**state.switched_on_s, outcome.host_id: now_s}
        return replace(state, switching_on=None, on_withdrawn="", switched_on_s=switched_on_s)
    if state.takeover is None:
        return state
    return replace(state, takeover=_after(state.takeover, outcome, now_s, timing))


def _after(step: Takeover, outcome: Outcome, now_s: float, timing: Timing) -> Takeover:
    """The takeover after one of its questions or actions has ended."""
    match outcome:
        case LeaseAnswer():
            if step.is_early and outcome.known and outcome.owner == step.host_id:
                step = replace(step, lease=outcome)
            return takeover.with_lease(step, outcome)
        case PowerAnswer():
            return _with_power(step, outcome, timing)
        case FenceLeaseAnswer():
            step = replace(step, taking_fence=False, refused=not outcome.held)
            if outcome.held:
                return replace(step, fence_since_s=outcome.since_s)
            return _paused(step, f"the fence lease was not given: {outcome.detail}", now_s, timing)
        case FenceOwnerAnswer(answer=answer):
            return replace(step, fence_owner=answer, asking_owner=False)
        case HostIdFreed() if _is_of_fencer(step, outcome):
            return _fencer_freed(step, outcome, now_s, timing)
        case HostIdFreed() if step.host_id == outcome.host_id:
            freed_s = now_s if outcome.ok else None
            step = replace(step, freeing=False, withdrawn="", freed_s=freed_s)
            if outcome.ok:
                return step
            problem = f"its id was not freed: {outcome.detail}"
            if not outcome.begun:
                return _not_begun(step, problem)
            return _paused(step, problem, now_s, timing)
        case PowerOffEnded() if step.host_id == outcome.host_id:
            return takeover.with_order(step, outcome, now_s, timing)
        case _:
            return step


def _with_power(step: Takeover, answer: PowerAnswer, timing: Timing) -> Takeover:
    """The takeover after a power reading. The host that was read may be the pursued one, the owner
    of the fence lease, or both."""
    fencer = step.fencer
    if fencer is not None and fencer.host_id == answer.host_id:
        step = replace(step, fencer=takeover.with_power(fencer, answer, timing))
    if step.host_id == answer.host_id:
        step = takeover.with_power(step, answer, timing)
    return step


def _is_of_fencer(step: Takeover, outcome: HostIdFreed) -> bool:
    return (
        step.fencer is not None and step.fencer.freeing and step.fencer.host_id == outcome.host_id
    )


def _fencer_freed(step: Takeover, outcome: HostIdFreed, now_s: float, timing: Timing) -> Takeover:
    """The takeover after the id of the fence lease's owner was freed, or could not be. Freed, the
    fence lease is asked for at once; if the same host is the pursued one, its id is freed too."""
    assert step.fencer is not None
    if not outcome.ok:
        fencer = replace(step.fencer, freeing=False, withdrawn="")
        problem = f"its id was not freed: {outcome.detail}"
        return replace(step, fencer=_paused(fencer, problem, now_s, timing))
    freed_s = now_s if step.host_id == outcome.host_id else step.freed_s
    return replace(step, fencer=None, fence_owner=None, not_before_s=now_s, freed_s=freed_s)


def _paused(step: Takeover, problem: str, now_s: float, timing: Timing) -> Takeover:
    """The takeover after a failed step: it starts over after a pause, without earlier readings."""
    return replace(step, offs=(), problem=problem, not_before_s=now_s + timing.takeover_retry)


def _not_begun(step: Takeover, problem: str) -> Takeover:
    """The takeover after a freeing that was not begun, for the fence log could not be written: on
    Gluster no write is answered until its bricks miss a host that died in the middle of one
    (record 98). Nothing was done, so the first reading stays as good as it is. The last one is made
    anew, at once where it is `power_reread` old: so the next try waits for no beat, and there is
    one a second at most. `evidence.may_free` asks the rest again."""
    return replace(step, offs=step.offs[:-1], problem=problem)


def pursue(turn: HostTurn, waits: Sequence[LeaseAnswer]) -> None:
    """Take the next step in proving a silent host dead. `waits`: the leases that VMs wait for, each
    owned by a silent host."""
    owners = {each.owner for each in waits}
    aside = {host: step for host, step in turn.state.aside.items() if host in owners}
    if len(aside) < len(turn.state.aside):
        turn.state = replace(turn.state, aside=aside)
    lease = _chosen(turn, waits)
    assert lease.owner is not None
    owner = turn.asking if turn.asking and turn.asking.host_id == lease.owner else None
    if not turn.can_record:
        why = f"this host has not written the whiteboard for {turn.unwritten_s:.0f} s"
        turn.because(Code.FENCE_HELD_BACK, f"{_countdown(turn, lease, why)}; another host may act")
        return
    if lease.owner not in turn.observation.fence_devices:
        if owner is not None:
            text = f"{name_of(owner)} asks to be switched off, but no fence device is configured"
            turn.because(Code.OWNER_ASKS, f"{text} for it: power it off by hand")
        elif not _owner_renews(turn, lease):
            why = "no fence device is configured for it"
            turn.because(Code.LEASE_WAIT, _countdown(turn, lease, why))
        return
    current = replace(begun(turn, lease.owner), is_early=False)
    current = _step(turn, takeover.with_lease(current, lease), lease)
    if owner is not None or current.offs or current.freeing or current.switching_off:
        return
    if not _owner_renews(turn, lease):
        turn.because(Code.LEASE_WAIT, _countdown(turn, lease, "its death is not proven"))


def _chosen(turn: HostTurn, waits: Sequence[LeaseAnswer]) -> LeaseAnswer:
    """The lease whose owner is pursued now (rule 1)."""
    devices = turn.observation.fence_devices
    waits = [each for each in waits if each.owner in devices] or waits
    may_be_dead = [each for each in waits if not _seems_to_live(turn, each)]
    step = turn.state.takeover
    same = [each for each in waits if step is not None and each.owner == step.host_id]
    if step is None or not same:
        return (may_be_dead or waits)[0]
    others = {each.owner: each for each in may_be_dead if each.owner != step.host_id}
    gets_nowhere = step.not_off >= FRUITLESS or same[0] not in may_be_dead
    if not others or not gets_nowhere or _is_under_way(turn, step):
        return same[0]
    evidence = evidence_of(turn, step.host_id, same[0])
    if takeover.is_ripe(takeover.with_lease(step, same[0]), evidence, turn.now_s, turn.rules):
        return same[0]
    # In turn, by host id.
    return others[min(others, key=lambda host: ((host or 0) <= step.host_id, host))]


def _is_under_way(turn: HostTurn, step: Takeover) -> bool:
    """Whether the takeover has something begun whose end must be waited for."""
    timing = turn.rules.timing
    return bool(
        step.asking_power
        or step.taking_fence
        or step.asking_owner
        or step.switching_off
        or step.freeing
        or step.offs
        or step.fencer is not None
        or takeover.may_take_effect(step, turn.now_s, timing)
    )


def begun(turn: HostTurn, host: int) -> Takeover:
    """The takeover from that host: the one that is under way, or a new one."""
    current, aside = turn.state.takeover, dict(turn.state.aside)
    if current is None:
        return Takeover(host, turn.now_s)
    if current.host_id == host:
        return current
    aside[current.host_id] = current
    known = aside.pop(host, Takeover(host, turn.now_s))
    turn.state = replace(turn.state, aside=aside)
    # The fence lease is one for all hosts; what was read of the other host is not. Of this one what
    # was ordered counts, and nothing that was read before.
    return replace(
        known,
        offs=(),
        power=None,
        not_off=0,
        asking_power=False,
        fence_since_s=current.fence_since_s,
        taking_fence=current.taking_fence,
        switching_off=False,
        freeing=False,
        freed_s=None,
        withdrawn="",
        fence_owner=None,
        asking_owner=False,
        fencer=None,
        lease=None,
    )


def _step(turn: HostTurn, current: Takeover, lease: LeaseAnswer) -> Takeover:
    """Take the next step of the takeover, and of getting the fence lease from a dead fencer."""
    evidence = evidence_of(turn, current.host_id, lease)
    current, actions, reasons = takeover.step(current, evidence, turn.now_s, turn.rules)
    turn.pursued = True
    turn.actions.extend(actions)
    turn.reasons.extend(reasons)
    fence_owner = dead_fencer.owner_of(current, turn.observation.local.host_id)
    of_fencer = None
    if fence_owner is not None and fence_owner.owner is not None:
        of_fencer = evidence_of(turn, fence_owner.owner, fence_owner)
    current = dead_fencer.step(turn, current, of_fencer)
    turn.state = replace(turn.state, takeover=current)
    return current


def _seems_to_live(turn: HostTurn, lease: LeaseAnswer) -> bool:
    """Whether the silent owner's sanlock renews its host id, so that nothing proves it dead."""
    peer = next((p for p in turn.observation.peers if p.host_id == lease.owner), None)
    if peer is None or peer is turn.asking:
        return False
    since_s = turn.state.seen[peer.host_id].since_s
    io_timeout_s = lease.owner_io_timeout_s
    return renews(peer.renewal_s, since_s, turn.now_s, turn.rules, io_timeout_s)


def _owner_renews(turn: HostTurn, lease: LeaseAnswer) -> bool:
    """Whether it seems to live; says so. No time is left to count then: each renewal would begin it
    anew."""
    peer = next((p for p in turn.observation.peers if p.host_id == lease.owner), None)
    if peer is None or not _seems_to_live(turn, lease):
        return False
    vm = called(lease.vm, turn.observation.specs)
    # This reason replaces the takeover's own one, which is less sure: the takeover does not know
    # whether the renewal that it has seen is the last one of a dead host.
    turn.reasons = [reason for reason in turn.reasons if reason.code is not Code.OWNER_RENEWS]
    turn.because(
        Code.OWNER_RENEWS,
        f"{name_of(peer)} is silent, but its sanlock renews its host id: {vm} most likely runs "
        "there; look at ha-broker on that host",
    )
    return True


def evidence_of(turn: HostTurn, host: int, lease: LeaseAnswer) -> Evidence:
    """The evidence of this beat about a silent host that owned the lease."""
    observation = turn.observation
    peer = next((p for p in observation.peers if p.host_id == host), None)
    seen = turn.state.seen.get(host)
    ask = turn.asking.fence_ask if turn.asking and turn.asking.host_id == host else None
    vm = ENGINE if ask is None else ask.vm
    stay = peer.vms[vm].last_ran if peer is not None and vm in peer.vms else 0
    return Evidence(
        lease=lease,
        peer=peer,
        slot_since_s=None if seen is None else seen.since_s,
        looked_since_s=observation.storage_good_since_s,
        fence_lease_held=observation.fence_lease_held,
        global_maintenance=observation.global_maintenance,
        fence_log=observation.fence_log,
        heard_by=tuple(name_of(p) for p in turn.live if host in p.hears),
        ask=ask,
        reached_by=() if peer is None else reached_by(turn, host, stay, vm),
        reached_s=None if peer is None else reached_s(turn, peer),
        touched_by=tuple(name_of(p) for p in turn.live if host in p.touches),
        network_good_s=_network_good_s(turn, host),
        word=gives_up(peer, turn.now_s, turn.rules),
        giving_up=is_giving_up(peer, turn.now_s, turn.rules),
        spec=spec_of(ask, observation.specs),
        others_reached=() if ask is None or peer is None else others_reached(turn, peer, vm),
    )


def _network_good_s(turn: HostTurn, but: int) -> float | None:
    """When this host's network was last seen to work: another live host than `but` has answered, or
    a target of the network test answers now."""
    if turn.observation.local.way_out:
        return turn.now_s
    answered_s = (
        p.heartbeat_s
        for p in turn.live
        if p.host_id != but and p.heartbeat_s is not None and p.unanswered_since_s is None
    )
    return max(answered_s, default=None)


def _countdown(turn: HostTurn, lease: LeaseAnswer, why: str) -> str:
    spec = next((each for each in turn.observation.specs if each.number == lease.vm), None)
    what = "the engine lease" if spec is None or spec.number == ENGINE else f"{spec.name}'s lease"
    owner = "" if lease.owner is None else turn.title(lease.owner)
    if lease.dead_in_s is None:
        return f"{owner} is silent and owns {what}; {why}"
    left_s = max(0.0, lease.dead_in_s - (turn.now_s - lease.asked_s))
    return (
        f"{owner} is silent and owns {what}; {why}: "
        f"free in {left_s:.0f} s unless its host id is renewed"
    )


def forget(turn: HostTurn) -> None:
    """Forget the takeover that is not pursued any more, and give the fence lease back.

    An order or a freeing that is under way is withdrawn, but remembered until its outcome comes, so
    that no device is asked twice at once. The fence lease is kept until a freeing, a switching off
    or a switching on has ended.
    """
    if turn.pursued:
        return
    step = turn.state.takeover
    if turn.state.aside:
        turn.state = replace(turn.state, aside={})
    if step is not None:
        step = Takeover(
            step.host_id,
            step.since_s,
            power=step.power,
            asking_power=step.asking_power,
            taking_fence=step.taking_fence,
            switching_off=step.switching_off,
            freeing=step.freeing,
            withdrawn=step.withdrawn or _why_not_pursued(turn),
            asking_owner=step.asking_owner,
            fencer=_withdrawn(step.fencer, turn),
        )
        if not (
            step.asking_power
            or step.taking_fence
            or step.switching_off
            or step.freeing
            or step.asking_owner
            or step.fencer is not None
        ):
            step = None
        turn.state = replace(turn.state, takeover=step)
    in_use = turn.state.switching_on is not None or (
        step is not None and (step.freeing or step.switching_off)
    )
    if turn.observation.fence_lease_held and not in_use:
        turn.actions.append(DropFenceLease())


def _why_not_pursued(turn: HostTurn) -> str:
    """Why the takeover is not pursued any more: the last reason of this beat."""
    return "; ".join(reason.text for reason in turn.reasons[-1:])


def _withdrawn(fencer: Takeover | None, turn: HostTurn) -> Takeover | None:
    """The takeover from the fence lease's owner with its freeing withdrawn; None: nothing of it is
    under way."""
    if fencer is None or not (fencer.freeing or fencer.asking_power):
        return None
    return replace(fencer, offs=(), withdrawn=fencer.withdrawn or _why_not_pursued(turn))


def wake_s(turn: HostTurn) -> float | None:
    """When the next decision is due before the next beat: when the next power reading may count,
    and, of a host that is not suspected yet, when its id may be freed and its VM started."""
    step = turn.state.takeover
    if step is None:
        return None
    due_s = [
        each.offs[-1].over_s + turn.rules.timing.power_reread
        for each in (step, step.fencer)
        if each is not None
        and each.offs
        and not (each.asking_power or each.freeing or each.switching_off)
    ]
    power, idle = step.power, not (step.asking_power or step.freeing or step.switching_off)
    if turn.observation.fence_lease_held and idle and power is not None and not step.offs:
        # Only a reading that is made under the fence lease counts for an order.
        at_s = power.over_s + turn.rules.timing.power_reread
        due_s += [at_s] if at_s > turn.now_s else []
    seen = turn.state.seen.get(step.host_id)
    if step.is_early and step.offs and seen is not None:
        timing = turn.rules.timing
        for for_s in (FREE_BEATS * timing.beat, timing.suspect_after):
            due_s += [seen.since_s + for_s] if turn.now_s - seen.since_s < for_s else []
    return min(due_s, default=None)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides whether this host starts a missing VM of the registry now.

The engine follows the reference's rules (scoring/vm/start.py). Every other VM starts on the host
that the plan names; all hosts make the same plan, so that no two of them start the same VM or use
the same memory. A VM may also have to wait for others that it needs.

The questions, in this order:

    wanted up?                an administrator may want it down
    is this host able?        storage, obstacles, lockspace, enough seen, no host acts on the VM
    do all hosts know it?     of a VM that never ran: a host may run it already, without a lease
    is the lease free?        sanlock's answer; a takeover if its owner is silent
    is it this host's turn?   it is first in the plan, or the hosts before it had their time
    where are its mates?      a VM of its rules that nobody reports may run all the same
    does this host pause?     after a failed start, where no other host can take it
    is there room?            claimed and granted (scoring/vm/room.py)
    may it start yet?         the VMs that it needs are healthy, and few others are starting here
"""

from __future__ import annotations

from dataclasses import replace

from scoring.decision import Code
from scoring.hosts.turn import name_of
from scoring.vm import seen, start
from scoring.vm.room import secure
from scoring.vm.several import barred_until_s
from scoring.vm.turn import VmTurn
from scoring.vm_facts import Health, VmSpec, VmStatus, Want

#: How long a VM waits for the VMs of its `after` to be healthy.
AFTER_PATIENCE_S = 180.0
#: How long the first start of a VM waits for live hosts that have not read its record yet. They
#: read it within a beat or two; this is longer than their usual interval
#: (broker/registry/cache.py).
KNOWN_WITHIN_S = 15.0
#: The most starts that are under way on one host at the same time. sanlock has eight threads, and
#: each acquire may occupy one for long; acquiring the fence lease must not have to wait for them.
STARTS_AT_ONCE = 4


def may_start(turn: VmTurn) -> bool:
    """Whether this host starts the VM now; adds the reason when not."""
    several, v = turn.several, turn.spec
    assert several is not None and v is not None, "only a VM of the registry takes a step"
    if v.want is Want.DOWN:
        turn.because(Code.WANTED_DOWN, f"{v.name} is wanted down: ha-agent vm start {v.name}")
        return False
    if several.relations.together[v.number]:
        start.ask_lease(turn)  # its mates want to know it, even if this host cannot start it
    able = start.is_able(turn) and _is_known_to_all(turn, v)
    if not (able and start.lease_allows(turn)):
        turn.state = replace(turn.state, startable_since_s=None)
        return False
    if not (_is_our_turn(turn, v) and _mates_are_known(turn, v)) or _pauses(turn, v):
        return False
    if not secure(turn, several.own_id) or not _need_not_wait(turn, v):
        return False
    if several.starting >= STARTS_AT_ONCE:
        turn.because(Code.STARTS_WAITING, f"{several.starting} other VMs are starting here")
        return False
    several.starting += 1
    return True


def _is_known_to_all(turn: VmTurn, v: VmSpec) -> bool:
    """Whether the live hosts could say that a VM that never ran runs there; adds the reason when
    not.

    A host that has not read the VM's record does not list it, which otherwise means that it is down
    there. But somebody may have added a VM while it ran, under libvirt alone: its process holds no
    lease, and a start here would be the second one. A VM that ran before is known to all; the host
    on which it ran may be dead by now.
    """
    several = turn.several
    assert several is not None
    behind = several.behind
    if not behind or turn.here.last_ran or turn.state.last_ran:
        return True
    reports = (seen.at(peer, v.number) for peer in turn.observation.peers)
    since_s = turn.state.missing_since_s
    left_s = KNOWN_WITHIN_S - (0.0 if since_s is None else turn.now_s - since_s)
    if left_s <= 0 or any(its.last_ran for its in reports):
        return True
    hosts = ", ".join(map(name_of, behind))
    text = f"not known yet whether {v.name} runs on {hosts}: its record was not read there yet"
    turn.because(Code.NOT_ENOUGH_DATA, f"{text}, {left_s:.0f} s at most")
    return False


def _is_our_turn(turn: VmTurn, v: VmSpec) -> bool:
    """Whether the plan has this host start the VM now; adds the reason when not."""
    several = turn.several
    assert several is not None
    plan, number = several.plan, turn.number
    if (short_mb := plan.short.get(number)) is not None:
        turn.because(Code.NO_PLACE, f"no host has room for {v.name}: {short_mb} MiB short")
        return False
    order = plan.order.get(number, ())
    if several.own_id not in order:
        where = several.title(order[0]) if order else "another host"
        turn.because(Code.PLACED_ELSEWHERE, f"{v.name} has its place on {where}")
        return False
    ahead = order[: order.index(several.own_id)]
    claimed = [c.host_id for c in several.claims if c.number == number and c.host_id in ahead]
    if claimed:
        where = several.title(claimed[0])
        turn.because(Code.PLACED_ELSEWHERE, f"{where} has claimed the room for {v.name}")
        return False
    if not start.had_their_time(turn, ahead):
        where = several.title(order[0])
        turn.because(Code.EQUAL_HOST_FIRST, f"{where} may start {v.name} first")
        return False
    return True


def _mates_are_known(turn: VmTurn, v: VmSpec) -> bool:
    """Whether it is known where the missing VMs of its rules are not; adds the reason when not.

    Nobody reports a VM whose host is silent, or whose broker is of a version that does not know
    several VMs; but the owner of its lease may run it, and a VM of its `together` has no other
    place then. A VM whose state is not known here may run here.
    """
    several = turn.several
    assert several is not None
    missing = several.missing - {claim.number for claim in several.claims}
    rules = several.relations
    for number in sorted(rules.together[v.number] & missing):
        mate = several.specs[number].name
        if (where := _may_be_at(turn, number)) is not None:
            text = f"{v.name} must be with {mate}, which may run on {where}"
            turn.because(Code.TOGETHER_WAITING, text)
            return False
    for number in sorted(rules.apart[v.number] & missing):
        if several.here(number).report.vm is VmStatus.UNKNOWN:
            mate = several.specs[number].name
            text = f"{v.name} must not be with {mate}, which may run on this host"
            turn.because(Code.APART_WAITING, text)
            return False
    return True


def _may_be_at(turn: VmTurn, number: int) -> str | None:
    """The host, for people, that may run a VM which nobody reports, by the owner of its lease;
    None: no other host does. For KNOWN_WITHIN_S that is "any host" while sanlock does not
    answer."""
    several = turn.several
    assert several is not None
    state = several.state_of(number)
    since_s, lease = state.missing_since_s, state.lease
    if since_s is None:
        return "any host"
    oldest_s = max(since_s, turn.now_s - KNOWN_WITHIN_S)
    if lease is None or not lease.known or lease.asked_s < oldest_s:
        return "any host" if turn.now_s - since_s < KNOWN_WITHIN_S else None
    if not lease.keeps_out(several.own_id) or start.was_freed(turn, number, lease):
        return None
    assert lease.owner is not None
    return several.title(lease.owner)


def _pauses(turn: VmTurn, v: VmSpec) -> bool:
    """Whether this host waits after a failed start of the VM; adds the reason if so."""
    timing = turn.rules.timing
    until_s = barred_until_s(turn.state, timing.retry_expiry, timing.unexpected_down)
    if until_s is None or turn.now_s >= until_s:
        return False
    turn.because(
        Code.RETRIES_EXHAUSTED,
        f"{turn.state.retries} failed start(s) of {v.name} here, and no other host can take it: "
        f"tried again in {until_s - turn.now_s:.0f} s",
    )
    return True


def _need_not_wait(turn: VmTurn, v: VmSpec) -> bool:
    """Whether the VMs of its `after` are healthy, or have been waited for long enough; adds the
    reason when not."""
    several = turn.several
    assert several is not None
    # A claimed VM has its place, even if the plan finds it short: its own process, which is not
    # shown yet, may have taken the memory already.
    coming = {claim.number for claim in several.claims}
    waits_for = [
        several.specs[n].name
        for n in v.after
        if n in several.specs
        and several.specs[n].want is Want.UP
        and (n in coming or n not in several.plan.short)
        and not _is_healthy(turn, n)
    ]
    if not waits_for:
        turn.state = replace(turn.state, waits_since_s=None)
        return True
    since_s = turn.state.waits_since_s
    since_s = turn.now_s if since_s is None else since_s
    turn.state = replace(turn.state, waits_since_s=since_s)
    left_s = AFTER_PATIENCE_S - (turn.now_s - since_s)
    names = ", ".join(waits_for)
    if left_s <= 0:
        turn.because(Code.AFTER_WAITING, f"{v.name} goes on without {names}")
        return True
    text = f"{v.name} waits until {names} is healthy, {left_s:.0f} s at most"
    turn.because(Code.AFTER_WAITING, text)
    return False


def _is_healthy(turn: VmTurn, number: int) -> bool:
    """Whether a live host reports that VM up and healthy."""
    good = (VmStatus.UP, Health.GOOD)
    local = seen.here(turn.observation.local, number).report
    if (local.vm, local.health) == good:
        return True
    reports = (seen.at(peer, number).report for peer in turn.live)
    return any((report.vm, report.health) == good for report in reports)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides whether this host may start the VM now.

All hosts see a missing VM at the same moment. The lease lets only one of them start it, but a race
for the lease costs time, and the wrong host may win it. So each host waits until the hosts before
it have had their time. And it starts nothing while it does not know enough.

The questions, in this order:

    is this host able?        storage, obstacles, lockspace, enough seen, no host acts on the VM
    is it this host's turn?   better and equal hosts before it have had their time
    is the lease free?        sanlock's answer; a takeover if its owner is silent
"""

from __future__ import annotations

from dataclasses import replace

from scoring.decision import AskLease, Code
from scoring.hosts.turn import name_of
from scoring.observation import LeaseAnswer
from scoring.timing import START_RETRIES_MAX
from scoring.vm import placement
from scoring.vm.state import StateName
from scoring.vm.turn import VmTurn, bridge_elsewhere, obstacles, others, own
from scoring.vm_facts import ENGINE, Obstacle, PeerVm, VmStatus

_S = StateName

#: How long after a start that failed for the lock of the VM's image the next one is tried.
IMAGE_LOCK_RETRY_S = 2.0

#: Published states of a peer that is about to act on the VM, or still does.
_BUSY_STATES = frozenset(
    {
        _S.ENGINE_START,
        _S.ENGINE_STARTING,
        _S.ENGINE_STOP,
        _S.ENGINE_FORCE_STOP,
        _S.ENGINE_MIGRATING_AWAY,
    }
)

_CODES = {
    Obstacle.OTHER_STORAGE: Code.OTHER_STORAGE,
    Obstacle.CANNOT_START: Code.CANNOT_START,
    Obstacle.LEFTOVER: Code.LEFTOVER_VM,
    Obstacle.HELD_BACK: Code.HELD_BACK,
    Obstacle.CUT_OFF: Code.CUT_OFF,
}


def nobody_else_can(turn: VmTurn) -> bool:
    """Whether it is certain that no other live host scores above 0; of a VM of the registry also
    that none has the room for it."""
    looked_s = _looked_s(turn)
    if looked_s < turn.rules.timing.suspect_after or turn.uncertain:
        return False
    if turn.number == ENGINE:
        return not others(turn)
    assert turn.several is not None
    order = turn.several.plan.order.get(turn.number, ())
    return order == (turn.several.own_id,)


def _looked_s(turn: VmTurn) -> float:
    """How long this host has read the whiteboard without a gap."""
    since_s = turn.observation.storage_good_since_s
    return 0.0 if since_s is None else turn.now_s - since_s


def may_start_here(turn: VmTurn) -> bool:
    """Whether this host is able to start the engine and has its turn; adds the reason when not."""
    return is_able(turn) and _is_our_turn(turn)


def is_able(turn: VmTurn) -> bool:
    """Whether this host could start the VM, as far as it knows; adds the reason when not."""
    state, timing = turn.state, turn.rules.timing
    if turn.observation.storage_good_since_s is None:
        turn.because(Code.STORAGE_UNREADABLE, "the whiteboard cannot be read: nothing is known")
        return False
    if found := obstacles(turn):
        for unfit in found:
            turn.because(_CODES[unfit.obstacle], unfit.text)
        return False
    if (cut := bridge_elsewhere(turn)) is not None:
        turn.because(Code.CUT_OFF, cut.text)
        return False
    if not turn.observation.lockspace_joined:
        turn.because(Code.LOCKSPACE_NOT_JOINED, "this host has not joined the lockspace yet")
        return False
    if _looked_s(turn) < timing.suspect_after + timing.beat or turn.uncertain:
        turn.because(Code.NOT_ENOUGH_DATA, "not enough seen yet to know which hosts live")
        return False
    if turn.observation.unsure:
        hosts = ", ".join(map(str, turn.observation.unsure))
        turn.because(
            Code.NOT_ENOUGH_DATA,
            f"not known yet whether host(s) {hosts} write to the storage that is read here",
        )
        return False
    able = (p for p in turn.concerned if p is not turn.asking)
    busy = next((p for p in able if _is_busy(turn.at(p), turn.now_s)), None)
    if busy is not None:
        its = turn.at(busy)
        text = f"{name_of(busy)} is in {its.state}"
        if its.moving_until_s is not None:
            text += f", for {its.moving_until_s - turn.now_s:.0f} s at most"
        turn.because(Code.BUSY_ELSEWHERE, text)
        return False
    if turn.number == ENGINE and state.retries > START_RETRIES_MAX:
        left_s = timing.retry_expiry - (turn.now_s - state.last_failure_s)
        turn.because(
            Code.RETRIES_EXHAUSTED,
            f"{state.retries} failed starts here, pausing for {left_s:.0f} s",
        )
        return False
    if state.locked_since_s is not None and turn.now_s - state.locked_s < IMAGE_LOCK_RETRY_S:
        turn.because(Code.IMAGE_LOCKED, locked_image_text(turn))
        return False
    return True


def locked_image_text(turn: VmTurn) -> str:
    """Which process has the lock of the VM's image, and for how long starts have failed for it."""
    state = turn.state
    since_s = turn.now_s if state.locked_since_s is None else state.locked_since_s
    return (
        f"the image of the VM's disk is locked, for {turn.now_s - since_s:.0f} s so far: "
        f"{state.locked_by}; tried again every {IMAGE_LOCK_RETRY_S:.0f} s"
    )


def _is_busy(its: PeerVm, now_s: float) -> bool:
    """Whether the peer acts on the VM. A peer that migrates it counts until the end of the
    migration that it has published."""
    return its.state in _BUSY_STATES and (its.moving_until_s is None or now_s < its.moving_until_s)


def _is_our_turn(turn: VmTurn) -> bool:
    """Whether every better host has had its time (takeover_follow each); adds the reason when not.

    After that this host does not wait for them: a fault that keeps a live host from starting the VM
    must not keep the VM down. The turns of equal hosts come later, in `first_in_line`.
    """
    mine, candidates = own(turn), others(turn)
    waited_s = _waited_s(turn, _ahead(turn))
    better = [c for c in placement.ranked(candidates) if c.score > mine.score]
    if waited_s >= len(better) * turn.rules.timing.takeover_follow:
        return True
    best = better[0]
    turn.because(
        Code.BETTER_HOST, f"{best.title} is better: {best.score} points, {mine.score} here"
    )
    return False


def first_in_line(turn: VmTurn) -> bool:
    """Whether the hosts before this one have had their time (tie_follow each); adds the reason when
    not.

    The time counts from when the lease was free: after a long wait for a dead owner all hosts see
    the lease become free at once, and would race for it.
    """
    ahead = _ahead(turn)
    if had_their_time(turn, ahead):
        return True
    turn.because(Code.EQUAL_HOST_FIRST, f"{len(ahead)} equally good host(s) may start it first")
    return False


def had_their_time(turn: VmTurn, ahead: tuple[int, ...]) -> bool:
    """Whether `tie_follow` has passed for each host of `ahead` since the VM could be started."""
    state = turn.state
    since_s = turn.now_s if state.startable_since_s is None else state.startable_since_s
    if since_s != state.startable_since_s:
        turn.state = replace(state, startable_since_s=since_s)
    waited_s = min(_waited_s(turn, ahead), turn.now_s - since_s)
    return waited_s >= len(ahead) * turn.rules.timing.tie_follow


def _ahead(turn: VmTurn) -> tuple[int, ...]:
    """The hosts that come before this one for the engine."""
    return placement.ahead([*others(turn), own(turn)], turn.observation.local.host_id)


def _waited_s(turn: VmTurn, ahead: tuple[int, ...]) -> float:
    """For how long the hosts of `ahead` could have started the VM.

    The time begins when the VM went missing. It begins anew when `ahead` gets a host that has not
    been in it before: a host that has only now become able to start the VM needs its time as well.
    It does not begin anew when the known hosts only change their order. And it does not begin
    before EngineDown was entered: after a global maintenance all hosts enter that state at once,
    with a VM that has been missing for long.
    """
    had_their_chance = frozenset(turn.state.ahead)
    if new := tuple(host for host in ahead if host not in had_their_chance):
        turn.state = replace(turn.state, ahead=(*turn.state.ahead, *new), ahead_since_s=turn.now_s)
    missing_since_s = turn.state.missing_since_s
    since_s = turn.now_s if missing_since_s is None else missing_since_s
    return min(turn.now_s - max(since_s, turn.state.ahead_since_s), turn.in_state_s)


def ask_lease(turn: VmTurn) -> None:
    """Ask sanlock who owns the VM's lease, unless the last answer is of this beat or the one
    before."""
    state, takeover = turn.state, turn.host.state.takeover
    lease, freed_s = state.lease, None if takeover is None else takeover.freed_s
    is_old = lease is None or turn.now_s - lease.asked_s >= 2 * turn.rules.timing.beat
    if is_old and not state.asking_lease and turn.now_s != freed_s:
        turn.ask(AskLease())
        turn.state = replace(state, asking_lease=True)


def lease_allows(turn: VmTurn) -> bool:
    """Whether the VM's lease can be taken now. If not, adds the reason, and asks sanlock or names
    the owner whose death is waited for."""
    ask_lease(turn)
    state, takeover = turn.state, turn.host.state.takeover
    lease = state.lease
    if takeover is not None and was_freed(turn, turn.number, lease):
        turn.keeps_waiting = True
        turn.because(Code.HOST_ID_FREED, f"the id of {turn.host.title(takeover.host_id)} is freed")
        return True
    if lease is None or (
        state.missing_since_s is not None and lease.asked_s < state.missing_since_s
    ):
        turn.keeps_waiting = takeover is not None
        turn.because(Code.LEASE_ASKED, f"asking who owns {turn.lease_name}")
        return False
    if not lease.known:
        # A takeover that has begun goes on in spite of one question without an answer.
        turn.keeps_waiting = takeover is not None
        turn.because(Code.LEASE_UNKNOWN, f"who owns {turn.lease_name} is not known: {lease.detail}")
        return False
    if (
        _is_at_asking(turn)
        and turn.asking is not None
        and (lease.owner != turn.asking.host_id or lease.owner_is_gone)
    ):
        # The asking host lives, and only the loss of its power ends the VM there: a free lease is
        # no proof that the VM has ended.
        turn.keeps_waiting = takeover is not None
        turn.because(
            Code.OWNER_ASKS,
            f"{name_of(turn.asking)} asks to be switched off, but its VM does not hold the lease",
        )
        return False
    if lease.owner is None:
        turn.because(Code.LEASE_FREE, f"{turn.lease_name} is free")
        return True
    if lease.owner == turn.observation.local.host_id:
        missing_since_s = state.missing_since_s
        if missing_since_s is not None and turn.here.taken_s < missing_since_s:
            # The lease may have arrived with a migrated VM: the other host may say that the VM has
            # left before this host has sampled it.
            turn.because(
                Code.AWAITING_SAMPLE,
                f"{turn.lease_name} is this host's own: looking whether the VM has just arrived",
            )
            return False
        turn.because(Code.LEASE_FREE, f"{turn.lease_name} is this host's own")
        return True
    if lease.owner_is_gone:
        owner = turn.host.title(lease.owner)
        turn.because(
            Code.LEASE_OWNER_GONE, f"{owner} took {turn.lease_name}, but is {_why_gone(lease)}"
        )
        return True
    return _waits_for_owner(turn, lease)


def was_freed(turn: VmTurn, number: int, lease: LeaseAnswer | None) -> bool:
    """Whether the owner of a VM's lease, by this last answer, is the host whose id was freed after
    that answer: then the lease is free, and the id need not be freed again."""
    takeover = turn.host.state.takeover
    if takeover is None:
        return False
    early = takeover.lease
    if lease is None and early is not None and early.vm == number:
        lease = early
    return (
        takeover.freed_s is not None
        and lease is not None
        and lease.owner == takeover.host_id
        and lease.asked_s <= takeover.freed_s
    )


def _is_at_asking(turn: VmTurn) -> bool:
    """Whether the VM runs on the host that asks to be switched off."""
    if turn.asking is None:
        return False
    ask = turn.asking.fence_ask
    is_sick_one = ask is not None and ask.vm == turn.number
    return is_sick_one or turn.at(turn.asking).report.vm is VmStatus.UP


def _why_gone(lease: LeaseAnswer) -> str:
    """Why the owner is gone, as the end of a sentence."""
    if lease.current_generation > lease.owner_generation:
        return "another generation now"
    return lease.standing.value


def _waits_for_owner(turn: VmTurn, lease: LeaseAnswer) -> bool:
    """Wait for the owner of the lease; always False. A live owner is waited for; a silent one is
    named as the host whose death is waited for, when it is this host's turn to pursue it."""
    owner = next((p for p in turn.live if p.host_id == lease.owner), None)
    if owner is not None and owner is not turn.asking:
        turn.because(Code.LEASE_OWNER_LIVE, f"{name_of(owner)} lives and owns {turn.lease_name}")
        return False
    assert lease.owner is not None
    ahead = _ahead(turn) if turn.number == ENGINE else _fencers_ahead(turn, lease.owner)
    if _waited_s(turn, ahead) < len(ahead) * turn.rules.timing.takeover_follow:
        title = turn.host.title(lease.owner)
        turn.because(Code.TAKEOVER_TURN, f"{len(ahead)} host(s) may take over from {title} first")
        return False
    turn.waits_for = lease
    return False


def _fencers_ahead(turn: VmTurn, dead: int) -> tuple[int, ...]:
    assert turn.several is not None
    return turn.several.fencers_ahead(dead)

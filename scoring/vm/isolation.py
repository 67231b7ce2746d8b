# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides what to do with a VM that runs well here but that nobody reaches.

The other hosts ask the VM as its users do, each over its own network, and publish when it last
answered. If it answers no host any more, there are two possible causes. This host may be cut off;
then the VM is of use only on another host. Or the fault concerns all hosts; then moving the VM
would cost an outage and gain nothing. The state of this host's own network shows which it is.

Rules of this file:

1. A VM that was never reached from outside on this host in this stay is not missed: its health
   check may be answered locally by design.
2. One statement alone is never enough. It takes a host that does not reach the VM although its own
   network is good, and this host's own finding that its network is bad: the VM's bridges are down,
   their uplinks have no carrier, or no target of the network test answers.
3. If one host has reached the VM within `isolation_after`, the VM stays. When the carrier is lost,
   that time counts from the loss: the first question without an answer would come later.
4. A VM that is unhealthy by this host's own check is not treated here, unless its uplink has no
   carrier: the check itself may use that way.
5. The VM leaves only for a host on which it can be reached: one that may run it, says that its own
   network is good, and does not say that the VM's bridge there has no working uplink.
6. The way for a migration is proven before it is needed. A guest that was asked to shut down is
   left running again as soon as the VM is reached.
7. While none of the hosts that miss the VM knows that its own network is good, there is only doubt:
   the way for a migration is asked already, since the answer may take seconds.

    missed   own network     seen within isolation_after   verdict
    no       any             any                           none
    yes      good            yes                           none
    yes      not known       yes                           doubt: ask the way for a migration
    yes      bad             yes                           waiting: ask the way, and give a reason
    yes      good, not known no                            held back: the fault may be everywhere
    yes      bad             no                            isolated: move it, else stop it in order
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import assert_never

from scoring.decision import AskMigrationPath, Code
from scoring.hosts.turn import name_of
from scoring.observation import PeerReport
from scoring.timing import NEVER_S
from scoring.vm import placement
from scoring.vm.move import pause_s
from scoring.vm.room import secure
from scoring.vm.state import StateName
from scoring.vm.targets import targets
from scoring.vm.turn import VmTurn, begin_move, is_cut_off
from scoring.vm_facts import DETAIL_PAUSED, Health, OutsideView

#: The greatest age of an answer about the way for a migration; then it is asked again.
PATH_OLD_S = 5.0


class Verdict(Enum):
    """See the table above."""

    NONE = "none"
    DOUBT = "doubt"
    WAITING = "waiting"
    HELD_BACK = "held back"
    ISOLATED = "isolated"


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether the VM is isolated. `why`: a sentence, empty for NONE and DOUBT. `able`: the hosts
    that can take the VM and on which it would be reached, the best first. `seen_s`: when a host
    last reached it from outside. `left_s`: how long until a VM that is WAITING leaves."""

    verdict: Verdict
    why: str = ""
    able: tuple[placement.Candidate, ...] = ()
    seen_s: float = NEVER_S
    left_s: float = 0.0


_NONE = Finding(Verdict.NONE)


def look(turn: VmTurn) -> Finding:
    """Whether the VM here is isolated, by the table at the head of this file."""
    views = [(peer, view) for peer in turn.live if (view := _of_this_place(turn, peer)) is not None]
    seen_s = max((view.good_s for _, view in views if view.good_s is not None), default=None)
    missing = [peer for peer, view in views if view.bad_since_s is not None]
    is_well = turn.here.report.health is Health.GOOD or turn.here.uplink_up is False
    if seen_s is None or not missing or not is_well or turn.here.report.detail == DETAIL_PAUSED:
        return _NONE
    cut_off = is_cut_off(turn)
    blind = [peer for peer in missing if peer.way_out]
    if not blind:
        # None of them knows yet whether the fault is in its own network (rule 7).
        somewhere = tuple(targets(turn))
        may_be_ours = cut_off is not False and any(peer.way_out is None for peer in missing)
        is_doubt = somewhere and may_be_ours
        return Finding(Verdict.DOUBT, able=somewhere) if is_doubt else _NONE
    since_s = _missed_since_s(turn, seen_s, views)
    return _judge_missed(
        turn, cut_off, f"{_names(blind)} cannot reach the VM here", since_s, seen_s
    )


def _judge_missed(
    turn: VmTurn, cut_off: bool | None, who: str, since_s: float, seen_s: float
) -> Finding:
    """What to do with a VM that hosts with a good network do not reach (the lower part of the
    table). `since_s`: since when nobody reaches it; `seen_s`: when a host last did."""
    rules = turn.rules
    unseen_s = turn.now_s - since_s
    left_s = rules.timing.isolation_after - unseen_s
    missed = f"{who}, nobody has for {unseen_s:.0f} s"
    good = {
        peer.host_id for peer in turn.live if peer.way_out and turn.at(peer).uplink_up is not False
    }
    able = tuple(c for c in targets(turn) if c.host_id in good)
    if not cut_off:
        if left_s <= 0:
            why = f"{missed}; {_whose_fault(cut_off)}: it is left here"
            return Finding(Verdict.HELD_BACK, why)
        return Finding(Verdict.DOUBT, able=able) if cut_off is None and able else _NONE
    own = (
        "the VM's bridge is down or has no carrier"
        if turn.here.uplink_up is False
        else "no target answers here"
    )
    if rules.leave_isolated or not able:
        why = "vm.on-isolation is leave" if able else "no host with a good network can take it"
        return Finding(Verdict.HELD_BACK, f"{missed}, {own}: it is left here, for {why}")
    if left_s > 0:
        why = f"{missed}, {own}: given away in {left_s:.0f} s"
        return Finding(Verdict.WAITING, why, able, seen_s, left_s)
    return Finding(Verdict.ISOLATED, f"{missed}, {own}", able, seen_s)


def act(turn: VmTurn) -> StateName | None:
    """The next state of a VM that is isolated; None: it is not, or not yet."""
    found = look(turn)
    match found.verdict:
        case Verdict.NONE:
            return None
        case Verdict.DOUBT:
            _ask_path(turn, found.able[0])
            return None
        case Verdict.HELD_BACK:
            turn.because(Code.ISOLATION_HELD_BACK, found.why)
            return None
        case Verdict.WAITING:
            turn.because(Code.ISOLATION_WAITING, found.why)
            turn.wake_s = turn.now_s + found.left_s
            _ask_path(turn, found.able[0])
            return None
        case Verdict.ISOLATED:
            return _give_away(turn, found)
        case _:
            assert_never(found.verdict)


def is_over(turn: VmTurn) -> bool:
    """Whether the guest was asked to shut down for isolation, and the VM is reached here again."""
    return (
        turn.state.isolated
        and turn.may_stay_up
        and turn.here.report.health is Health.GOOD
        and look(turn).verdict is not Verdict.ISOLATED
    )


def _give_away(turn: VmTurn, found: Finding) -> StateName | None:
    """Migrate the isolated VM, or stop it where that is not possible; None: the way for a migration
    is being asked, or the room on the target is not granted yet."""
    state, grace_s = turn.state, turn.rules.timing.isolation_grace
    target = found.able[0]
    failed = any(pause_s(turn, candidate.host_id) for candidate in found.able)
    if turn.observation.migration_possible and not failed:
        path = state.path
        if path is None or path.target != target.host_id or path.asked_s < found.seen_s:
            turn.because(Code.ISOLATION_WAITING, f"{found.why}: asking whether it can be migrated")
            _ask_path(turn, target)
            return None
        if path.ok and not secure(turn, target.host_id):
            return None
        if path.ok:
            turn.because(Code.ISOLATED, f"{found.why}: migrating it to {target.title}")
            begin_move(turn, target.host_id)
            return StateName.ENGINE_MIGRATING_AWAY
    turn.because(
        Code.ISOLATED,
        f"{found.why}: no way to migrate it, shutting it down within {grace_s:g} s, so that "
        f"{target.title} can start it",
    )
    turn.state = replace(state, isolated=True)
    return StateName.ENGINE_STOP


def _ask_path(turn: VmTurn, target: placement.Candidate) -> None:
    """Ask whether libvirt on the target answers where a migration would connect, unless that is
    known."""
    state, path = turn.state, turn.state.path
    is_known = (
        path is not None
        and path.target == target.host_id
        and turn.now_s - path.asked_s < PATH_OLD_S
    )
    if turn.observation.migration_possible and not state.asking_path and not is_known:
        turn.ask(AskMigrationPath(target.host_id))
        turn.state = replace(state, asking_path=True)


def _missed_since_s(
    turn: VmTurn, seen_s: float, views: list[tuple[PeerReport, OutsideView]]
) -> float:
    """Since when nobody reaches the VM: since the first question without an answer after the last
    answer, or since the VM's bridge lost its carrier. The time of the last answer itself would be
    too early, since some hosts ask seldom."""
    since_s = [view.bad_since_s for _, view in views if view.bad_since_s is not None]
    since_s = [at_s for at_s in since_s if at_s >= seen_s]
    if turn.state.uplink_down_s is not None:
        since_s.append(max(seen_s, turn.state.uplink_down_s))
    return min(since_s, default=seen_s)


def _of_this_place(turn: VmTurn, peer: PeerReport) -> OutsideView | None:
    """How a peer reaches the VM on this host in this stay; None: it has not asked it."""
    view = turn.at(peer).outside
    here = turn.observation.local.host_id, turn.state.last_ran
    return view if view is not None and (view.owner, view.stay) == here else None


def _whose_fault(cut_off: bool | None) -> str:
    if cut_off is None:
        return "whether this host is cut off is not known (are network.targets set?)"
    return "but this host's own network answers, so that it may be the same everywhere"


def _names(peers: list[PeerReport]) -> str:
    return ", ".join(map(name_of, peers))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides whether the VM should move: out of a host in local maintenance, or to a better host.

A live migration interrupts the users for a moment and loads the network. A host that looks better
for one second may not be better. So a healthy VM moves only when another host has been clearly
better for a while. Out of a host in maintenance it moves at once, to any host that can take it.

Rules of this file:

1. After a failed move to a host, the next one there waits for `migrate_retry`, twice as long after
   each further failure, RETRY_MAX_S at most; it waits for LASTING_RETRY_S if the cause does not go
   away by itself. Meanwhile a drain tries the next host, unless the cause is the same on every
   host.
2. A drain that does not succeed gives the reason for each host, in libvirt's own words, and what a
   person can do. It stops the VM only if a person has asked for that (scoring/vm/restart.py), since
   the VM is well here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from scoring.decision import Code
from scoring.hosts.turn import name_of
from scoring.observation import PeerReport
from scoring.vm import placement
from scoring.vm.better_place import better_place
from scoring.vm.restart import stop_for_start_elsewhere
from scoring.vm.room import secure
from scoring.vm.seen import SPEAKS_SEVERAL
from scoring.vm.state import StateName
from scoring.vm.targets import targets
from scoring.vm.turn import VmTurn, begin_move, is_short_of_memory, own
from scoring.vm.unstoppable import leaves_for
from scoring.vm_facts import ENGINE, VmStatus

RETRY_MAX_S = 900.0
LASTING_RETRY_S = 3600.0
#: After this many failures in a row a host counts as one that cannot take the VM.
STUCK_TRIES = 3
#: How many hosts are named with their reason; the others are only counted.
NAMED_MAX = 4
#: How many VMs leave a host at the same time.
DRAINED_AT_ONCE = 2


def move(turn: VmTurn) -> StateName | None:
    """The next state if the VM is to leave this host, for a drain or for a better host; None: it
    stays for now."""
    drained_for = _drained_for(turn)
    draining = bool(drained_for)
    # For a VM of the registry the targets are found only when it is to move: at rest, many VMs
    # must cost nothing.
    candidates = targets(turn) if draining or turn.number == ENGINE else []
    best = _drain_to(turn, candidates, drained_for) if draining else _better_place(turn, candidates)
    if best is None:
        return None
    may_restart = draining and turn.observation.local.may_restart
    if not can_migrate(turn):
        if may_restart:
            return stop_for_start_elsewhere(turn, best, "libvirt.migration-uri is not set")
        turn.because(
            Code.MOVE_IMPOSSIBLE,
            f"would move to {best.title}, but libvirt.migration-uri is not set",
        )
        return None
    tried = candidates if draining else [best]
    left_s = min(pause_s(turn, candidate.host_id) for candidate in tried)
    if left_s and may_restart and _is_stuck(turn, tried):
        hosts = [candidate.host_id for candidate in tried]
        return stop_for_start_elsewhere(turn, best, failures(turn, hosts).removeprefix(": "))
    if left_s:
        _say_failed(turn, tried, left_s)
        return None
    if not secure(turn, best.host_id):
        return None
    turn.because(Code.MOVE_STARTED, f"migrating the VM to {best.title}")
    begin_move(turn, best.host_id)
    return StateName.ENGINE_MIGRATING_AWAY


def can_migrate(turn: VmTurn) -> bool:
    """Whether the VM can be live-migrated at all."""
    return turn.observation.migration_possible and turn.here.migration_possible


def _drained_for(turn: VmTurn) -> str:
    """Why the VM has to leave this host; empty: it need not."""
    if turn.observation.local.maintenance:
        return "local maintenance"
    if sick := leaves_for(turn):
        return f"{sick} here is sick and cannot be ended, only the loss of power would end it"
    return ""


def _drain_to(
    turn: VmTurn, candidates: list[placement.Candidate], drained_for: str
) -> placement.Candidate | None:
    """The host to which a drain moves the VM next; None: none now, and the reason is added."""
    if not candidates:
        said = f"{drained_for}: no other live host can take the VM"
        turn.because(Code.DRAIN_WAITING, f"{said}{_listed(_why_none(turn))}")
        return None
    several = turn.several
    if several is not None and several.moving >= DRAINED_AT_ONCE and turn.state.held is None:
        text = f"{drained_for}: {several.moving} other VMs are moved first"
        turn.because(Code.DRAIN_QUEUED, text)
        return None
    # The best host without a pause; if all have one, the best host, which is tried later.
    return next((c for c in candidates if not pause_s(turn, c.host_id)), candidates[0])


def _better_place(
    turn: VmTurn, candidates: list[placement.Candidate]
) -> placement.Candidate | None:
    """A host that has been better for long enough; None: there is none yet."""
    if turn.number == ENGINE:
        best = candidates[0] if candidates else None
        gap = 0 if best is None else best.score - own(turn).score
        why = f"is {gap} points better"
        is_better = gap >= turn.rules.move_threshold
    else:
        best, why = better_place(turn)
        is_better = best is not None
    if best is None or not is_better:
        if turn.state.better_since_s is not None:
            turn.state = replace(turn.state, better_since_s=None)
        return None
    since_s = turn.now_s if turn.state.better_since_s is None else turn.state.better_since_s
    turn.state = replace(turn.state, better_since_s=since_s)
    left_s = turn.rules.timing.move_dwell - (turn.now_s - since_s)
    if left_s <= 0:
        return best
    turn.because(Code.MOVE_DWELL, f"{best.title} {why}, moving there in {left_s:.0f} s")
    return None


def pause_s(turn: VmTurn, target: int) -> float:
    """How long the next move to that host has to wait after a failed one; 0: not at all."""
    host = _problem_at(turn, target)
    failed_s = turn.state.move_failed_s.get(host)
    if failed_s is None:
        return 0.0
    retry_s = turn.rules.timing.migrate_retry
    known = turn.state.move_problems.get(host)
    if known is not None:
        doubled_s = retry_s * 2.0 ** min(known.tries - 1, 10)
        longest_s = max(retry_s, LASTING_RETRY_S if known.lasting else RETRY_MAX_S)
        retry_s = longest_s if known.lasting else min(doubled_s, longest_s)
    return max(0.0, failed_s + retry_s - turn.now_s)


def _problem_at(turn: VmTurn, target: int) -> int:
    """The host whose failed move counts for that target: the target itself, else a host whose
    failure has a cause that is the same on every host."""
    known = turn.state.move_problems
    if target in known:
        return target
    return next((host for host, problem in known.items() if problem.everywhere), target)


def failures(turn: VmTurn, hosts: Iterable[int]) -> str:
    """Why the last moves to these hosts failed, as the end of a sentence; empty: none failed."""
    known = turn.state.move_problems
    for problem in known.values():
        if problem.everywhere:
            return f": to any host: {problem.why}"
    failed = [host for host in hosts if host in known]
    return _listed([f"{turn.host.title(host)}: {known[host].why}" for host in failed])


def why_not(turn: VmTurn, target: int) -> str:
    """Why a host cannot take the VM, as a sentence; empty: it can."""
    if target == turn.observation.local.host_id:
        return "the VM runs on this very host"
    peer = next((p for p in turn.observation.peers if p.host_id == target), None)
    if peer is None:
        return f"no host with id {target} is on the whiteboard"
    live = next((p for p in turn.live if p.host_id == target), None)
    if live is None:
        if any(p.host_id == target for p in turn.uncertain):
            return f"{name_of(peer)} was first seen just now: try again in a few seconds"
        return f"{name_of(peer)} is silent"
    return _not_fit_to_run(turn, live)


def _not_fit_to_run(turn: VmTurn, peer: PeerReport) -> str:
    """Why a live host cannot take the VM, as a sentence; empty: it can."""
    if peer.maintenance:
        return f"{name_of(peer)} is in local maintenance"
    if peer.stopped:
        return f"the agent on {name_of(peer)} was stopped"
    if turn.number != ENGINE:
        return _has_no_place(turn, peer)
    if turn.at(peer).report.vm is VmStatus.UNKNOWN:
        return (
            f"libvirt on {name_of(peer)} does not answer its broker: right after a restart of"
            " libvirt try again in a few seconds"
        )
    if peer.score <= 0:
        return f"{name_of(peer)} scores 0: it must not run the VM (ha-agent --status shows why)"
    if turn.at(peer).uplink_up is False and turn.here.uplink_up:
        return f"the VM's bridge on {name_of(peer)} leads nowhere: nobody would reach it there"
    if is_short_of_memory(turn, peer):
        return f"{name_of(peer)} has less memory free than the VM needs"
    return ""


def _has_no_place(turn: VmTurn, peer: PeerReport) -> str:
    """Why a live host cannot take a VM of the registry, as a sentence; empty: it can."""
    several, v = turn.several, turn.spec
    assert several is not None and v is not None
    if peer.speaks < SPEAKS_SEVERAL:
        return f"{name_of(peer)} runs an earlier version, which knows of the engine alone"
    if peer.host_id in {c.host_id for c in several.takers(v)}:
        return ""
    if peer.host_id in {c.host_id for c in several.able(v)}:
        return f"{name_of(peer)} has less memory free than {v.name} needs"
    if v.only and peer.host_id not in v.only:
        return f"{v.name} must not run on {name_of(peer)} (only)"
    return f"{name_of(peer)} may not run {v.name} now: ha-agent why {v.name}"


def _why_none(turn: VmTurn) -> list[str]:
    """Why each other host, whose agent was not stopped, cannot take the VM."""
    peers = [peer for peer in turn.observation.peers if not peer.stopped]
    return [why for peer in peers if (why := why_not(turn, peer.host_id))]


def _say_failed(turn: VmTurn, candidates: list[placement.Candidate], left_s: float) -> None:
    """Add the reason that moves to all of these have failed, and that the next one waits for
    `left_s`."""
    hosts = [candidate.host_id for candidate in candidates]
    why = failures(turn, hosts)
    if not (turn.observation.local.maintenance and _is_stuck(turn, candidates)):
        turn.because(Code.MOVE_DWELL, f"the last migration failed, next try in {left_s:.0f} s{why}")
        return
    of_it = "" if turn.number == ENGINE else f" {turn.called}"
    turn.because(
        Code.DRAIN_STUCK,
        "local maintenance: the VM runs on here, for it cannot be migrated, next try in "
        f"{left_s:.0f} s (at once: ha-agent migrate{of_it}; without migration, with an outage: "
        f"ha-agent maintenance local --restart, then {candidates[0].title} can start it){why}",
    )


def _is_stuck(turn: VmTurn, candidates: list[placement.Candidate]) -> bool:
    """Whether waiting does not help: each of these hosts has a lasting problem, or too many failed
    moves."""
    problems = turn.state.move_problems
    known = [problems.get(_problem_at(turn, candidate.host_id)) for candidate in candidates]
    return all(each and (each.lasting or each.tries >= STUCK_TRIES) for each in known)


def _listed(said: list[str]) -> str:
    """The reasons of several hosts, as the end of a sentence."""
    more = f"; and {len(said) - NAMED_MAX} more" if len(said) > NAMED_MAX else ""
    return f": {'; '.join(said[:NAMED_MAX])}{more}" if said else ""

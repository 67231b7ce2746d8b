# SPDX-License-Identifier: LGPL-2.1-or-later
"""The readings of a host's power that begin before the host is suspected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scoring.decide import Decision
from scoring.decision import AskLease, AskPower, Code, DropFenceLease, FreeHostId, StartVm
from scoring.hosts.early import EARLY_PAUSE_S
from scoring.hosts.evidence import FREE_BEATS
from scoring.hosts.state import Seen, Takeover
from scoring.observation import HostShutdown, LeaseAnswer, Power
from scoring.vm.state import StateName
from scoring.vm_facts import PeerVm, VmSpec
from tests.unit.builders import (
    DEAD,
    DOWN,
    NOW_S,
    TIMING,
    UP,
    Fall,
    in_state,
    kinds,
    lease_of,
    local,
    off,
    peer,
)

S = StateName
OVERDUE = {"engine": UP, "overdue_since_s": NOW_S - 0.6}
DEVICE = frozenset({DEAD})


def early(*others: Any, here: Any = None, **given: Any) -> Decision:
    """A decision of host 1 about host 2, which lives, runs the engine, and is overdue."""
    owner = peer(DEAD, **{**OVERDUE, **given.pop("owner", {})})
    given.setdefault("fence_devices", DEVICE)
    remembered = {"missing_since_s": None, **given.pop("remembered", {})}
    return in_state(
        S.ENGINE_DOWN, here, for_s=100.0, live=[owner, *others], remembered=remembered, **given
    )


def test_a_host_that_is_overdue_is_asked_before_it_is_suspected() -> None:
    """The host's power and the owner of the lease are asked for; a freeing needs both."""
    decision = early()
    assert decision.watched == (DEAD,)
    assert {*decision.actions} == {AskPower(DEAD), AskLease()}
    step = decision.state.host.takeover
    assert step is not None and step.is_early and step.asking_power
    assert [reason.vm for reason in decision.reasons if reason.code is Code.POWER_ASKED] == [0]
    assert decision.state.engine.name is S.ENGINE_DOWN


@pytest.mark.parametrize(
    "given",
    [
        {"owner": {"overdue_since_s": None}},
        {"owner": {"stopped": True}},
        {"owner": {"engine": DOWN}},
        {"fence_devices": frozenset()},
        {"global_maintenance": True},
        {"global_maintenance": None},
        {"lockspace_joined": None},
        {"newer_versions": (9,)},
        {"here": local(maintenance=True)},
        {"here": local(shutdown=HostShutdown(NOW_S))},
        {"here": local(lock_driver=False)},
        {"stopping": True},
        {"remembered": {"early_over_s": {DEAD: NOW_S - EARLY_PAUSE_S + 0.1}}},
    ],
)
def test_it_is_not_asked_where(given: dict[str, Any]) -> None:
    assert AskPower not in kinds(early(**given))


def test_after_a_pause_it_is_asked_again() -> None:
    over = {"early_over_s": {DEAD: NOW_S - EARLY_PAUSE_S}}
    assert AskPower in kinds(early(remembered=over))


def test_only_the_heir_asks() -> None:
    better, worse = peer(3, score=3401), peer(3, score=3399)
    assert early(better).watched == ()
    assert early(worse).watched == (DEAD,)


def test_who_runs_the_vm_here_watches_nobody_for_it() -> None:
    decision = in_state(
        S.ENGINE_UP, local(UP), live=[peer(DEAD)], fence_devices=DEVICE, remembered={}
    )
    assert decision.watched == ()


def still(since_s: float) -> dict[int, Seen]:
    """The slot of host 2 has not changed since then."""
    return {DEAD: Seen(500, since_s, changed=True)}


def proven(**changed: Any) -> dict[str, Any]:
    """Off was read twice, the last time under the fence lease, and the lease's owner is known."""
    first, last = off(DEAD, NOW_S - 1.2), off(DEAD, NOW_S - 0.1)
    step = Takeover(
        DEAD,
        NOW_S - 1.3,
        offs=(first, last),
        power=last,
        fence_since_s=NOW_S - 1.0,
        is_early=True,
        lease=lease_of(DEAD, NOW_S - 1.2),
    )
    return {"takeover": replace(step, **changed)}


def test_its_id_is_freed_once_its_slot_has_missed_two_beats() -> None:
    """A device that lies, and a packet that is lost, are not enough."""
    for age_s, frees in ((FREE_BEATS - 0.001, False), (FREE_BEATS, True)):
        remembered = proven()
        remembered["seen"] = still(NOW_S - age_s)
        decision = early(fence_lease_held=True, remembered=remembered)
        assert (FreeHostId in kinds(decision)) is frees
        if not frees:
            assert decision.wake_s == pytest.approx(NOW_S + 0.001)


def test_one_that_was_freed_waits_for_its_suspicion_and_the_vm_starts_then() -> None:
    remembered = proven(freed_s=NOW_S - 0.1)
    remembered["seen"] = still(NOW_S - 2.5)
    decision = early(fence_lease_held=True, remembered=remembered)
    assert not decision.actions
    assert decision.wake_s == NOW_S - 2.5 + TIMING.suspect_after
    remembered["seen"] = still(NOW_S - TIMING.suspect_after)
    decision = early(fence_lease_held=True, remembered=remembered)
    assert StartVm in kinds(decision)


def test_a_freeing_under_way_is_withdrawn_by_a_sign_of_life_and_by_nothing_else() -> None:
    seen = still(NOW_S - 2.1)
    goes_on = early(fence_lease_held=True, remembered={**proven(freeing=True), "seen": seen})
    assert goes_on.state.host.takeover is not None
    assert goes_on.state.host.takeover.withdrawn == ""
    answered = {"heartbeat_s": NOW_S - 0.2}
    lives = early(
        fence_lease_held=True, owner=answered, remembered={**proven(freeing=True), "seen": seen}
    )
    assert lives.state.host.takeover is not None
    assert lives.state.host.takeover.withdrawn.startswith("no-sign-of-life-since")


def test_a_false_alarm_is_forgotten_and_the_next_one_waits() -> None:
    well = {"overdue_since_s": None}
    decision = early(owner=well, fence_lease_held=True, remembered=proven())
    assert decision.state.host.takeover is None
    assert decision.state.host.early_over_s == {DEAD: NOW_S}
    assert kinds(decision) == {DropFenceLease}


def test_what_was_read_of_one_host_says_nothing_of_another() -> None:
    remembered = {**proven(), "early_over_s": {}}
    other = peer(3, engine=DOWN)
    step = remembered["takeover"]
    remembered["takeover"] = replace(step, host_id=3)
    decision = early(other, fence_lease_held=True, remembered=remembered)
    now = decision.state.host.takeover
    assert now is not None and now.host_id == DEAD
    assert (now.offs, now.lease, now.fence_since_s) == ((), None, step.fence_since_s)


def test_an_early_answer_about_the_lease_is_kept_where_that_host_owns_it() -> None:
    for answer, kept in (
        (lease_of(DEAD), True),
        (lease_of(3), False),
        (LeaseAnswer(False, NOW_S), False),
    ):
        decision = early(remembered=proven(lease=None), outcomes=(answer,))
        step = decision.state.host.takeover
        assert step is not None and (step.lease is not None) is kept


def test_the_whole_way_is_shorter_than_from_the_suspicion() -> None:
    """The takeover is shorter even with beats of a second and answers that come a beat later."""
    took_s = []
    for sign in (None, 0.5):
        fall = Fall()
        fell_s = fall.life.now_s
        fall.life.change_peer(DEAD, overdue_since_s=None if sign is None else fell_s + sign)
        fall.until(StartVm)
        assert fall.did(AskPower) == 2 and fall.did(FreeHostId) == 1
        took_s.append(fall.life.now_s - fell_s)
    assert took_s[1] < took_s[0]


def test_power_that_reads_on_switches_nobody_off() -> None:
    fall = Fall()
    fall.power = Power.ON
    fall.life.change_peer(DEAD, overdue_since_s=fall.life.now_s)
    fall.run(2)
    assert fall.did(AskPower) >= 1
    assert {type(action) for action in fall.actions} == {AskPower, AskLease}


# --- several VMs ---------------------------------------------------------------------------------

WEB = 7
SPEC = VmSpec(WEB, "web", 512)
RUNS = {WEB: PeerVm(UP, S.ENGINE_UP.value)}
ROOM: dict[str, Any] = {
    "total_mb": 8192.0,
    "free_mb": 4096.0,
    "free_huge_mb": 0.0,
    "speaks": 2,
    "registry": 1,
}


def several(*others: Any, owner: dict[str, Any] | None = None, **given: Any) -> Decision:
    """The engine is down by order of nobody and runs on host 3; host 2 runs the web server."""
    slot = {"vms": RUNS, "engine": DOWN, **ROOM, **(owner or {})}
    here = local(reaches=given.pop("reaches", frozenset()), total_mb=8192.0, free_mb=4096.0)
    return early(*others, owner=slot, here=here, specs=(SPEC,), registry=1, **given)


def test_a_host_with_another_vm_is_watched_by_who_pursues_it_first() -> None:
    engine = peer(3, engine=UP, **ROOM)
    assert several(engine).watched == (DEAD,)
    assert several(replace(engine, reaches=DEVICE)).watched == ()
    assert several(replace(engine, reaches=DEVICE), reaches=DEVICE).watched == (DEAD,)
    assert several(replace(engine, reaches=DEVICE, maintenance=True)).watched == (DEAD,)
    assert several(engine, owner={"vms": {}}).watched == ()
    both = several(peer(3, **ROOM), owner={"engine": UP})
    assert both.watched == (DEAD,)


def test_the_lease_of_a_vm_that_is_there_is_asked_for() -> None:
    decision = several(peer(3, engine=UP, **ROOM))
    assert AskLease(WEB) in decision.actions


def test_among_equals_the_lower_host_id_pursues() -> None:
    """Asked of host 5, in whose eyes host 1 comes first where it can reach as much."""
    for reaches, others_reach, first in (
        (frozenset(), frozenset(), False),
        (DEVICE, frozenset(), True),
        (DEVICE, DEVICE, False),
    ):
        here = local(total_mb=8192.0, free_mb=4096.0, reaches=reaches, host_id=5)
        owner = {"vms": RUNS, "engine": DOWN, **ROOM}
        lower = peer(1, engine=UP, reaches=others_reach, **ROOM)
        decision = early(lower, owner=owner, here=here, specs=(SPEC,), registry=1)
        assert (decision.watched == (DEAD,)) is first

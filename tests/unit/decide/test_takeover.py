# SPDX-License-Identifier: LGPL-2.1-or-later
"""The takeover from a host that fell silent: its power is read, its host id freed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from scoring.decision import (
    AskLease,
    AskPower,
    Code,
    DropFenceLease,
    FreeHostId,
    StartVm,
    TakeFenceLease,
)
from scoring.hosts.state import Takeover
from scoring.observation import (
    FenceLeaseAnswer,
    HostIdFreed,
    LeaseAnswer,
    Power,
    PowerOffEnded,
    Standing,
    StartResult,
)
from scoring.vm.state import StateName
from tests.unit.builders import (
    DEAD,
    DOWN,
    MOMENT_S,
    NOW_S,
    RULES,
    TIMING,
    UP,
    Fall,
    codes,
    down,
    in_state,
    kinds,
    lease_of,
    local,
    may_start,
    off,
    peer,
    replaced,
)

S = StateName


def test_the_next_power_reading_wakes_the_agent_only_when_it_is_waited_for() -> None:
    first = off(2, NOW_S - 0.5)
    waiting = {"takeover": Takeover(2, NOW_S - 1, offs=(first,), power=first, taking_fence=True)}
    asking = {"takeover": replace(waiting["takeover"], asking_power=True)}
    for remembered, wake_s in ((waiting, first.read_s + TIMING.power_reread), (asking, None)):
        decision = down(
            silent=[peer(2)],
            remembered=may_start(lease=lease_of(2), **remembered),
            fence_devices=frozenset({2}),
        )
        assert decision.wake_s == wake_s


def test_an_unanswered_question_does_not_forget_a_takeover() -> None:
    lease = LeaseAnswer(known=False, asked_s=NOW_S)
    pursued = Takeover(2, NOW_S - 2)
    decision = down(silent=[peer(2)], remembered={"lease": lease, "takeover": pursued})
    assert decision.state.host.takeover == pursued
    assert codes(decision) == [Code.LEASE_UNKNOWN]


def test_the_whole_way_from_a_host_that_fell_silent_to_the_vm_here() -> None:
    fall = Fall()
    fell_s = fall.life.now_s
    fall.until(FreeHostId)
    *asked, freed = [a for a in fall.actions if not isinstance(a, AskLease)]
    assert asked == [AskPower(DEAD), TakeFenceLease(), AskPower(DEAD)]
    assert isinstance(freed, FreeHostId)
    assert replace(freed, evidence="") == FreeHostId(DEAD, 5, 77, fall.life.now_s - 0.5)
    decision = fall.until(StartVm)
    assert Code.HOST_ID_FREED in codes(decision)
    assert decision.state.host.takeover is None
    assert DropFenceLease in kinds(decision)
    # suspect_after, and a beat each for: lease, power, power again, freed, start.
    assert fall.life.now_s - fell_s <= TIMING.suspect_after + 6 * TIMING.beat
    # The VM's state is judged from the first sample on that is younger than the start.
    assert fall.beat().state.engine.name is S.ENGINE_STARTING
    after = fall.beat()
    assert after.state.engine.name is S.ENGINE_UP
    assert after.state.engine.last_ran == 1
    assert fall.did(FreeHostId) == 1


def test_an_answer_of_the_time_before_the_freeing_starts_nothing_over() -> None:
    fall = Fall(3)
    fall.until(FreeHostId)
    asked_s = fall.life.now_s
    dead, heir = fall.life.peers
    fall.life.peers = (dead, replaced(heir, last_ran=99))
    freed = fall.beat()
    assert codes(freed) == [Code.HOST_ID_FREED, Code.EQUAL_HOST_FIRST]
    assert AskLease not in kinds(freed)
    stale = fall.life.beat(lease_of(DEAD, asked_s))
    assert Code.HOST_ID_FREED in codes(stale)
    assert kinds(stale) == {AskLease}
    fresh = fall.life.beat(lease_of(DEAD, fall.life.now_s + 0.5, standing=Standing.FREE))
    assert Code.LEASE_OWNER_GONE in codes(fresh)
    assert fresh.state.host.takeover is None


def test_each_step_of_a_takeover_says_what_it_waits_for() -> None:
    """The reason has sanlock's countdown as long as nothing quicker is in sight."""
    fall = Fall()
    told = {}
    for kind in (AskPower, TakeFenceLease, FreeHostId):
        told[kind] = codes(fall.until(kind))
    assert told == {
        AskPower: [Code.POWER_ASKED, Code.LEASE_WAIT],
        TakeFenceLease: [Code.POWER_OFF_ONCE, Code.FENCE_LEASE_ASKED],
        FreeHostId: [Code.PROVEN_OFF],
    }


def test_a_second_reading_at_its_earliest_is_woken_up_for() -> None:
    """A beat may be long: the next reading is due power_reread after the last one."""
    fall = Fall()
    fall.until(TakeFenceLease)
    decision = fall.life.history[-1]
    assert decision.wake_s is not None
    assert decision.state.host.takeover is not None
    assert decision.wake_s == decision.state.host.takeover.offs[-1].read_s + TIMING.power_reread


@pytest.mark.parametrize(
    ("power", "proven"), [(Power.ON, True), (Power.UNKNOWN, True), (Power.OFF, False)]
)
def test_a_host_that_is_not_proven_off_is_never_taken_over_from(power: Power, proven: bool) -> None:
    fall = Fall()
    fall.power, fall.proven = power, proven
    fall.run(130)
    assert fall.did(AskPower) > 10
    assert not fall.did(TakeFenceLease)
    assert not fall.did(FreeHostId)
    assert not fall.did(StartVm)
    # The broken device slows it down to sanlock's own verdict, and blocks nothing.
    fall.lease = {"standing": Standing.DEAD}
    fall.until(StartVm, beats=5)


def test_an_off_followed_by_an_on_proves_nothing() -> None:
    fall = Fall()
    fall.until(TakeFenceLease)
    fall.power = Power.ON
    fall.run(30)
    assert not fall.did(FreeHostId)
    assert fall.life.state.host.takeover is not None
    assert fall.life.state.host.takeover.offs == ()


def test_a_device_that_does_not_answer_is_asked_once() -> None:
    fall = Fall()
    fall.until(AskPower)
    for _ in range(100):
        fall.life.beat(*([lease_of(DEAD, fall.life.now_s)]))
    assert sum(AskPower in kinds(d) for d in fall.life.history) == 1


def test_a_device_that_still_owes_an_answer_is_not_asked_again_after_an_interruption() -> None:
    """The storage flickers while a BMC thinks: BMCs bear few sessions."""
    fall = Fall()
    fall.until(AskPower)
    fall.life.world["storage_good_since_s"] = None
    fall.life.beat()
    fall.life.world["storage_good_since_s"] = 0.0
    for _ in range(20):
        fall.life.beat(lease_of(DEAD, fall.life.now_s))
    assert sum(AskPower in kinds(d) for d in fall.life.history) == 1
    fall.life.beat(off(DEAD, fall.life.now_s), lease_of(DEAD, fall.life.now_s))
    fall.life.beat()
    assert sum(AskPower in kinds(d) for d in fall.life.history) == 2


def test_without_the_fence_lease_nothing_is_freed_and_it_is_asked_for_again() -> None:
    fall = Fall()
    fall.fence_given = False
    fall.until(TakeFenceLease)
    refused = fall.beat()
    assert Code.TAKEOVER_PAUSED in codes(refused)
    again = fall.until(TakeFenceLease)
    assert again.state.host.takeover is not None
    assert len(again.state.host.takeover.offs) == 1, "what was read before the pause does not count"
    fall.run(60)
    assert not fall.did(FreeHostId)
    assert fall.did(TakeFenceLease) <= 70 / TIMING.takeover_retry


def test_a_host_id_that_could_not_be_freed_is_proven_off_anew_before_the_next_try() -> None:
    fall = Fall()
    fall.freed = False
    fall.until(FreeHostId)
    freed_s = fall.life.now_s
    paused = fall.beat()
    assert Code.TAKEOVER_PAUSED in codes(paused)
    assert "still there" in paused.reasons[0].text
    fall.freed = True
    fall.until(FreeHostId)
    assert fall.life.now_s - freed_s >= TIMING.takeover_retry + TIMING.power_reread
    fall.until(StartVm)


def test_a_freeing_that_was_not_begun_is_tried_again_as_soon_as_its_proof_is_fresh() -> None:
    """The storage answered no write for the fence log: nothing was done, and nothing is in the way
    once it does. Each try has a reading that is no older than io_timeout."""
    fall = Fall()
    fall.freed = fall.begun = False
    fall.until(FreeHostId)
    tried_s = [fall.life.now_s]
    for _ in range(4):
        fall.beat()
        act = next(each for each in fall.until(FreeHostId).actions if isinstance(each, FreeHostId))
        assert fall.life.now_s - act.off_read_s <= RULES.io_timeout_s
        tried_s.append(fall.life.now_s)
    gaps = [later - before for before, later in itertools.pairwise(tried_s)]
    assert "still there" in " ".join(r.text for s in fall.life.history[-3:] for r in s.reasons)
    assert min(gaps) >= TIMING.power_reread
    assert max(gaps) < TIMING.takeover_retry
    fall.freed = True
    fall.until(StartVm)


def test_a_proof_that_grew_old_is_read_again() -> None:
    """The second "off" is there, but its owner was read at a time long ago."""
    old_s = NOW_S - RULES.io_timeout_s - MOMENT_S
    takeover = Takeover(
        DEAD,
        NOW_S - 30,
        offs=(off(DEAD, old_s - 2), off(DEAD, old_s)),
        power=off(DEAD, old_s),
        fence_since_s=old_s - 1,
    )
    decision = down(
        silent=[peer(DEAD)],
        remembered={"lease": lease_of(DEAD), "takeover": takeover},
        fence_devices=frozenset({DEAD}),
        fence_lease_held=True,
    )
    assert decision.actions == (AskPower(DEAD),)


@pytest.mark.parametrize("value", [True, None])
def test_global_maintenance_in_the_middle_ends_a_takeover(value: bool | None) -> None:
    fall = Fall()
    fall.until(TakeFenceLease)
    fall.life.world["global_maintenance"] = value
    fall.run(20)
    assert not fall.did(FreeHostId)
    assert fall.life.state.host.takeover is None
    assert fall.life.world["fence_lease_held"] is False


def test_an_owner_that_beats_again_ends_a_takeover() -> None:
    fall = Fall()
    fall.until(TakeFenceLease)
    fall.life.beating.add(DEAD)
    fall.run(20)
    assert not fall.did(FreeHostId)
    assert fall.life.state.host.takeover is None
    assert fall.life.world["fence_lease_held"] is False


def test_an_owner_that_beats_again_without_the_vm_is_waited_for() -> None:
    fall = Fall()
    fall.until(TakeFenceLease)
    fall.life.beating.add(DEAD)
    fall.life.change_peer(DEAD, engine=DOWN, score=0)
    decision = fall.beat()
    assert Code.LEASE_OWNER_LIVE in codes(decision)
    assert decision.state.host.takeover is None
    fall.run(20)
    assert not fall.did(FreeHostId)
    assert not fall.did(StartVm)


def test_storage_that_becomes_unreadable_ends_a_takeover() -> None:
    fall = Fall()
    fall.until(TakeFenceLease)
    fall.life.world["storage_good_since_s"] = None
    fall.run(20)
    assert not fall.did(FreeHostId)
    assert fall.life.state.host.takeover is None


def test_the_fence_lease_outlasts_a_freeing_that_is_under_way() -> None:
    fall = Fall()
    fall.until(FreeHostId)
    fall.life.world["global_maintenance"] = True
    during = fall.life.beat()
    assert during.state.engine.name is S.GLOBAL_MAINTENANCE
    assert DropFenceLease not in kinds(during)
    after = fall.life.beat(HostIdFreed(DEAD, True))
    assert DropFenceLease in kinds(after)
    assert after.state.host.takeover is None


def test_a_fence_lease_that_was_lost_in_between_must_be_taken_again_and_the_power_read() -> None:
    fall = Fall()
    fall.until(TakeFenceLease)
    fall.beat()
    fall.life.world["fence_lease_held"] = False
    decision = fall.beat()
    assert FreeHostId not in kinds(decision)
    assert TakeFenceLease in kinds(decision)
    fall.until(FreeHostId)


def test_another_owner_starts_the_proof_anew_but_keeps_the_fence_lease() -> None:
    old = Takeover(
        3,
        NOW_S - 30,
        offs=(off(3, NOW_S - 3), off(3, NOW_S - 1)),
        power=off(3, NOW_S - 1),
        fence_since_s=NOW_S - 2,
    )
    decision = down(
        silent=[peer(DEAD), peer(3)],
        remembered={"lease": lease_of(DEAD), "takeover": old},
        fence_devices=frozenset({DEAD, 3}),
        fence_lease_held=True,
    )
    assert decision.actions == (AskPower(DEAD),)
    step = decision.state.host.takeover
    assert step is not None
    assert (step.host_id, step.offs, step.fence_since_s) == (DEAD, (), NOW_S - 2)


def test_answers_about_a_host_that_is_not_taken_over_from_change_nothing() -> None:
    for outcome in (
        off(9, NOW_S),
        HostIdFreed(9, True),
        PowerOffEnded(9, True),
        FenceLeaseAnswer(True, NOW_S),
    ):
        assert down(live=[peer(2, 0, UP)], outcomes=(outcome,)).state.host.takeover is None
    pursued = Takeover(DEAD, NOW_S - 5, asking_power=True)
    decision = down(
        silent=[peer(DEAD)],
        remembered={"lease": lease_of(DEAD), "takeover": pursued},
        fence_devices=frozenset({DEAD}),
        outcomes=(off(9, NOW_S), HostIdFreed(9, True), PowerOffEnded(9, True)),
    )
    after = decision.state.host.takeover
    assert after is not None
    assert replace(after, renewal=None, renewal_since_s=None) == pursued


def test_a_fence_lease_that_nobody_needs_is_given_back() -> None:
    for name, engine in ((S.ENGINE_UP, UP), (S.ENGINE_DOWN, DOWN)):
        decision = in_state(
            name,
            local(engine),
            live=[peer(2, 9999)],
            fence_lease_held=True,
            migration_possible=False,
        )
        assert DropFenceLease() in decision.actions


def test_the_second_host_asks_a_dead_hosts_power_a_while_after_the_first() -> None:
    fall = Fall(3)
    fall.life.change_peer(3, last_ran=9)
    fell_s = fall.life.now_s
    fall.until(AskPower)
    waited_s = fall.life.now_s - fell_s
    assert waited_s >= TIMING.suspect_after + TIMING.takeover_follow
    assert waited_s <= TIMING.suspect_after + TIMING.takeover_follow + 3 * TIMING.beat
    told = {code for decision in fall.life.history for code in codes(decision)}
    assert Code.TAKEOVER_TURN in told


def test_a_start_lost_to_a_faster_host_costs_nothing_and_asks_anew() -> None:
    fall = Fall()
    fall.start = StartResult.LEASE_HELD
    fall.until(StartVm)
    decision = fall.beat()
    assert decision.state.engine.name is S.ENGINE_DOWN
    assert Code.START_LOST_RACE in codes(decision)
    assert decision.state.engine.retries == 0
    assert decision.state.engine.lease is None

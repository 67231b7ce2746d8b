# SPDX-License-Identifier: LGPL-2.1-or-later
"""The takeover from a host that hangs with its power on: it is switched off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scoring.decision import (
    Code,
    DropFenceLease,
    FreeHostId,
    NoteFenceFailed,
    PowerOffHost,
    StartVm,
)
from scoring.hosts.evidence import Evidence, why_not_hung
from scoring.observation import (
    LeaseAnswer,
    Power,
    PowerOffEnded,
)
from scoring.vm_facts import ENGINE, OutsideView
from tests.unit.builders import (
    DEAD,
    RULES,
    TIMING,
    Fall,
    codes,
    kinds,
)


def hang(*others: int, **given: Any) -> Fall:
    """Host 2 hangs: it reads on, and has not answered since it fell silent."""
    fall = Fall(*others, **given)
    fall.power = Power.ON
    fall.life.world["fence_log"] = ()
    fell_s = fall.life.now_s
    fall.life.change_peer(
        DEAD,
        heartbeat_s=fell_s - 1,
        unanswered_since_s=fell_s + 1,
        renewal_s=fell_s - 5,
        renewal_timestamp=77,
    )
    return fall


def test_the_whole_way_from_a_host_that_hangs_to_the_vm_here() -> None:
    fall = hang()
    fell_s = fall.life.now_s
    order = fall.until(PowerOffHost)
    assert fall.life.now_s - fell_s >= max(TIMING.fence_after, 2.5 * RULES.io_timeout_s - 5)
    assert Code.POWER_OFF_ORDERED in codes(order)
    fall.until(FreeHostId)
    freed = fall.actions[-1]
    assert isinstance(freed, FreeHostId) and freed.ordered
    fall.until(StartVm)
    assert fall.did(PowerOffHost) == 1


# --- its kernel as a witness ---------------------------------------------------------------------


def silent_machine(fall: Fall, **given: Any) -> None:
    """The fallen host's kernel and the engine there answered until its fall, and nobody since; the
    engine's host and this one's network are as `given` has them."""
    fell_s = fall.life.now_s
    fall.life.here = replace(fall.life.here, way_out=True)
    seen = {"machine_silent_since_s": fell_s + 1, "machine_heard_s": fell_s - 1}
    fall.life.change_peer(DEAD, **(seen | given))


def beats_until_ordered(fall: Fall) -> float:
    fell_s = fall.life.now_s
    fall.until(PowerOffHost, beats=60)
    return fall.life.now_s - fell_s


def test_a_machine_that_answers_nobody_is_switched_off_without_waiting_for_its_sanlock() -> None:
    fall = hang()
    silent_machine(fall)
    assert TIMING.fence_after <= beats_until_ordered(fall) <= TIMING.fence_after + 3
    order = next(a for a in fall.actions if isinstance(a, PowerOffHost))
    assert "its kernel answers nobody" in order.evidence


@pytest.mark.parametrize(
    "given",
    [
        {"machine_silent_since_s": None},
        {"machine_heard_s": None},
        {"machine_heard_s": 1.0},
        {"heartbeat_s": -3.0, "machine_heard_s": -3.0},
        {"heartbeat_s": 3.0, "unanswered_since_s": 4.0},
    ],
    ids=["it answers", "it never did", "it outlived its broker", "cable first", "storage first"],
)
def test_else_its_sanlock_must_be_silent(given: dict[str, float | None]) -> None:
    """`given`: seconds from when its slot stood still."""
    fall = hang()
    fell_s = fall.life.now_s
    silent_machine(fall, **{k: None if v is None else fell_s + v for k, v in given.items()})
    assert beats_until_ordered(fall) >= 2.5 * RULES.io_timeout_s - 5


def test_a_renewal_that_came_after_all_fell_silent_forbids() -> None:
    fall = hang()
    silent_machine(fall, renewal_s=fall.life.now_s + 6)
    assert beats_until_ordered(fall) >= 2.5 * RULES.io_timeout_s + 6


def test_who_has_no_network_of_its_own_judges_nobody() -> None:
    fall = hang()
    silent_machine(fall)
    fall.life.here = replace(fall.life.here, way_out=None)
    assert beats_until_ordered(fall) >= 2.5 * RULES.io_timeout_s - 5


@pytest.mark.parametrize(("answers_s", "is_quick"), [(5.0, True), (-5.0, False)])
def test_another_live_host_that_answers_since_shows_that_the_own_network_works(
    answers_s: float, is_quick: bool
) -> None:
    """`answers_s`: when it last did, from the fall on: one from before says nothing."""
    fall = hang(3)
    silent_machine(fall)
    fall.life.here = replace(fall.life.here, way_out=None)
    fall.life.change_peer(3, heartbeat_s=fall.life.now_s + answers_s)
    assert (beats_until_ordered(fall) <= TIMING.fence_after + 3) is is_quick


def test_a_host_whose_machine_answers_a_third_one_is_left_to_its_sanlock() -> None:
    fall = hang(3)
    silent_machine(fall)
    fall.life.change_peer(3, touches=frozenset({DEAD}))
    assert beats_until_ordered(fall) >= 2.5 * RULES.io_timeout_s - 5


@pytest.mark.parametrize("vm", [ENGINE, 2])
@pytest.mark.parametrize(("later_s", "is_quick"), [(-1.0, True), (2.0, True), (6.0, False)])
def test_a_vm_that_a_host_has_reached_since_is_no_hung_one(
    later_s: float, is_quick: bool, vm: int
) -> None:
    """What another host saw is known to a beat there and one here."""
    fall = hang(3)
    silent_machine(fall)
    dead = next(p for p in fall.life.peers if p.host_id == DEAD)
    fall.life.change_peer(DEAD, vms={**dead.vms, vm: dead.engine})
    view = OutsideView(DEAD, dead.engine.last_ran, fall.life.now_s + later_s)
    fall.life.change_peer(3, reached={vm: view})
    assert (beats_until_ordered(fall) <= TIMING.fence_after + 3) is is_quick


def test_a_host_without_a_slot_is_not_known_to_hang() -> None:
    lease = LeaseAnswer(True, 100.0, DEAD, 5, 77)
    nobody = Evidence(lease, None, 90.0, 0.0, True, False, ())
    assert why_not_hung(95.0, replace(nobody, network_good_s=100.0), 100.0, RULES)
    assert why_not_hung(None, nobody, 100.0, RULES)


def test_a_host_that_answers_is_waited_for() -> None:
    """The host's storage is in trouble: its own sanlock ends its VM."""
    fall = hang()
    for _ in range(120):
        fall.life.change_peer(DEAD, heartbeat_s=fall.life.now_s, unanswered_since_s=None)
        decision = fall.beat()
    assert fall.did(PowerOffHost) == 0
    assert {Code.OWNER_ANSWERS, Code.LEASE_WAIT} <= set(codes(decision))


@pytest.mark.parametrize("speaker_lives", [True, False])
def test_a_host_that_a_live_one_hears_is_not_switched_off(speaker_lives: bool) -> None:
    """One cut link made a host deaf, and another one was shot for it."""
    fall = hang(3)
    fall.life.change_peer(3, hears=frozenset({DEAD}))
    if not speaker_lives:
        fall.life.beating.discard(3)
    decisions = [fall.beat() for _ in range(60)]
    assert fall.did(PowerOffHost) == (0 if speaker_lives else 1)
    told = [reason.text for decision in decisions for reason in decision.reasons]
    assert any("answers host3 (id 3) on the network" in text for text in told) is speaker_lives


def test_a_host_whose_sanlock_renews_is_left_alone() -> None:
    """Only its broker is dead: its VM runs on under its lease."""
    fall = hang()
    fall.life.change_peer(DEAD, renewal_s=fall.life.now_s)
    for beat in range(120):
        if beat % 20 == 0:
            fall.lease = {"owner_timestamp": 77 + beat}
        decision = fall.beat()
    assert fall.did(PowerOffHost) == 0
    assert Code.OWNER_RENEWS in codes(decision)


def test_global_maintenance_forbids_to_switch_a_host_off() -> None:
    fall = hang()
    fall.life.world["global_maintenance"] = True
    for _ in range(60):
        fall.beat()
    assert fall.did(PowerOffHost) == 0


def test_an_order_that_fails_is_given_again_for_as_long_as_it_may_help() -> None:
    """After three errors of a busy BMC the fencer kept the fence lease and did nothing more."""
    fall = hang()
    fall.order_works = False
    for _ in range(200):
        fall.beat()
    assert fall.did(PowerOffHost) == 7, "the pauses grow"
    assert fall.did(NoteFenceFailed) == 1
    assert fall.did(DropFenceLease) == 7, "another host may try in each pause"
    assert fall.did(FreeHostId) == fall.did(StartVm) == 0
    fall.order_works = True
    fall.until(StartVm, beats=70)


def test_the_owner_that_beats_again_in_the_middle_of_an_order_ends_the_takeover() -> None:
    """The order is under way: its outcome is waited for, and with it the fence lease held."""
    fall = hang()
    fall.until(PowerOffHost)
    fall.life.beating.add(DEAD)
    order, fall.life.history[-1] = fall.life.history[-1], replace(fall.life.history[-1], actions=())
    decision = fall.beat()
    assert decision.state.host.takeover is not None and decision.state.host.takeover.switching_off
    assert DropFenceLease not in kinds(decision)
    (act,) = [a for a in order.actions if isinstance(a, PowerOffHost)]
    decision = fall.beat(PowerOffEnded(act.host_id, True))
    assert decision.state.host.takeover is None
    assert DropFenceLease in kinds(decision)

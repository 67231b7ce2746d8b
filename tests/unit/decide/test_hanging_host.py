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
from scoring.observation import (
    Power,
    PowerOffEnded,
)
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


def test_a_host_that_answers_is_waited_for() -> None:
    """Its storage is in trouble: its own sanlock ends its VM."""
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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""EngineStarting: the VM runs here and is not healthy yet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scoring.decision import Code, PowerOffVm, ShutDownVm
from scoring.vm.state import StateName
from scoring.vm_facts import DETAIL_MIGRATION_SOURCE, EngineStatus
from tests.unit.builders import (
    BOOTING,
    DIED,
    DOWN,
    LOCKED_OUT,
    MISSING,
    MOMENT_S,
    NOW_S,
    UNANSWERED,
    UP,
    codes,
    in_state,
    local,
    peer,
)

S = StateName


def test_a_death_before_health_is_a_failed_start_and_health_forgives() -> None:
    remembered = {"retries": 2, "last_failure_s": NOW_S - 10}
    died = in_state(S.ENGINE_STARTING, local(DIED), remembered=remembered)
    assert died.state.engine.retries == 3
    assert died.state.engine.last_failure_s == NOW_S
    healthy = in_state(S.ENGINE_STARTING, local(UP), remembered=remembered)
    assert healthy.state.engine.name is S.ENGINE_UP
    assert healthy.state.engine.retries == 0


def test_a_vm_that_gets_healthy_is_up() -> None:
    decision = in_state(S.ENGINE_STARTING, local(UP), for_s=20)
    assert decision.state.engine.name is S.ENGINE_UP
    assert decision.state.engine.since_s == NOW_S
    assert codes(decision) == [Code.ENGINE_HEALTHY, Code.ENGINE_HEALTHY]


def test_a_vm_that_boots_is_given_600_seconds() -> None:
    waiting = in_state(S.ENGINE_STARTING, local(BOOTING), for_s=600 - MOMENT_S)
    assert waiting.state.engine.name is S.ENGINE_STARTING
    assert waiting.actions == ()
    assert codes(waiting) == [Code.ENGINE_BOOTING]
    over = in_state(S.ENGINE_STARTING, local(BOOTING), for_s=600)
    assert over.state.engine.name is S.ENGINE_STOP
    assert over.actions == (ShutDownVm(),)
    assert codes(over) == [Code.STARTING_TIMEOUT, Code.STOP_REQUESTED]
    assert over.state.engine.retries == 1, "this host may be the cause: another one should try it"


def test_a_vm_whose_health_was_not_answered_is_not_stopped_for_it() -> None:
    """Law 7: unknown is not down."""
    decision = in_state(S.ENGINE_STARTING, local(UNANSWERED), for_s=9999)
    assert decision.state.engine.name is S.ENGINE_STARTING
    assert decision.actions == ()


def test_a_vm_that_gets_healthy_at_the_last_moment_is_not_stopped() -> None:
    assert in_state(S.ENGINE_STARTING, local(UP), for_s=600).state.engine.name is S.ENGINE_UP


@pytest.mark.parametrize("engine", [DOWN, MISSING])
def test_a_vm_that_vanishes_while_it_starts_may_be_away(engine: EngineStatus) -> None:
    assert in_state(S.ENGINE_STARTING, local(engine)).state.engine.name is S.ENGINE_MAYBE_AWAY


def test_a_vm_that_dies_while_it_starts_is_unexpectedly_down() -> None:
    decision = in_state(S.ENGINE_STARTING, local(DIED), live=[peer(2)])
    assert decision.state.engine.name is S.ENGINE_UNEXPECTEDLY_DOWN


def test_a_vm_that_lost_its_lease_to_another_host_is_cleaned_up() -> None:
    decision = in_state(S.ENGINE_STARTING, local(LOCKED_OUT))
    assert decision.state.engine.name is S.ENGINE_FORCE_STOP
    assert decision.actions == (PowerOffVm(),)
    assert codes(decision)[0] is Code.LEASE_LOST_RACE


def test_a_stale_sample_is_not_judged_while_the_vm_starts() -> None:
    for engine in (UP, DOWN, DIED, LOCKED_OUT):
        decision = in_state(
            S.ENGINE_STARTING, local(engine), for_s=9999, remembered={"acted_s": NOW_S}
        )
        assert decision.state.engine.name is S.ENGINE_STARTING
        assert codes(decision) == [Code.AWAITING_SAMPLE]


def test_local_maintenance_lets_a_vm_that_boots_go_on_booting() -> None:
    decision = in_state(S.ENGINE_STARTING, local(BOOTING, maintenance=True), live=[peer(2)])
    assert decision.state.engine.name is S.ENGINE_STARTING
    assert decision.actions == ()


def test_a_vm_that_boots_and_is_migrated_is_watched_over_too() -> None:
    leaving = replace(BOOTING, detail=DETAIL_MIGRATION_SOURCE)
    decision = in_state(S.ENGINE_STARTING, local(leaving), for_s=999)
    assert decision.state.engine.name is S.ENGINE_MIGRATING_AWAY
    assert codes(decision)[0] is Code.MIGRATING

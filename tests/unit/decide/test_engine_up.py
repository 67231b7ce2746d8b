# SPDX-License-Identifier: LGPL-2.1-or-later
"""EngineUp and EngineUpBadHealth: the VM runs here."""

from __future__ import annotations

import pytest

from scoring.decision import Code, ShutDownVm
from scoring.vm.state import StateName
from scoring.vm_facts import EngineStatus
from tests.unit.builders import (
    DIED,
    DOWN,
    LEAVING,
    MISSING,
    MOMENT_S,
    NOW_S,
    SICK,
    UNANSWERED,
    UP,
    VM_ACTIONS,
    Life,
    codes,
    in_state,
    kinds,
    local,
    peer,
    replaced,
)

S = StateName


def test_a_vm_without_its_lease_is_said_to_be_unprotected() -> None:
    assert Code.VM_UNPROTECTED in codes(in_state(S.ENGINE_UP, local(UP, lease_held=False)))
    for joined, why in ((True, "by hand"), (False, "sanlock ends it"), (None, "by hand")):
        decision = in_state(S.ENGINE_UP, local(UP, lease_held=False), lockspace_joined=joined)
        assert why in decision.reasons[0].text
    for held in (True, None):
        assert Code.VM_UNPROTECTED not in codes(in_state(S.ENGINE_UP, local(UP, lease_held=held)))


def test_a_healthy_vm_is_left_in_peace() -> None:
    decision = in_state(S.ENGINE_UP, local(UP), for_s=9999, live=[peer(2, 3400)])
    assert decision.state.engine.name is S.ENGINE_UP
    assert decision.actions == ()
    assert codes(decision) == [Code.ENGINE_HEALTHY]


@pytest.mark.parametrize("name", [S.ENGINE_UP, S.ENGINE_UP_BAD_HEALTH])
@pytest.mark.parametrize(
    ("engine", "after", "code"),
    [
        (DOWN, S.ENGINE_MAYBE_AWAY, Code.VM_GONE),
        (MISSING, S.ENGINE_MAYBE_AWAY, Code.VM_GONE),
        (DIED, S.ENGINE_UNEXPECTEDLY_DOWN, Code.VM_DIED),
    ],
)
def test_a_vm_that_is_gone_left_cleanly_or_died(
    name: StateName, engine: EngineStatus, after: StateName, code: Code
) -> None:
    decision = in_state(name, local(engine), for_s=50, live=[peer(2)])
    assert decision.state.engine.name is after
    assert codes(decision)[0] is code
    assert decision.state.engine.since_s == NOW_S
    assert not kinds(decision) & VM_ACTIONS


@pytest.mark.parametrize("name", [S.ENGINE_UP, S.ENGINE_UP_BAD_HEALTH])
def test_a_vm_that_runs_elsewhere_too_is_stopped_where_it_holds_no_lease(name: StateName) -> None:
    decision = in_state(name, local(UP, lease_held=False), live=[peer(2, 100, UP)])
    assert decision.state.engine.name is S.ENGINE_STOP
    assert decision.actions == (ShutDownVm(),)
    assert codes(decision)[0] is Code.VM_TWICE


@pytest.mark.parametrize("held", [True, None])
def test_a_claim_to_run_the_vm_too_does_not_stop_one_that_may_hold_the_lease(
    held: bool | None,
) -> None:
    """A slot may lag behind a migration, and unknown is not "no"."""
    decision = in_state(S.ENGINE_UP, local(UP, lease_held=held), live=[peer(2, 100, UP)])
    assert decision.state.engine.name is S.ENGINE_UP
    assert decision.actions == ()
    assert codes(decision) == [Code.VM_TWICE_CLAIMED, Code.ENGINE_HEALTHY]


def test_a_silent_hosts_claim_to_run_the_vm_too_is_not_heard() -> None:
    decision = in_state(S.ENGINE_UP, local(UP, lease_held=False), silent=[peer(2, 100, UP)])
    assert decision.state.engine.name is S.ENGINE_UP
    assert codes(decision) == [Code.VM_UNPROTECTED, Code.ENGINE_HEALTHY]


def test_an_unhealthy_vm_is_watched_in_engine_up_bad_health() -> None:
    decision = in_state(S.ENGINE_UP, local(SICK), for_s=9999)
    assert decision.state.engine.name is S.ENGINE_UP_BAD_HEALTH
    assert decision.state.engine.since_s == NOW_S
    assert decision.actions == ()


def test_a_health_that_is_not_answered_changes_nothing() -> None:
    for name in (S.ENGINE_UP, S.ENGINE_UP_BAD_HEALTH):
        decision = in_state(name, local(UNANSWERED), for_s=9999)
        assert decision.state.engine.name is name
        assert decision.actions == ()
        assert codes(decision) == [Code.ENGINE_HEALTH_UNKNOWN]


@pytest.mark.parametrize("name", [S.ENGINE_UP_BAD_HEALTH, S.ENGINE_STARTING])
def test_the_time_in_which_the_health_was_not_known_does_not_count(name: S) -> None:
    unknown = in_state(name, local(UNANSWERED), for_s=10)
    assert unknown.state.engine.unjudged_since_s == NOW_S
    for later_s in (400.0, 9999.0):
        # Known bad for 10 s, then nothing known for so long: the first bad answer ends nothing.
        remembered = {"unjudged_since_s": NOW_S - later_s}
        decision = in_state(name, local(SICK), for_s=10 + later_s, remembered=remembered)
        assert decision.state.engine.name is name
        assert decision.state.engine.since_s == NOW_S - 10
        assert decision.state.engine.unjudged_since_s is None
    # What was unknown in an earlier state takes nothing from this one.
    remembered = {"unjudged_since_s": NOW_S - 9999}
    decision = in_state(name, local(SICK), for_s=10, remembered=remembered)
    assert decision.state.engine.since_s == NOW_S


def test_an_unhealthy_vm_is_stopped_after_300_seconds() -> None:
    waiting = in_state(S.ENGINE_UP_BAD_HEALTH, local(SICK), for_s=300 - MOMENT_S)
    assert waiting.state.engine.name is S.ENGINE_UP_BAD_HEALTH
    assert waiting.actions == ()
    over = in_state(S.ENGINE_UP_BAD_HEALTH, local(SICK), for_s=300)
    assert over.state.engine.name is S.ENGINE_STOP
    assert over.actions == (ShutDownVm(),)
    assert codes(over) == [Code.BAD_HEALTH_TIMEOUT, Code.STOP_REQUESTED]


def test_a_vm_that_gets_well_again_is_up_and_its_next_illness_counts_anew() -> None:
    life = Life(here=local(UP))
    life.beat()
    life.here = replaced(life.here, engine=SICK)
    life.beat()
    life.beat(after_s=299.0)
    assert life.state.engine.name is S.ENGINE_UP_BAD_HEALTH
    life.here = replaced(life.here, engine=UP)
    assert life.beat().state.engine.name is S.ENGINE_UP
    life.here = replaced(life.here, engine=SICK)
    life.beat()
    assert life.beat(after_s=299.0).state.engine.name is S.ENGINE_UP_BAD_HEALTH
    assert life.beat().state.engine.name is S.ENGINE_STOP


def test_a_stale_sample_is_not_judged_while_the_vm_is_up() -> None:
    for name in (S.ENGINE_UP, S.ENGINE_UP_BAD_HEALTH):
        decision = in_state(name, local(DIED), for_s=999, remembered={"acted_s": NOW_S})
        assert decision.state.engine.name is name
        assert codes(decision) == [Code.AWAITING_SAMPLE]


def test_a_migration_that_somebody_else_began_is_followed() -> None:
    decision = in_state(S.ENGINE_UP, local(LEAVING))
    assert decision.state.engine.name is S.ENGINE_MIGRATING_AWAY
    assert decision.actions == ()


def test_who_comes_up_counts_one_higher_than_all_that_ran_before() -> None:
    peers = [peer(2, last_ran=4), peer(3, last_ran=9)]
    assert in_state(S.ENGINE_STARTING, local(UP), live=peers).state.engine.last_ran == 10
    alone = in_state(S.ENGINE_STARTING, local(UP))
    assert alone.state.engine.last_ran == 1
    for earlier in (3, 9):
        again = in_state(S.ENGINE_STARTING, local(UP), live=peers, remembered={"last_ran": earlier})
        assert again.state.engine.last_ran == 10
    own = in_state(S.ENGINE_STARTING, local(UP), live=peers, remembered={"last_ran": 12})
    assert own.state.engine.last_ran == 12, "it has been the last one already"
    well_again = in_state(S.ENGINE_UP_BAD_HEALTH, local(UP), live=peers)
    assert well_again.state.engine.last_ran == 0, "it did not come up anew"

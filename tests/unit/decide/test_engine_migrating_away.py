# SPDX-License-Identifier: LGPL-2.1-or-later
"""EngineMigratingAway: a migration from here is under way."""

from __future__ import annotations

from typing import Any

import pytest

from scoring.decision import CancelMigration, Code, MigrateVm
from scoring.observation import MigrationCancelled, VmMigrationEnded
from scoring.rules import MIGRATION_EXTRA_S
from scoring.vm.state import StateName
from scoring.vm_facts import EngineStatus
from tests.unit.builders import (
    DOWN,
    LEAVING,
    NOW_S,
    RULES,
    UNKNOWN,
    UP,
    VM_ACTIONS,
    Life,
    acting,
    codes,
    in_state,
    kinds,
    local,
    peer,
    replaced,
)

S = StateName


def test_a_migration_under_way_is_waited_for_whatever_else_happens() -> None:
    for observed in ({"stopping": True}, {"global_maintenance": True}, {"newer_versions": (9,)}):
        for engine in (LEAVING, UNKNOWN, DOWN):
            decision = in_state(
                S.ENGINE_MIGRATING_AWAY, local(engine), for_s=999, remembered=acting(), **observed
            )
            assert decision.state.engine.name is S.ENGINE_MIGRATING_AWAY
            assert codes(decision) == [Code.MIGRATING]


def test_a_migration_that_went_well_ends_in_engine_down() -> None:
    decision = in_state(
        S.ENGINE_MIGRATING_AWAY,
        local(LEAVING),
        live=[peer(2)],
        remembered=acting(),
        outcomes=(VmMigrationEnded(2, ok=True),),
    )
    assert decision.state.engine.name is S.ENGINE_DOWN
    assert decision.actions == ()
    assert codes(decision) == [Code.MIGRATED, Code.AWAITING_SAMPLE]
    assert not decision.state.engine.move_failed_s


def test_a_migration_that_failed_leaves_the_vm_to_be_watched_over_here() -> None:
    decision = in_state(
        S.ENGINE_MIGRATING_AWAY,
        local(LEAVING),
        live=[peer(2)],
        remembered=acting(),
        outcomes=(VmMigrationEnded(2, ok=False, detail="no route"),),
    )
    assert decision.state.engine.name is S.ENGINE_STARTING
    assert decision.state.engine.move_failed_s == {2: NOW_S}
    assert "no route" in decision.reasons[0].text


@pytest.mark.parametrize(
    ("engine", "after", "code"),
    [
        (LEAVING, S.ENGINE_MIGRATING_AWAY, Code.MIGRATING),
        (DOWN, S.ENGINE_MAYBE_AWAY, Code.VM_GONE),
        (UP, S.ENGINE_UP, Code.MIGRATION_FAILED),
    ],
)
def test_somebody_elses_migration_is_followed_to_its_end(
    engine: EngineStatus, after: StateName, code: Code
) -> None:
    decision = in_state(S.ENGINE_MIGRATING_AWAY, local(engine), for_s=9)
    assert decision.state.engine.name is after
    assert codes(decision)[0] is code
    assert not kinds(decision) & VM_ACTIONS


def test_a_migration_found_under_way_is_ended_when_its_time_is_over() -> None:
    """The agent that began it is gone; libvirt tells since when it is under way."""
    timeout_s = RULES.migration_timeout_s
    life = Life(here=local(UP), peers=(peer(2),), beating={2})
    life.beat()
    life.here = replaced(life.here, engine=LEAVING, migrating_s=timeout_s - 1.5)
    found = life.beat()
    assert found.state.engine.name is S.ENGINE_MIGRATING_AWAY
    until_s = life.now_s + 1.5 + MIGRATION_EXTRA_S
    assert found.state.engine.moving_until_s == until_s
    assert codes(found) == [Code.MIGRATING, Code.MIGRATING] and not found.actions
    life.here = replaced(life.here, migrating_s=timeout_s - 0.5)
    assert not life.beat().actions
    life.here = replaced(life.here, migrating_s=timeout_s)
    over = life.beat()
    assert over.actions == (CancelMigration(),)
    assert codes(over) == [Code.MIGRATION_OVERDUE]
    assert "300 s (libvirt.migration-timeout)" in over.reasons[0].text
    for _ in range(20):
        assert not life.beat().actions, "it has not been answered"
    asked = [bool(life.beat(MigrationCancelled(False, "post-copy")).actions)]
    asked += [bool(life.beat().actions) for _ in range(15)]
    assert asked == [False] * 15 + [True], "and later once more"
    life.here = replaced(life.here, engine=UP, migrating_s=None)
    ended = life.beat(MigrationCancelled(True))
    assert ended.state.engine.name is S.ENGINE_UP and not ended.state.engine.asking_cancel
    assert ended.state.engine.moving_until_s is None


def test_where_libvirt_does_not_tell_a_migration_counts_from_when_it_was_found() -> None:
    for_s = RULES.migration_timeout_s - 1
    kept = in_state(S.ENGINE_MIGRATING_AWAY, local(LEAVING), for_s=for_s)
    assert not kept.actions and kept.state.engine.moving_until_s == NOW_S + 1 + MIGRATION_EXTRA_S
    over = in_state(S.ENGINE_MIGRATING_AWAY, local(LEAVING), for_s=for_s + 1)
    assert over.actions == (CancelMigration(),)


@pytest.mark.parametrize("remembered", [{"asking_cancel": True}, {"cancelling": 7}])
def test_a_migration_that_is_being_cancelled_is_not_cancelled_once_more(
    remembered: dict[str, Any],
) -> None:
    over = in_state(S.ENGINE_MIGRATING_AWAY, local(LEAVING), for_s=999, remembered=remembered)
    assert codes(over) == [Code.MIGRATION_OVERDUE] and not over.actions


def test_in_global_maintenance_nobody_ends_a_migration() -> None:
    held = in_state(S.ENGINE_MIGRATING_AWAY, local(LEAVING), for_s=999, global_maintenance=True)
    assert held.state.engine.name is S.GLOBAL_MAINTENANCE and not held.actions


def test_a_host_drained_by_migration_is_in_local_maintenance_in_the_end() -> None:
    life = Life(here=local(UP, maintenance=True), peers=(peer(2),), beating={2})
    life.beat()
    assert MigrateVm(2) in life.beat().actions
    life.here = replaced(life.here, engine=DOWN)
    life.change_peer(2, engine=UP)
    life.beat(VmMigrationEnded(2, ok=True))
    assert life.beat().state.engine.name is S.LOCAL_MAINTENANCE

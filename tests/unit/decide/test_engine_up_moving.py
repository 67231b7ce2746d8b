# SPDX-License-Identifier: LGPL-2.1-or-later
"""EngineUp: a healthy VM is moved to a better host, or away from a drained one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scoring.decision import (
    Code,
    MigrateVm,
)
from scoring.observation import (
    Order,
    OrderKind,
    VmMigrationEnded,
)
from scoring.rules import MIGRATION_EXTRA_S
from scoring.vm.state import OrderAnswer, StateName
from tests.unit.builders import (
    DOWN,
    LEAVING,
    MOMENT_S,
    NOW_S,
    RULES,
    TIMING,
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


def test_a_much_better_host_gets_the_vm_after_the_dwell_by_live_migration() -> None:
    better = [peer(2, 4200)]
    since_s = NOW_S - TIMING.move_dwell
    waiting = in_state(
        S.ENGINE_UP, local(UP), live=better, remembered={"better_since_s": since_s + MOMENT_S}
    )
    assert waiting.actions == ()
    assert codes(waiting) == [Code.MOVE_DWELL, Code.ENGINE_HEALTHY]
    moving = in_state(S.ENGINE_UP, local(UP), live=better, remembered={"better_since_s": since_s})
    assert moving.actions == (MigrateVm(2),)
    assert moving.state.engine.moving_to == 2, "the others are told where it goes"
    assert (
        moving.state.engine.moving_until_s == NOW_S + RULES.migration_timeout_s + MIGRATION_EXTRA_S
    ), "and until when"
    assert moving.state.engine.name is S.ENGINE_MIGRATING_AWAY
    assert codes(moving) == [Code.MOVE_STARTED, Code.MIGRATING]


def test_the_dwell_begins_when_a_host_is_800_better_and_ends_when_it_is_not() -> None:
    begun = in_state(S.ENGINE_UP, local(UP), live=[peer(2, 4200)])
    assert begun.state.engine.better_since_s == NOW_S
    for others in ([peer(2, 4199)], []):
        ended = in_state(
            S.ENGINE_UP, local(UP), live=others, remembered={"better_since_s": NOW_S - 29}
        )
        assert ended.state.engine.better_since_s is None
        assert codes(ended) == [Code.ENGINE_HEALTHY]


def test_a_score_that_flickers_around_the_threshold_never_moves_the_vm() -> None:
    life = Life(here=local(UP), peers=(peer(2),), beating={2})
    for beat in range(200):
        life.change_peer(2, score=4200 if beat % 29 else 4199)
        assert not kinds(life.beat()) & VM_ACTIONS


def test_the_vm_moves_once_and_is_followed_to_its_new_host() -> None:
    life = Life(here=local(UP), peers=(peer(2, 4200),), beating={2})
    # The first beat cannot tell yet that host 2 lives; the dwell begins with the second.
    for _ in range(1 + int(TIMING.move_dwell)):
        assert life.beat().state.engine.name is S.ENGINE_UP
    assert MigrateVm(2) in life.beat().actions
    life.here = replaced(life.here, engine=LEAVING)
    for _ in range(30):
        assert life.beat().actions == ()
    life.here = replaced(life.here, engine=DOWN)
    life.change_peer(2, engine=UP)
    decision = life.beat(VmMigrationEnded(2, ok=True))
    assert decision.state.engine.name is S.ENGINE_DOWN
    assert codes(life.beat()) == [Code.UP_ELSEWHERE]


def test_a_threshold_of_zero_moves_the_vm_to_nobody_when_nobody_is_there() -> None:
    decision = in_state(
        S.ENGINE_UP, local(UP), remembered={"rules": replace(RULES, move_threshold=0)}
    )
    assert codes(decision) == [Code.ENGINE_HEALTHY]


def test_without_migration_a_healthy_vm_stays_whatever_the_scores() -> None:
    decision = in_state(
        S.ENGINE_UP,
        local(UP),
        live=[peer(2, 9000)],
        remembered={"better_since_s": NOW_S - 999},
        migration_possible=False,
    )
    assert decision.state.engine.name is S.ENGINE_UP
    assert decision.actions == ()
    assert codes(decision) == [Code.MOVE_IMPOSSIBLE, Code.ENGINE_HEALTHY]


@pytest.mark.parametrize("unfit", [{"stopped": True}, {"maintenance": True}, {"engine": UNKNOWN}])
def test_the_vm_never_moves_to_a_host_that_cannot_take_it(unfit: dict[str, Any]) -> None:
    for draining in (False, True):
        decision = in_state(
            S.ENGINE_UP,
            local(UP, maintenance=draining),
            live=[peer(2, 9000, **unfit)],
            silent=[peer(3, 9000)],
            uncertain=[peer(4, 9000)],
            remembered={"better_since_s": NOW_S - 999},
        )
        assert decision.actions == ()


@pytest.mark.parametrize("name", [S.ENGINE_UP, S.ENGINE_UP_BAD_HEALTH])
def test_local_maintenance_drains_the_host_at_once_without_a_dwell(name: StateName) -> None:
    decision = in_state(name, local(UP, maintenance=True), live=[peer(2, 5), peer(3, 4)])
    assert decision.state.engine.name is S.ENGINE_MIGRATING_AWAY
    assert decision.actions == (MigrateVm(2),)
    assert decision.score.value == 0


def test_a_host_that_cannot_be_drained_keeps_the_vm_and_says_so() -> None:
    decision = in_state(S.ENGINE_UP, local(UP, maintenance=True), for_s=9999)
    assert decision.state.engine.name is S.ENGINE_UP
    assert decision.actions == ()
    assert codes(decision) == [Code.DRAIN_WAITING, Code.ENGINE_HEALTHY]


def test_after_a_failed_migration_the_next_waits_for_migrate_retry() -> None:
    life = Life(here=local(UP, maintenance=True), peers=(peer(2),), beating={2})
    life.beat()
    assert MigrateVm(2) in life.beat().actions
    failed = life.beat(VmMigrationEnded(2, ok=False, detail="refused"))
    failed_s = life.now_s
    assert failed.actions == ()
    assert codes(failed)[0] is Code.MIGRATION_FAILED
    while MigrateVm not in kinds(life.beat()):
        assert life.state.engine.name is S.ENGINE_UP
        assert life.now_s < failed_s + 100
    assert life.now_s == failed_s + TIMING.migrate_retry


def test_a_host_that_cannot_be_drained_to_one_is_drained_to_the_next() -> None:
    life = Life(here=local(UP, maintenance=True), peers=(peer(2), peer(3, 100)), beating={2, 3})
    life.beat()
    assert MigrateVm(2) in life.beat().actions
    assert MigrateVm(2) not in life.beat(VmMigrationEnded(2, ok=False)).actions
    assert MigrateVm(3) in life.beat().actions, "not in a minute: now"
    life.beat(VmMigrationEnded(3, ok=False))
    failed_s = life.now_s
    while MigrateVm not in kinds(decision := life.beat()):
        assert life.now_s < failed_s + 100
    assert MigrateVm(2) in decision.actions
    assert life.now_s <= failed_s + TIMING.migrate_retry


def test_an_ordered_migration_that_failed_does_not_delay_a_drain() -> None:
    moving = in_state(
        S.ENGINE_MIGRATING_AWAY,
        local(LEAVING),
        live=[peer(2)],
        remembered={
            **acting(),
            "order": Order(7, OrderKind.MIGRATE, 2),
            "answers": (OrderAnswer(7, None, ""),),
        },
        outcomes=(VmMigrationEnded(2, ok=False, detail="cancelled"),),
    )
    assert not moving.state.engine.move_failed_s


def test_the_vm_is_not_moved_to_a_host_without_the_memory() -> None:
    here = local(UP, maintenance=True)
    earlier = peer(2, memory_short=True)
    short = peer(2, mem_free_mb=RULES.vm_memory_mb - 1)
    for without in (earlier, short):
        decision = in_state(S.ENGINE_UP, here, live=[without, peer(3, 100)])
        assert MigrateVm(3) in decision.actions
        waiting = in_state(S.ENGINE_UP, here, live=[without])
        assert codes(waiting) == [Code.DRAIN_WAITING, Code.ENGINE_HEALTHY]
    enough = peer(2, mem_free_mb=RULES.vm_memory_mb)
    assert MigrateVm(2) in in_state(S.ENGINE_UP, here, live=[enough]).actions
    wants_more = replaced(enough, memory_short=True)
    waits = in_state(S.ENGINE_UP, here, live=[wants_more])
    assert Code.DRAIN_WAITING in codes(waits), "its own definition may want more"


def test_the_vm_moves_to_a_host_that_answers_before_a_better_one_that_does_not() -> None:
    here = local(UP, maintenance=True)
    better, other = peer(2), peer(3, 2000)
    heard = replace(other, heartbeat_s=NOW_S - 5.0)
    unheard = replace(better, heartbeat_s=NOW_S - 60.0, unanswered_since_s=NOW_S - 50.0)
    for silent in (better, unheard):
        assert MigrateVm(3) in in_state(S.ENGINE_UP, here, live=[silent, heard]).actions
        alone = in_state(S.ENGINE_UP, here, live=[silent, other])
        assert MigrateVm(2) in alone.actions, "nobody answers: it may be this host's network"
    both = [replace(better, heartbeat_s=NOW_S - 9.0), heard]
    assert MigrateVm(2) in in_state(S.ENGINE_UP, here, live=both).actions

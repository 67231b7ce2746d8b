# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that shuts down: where its VM goes, and how long that may take."""

from __future__ import annotations

from typing import Any

import pytest

from scoring.decide import Decision
from scoring.decision import CancelMigration, Code, MigrateVm, PowerOffVm, PowerOnHost, ShutDownVm
from scoring.observation import (
    FenceRecord,
    FenceStep,
    HostShutdown,
    LocalHost,
    OnHostShutdown,
    Order,
    OrderKind,
    VmMigrationEnded,
)
from scoring.timing import HOST_SHUTDOWN_MAX_S, Timing
from scoring.vm import drain
from scoring.vm.drain import TARGET_PATIENCE_S
from scoring.vm.state import StateName as S
from scoring.vm_facts import (
    DETAIL_MIGRATION_SOURCE,
    DETAIL_PAUSED,
    DomainHere,
    EngineStatus,
    Health,
    Pause,
    VmStatus,
)
from tests.unit.builders import (
    BOOTING,
    DIED,
    DOWN,
    MOMENT_S,
    NOW_S,
    RULES,
    SICK,
    TIMING,
    UP,
    Life,
    codes,
    in_state,
    kinds,
    local,
    peer,
)

LEAVING = EngineStatus(VmStatus.UP, Health.GOOD, DETAIL_MIGRATION_SOURCE)


PAUSED = EngineStatus(VmStatus.UP, Health.BAD, DETAIL_PAUSED)


def going(
    engine: EngineStatus = UP,
    for_s: float = 0.0,
    way: OnHostShutdown = OnHostShutdown.MIGRATE,
    **changed: Any,
) -> LocalHost:
    """Host 1, which has been shutting down for so long."""
    shutdown = HostShutdown(NOW_S - for_s, way)
    return local(engine, maintenance=True, shutdown=shutdown, **changed)


# --- migrate ------------------------------------------------------------------------------------


def test_it_waits_until_its_room_there_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "secure", lambda *_: False)
    decision = in_state(S.ENGINE_UP, going(), live=(peer(2),))
    assert decision.actions == () and decision.state.engine.name is S.ENGINE_UP


@pytest.mark.parametrize(
    ("state", "engine"),
    [(S.ENGINE_UP, UP), (S.ENGINE_UP_BAD_HEALTH, SICK), (S.ENGINE_STARTING, BOOTING)],
)
def test_the_vm_goes_to_the_best_host_at_once(state: S, engine: EngineStatus) -> None:
    """Healthy, sick or in the middle of its boot."""
    moved = in_state(state, going(engine), live=[peer(2, 2400), peer(3)])
    assert moved.state.engine.name is S.ENGINE_MIGRATING_AWAY
    assert moved.actions == (MigrateVm(3),)
    assert Code.MOVE_STARTED in codes(moved)
    assert moved.score.value == 0 and moved.score.penalties[0].why == "this host is shutting down"


def test_a_failure_of_before_the_shutdown_does_not_count() -> None:
    moved = in_state(
        S.ENGINE_UP, going(for_s=5), live=[peer(2)], remembered={"move_failed_s": {2: NOW_S - 6}}
    )
    assert moved.actions == (MigrateVm(2),)


def test_each_host_is_tried_once_and_then_the_vm_is_shut_down_in_order() -> None:
    life = Life(here=local(UP), peers=(peer(2), peer(3)), beating={2, 3})
    life.beat()
    life.beat()
    shutdown = HostShutdown(life.now_s, OnHostShutdown.MIGRATE)
    life.here = local(UP, maintenance=True, shutdown=shutdown)
    assert life.beat().actions == (MigrateVm(2),)
    life.beat(VmMigrationEnded(2, False, "refused"))
    assert life.beat(after_s=0.1).actions == (MigrateVm(3),)
    life.beat(VmMigrationEnded(3, False, "refused"))
    last = life.beat(after_s=0.1)
    assert last.state.engine.name is S.ENGINE_STOP and last.actions == (ShutDownVm(),)
    assert "failed to each host that could take it" in _text(last, Code.DRAIN_STOP)


@pytest.mark.parametrize(
    ("for_s", "hosts", "observed", "why"),
    [
        (0.0, [peer(2)], {"migration_possible": False}, "libvirt.migration-uri is not set"),
        (TIMING.host_shutdown_move, [peer(2)], {}, "could not be moved in 300 s"),
        (0.0, [], {}, "no other live host can take it"),
        (0.0, [peer(2, 0, maintenance=True)], {}, "no other live host can take it"),
        (0.0, [peer(2, 0, stopped=True)], {}, "no other live host can take it"),
        (TARGET_PATIENCE_S, [peer(2, 0)], {}, "no other live host can take it"),
    ],
)
def test_where_nobody_can_take_it_it_is_shut_down_in_order(
    for_s: float, hosts: list[Any], observed: dict[str, Any], why: str
) -> None:
    stopped = in_state(S.ENGINE_UP, going(for_s=for_s), live=hosts, **observed)
    assert stopped.state.engine.name is S.ENGINE_STOP
    assert stopped.actions == (ShutDownVm(),)
    assert why in _text(stopped, Code.DRAIN_STOP)


def test_until_its_time_is_over_it_is_moved() -> None:
    moved = in_state(S.ENGINE_UP, going(for_s=TIMING.host_shutdown_move - MOMENT_S), live=[peer(2)])
    assert moved.actions == (MigrateVm(2),)


def test_a_host_that_may_be_able_in_a_moment_is_waited_for() -> None:
    here = going(for_s=TARGET_PATIENCE_S - 1)
    for seen in (
        {"live": [peer(2, 0)]},
        {"uncertain": [peer(2)]},
        {"live": [peer(2, memory_short=True)]},
        # The host has booted and joins: its slot is of its life before, its broker answers.
        {"silent": [peer(2, stopped=True, maintenance=True, heartbeat_s=NOW_S - 5)]},
    ):
        waits = in_state(S.ENGINE_UP, here, **seen)  # type: ignore[arg-type]
        assert waits.state.engine.name is S.ENGINE_UP and not waits.actions, seen
        assert "waiting for one, 1 s at most" in _text(waits, Code.DRAIN_WAITING)
    silent = peer(2, heartbeat_s=NOW_S - 5 - MOMENT_S)
    gone = in_state(S.ENGINE_UP, here, silent=[silent])
    assert gone.state.engine.name is S.ENGINE_STOP, "it answered too long ago"
    tried = {"move_failed_s": {2: NOW_S}}
    assert (
        in_state(S.ENGINE_UP, here, live=[peer(2)], remembered=tried).state.engine.name
        is S.ENGINE_STOP
    )


def test_a_booting_vm_waits_for_a_target_like_any_other() -> None:
    waits = in_state(S.ENGINE_STARTING, going(BOOTING), live=[peer(2, 0)])
    assert waits.state.engine.name is S.ENGINE_STARTING
    assert codes(waits) == [Code.DRAIN_WAITING, Code.ENGINE_BOOTING]


def test_the_other_host_that_shuts_down_is_no_target() -> None:
    """This host does not wait for the other one: all hosts may be going down."""
    both = in_state(S.ENGINE_UP, going(), live=[peer(2, 0, maintenance=True)])
    assert both.state.engine.name is S.ENGINE_STOP


# --- what else a shutdown changes ---------------------------------------------------------------


def test_set_to_shutdown_nothing_is_migrated() -> None:
    stopped = in_state(S.ENGINE_UP, going(way=OnHostShutdown.SHUTDOWN), live=[peer(2)])
    assert stopped.actions == (ShutDownVm(),)
    assert "vm.on-host-shutdown says so" in _text(stopped, Code.DRAIN_STOP)


def test_the_guest_has_less_time_than_in_another_stop() -> None:
    for_s = TIMING.host_shutdown_grace
    remembered = {"stop_asked": True}
    waits = in_state(S.ENGINE_STOP, going(), for_s=for_s - 1, remembered=remembered)
    assert waits.state.engine.name is S.ENGINE_STOP and not waits.actions
    ended = in_state(S.ENGINE_STOP, going(), for_s=for_s, remembered=remembered)
    assert ended.actions == (PowerOffVm(),)
    usual = in_state(S.ENGINE_STOP, local(UP), for_s=for_s, remembered=remembered)
    assert usual.state.engine.name is S.ENGINE_STOP and not usual.actions


@pytest.mark.parametrize("state", [S.ENGINE_DOWN, S.ENGINE_MAYBE_AWAY, S.LOCAL_MAINTENANCE])
def test_without_the_vm_it_is_out_of_the_way(state: S) -> None:
    out = in_state(state, going(DOWN), live=[peer(2)])
    assert out.state.engine.name is S.LOCAL_MAINTENANCE and not out.actions
    assert codes(out)[-1] is Code.HOST_SHUTDOWN


def test_a_vm_that_died_meanwhile_is_not_started_here() -> None:
    out = in_state(S.ENGINE_UP, going(DIED), live=[peer(2)])
    assert out.state.engine.name is S.LOCAL_MAINTENANCE


def test_a_vm_that_arrives_is_moved_on() -> None:
    arrived = in_state(S.LOCAL_MAINTENANCE, going(UP), live=[peer(2)])
    assert arrived.actions == (MigrateVm(2),)


def test_a_paused_vm_that_lost_its_lease_is_ended_not_moved() -> None:
    never_ran = going(PAUSED, lease_held=False, domain=DomainHere(pause=Pause.NEVER_RAN))
    ended = in_state(S.ENGINE_STARTING, never_ran, live=[peer(2)])
    assert ended.actions == (PowerOffVm(),)


@pytest.mark.parametrize("state", [S.ENGINE_UP, S.ENGINE_STARTING])
def test_a_vm_that_somebody_paused_is_left_alone(state: S) -> None:
    by_user = going(PAUSED, lease_held=False, domain=DomainHere(pause=Pause.USER))
    left = in_state(state, by_user, live=[peer(2)])
    assert left.state.engine.name is state and not left.actions


def test_a_vm_whose_disk_failed_is_ended_and_not_moved() -> None:
    stopped = in_state(
        S.ENGINE_UP, going(PAUSED, domain=DomainHere(pause=Pause.IO_ERROR)), live=[peer(2)]
    )
    assert stopped.actions == (PowerOffVm(),), "it cannot shut down either"


def test_global_maintenance_comes_first() -> None:
    held = in_state(S.ENGINE_UP, going(), live=[peer(2)], global_maintenance=True)
    assert held.state.engine.name is S.GLOBAL_MAINTENANCE and not held.actions


def test_no_host_is_switched_on_by_one_that_goes_down() -> None:
    record = FenceRecord(1, FenceStep.DEAD, 1, 3, NOW_S - 5, ordered=True)
    world: dict[str, Any] = {"fence_log": (record,), "fence_devices": frozenset({3})}
    assert PowerOnHost in kinds(in_state(S.ENGINE_UP, local(UP), live=[peer(2)], **world))
    assert PowerOnHost not in kinds(in_state(S.ENGINE_UP, going(), live=[peer(2)], **world))


def test_an_order_to_start_is_refused_with_its_reason() -> None:
    order = Order(1, OrderKind.START)
    refused = in_state(S.LOCAL_MAINTENANCE, going(DOWN), live=[peer(2)], order=order)
    assert refused.state.engine.answers[-1].text == "this host is shutting down"


# --- a migration that takes too long ------------------------------------------------------------


def test_a_migration_is_cancelled_when_the_host_cannot_wait_any_longer() -> None:
    limit_s = TIMING.host_shutdown_move
    life = Life(here=local(UP), peers=(peer(2),), beating={2})
    life.beat()
    life.beat()
    began_s = life.now_s
    shutdown = HostShutdown(began_s, OnHostShutdown.MIGRATE)
    life.here = local(UP, maintenance=True, shutdown=shutdown)
    assert life.beat().actions == (MigrateVm(2),)
    life.here = local(LEAVING, maintenance=True, shutdown=shutdown, migrating_s=1.0)
    assert not life.beat(after_s=began_s + limit_s - 1 - life.now_s).actions
    over = life.beat()
    assert over.actions == (CancelMigration("the shutdown of this host"),)
    assert codes(over) == [Code.MIGRATING, Code.MIGRATION_OVERDUE]
    assert not life.beat().actions, "it is being cancelled"
    life.here = local(UP, maintenance=True, shutdown=shutdown)
    life.beat(VmMigrationEnded(2, False, "cancelled by the shutdown of this host"))
    assert life.beat(after_s=0.1).actions == (ShutDownVm(),)


@pytest.mark.parametrize(
    ("detail", "world"),
    [
        (LEAVING, {"global_maintenance": True}),
        (LEAVING, {"global_maintenance": None}),
        (LEAVING, {"newer_versions": (3,)}),
        (LEAVING, {"stopping": True}),
        (EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN, "unknown", "libvirt hangs"), {}),
    ],
)
def test_it_is_not_cancelled_while_nothing_may_be_done(
    detail: EngineStatus, world: dict[str, Any]
) -> None:
    """A random cluster found it: cancelled in global maintenance, and where libvirt hangs."""
    decision = in_state(
        S.ENGINE_MIGRATING_AWAY,
        going(detail, for_s=TIMING.host_shutdown_move, migrating_s=10.0),
        for_s=10,
        live=[peer(2)],
        remembered={"acting": True},
        **world,
    )
    assert not decision.actions


def test_so_is_one_that_this_agent_did_not_begin() -> None:
    here = going(LEAVING, for_s=TIMING.host_shutdown_move, migrating_s=10.0)
    over = in_state(S.ENGINE_MIGRATING_AWAY, here, for_s=10, live=[peer(2)])
    assert over.actions == (CancelMigration(),)
    assert "this host is shutting down" in _text(over, Code.MIGRATION_OVERDUE)
    here = going(LEAVING, for_s=TIMING.host_shutdown_move - 7, migrating_s=10.0)
    waits = in_state(S.ENGINE_MIGRATING_AWAY, here, for_s=10, live=[peer(2)])
    assert "cancelled in 7 s" in _text(waits, Code.MIGRATING)


def test_systemd_s_own_limit_is_not_reached() -> None:
    Timing(host_shutdown_move=1000, host_shutdown_grace=HOST_SHUTDOWN_MAX_S - 1000)
    with pytest.raises(ValueError, match="host-shutdown-move and host-shutdown-grace together"):
        Timing(host_shutdown_move=1000, host_shutdown_grace=HOST_SHUTDOWN_MAX_S - 999)
    assert RULES.timing.host_shutdown_move == 300


def _text(decision: Decision, code: Code) -> str:
    return next(reason.text for reason in decision.reasons if reason.code is code)

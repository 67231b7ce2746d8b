# SPDX-License-Identifier: LGPL-2.1-or-later
"""An operator's orders: done through the same doors as our own decisions, or refused at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.exchange.orders import FORGOTTEN, KEPT, TAKEN_WITHIN_S, Orders
from scoring.decide import Decision, decide
from scoring.decision import (
    AskLease,
    CancelMigration,
    DropFenceLease,
    MigrateVm,
    PowerOffVm,
    ShutDownVm,
    StartVm,
)
from scoring.observation import (
    LeaseAnswer,
    MigrationCancelled,
    Order,
    OrderKind,
    Outcome,
    Standing,
    StartResult,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)
from scoring.rules import MIGRATION_EXTRA_S
from scoring.vm.orders import ANSWERS_MAX, LEASE_PATIENCE_S
from scoring.vm.state import OrderAnswer, StateName
from scoring.vm_facts import (
    DETAIL_MIGRATION_SOURCE,
    EngineStatus,
    Health,
    Obstacle,
    Unfit,
    VmStatus,
)
from tests.unit.builders import (
    DOWN,
    NOW_S,
    RULES,
    TIMING,
    UNKNOWN,
    UP,
    Life,
    free_lease,
    in_state,
    kinds,
    lease_of,
    local,
    observe,
    peer,
)

S = StateName
HERE = local(UP, lease_held=True)
HERE_SEEN = observe(HERE)

LEAVING = EngineStatus(VmStatus.UP, Health.GOOD, DETAIL_MIGRATION_SOURCE)


def ordered(
    kind: OrderKind, name: StateName = S.ENGINE_UP, target: int | None = None, **given: Any
) -> Decision:
    here = given.pop("here", HERE if name is not S.ENGINE_DOWN else local())
    return in_state(name, here, order=Order(7, kind, target), **given)


def answer(decision: Decision) -> tuple[bool | None, str]:
    told = decision.state.engine.answers[-1]
    assert told.number == 7
    return told.ok, told.text


# --- migrate ------------------------------------------------------------------------------


def test_the_vm_is_moved_to_the_named_host() -> None:
    decision = ordered(OrderKind.MIGRATE, target=3, live=[peer(2), peer(3, 100)])
    assert MigrateVm(3) in decision.actions
    assert decision.state.engine.name is S.ENGINE_MIGRATING_AWAY
    assert decision.state.engine.moving_to == 3
    assert (
        decision.state.engine.moving_until_s
        == NOW_S + RULES.migration_timeout_s + MIGRATION_EXTRA_S
    )
    assert answer(decision)[0] is None


def test_without_a_name_the_best_host_is_taken() -> None:
    decision = ordered(OrderKind.MIGRATE, live=[peer(2, 100), peer(3, 200)])
    assert MigrateVm(3) in decision.actions


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"target": 1}, "this very host"),
        ({"target": 9}, "no host with id 9"),
        ({"target": 4, "silent": [peer(4)]}, "silent"),
        ({"target": 4, "uncertain": [peer(4)]}, "first seen just now"),
        ({"target": 4, "live": [peer(4, maintenance=True)]}, "local maintenance"),
        ({"target": 4, "live": [peer(4, stopped=True)]}, "was stopped"),
        (
            {"target": 4, "live": [peer(4, engine=UNKNOWN)]},
            "libvirt on host4 (id 4) does not answer its broker: right after a restart of libvirt"
            " try again in a few seconds",
        ),
        ({"target": 4, "live": [peer(4, 0)]}, "scores 0"),
        ({"target": 4, "live": [peer(4, memory_short=True)]}, "less memory free"),
        ({"live": []}, "no other live host"),
        ({"migration_possible": False}, "migration-uri"),
        ({"global_maintenance": True}, "global maintenance"),
        ({"global_maintenance": None}, "global maintenance"),
        ({"name": S.ENGINE_STARTING}, "EngineStarting"),
        ({"name": S.ENGINE_DOWN, "live": [peer(2, engine=UP)]}, "runs on host2"),
        ({"name": S.ENGINE_DOWN}, "not up"),
        ({"here": local(UNKNOWN)}, "not known"),
        ({"remembered": {"acting": True}}, "busy"),
        ({"stopping": True}, "ending"),
    ],
)
def test_what_cannot_be_moved_is_refused_in_its_own_words(given: dict[str, Any], why: str) -> None:
    given = {"live": [peer(2)], **given}
    decision = ordered(OrderKind.MIGRATE, **given)
    ok, text = answer(decision)
    assert ok is False and why in text
    assert MigrateVm not in kinds(decision)


def ended(kind: OrderKind, outcome: Outcome, name: StateName = S.ENGINE_UP) -> Decision:
    """The order under way ends so."""
    remembered: dict[str, Any] = {
        "answers": (OrderAnswer(7, None, "under way"),),
        "acting": True,
    }
    if kind is OrderKind.CANCEL:
        remembered["cancelling"] = 7
    else:
        remembered["order"] = Order(7, kind)
    return in_state(name, HERE, remembered=remembered, outcomes=(outcome,), live=[peer(2)])


@pytest.mark.parametrize(
    ("kind", "outcome", "ok", "text"),
    [
        (OrderKind.MIGRATE, VmMigrationEnded(2, True), True, "on host2 (id 2)"),
        (OrderKind.MIGRATE, VmMigrationEnded(2, False, "no way"), False, "no way"),
        (OrderKind.START, VmStartEnded(StartResult.STARTED), True, "under its lease"),
        (OrderKind.START, VmStartEnded(StartResult.FAILED, "no disk"), False, "no disk"),
        (OrderKind.START, VmStartEnded(StartResult.LEASE_HELD, "host 2"), False, "host 2"),
        (OrderKind.SHUTDOWN, VmStopEnded(True), True, "asked"),
        (OrderKind.SHUTDOWN, VmStopEnded(False, "libvirt"), False, "libvirt"),
        (OrderKind.POWER_OFF, VmStopEnded(True), True, "gone"),
        (OrderKind.POWER_OFF, VmStopEnded(False, "stuck"), False, "stuck"),
        (OrderKind.CANCEL, MigrationCancelled(True), True, "cancelled"),
        (OrderKind.CANCEL, MigrationCancelled(False, "none"), False, "none"),
    ],
)
def test_an_order_is_answered_when_its_action_ends(
    kind: OrderKind, outcome: Outcome, ok: bool, text: str
) -> None:
    decision = ended(kind, outcome)
    assert answer(decision)[0] is ok and text in answer(decision)[1]
    assert (decision.state.engine.order, decision.state.engine.cancelling) == (None, None)


def test_an_order_is_remembered_until_its_action_ends() -> None:
    life = Life(here=HERE, peers=(peer(2),), beating={2})
    for _ in range(10):
        life.beat()
    assert life.state.engine.name is S.ENGINE_UP
    life.world["order"] = Order(7, OrderKind.MIGRATE)
    assert MigrateVm(2) in life.beat().actions
    del life.world["order"]
    assert life.beat().state.engine.moving_to == 2
    life.here = local()
    done = life.beat(VmMigrationEnded(2, True))
    assert answer(done) == (True, "the VM runs on host2 (id 2) now")
    assert done.state.engine.moving_to is None and done.state.engine.order is None


def test_an_outcome_of_our_own_action_answers_no_order() -> None:
    decision = ended(OrderKind.MIGRATE, VmStopEnded(True))
    assert answer(decision)[0] is None


def test_an_order_is_taken_once() -> None:
    first = ordered(OrderKind.SHUTDOWN)
    assert ShutDownVm in kinds(first)
    again = ordered(
        OrderKind.SHUTDOWN, remembered={"answers": (OrderAnswer(7, True, "the guest was asked"),)}
    )
    assert ShutDownVm not in kinds(again)
    later = ordered(OrderKind.SHUTDOWN, remembered={"answers": (OrderAnswer(6, True, "older"),)})
    assert ShutDownVm in kinds(later)


def test_a_migration_is_cancelled_and_one_that_is_not_there_is_not() -> None:
    acting = {"acting": True, "moving_to": 2}
    moving = ordered(OrderKind.CANCEL, S.ENGINE_MIGRATING_AWAY, remembered=acting)
    assert CancelMigration in kinds(moving)
    found = ordered(OrderKind.CANCEL, S.ENGINE_MIGRATING_AWAY, here=local(LEAVING))
    assert CancelMigration in kinds(found), "whoever began it"
    told = ordered(
        OrderKind.CANCEL, S.ENGINE_MIGRATING_AWAY, remembered={**acting, "asking_cancel": True}
    )
    assert CancelMigration not in kinds(told) and "already" in answer(told)[1]
    none = ordered(OrderKind.CANCEL)
    assert answer(none)[0] is False and CancelMigration not in kinds(none)


def test_a_second_order_is_refused_and_the_first_one_is_still_answered() -> None:
    moving = ordered(OrderKind.MIGRATE, target=2, live=[peer(2)])
    second = replace(HERE_SEEN, order=Order(8, OrderKind.MIGRATE, 2))
    refused = decide(moving.state, second, NOW_S + 1)
    assert [(a.number, a.ok) for a in refused.state.engine.answers] == [(7, None), (8, False)]
    assert "migrate" in refused.state.engine.answers[-1].text
    ended = replace(HERE_SEEN, outcomes=(VmMigrationEnded(2, True),))
    answers = decide(refused.state, ended, NOW_S + 2).state.engine.answers
    assert [(a.number, a.ok) for a in answers] == [(7, True), (8, False)]


def test_a_cancelled_migration_answers_its_own_order_too() -> None:
    moving = ordered(OrderKind.MIGRATE, target=2, live=[peer(2)])
    cancel = replace(HERE_SEEN, order=Order(8, OrderKind.CANCEL))
    cancelling = decide(moving.state, cancel, NOW_S + 1)
    assert CancelMigration in kinds(cancelling)
    again = decide(cancelling.state, replace(cancel, order=Order(9, OrderKind.CANCEL)), NOW_S + 2)
    assert CancelMigration not in kinds(again)
    outcomes = (VmMigrationEnded(2, False, "cancelled"), MigrationCancelled(True))
    ended = decide(again.state, replace(HERE_SEEN, outcomes=outcomes), NOW_S + 3)
    told = [(a.number, a.ok) for a in ended.state.engine.answers]
    assert told == [(7, False), (8, True), (9, False)]
    assert (ended.state.engine.order, ended.state.engine.cancelling) == (None, None)


def test_answers_are_bounded_and_the_open_one_is_never_forgotten() -> None:
    state = ordered(OrderKind.MIGRATE, target=2, live=[peer(2)]).state
    for number in range(8, 8 + 2 * ANSWERS_MAX):
        order = Order(number, OrderKind.SHUTDOWN)
        state = decide(state, replace(HERE_SEEN, order=order), NOW_S + number).state
    answers = state.engine.answers
    assert len(answers) == ANSWERS_MAX
    assert (answers[0].number, answers[0].ok) == (7, None)
    assert answers[-1].number == 7 + 2 * ANSWERS_MAX


# --- stop ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "action"),
    [(OrderKind.SHUTDOWN, ShutDownVm), (OrderKind.POWER_OFF, PowerOffVm)],
)
@pytest.mark.parametrize("name", [S.ENGINE_UP, S.ENGINE_UP_BAD_HEALTH, S.ENGINE_STARTING])
def test_the_vm_is_stopped_by_hand(kind: OrderKind, action: type, name: StateName) -> None:
    decision = ordered(kind, name)
    assert action in kinds(decision)
    in_mode = ordered(kind, S.GLOBAL_MAINTENANCE, global_maintenance=True)
    assert action in kinds(in_mode), "that is what the mode is for"
    assert in_mode.state.engine.name is S.GLOBAL_MAINTENANCE


def test_a_vm_that_is_not_here_is_not_stopped() -> None:
    decision = ordered(OrderKind.POWER_OFF, S.ENGINE_DOWN, live=[peer(2, engine=UP)])
    assert answer(decision) == (False, "the VM runs on host2 (id 2): give the order there")
    assert PowerOffVm not in kinds(decision)


# --- start --------------------------------------------------------------------------------


def start(name: StateName = S.ENGINE_DOWN, **given: Any) -> Decision:
    """With the lease's answer of this very beat; other hosts are better."""
    lease = given.pop("lease", free_lease())
    remembered = {"lease": lease, **given.pop("remembered", {})}
    given.setdefault("live", [peer(2, 3500)])
    here = given.pop("here", local(DOWN))
    return ordered(OrderKind.START, name, here=here, remembered=remembered, **given)


@pytest.mark.parametrize("name", [S.ENGINE_DOWN, S.ENGINE_UNEXPECTEDLY_DOWN, S.ENGINE_MAYBE_AWAY])
def test_the_vm_is_started_here_though_another_host_is_better(name: StateName) -> None:
    decision = start(name)
    assert StartVm in kinds(decision)
    assert decision.state.engine.name is S.ENGINE_START
    assert answer(decision)[0] is None


def test_in_global_maintenance_it_is_started_and_the_mode_stays() -> None:
    decision = start(S.GLOBAL_MAINTENANCE, global_maintenance=True)
    assert StartVm in kinds(decision)
    assert decision.state.engine.name is S.GLOBAL_MAINTENANCE


def test_who_owns_the_lease_is_asked_first() -> None:
    old = start(lease=free_lease(NOW_S - 5))
    assert AskLease in kinds(old) and StartVm not in kinds(old)
    assert answer(old)[0] is None
    late = {
        "order": Order(7, OrderKind.START),
        "answers": (OrderAnswer(7, None, "under way"),),
        "order_since_s": NOW_S - 16,
        "asking_lease": True,
        "missing_since_s": None,
    }
    given_up = in_state(S.GLOBAL_MAINTENANCE, global_maintenance=True, remembered=late)
    assert answer(given_up)[0] is False and "sanlock does not answer" in answer(given_up)[1]
    answered = in_state(
        S.GLOBAL_MAINTENANCE, global_maintenance=True, remembered=late, outcomes=(free_lease(),)
    )
    assert StartVm in kinds(answered)


def test_each_ordered_start_waits_for_an_answer_of_its_own_and_not_for_ever() -> None:
    life = Life(here=local(DOWN), world={"global_maintenance": True})
    for _ in range(3):
        life.beat()
    assert life.state.engine.name is S.GLOBAL_MAINTENANCE
    for number in (7, 8):
        life.world["order"] = Order(number, OrderKind.START)
        asked = [AskLease in kinds(life.beat()) for _ in range(int(LEASE_PATIENCE_S) + 1)]
        assert asked == [number == 7] + [False] * int(LEASE_PATIENCE_S), "asked once, and waited"
        assert life.state.engine.answers[-1] == OrderAnswer(number, None, "under way")
        refused = life.beat().state.engine.answers[-1]
        assert refused.ok is False and "sanlock" in refused.text
    # The answer to what is still being asked does for the next one.
    life.world["order"] = Order(9, OrderKind.START)
    life.beat()
    started = life.beat(free_lease(life.now_s))
    assert StartVm in kinds(started)
    life.beat(VmStartEnded(StartResult.FAILED, "no disk"))
    life.world["order"] = Order(10, OrderKind.START)
    assert AskLease in kinds(life.beat()), "what was known for the last one is old"


@pytest.mark.parametrize(
    "lease",
    [
        lease_of(1),
        lease_of(2, standing=Standing.DEAD),
        lease_of(2, standing=Standing.FREE),
        lease_of(2, current_generation=6),
    ],
)
def test_a_lease_that_can_be_had_is_taken(lease: LeaseAnswer) -> None:
    assert StartVm in kinds(start(lease=lease))


@pytest.mark.parametrize(
    ("lease", "why"),
    [
        (lease_of(2), "host2 (id 2) owns the engine lease"),
        (lease_of(2, dead_in_s=None), "not known to be dead"),
        (lease_of(2, standing=Standing.FAIL), "in 140 s"),
        (replace(free_lease(), known=False, detail="no answer"), "no answer"),
    ],
)
def test_a_lease_that_cannot_be_had_refuses_the_start(lease: LeaseAnswer, why: str) -> None:
    decision = start(lease=lease)
    assert answer(decision)[0] is False and why in answer(decision)[1]
    assert StartVm not in kinds(decision)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"here": local(UP), "name": S.ENGINE_UP}, "already"),
        ({"here": local(UNKNOWN)}, "not known"),
        ({"live": [peer(2, engine=UP)]}, "runs on host2"),
        ({"here": local(DOWN, maintenance=True)}, "local maintenance"),
        ({"storage_good_since_s": None}, "whiteboard"),
        ({"lockspace_joined": False}, "lockspace"),
        ({"lockspace_joined": None}, "lockspace"),
        (
            {"here": local(DOWN, unfit=(Unfit(Obstacle.OTHER_STORAGE, "a copy"),))},
            "a copy",
        ),
        ({"unsure": (2,)}, "host(s) 2 write to the storage"),
        ({"name": S.ENGINE_STOP}, "EngineStop"),
        ({"remembered": {"acting": True}}, "busy"),
    ],
)
def test_what_must_not_be_started_is_refused(given: dict[str, Any], why: str) -> None:
    decision = start(**given)
    assert answer(decision)[0] is False and why in answer(decision)[1]
    assert StartVm not in kinds(decision)


@given(
    st.sampled_from(list(OrderKind)),
    st.sampled_from([n for n in StateName if n is not S.AGENT_STOPPED]),
    st.sampled_from([UP, DOWN, UNKNOWN]),
    st.none() | st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_whatever_is_ordered_when_every_order_is_answered_and_breaks_no_law(
    kind: OrderKind, name: StateName, engine: Any, mode: bool | None, local_mode: bool, up: bool
) -> None:
    here = local(engine, maintenance=local_mode)
    live = [peer(2, engine=UP if up else DOWN)]
    given: dict[str, Any] = {
        "global_maintenance": mode,
        "live": live,
        "remembered": {"lease": free_lease()},
    }
    decision = ordered(kind, name, here=here, **given)
    assert [told.number for told in decision.state.engine.answers] == [7]
    if MigrateVm in kinds(decision):
        assert mode is False
    if StartVm in kinds(decision):
        assert engine is DOWN and not up and not local_mode
    assert sum(kind in kinds(decision) for kind in (StartVm, MigrateVm)) <= 1


def test_an_ordered_start_drops_a_takeover_s_fence_lease() -> None:
    assert DropFenceLease in kinds(start(fence_lease_held=True))


# --- the broker's side --------------------------------------------------------------------


def test_an_order_is_shown_until_it_is_taken_up_and_its_answer_kept() -> None:
    orders = Orders()
    order = orders.place(OrderKind.MIGRATE, 2, 100.0)
    assert orders.pending(100.0) == order
    assert order.number == 100_000
    status = orders.status(order.number, 100.0)
    assert status is not None and status.state == "waiting"
    orders.answered([OrderAnswer(order.number, None, "under way")])
    assert orders.pending(100.0) is None
    for ok, state in ((None, "under-way"), (True, "done"), (False, "refused")):
        orders.answered([OrderAnswer(order.number, ok, "so")])
        status = orders.status(order.number, 100.0)
        assert status is not None and (status.state, status.text) == (state, "so")


def test_an_order_says_which_vm_it_is_about() -> None:
    orders = Orders()
    order = orders.place(OrderKind.MIGRATE, 2, 100.0, 5)
    assert order.vm == 5
    status = orders.status(order.number, 100.0)
    assert status is not None and status.vm == 5


def test_an_order_that_nobody_takes_up_is_lost_and_not_kept_for_later() -> None:
    orders = Orders()
    order = orders.place(OrderKind.POWER_OFF, None, 100.0)
    late_s = 100.0 + TAKEN_WITHIN_S + 0.1
    assert orders.pending(late_s) is None
    status = orders.status(order.number, late_s)
    assert status is not None and status.state == "lost"


def test_numbers_grow_also_over_a_restart_of_the_broker() -> None:
    first = Orders().place(OrderKind.START, None, 100.0)
    second = Orders().place(OrderKind.START, None, 100.5)
    assert second.number > first.number
    orders = Orders()
    numbers = [orders.place(OrderKind.START, None, 200.0).number for _ in range(KEPT + 5)]
    assert numbers == sorted(set(numbers))
    assert orders.status(numbers[0], 200.0) is None and orders.status(numbers[-1], 200.0)
    orders.answered([OrderAnswer(1, True, "of another life")])
    assert orders.status(1, 200.0) is None


def test_what_an_agent_that_was_started_anew_forgot_is_told_and_what_it_had_done_stays() -> None:
    orders = Orders()
    done, open_ = (orders.place(OrderKind.MIGRATE, 2, at_s).number for at_s in (100.0, 101.0))
    orders.answered([OrderAnswer(done, True, "so"), OrderAnswer(open_, None, "under way")])
    orders.answered([])
    kept, lost = orders.status(done, 102.0), orders.status(open_, 102.0)
    assert kept is not None and kept.state == "done"
    assert lost is not None and (lost.state, lost.text) == ("refused", FORGOTTEN)


def test_timing_of_the_tests_is_the_default() -> None:
    assert TIMING.beat == 1 and observe().order is None

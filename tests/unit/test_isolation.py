# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM that runs well and that nobody reaches: who is believed, what is done, what never is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scoring.decide import Decision
from scoring.decision import AskMigrationPath, Code, MigrateVm, PowerOffVm, ShutDownVm, StartVm
from scoring.observation import (
    HostShutdown,
    LocalHost,
    MigrationPath,
    PeerReport,
    VmMigrationEnded,
    VmStopEnded,
)
from scoring.vm import isolation
from scoring.vm.state import StateName as S
from scoring.vm_facts import DETAIL_PAUSED, ENGINE, EngineStatus, Health, OutsideView, VmStatus
from tests.unit.builders import (
    DOWN,
    NOW_S,
    RULES,
    SICK,
    TIMING,
    UNANSWERED,
    UP,
    codes,
    free_lease,
    in_state,
    kinds,
    local,
    peer,
    replaced,
)

#: The stay of the VM on host 1.
STAY = 7
AFTER = TIMING.isolation_after


def outsider(
    host_id: int,
    bad_s: float | None = AFTER,
    good_s: float | None = AFTER + 1,
    way_out: bool | None = True,
    stay: int = STAY,
    **changed: Any,
) -> PeerReport:
    """A host that reached the VM on host 1 `good_s` ago, and has missed it for `bad_s`."""
    view = OutsideView(
        1,
        stay,
        None if good_s is None else NOW_S - good_s,
        None if bad_s is None else NOW_S - bad_s,
    )
    return peer(host_id, outside=view, way_out=way_out, **changed)


def cut_off(engine: EngineStatus = UP, **changed: Any) -> LocalHost:
    """Host 1 with the VM and without a way out."""
    return local(engine, **{"uplink_up": True, "way_out": False, **changed})


def judged(
    here: LocalHost | None = None,
    *peers: PeerReport,
    name: S = S.ENGINE_UP,
    path: MigrationPath | None = None,
    remembered: dict[str, Any] | None = None,
    **observed: Any,
) -> Decision:
    """What host 1, which runs the VM, decides."""
    memory: dict[str, Any] = {"last_ran": STAY, "path": path, **(remembered or {})}
    return in_state(
        name,
        here or cut_off(),
        live=peers or (outsider(2), outsider(3)),
        remembered=memory,
        **observed,
    )


def way(ok: bool, target: int = 2, ago_s: float = 1.0) -> MigrationPath:
    return MigrationPath(target, ok, NOW_S - ago_s)


# --- what is isolated -------------------------------------------------------------------------


def test_with_a_way_for_it_the_vm_is_migrated() -> None:
    decision = judged(path=way(True))
    assert decision.state.engine.name is S.ENGINE_MIGRATING_AWAY
    assert decision.actions == (MigrateVm(2),)
    assert codes(decision) == [Code.ISOLATED, Code.MIGRATING]
    assert "host2 (id 2), host3 (id 3) cannot reach the VM" in decision.reasons[0].text


def test_without_one_it_is_shut_down_within_its_grace() -> None:
    decision = judged(path=way(False))
    assert (decision.state.engine.name, decision.actions) == (S.ENGINE_STOP, (ShutDownVm(),))
    assert codes(decision) == [Code.ISOLATED, Code.STOP_REQUESTED]
    assert decision.state.engine.isolated and "within 20 s" in decision.reasons[0].text


def test_where_no_migration_is_configured_no_way_is_asked_for() -> None:
    decision = judged(migration_possible=False)
    assert (decision.state.engine.name, decision.actions) == (S.ENGINE_STOP, (ShutDownVm(),))


@pytest.mark.parametrize(
    "path", [None, way(True, target=3), way(True, ago_s=AFTER + 2)], ids=["none", "other", "old"]
)
def test_the_way_is_asked_for_before_anything_is_stopped(path: MigrationPath | None) -> None:
    decision = judged(path=path)
    assert decision.state.engine.name is S.ENGINE_UP
    assert decision.actions == (AskMigrationPath(2),)
    assert Code.ISOLATION_WAITING in codes(decision)


def test_the_way_is_asked_for_once_at_a_time() -> None:
    decision = judged(remembered={"asking_path": True})
    assert decision.actions == () and decision.state.engine.name is S.ENGINE_UP


def test_the_answer_is_taken_in() -> None:
    decision = judged(outcomes=(way(False),), remembered={"asking_path": True})
    assert not decision.state.engine.asking_path and decision.state.engine.name is S.ENGINE_STOP


def test_it_waits_until_its_room_there_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "secure", lambda *_: False)
    decision = judged(path=way(True))
    assert decision.actions == () and decision.state.engine.name is S.ENGINE_UP


@pytest.mark.parametrize("failed", [2, 3])
def test_a_migration_that_failed_is_no_way(failed: int) -> None:
    decision = judged(path=way(True), remembered={"move_failed_s": {failed: NOW_S - 1}})
    assert decision.state.engine.name is S.ENGINE_STOP


def test_a_migration_that_fails_now_leads_to_the_stop() -> None:
    decision = judged(
        name=S.ENGINE_MIGRATING_AWAY,
        path=way(True),
        remembered={"acting": True, "moving_to": 2},
        outcomes=(VmMigrationEnded(2, False, "the connection broke"),),
    )
    after = in_state(
        decision.state.engine.name,
        cut_off(engine_taken_s=NOW_S + 1),
        live=(outsider(2), outsider(3)),
        remembered={
            "last_ran": STAY,
            "path": way(True),
            "move_failed_s": decision.state.engine.move_failed_s,
        },
    )
    assert (
        decision.state.engine.name is S.ENGINE_STARTING and after.state.engine.name is S.ENGINE_STOP
    )


def test_no_carrier_is_this_hosts_own_word_too() -> None:
    here = cut_off(uplink_up=False, way_out=None)
    assert judged(here, outsider(2), path=way(False)).state.engine.name is S.ENGINE_STOP


def test_without_carrier_a_check_that_fails_here_says_nothing() -> None:
    """The check may go by way of the network that is cut."""
    here = cut_off(SICK, uplink_up=False)
    for name in (S.ENGINE_UP, S.ENGINE_UP_BAD_HEALTH, S.ENGINE_STARTING):
        assert judged(here, name=name, path=way(False)).state.engine.name is S.ENGINE_STOP


def test_one_witness_beside_this_host_is_enough() -> None:
    assert judged(None, outsider(2), path=way(False)).state.engine.name is S.ENGINE_STOP
    seen_last = outsider(3, bad_s=None, good_s=AFTER)
    assert judged(None, outsider(2), seen_last, path=way(False)).state.engine.name is S.ENGINE_STOP


def test_it_goes_to_a_host_that_would_be_reached() -> None:
    better_but_cut_off = outsider(2, score=3400, way_out=False)
    decision = judged(None, better_but_cut_off, outsider(3, score=3000), path=way(True, target=3))
    assert decision.actions == (MigrateVm(3),)


# --- what is not -------------------------------------------------------------------------------


def nothing(decision: Decision) -> bool:
    return (
        decision.state.engine.name in (S.ENGINE_UP, S.ENGINE_UP_BAD_HEALTH) and not decision.actions
    )


@pytest.mark.parametrize(
    "peers",
    [
        (peer(2), peer(3)),
        (outsider(2, bad_s=None),),
        (outsider(2, good_s=None),),
        (outsider(2, stay=STAY - 1),),
        (outsider(2, way_out=False), outsider(3, way_out=False)),
    ],
    ids=["nobody asks", "it answers", "never seen", "another stay", "cut off themselves"],
)
def test_nobody_misses_it(peers: tuple[PeerReport, ...]) -> None:
    decision = judged(None, *peers)
    assert nothing(decision) and codes(decision) == [Code.ENGINE_HEALTHY]


def test_the_way_is_asked_for_before_they_know_whose_network_it_is() -> None:
    """The answer may take seconds, and the question costs nothing."""
    peers = (outsider(2, way_out=False), outsider(3, way_out=None))
    decision = judged(None, *peers)
    assert decision.actions == (AskMigrationPath(2),) and codes(decision) == [Code.ENGINE_HEALTHY]
    assert nothing(judged(cut_off(way_out=True), *peers)), "ours is good"
    assert nothing(judged(None, outsider(2, way_out=None, score=0))), "no host could take it"


def test_what_is_seen_of_another_host_says_nothing_of_this_one() -> None:
    other = outsider(2)
    view = replace(other.reached[ENGINE], owner=3)
    assert nothing(judged(None, replaced(other, outside=view)))


@pytest.mark.parametrize("good_s", [0.0, AFTER - 1])
def test_one_host_that_reached_it_lately_is_enough(good_s: float) -> None:
    decision = judged(None, outsider(2), outsider(3, bad_s=None, good_s=good_s), path=way(True))
    assert nothing(decision) and Code.ISOLATION_WAITING in codes(decision)


def test_it_is_counted_from_the_first_question_without_an_answer() -> None:
    early = outsider(2, bad_s=AFTER - 0.5, good_s=AFTER + 1.5)
    late = outsider(3, bad_s=3.0, good_s=AFTER + 6)
    decision = judged(None, early, late, path=way(True))
    assert nothing(decision) and "given away in 0 s" in decision.reasons[0].text
    assert judged(None, outsider(2), late, path=way(False)).state.engine.name is S.ENGINE_STOP


def test_without_carrier_it_is_counted_from_its_loss() -> None:
    """The first question without an answer comes up to outside-interval later."""
    peers = (outsider(2, bad_s=AFTER - 2, good_s=AFTER + 0.5), outsider(3, bad_s=None, good_s=None))
    dark = cut_off(uplink_up=False, way_out=None)
    for down_s, name in ((AFTER, S.ENGINE_STOP), (AFTER - 0.5, S.ENGINE_UP)):
        decision = judged(
            dark, *peers, path=way(False), remembered={"uplink_down_s": NOW_S - down_s}
        )
        assert decision.state.engine.name is name, down_s
    # Somebody reached it after that: not before that answer.
    late = outsider(2, bad_s=AFTER - 2, good_s=AFTER - 1)
    decision = judged(dark, late, path=way(False), remembered={"uplink_down_s": NOW_S - 100})
    assert (
        decision.state.engine.name is S.ENGINE_UP
        and "given away in 1 s" in decision.reasons[0].text
    )


def test_the_loss_of_the_carrier_is_remembered_while_it_lasts() -> None:
    early = outsider(2, bad_s=5.0, good_s=6.0)
    lost = judged(cut_off(uplink_up=False), early).state.engine
    assert lost.uplink_down_s == NOW_S
    before = {"uplink_down_s": NOW_S - 5}
    assert judged(
        cut_off(uplink_up=False), early, remembered=before
    ).state.engine.uplink_down_s == (NOW_S - 5)
    for up in (True, None):
        decision = judged(cut_off(uplink_up=up), early, remembered=before)
        assert decision.state.engine.uplink_down_s is None, up


def test_it_is_decided_the_moment_the_time_is_over() -> None:
    """The decision does not wait for another beat."""
    early = outsider(2, bad_s=AFTER - 0.25, good_s=AFTER)
    assert judged(None, early).wake_s == NOW_S + 0.25
    assert judged(cut_off(way_out=True), early).wake_s is None


def test_while_it_waits_the_way_is_asked_for() -> None:
    early = outsider(2, bad_s=5.0, good_s=6.0)
    assert judged(None, early).actions == (AskMigrationPath(2),)
    assert judged(None, early, path=way(False, ago_s=4.9)).actions == ()
    assert judged(None, early, path=way(False, ago_s=5.1)).actions == (AskMigrationPath(2),)


def test_in_doubt_whose_network_it_is_the_way_is_asked_for_without_a_word() -> None:
    early = outsider(2, bad_s=5.0, good_s=6.0)
    decision = judged(cut_off(way_out=None), early)
    assert decision.actions == (AskMigrationPath(2),) and codes(decision) == [Code.ENGINE_HEALTHY]
    decision = judged(cut_off(way_out=True), early)
    assert nothing(decision) and codes(decision) == [Code.ENGINE_HEALTHY]


@pytest.mark.parametrize(
    ("way_out", "said"), [(True, "own network answers"), (None, "network.targets")]
)
def test_where_this_hosts_network_is_not_bad_it_is_held_back(
    way_out: bool | None, said: str
) -> None:
    decision = judged(cut_off(way_out=way_out))
    assert nothing(decision)
    assert codes(decision) == [Code.ISOLATION_HELD_BACK, Code.ENGINE_HEALTHY]
    assert said in decision.reasons[0].text


def test_nobody_who_would_be_reached_can_take_it() -> None:
    peers = (outsider(2, score=0), outsider(3, maintenance=True), outsider(4, memory_short=True))
    decision = judged(None, *peers, path=way(True))
    assert nothing(decision) and "no host with a good network" in decision.reasons[0].text


def test_it_is_left_where_the_configuration_says_so() -> None:
    decision = judged(remembered={"rules": replace(RULES, leave_isolated=True)}, path=way(True))
    assert nothing(decision) and "vm.on-isolation is leave" in decision.reasons[0].text


@pytest.mark.parametrize("engine", [SICK, UNANSWERED])
def test_a_vm_that_is_not_well_by_its_own_hosts_check_is_no_case_of_this(
    engine: EngineStatus,
) -> None:
    assert nothing(judged(cut_off(engine), path=way(True)))


def test_a_paused_vm_is_none_either() -> None:
    paused = EngineStatus(VmStatus.UP, Health.BAD, DETAIL_PAUSED)
    assert nothing(judged(cut_off(paused, uplink_up=False), path=way(True)))


def test_global_maintenance_holds_it() -> None:
    decision = judged(path=way(True), global_maintenance=True)
    assert decision.state.engine.name is S.GLOBAL_MAINTENANCE and not decision.actions


# --- the stop ----------------------------------------------------------------------------------

STOPPING = {"stop_asked": True, "isolated": True}


def stopping(here: LocalHost, *peers: PeerReport, for_s: float = 5.0) -> Decision:
    return in_state(
        S.ENGINE_STOP,
        here,
        for_s=for_s,
        live=peers or (outsider(2), outsider(3)),
        remembered={"last_ran": STAY, **STOPPING},
    )


def test_the_guest_has_its_grace_and_no_more() -> None:
    assert stopping(cut_off()).state.engine.name is S.ENGINE_STOP
    decision = stopping(cut_off(SICK), for_s=TIMING.isolation_grace)
    assert decision.state.engine.name is S.ENGINE_FORCE_STOP and kinds(decision) == {PowerOffVm}
    assert not decision.state.engine.isolated


@pytest.mark.parametrize(
    ("here", "peers"),
    [
        (cut_off(way_out=True), (outsider(2),)),
        (cut_off(), (outsider(2, bad_s=None, good_s=1.0),)),
        (cut_off(), (outsider(2), outsider(3, bad_s=None, good_s=1.0))),
        (cut_off(), (outsider(2, score=0),)),
    ],
    ids=["its network answers", "it is reached", "by one of two", "nobody could take it"],
)
def test_a_vm_that_is_reached_again_is_not_ended(
    here: LocalHost, peers: tuple[PeerReport, ...]
) -> None:
    decision = stopping(here, *peers, for_s=TIMING.isolation_grace)
    assert decision.state.engine.name is S.ENGINE_UP and kinds(decision) <= {AskMigrationPath}
    assert Code.ISOLATION_OVER in codes(decision)


def test_one_that_is_down_by_then_is_down() -> None:
    assert stopping(cut_off(DOWN, way_out=True)).state.engine.name is S.ENGINE_DOWN


def test_a_guest_that_shuts_down_and_answers_no_more_goes_on_doing_so() -> None:
    assert stopping(cut_off(SICK, way_out=True)).state.engine.name is S.ENGINE_STOP


def test_the_stop_waits_for_the_answer_to_its_request() -> None:
    here = cut_off(way_out=True)
    decision = in_state(
        S.ENGINE_STOP, here, for_s=1.0, remembered={"last_ran": STAY, "acting": True, **STOPPING}
    )
    assert decision.state.engine.name is S.ENGINE_STOP
    decision = in_state(
        S.ENGINE_STOP,
        here,
        for_s=1.0,
        remembered={"last_ran": STAY, "acting": True, **STOPPING},
        outcomes=(VmStopEnded(True),),
    )
    assert decision.state.engine.name is S.ENGINE_STOP


def test_another_stop_knows_nothing_of_it() -> None:
    decision = in_state(
        S.ENGINE_STOP, cut_off(way_out=True), for_s=30.0, remembered={"stop_asked": True}
    )
    assert decision.state.engine.name is S.ENGINE_STOP


# --- who starts it then --------------------------------------------------------------------------


def started(here: LocalHost, *peers: PeerReport) -> Decision:
    return in_state(
        S.ENGINE_DOWN, here, for_s=100.0, live=peers, remembered={"lease": free_lease()}
    )


@pytest.mark.parametrize("lost", [{"uplink_up": False}, {"way_out": False}])
def test_a_host_that_is_cut_off_leaves_the_start_to_one_that_is_not(lost: dict[str, bool]) -> None:
    decision = started(local(DOWN, **lost), peer(2, way_out=True))
    assert decision.state.engine.name is S.ENGINE_DOWN and StartVm not in kinds(decision)
    assert codes(decision) == [Code.CUT_OFF]
    assert decision.score.value == 0 and decision.score.penalties[0].name == "cut-off"


@pytest.mark.parametrize("other", [peer(2), peer(2, way_out=False), peer(2, 0, way_out=True)])
def test_it_starts_the_vm_where_nobody_is_better_off(other: PeerReport) -> None:
    decision = started(local(DOWN, way_out=False), other)
    assert decision.state.engine.name is S.ENGINE_START


# --- the VM's bridge, which leads nowhere ---------------------------------------------------------


def test_a_host_whose_bridge_is_down_leaves_the_start_to_one_whose_bridge_is_not() -> None:
    """The bridge costs the reference's points, which alone would not decide: the fact decides."""
    decision = started(local(DOWN, uplink_up=False, bridge_up=False), peer(2, 2000, uplink_up=True))
    assert decision.state.engine.name is S.ENGINE_DOWN and codes(decision) == [Code.CUT_OFF]
    assert decision.score.value == 2800
    assert [(p.name, p.points) for p in decision.score.penalties] == [
        ("bridge", 600),
        ("cut-off", 0),
    ]


@pytest.mark.parametrize(
    "other",
    [
        peer(2),
        peer(2, uplink_up=False),
        peer(2, 0, uplink_up=True),
        peer(2, uplink_up=True, maintenance=True),
    ],
    ids=["says nothing", "down too", "unable", "in maintenance"],
)
def test_it_starts_the_vm_where_no_bridge_is_better(other: PeerReport) -> None:
    decision = started(local(DOWN, uplink_up=False), other)
    assert decision.state.engine.name is S.ENGINE_START


@pytest.mark.parametrize("here", [True, None])
def test_nobody_waits_for_a_better_host_whose_bridge_is_down(here: bool | None) -> None:
    others = (peer(2, uplink_up=False), peer(3, 1000, uplink_up=True))
    decision = started(local(DOWN, uplink_up=here, cpu_load=0.6), *others)
    assert decision.state.engine.name is S.ENGINE_START


def test_it_is_not_given_to_where_its_bridge_is_down_too() -> None:
    peers = (outsider(2, uplink_up=False), outsider(3, uplink_up=False))
    decision = judged(cut_off(uplink_up=False), *peers, path=way(True))
    assert nothing(decision) and "no host with a good network" in decision.reasons[0].text
    peers = (outsider(2, uplink_up=False), outsider(3, score=1000, uplink_up=True))
    assert judged(cut_off(uplink_up=False), *peers, path=way(True, target=3)).actions == (
        MigrateVm(3),
    )


def test_a_drain_does_not_go_to_where_nobody_reaches_it() -> None:
    other = peer(2, uplink_up=False)
    decision = in_state(S.ENGINE_UP, local(UP, uplink_up=True, maintenance=True), live=(other,))
    assert nothing(decision) and Code.DRAIN_WAITING in codes(decision)
    decision = in_state(S.ENGINE_UP, local(UP, uplink_up=False, maintenance=True), live=(other,))
    assert decision.actions == (MigrateVm(2),), "here it is reached no more than there"
    going = local(UP, uplink_up=True, maintenance=True, shutdown=HostShutdown(NOW_S - 1))
    decision = in_state(S.ENGINE_UP, going, live=(other,))
    assert decision.actions == (MigrateVm(2),), "rather than shut down"


def test_a_host_that_runs_the_vm_keeps_its_score() -> None:
    early = outsider(2, bad_s=None, good_s=1.0)
    assert judged(cut_off(), early).score.value == 3400

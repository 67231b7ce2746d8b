# SPDX-License-Identifier: LGPL-2.1-or-later
"""The state machine: each exit of each state with its timeout, the guards before them, whose
turn it is to start the VM, and whom it is taken over from.

A test that names a state asks one decision of a host that has been in it for a while. A
test with a `Life` lives through a story, beat by beat, in virtual time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scoring.decide import decide
from scoring.decision import (
    AskFenceOwner,
    AskLease,
    AskPower,
    CancelMigration,
    Code,
    Decision,
    DropFenceLease,
    FreeHostId,
    MigrateEngine,
    NoteFenceFailed,
    PowerOffEngine,
    PowerOffHost,
    PowerOnHost,
    ShutdownEngine,
    StartEngine,
    TakeFenceLease,
)
from scoring.hosts.evidence import RENEWAL_SEEN_LATE_S
from scoring.observation import (
    DETAIL_ALREADY_LOCKED,
    DETAIL_MIGRATION_SOURCE,
    DETAIL_PAUSED,
    DomainHere,
    EngineMigrationEnded,
    EngineStartEnded,
    EngineStatus,
    EngineStopEnded,
    FenceLeaseAnswer,
    FenceOwnerAnswer,
    FenceRecord,
    FenceStep,
    Health,
    HostIdFreed,
    LeaseAnswer,
    LocalHost,
    MigrationCancelled,
    Obstacle,
    Order,
    OrderKind,
    Pause,
    Power,
    PowerAnswer,
    PowerOffEnded,
    PowerOnEnded,
    Standing,
    StartResult,
    Unfit,
    VmStatus,
)
from scoring.rules import MIGRATION_EXTRA_S
from scoring.state import TRANSITIONS, AgentState, OrderAnswer, Seen, StateName, Takeover
from tests.unit.builders import (
    BOOTING,
    DIED,
    DOWN,
    MISSING,
    MOMENT_S,
    NOW_S,
    RULES,
    SICK,
    TIMING,
    UNANSWERED,
    UNKNOWN,
    UP,
    Life,
    codes,
    free_lease,
    in_state,
    kinds,
    lease_of,
    local,
    observe,
    off,
    peer,
    seen,
)

S = StateName
LEAVING = EngineStatus(VmStatus.UP, Health.UNKNOWN, DETAIL_MIGRATION_SOURCE)
PAUSED = EngineStatus(VmStatus.UP, Health.BAD, DETAIL_PAUSED, "paused by an I/O error")
LOCKED_OUT = EngineStatus(VmStatus.DOWN, Health.BAD, DETAIL_ALREADY_LOCKED)
VM_ACTIONS = {StartEngine, ShutdownEngine, PowerOffEngine, MigrateEngine}

#: States in which the agent has nothing under way and looks at the guards first.
GUARDED = [
    name
    for name in StateName
    if name not in (S.AGENT_STOPPED, S.GLOBAL_MAINTENANCE, S.LOCAL_MAINTENANCE)
]


def may_start(**remembered: Any) -> dict[str, Any]:
    """The memory of a host that has just been told that the engine lease is free."""
    return {"lease": free_lease(), **remembered}


def acting(**remembered: Any) -> dict[str, Any]:
    """The memory of a host whose last action on the VM has not ended."""
    return {"acting": True, **remembered}


# --- the guards -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", GUARDED)
def test_an_agent_that_is_asked_to_end_ends_and_leaves_the_vm_alone(name: StateName) -> None:
    for engine in (UP, DOWN, DIED, UNKNOWN):
        decision = in_state(name, local(engine), stopping=True, global_maintenance=True)
        assert decision.state.name is S.AGENT_STOPPED
        assert decision.actions == ()
        assert decision.score.value == 0


@pytest.mark.parametrize("mode", [S.LOCAL_MAINTENANCE, S.GLOBAL_MAINTENANCE])
def test_an_agent_that_is_asked_to_end_ends_in_maintenance_too(mode: StateName) -> None:
    """Whichever mode its host is in: the score of a host without an agent is 0."""
    for both in (True, False):
        here = local(DOWN, maintenance=both or mode is S.LOCAL_MAINTENANCE)
        wide = both or mode is S.GLOBAL_MAINTENANCE
        decision = in_state(mode, here, stopping=True, global_maintenance=wide)
        assert decision.state.name is S.AGENT_STOPPED


def test_a_fence_path_that_does_not_work_costs_what_is_configured() -> None:
    weights = replace(RULES.weights, fence_path_score_penalty=200)
    given: dict[str, Any] = {"remembered": {"rules": replace(RULES, weights=weights)}}
    for ok, score in ((False, 3200), (True, 3400), (None, 3400)):
        decision = in_state(S.ENGINE_DOWN, local(fence_path_ok=ok), **given)
        assert decision.score.value == score


@pytest.mark.parametrize("name", GUARDED)
def test_global_maintenance_comes_before_an_unknown_vm_and_local_maintenance(
    name: StateName,
) -> None:
    here = local(UNKNOWN, maintenance=True)
    decision = in_state(name, here, global_maintenance=True)
    assert decision.state.name is S.GLOBAL_MAINTENANCE
    assert codes(decision)[0] is Code.GLOBAL_MAINTENANCE


@pytest.mark.parametrize("name", [*GUARDED, S.LOCAL_MAINTENANCE])
def test_an_unknown_vm_comes_before_local_maintenance(name: StateName) -> None:
    """(EngineForceStop and EngineStop look at local maintenance first, as the reference.)"""
    here = local(UNKNOWN, maintenance=True)
    first = name in (S.ENGINE_STOP, S.ENGINE_FORCE_STOP)
    decision = in_state(name, here)
    assert codes(decision)[0] is (Code.LOCAL_MAINTENANCE if first else Code.LOCAL_VM_UNKNOWN)
    # From LocalMaintenance, too, the unknown VM is what counts in the end.
    assert decision.state.name is S.UNKNOWN_LOCAL_VM_STATE


@pytest.mark.parametrize("name", GUARDED)
def test_local_maintenance_of_a_host_without_the_vm_ends_in_local_maintenance(
    name: StateName,
) -> None:
    decision = in_state(name, local(DOWN, maintenance=True))
    assert decision.state.name is S.LOCAL_MAINTENANCE
    assert decision.score.value == 0
    assert not kinds(decision) & VM_ACTIONS


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("unknown", ["global_maintenance", "newer_versions"])
def test_what_must_be_known_first_holds_every_state_where_it_is(
    name: StateName, unknown: str
) -> None:
    """Global maintenance never read, or a whiteboard newer than this version."""
    observed: dict[str, Any] = {unknown: None if unknown == "global_maintenance" else (3, 7)}
    for engine in (UP, DOWN, DIED, UNKNOWN, SICK):
        decision = in_state(name, local(engine, maintenance=True), for_s=9999, **observed)
        assert decision.state.name is name
        assert decision.actions == ()
        expected = {
            "global_maintenance": Code.GLOBAL_MAINTENANCE_UNKNOWN,
            "newer_versions": Code.NEWER_METADATA,
        }[unknown]
        assert codes(decision) == [expected]


def test_newer_metadata_names_the_hosts_that_write_it() -> None:
    decision = in_state(S.ENGINE_DOWN, newer_versions=(3, 7))
    assert "3, 7" in decision.reasons[0].text


def test_global_maintenance_that_is_set_counts_in_spite_of_newer_metadata() -> None:
    decision = in_state(S.ENGINE_UP, local(UP), global_maintenance=True, newer_versions=(3,))
    assert decision.state.name is S.GLOBAL_MAINTENANCE


def test_an_unknown_vm_tells_why_it_is_unknown() -> None:
    assert "libvirt hangs" in in_state(S.ENGINE_UP, local(UNKNOWN)).reasons[0].text
    silent = EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN)
    assert "no answer" in in_state(S.ENGINE_UP, local(silent)).reasons[0].text


# --- ReinitializeFSM, the maintenances, UnknownLocalVmState, AgentStopped -------------------


def first_beat(here: LocalHost, **observed: Any) -> Decision:
    return decide(AgentState(RULES), observe(here, **observed), NOW_S)


def test_a_new_agent_that_finds_the_vm_here_watches_over_it() -> None:
    decision = first_beat(local(BOOTING))
    assert decision.state.name is S.ENGINE_STARTING
    assert decision.state.since_s == NOW_S
    assert decision.actions == ()


def test_a_new_agent_that_finds_a_healthy_vm_here_is_in_engine_up_at_once() -> None:
    decision = first_beat(local(UP))
    assert decision.state.name is S.ENGINE_UP
    assert codes(decision)[:2] == [Code.VM_FOUND_HERE, Code.ENGINE_HEALTHY]


def test_a_new_agent_without_the_vm_goes_to_engine_down() -> None:
    decision = first_beat(local(DOWN), storage_good_since_s=NOW_S)
    assert decision.state.name is S.ENGINE_DOWN
    assert decision.state.missing_since_s == NOW_S
    assert codes(decision) == [Code.VM_NOT_HERE, Code.NOT_ENOUGH_DATA]


def test_a_new_agent_remembers_the_last_run_that_its_own_slot_tells() -> None:
    assert first_beat(local(DOWN, last_ran=7)).state.last_ran == 7


def test_local_maintenance_lasts_while_it_is_set() -> None:
    decision = in_state(S.LOCAL_MAINTENANCE, local(DOWN, maintenance=True), for_s=9999)
    assert decision.state.name is S.LOCAL_MAINTENANCE
    assert codes(decision) == [Code.LOCAL_MAINTENANCE]


def test_local_maintenance_ends_when_it_is_cleared() -> None:
    decision = in_state(S.LOCAL_MAINTENANCE, local(DOWN))
    assert decision.state.name is S.ENGINE_DOWN
    assert codes(decision)[0] is Code.LOCAL_MAINTENANCE_OVER


def test_a_vm_that_appears_on_a_host_in_local_maintenance_is_watched_over() -> None:
    decision = in_state(S.LOCAL_MAINTENANCE, local(BOOTING, maintenance=True))
    assert decision.state.name is S.ENGINE_STARTING
    assert decision.score.value == 0


def test_local_maintenance_gives_way_to_global_maintenance() -> None:
    decision = in_state(S.LOCAL_MAINTENANCE, local(DOWN, maintenance=True), global_maintenance=True)
    assert decision.state.name is S.GLOBAL_MAINTENANCE
    assert decision.score.value == 0, "a host in local maintenance is no candidate in either"


@pytest.mark.parametrize("engine", [UP, BOOTING, DOWN, DIED, UNKNOWN])
def test_global_maintenance_lasts_while_it_is_set(engine: EngineStatus) -> None:
    decision = in_state(S.GLOBAL_MAINTENANCE, local(engine), for_s=99999, global_maintenance=True)
    assert decision.state.name is S.GLOBAL_MAINTENANCE
    assert decision.actions == ()


@pytest.mark.parametrize(
    ("engine", "maintenance", "after"),
    [
        (UP, False, S.ENGINE_UP),
        (BOOTING, False, S.ENGINE_STARTING),
        (DOWN, False, S.ENGINE_DOWN),
        (DOWN, True, S.LOCAL_MAINTENANCE),
        (UNKNOWN, False, S.UNKNOWN_LOCAL_VM_STATE),
    ],
)
def test_after_global_maintenance_the_host_looks_around_anew(
    engine: EngineStatus, maintenance: bool, after: StateName
) -> None:
    decision = in_state(
        S.GLOBAL_MAINTENANCE,
        local(engine, maintenance=maintenance),
        remembered={"missing_since_s": None},
        storage_good_since_s=NOW_S,
    )
    assert decision.state.name is after


def test_an_unknown_vm_is_waited_for_however_long_it_takes() -> None:
    decision = in_state(S.UNKNOWN_LOCAL_VM_STATE, local(UNKNOWN), for_s=99999)
    assert decision.state.name is S.UNKNOWN_LOCAL_VM_STATE
    assert decision.actions == ()


@pytest.mark.parametrize(("engine", "after"), [(UP, S.ENGINE_UP), (DOWN, S.ENGINE_DOWN)])
def test_a_vm_that_is_known_again_is_looked_at_anew(engine: EngineStatus, after: StateName) -> None:
    decision = in_state(S.UNKNOWN_LOCAL_VM_STATE, local(engine), storage_good_since_s=None)
    assert decision.state.name is after
    assert codes(decision)[0] is Code.LOCAL_VM_KNOWN


@pytest.mark.parametrize("engine", [UP, DOWN, UNKNOWN])
def test_a_stopped_agent_does_nothing_any_more(engine: EngineStatus) -> None:
    decision = in_state(
        S.AGENT_STOPPED, local(engine, maintenance=True), global_maintenance=True, for_s=9999
    )
    assert decision.state.name is S.AGENT_STOPPED
    assert decision.actions == ()
    assert decision.score.penalties[0].name == "stopped"


# --- EngineDown: whether to start -----------------------------------------------------------


def starts(decision: Decision) -> bool:
    """Whether the decision starts the VM here, and is in EngineStart for it."""
    started = StartEngine in kinds(decision)
    assert started == (decision.state.name is S.ENGINE_START)
    assert started == decision.state.acting
    return started


def down(here: LocalHost | None = None, **given: Any) -> Decision:
    """A decision in EngineDown, the lease being free unless `remembered` says otherwise."""
    given.setdefault("remembered", may_start())
    return in_state(S.ENGINE_DOWN, here, for_s=given.pop("for_s", 100.0), **given)


def test_a_host_alone_starts_the_vm() -> None:
    decision = down()
    assert starts(decision)
    assert codes(decision) == [Code.LEASE_FREE, Code.STARTING]


def test_the_best_host_starts_the_vm() -> None:
    assert starts(down(live=[peer(2, 3399), peer(3, 0)]))


def test_a_better_live_host_is_left_to_start_the_vm() -> None:
    decision = down(live=[peer(2, 3401)])
    assert not starts(decision)
    assert codes(decision) == [Code.BETTER_HOST]
    assert "host2 (id 2) is better: 3401 points, 3400 here" in decision.reasons[0].text


@pytest.mark.parametrize(
    "unfit",
    [
        {"stopped": True},
        {"maintenance": True},
        {"engine": UNKNOWN},
        {"score": 0},
    ],
)
def test_a_better_host_that_cannot_run_the_vm_is_not_waited_for(unfit: dict[str, Any]) -> None:
    assert starts(down(live=[replace(peer(2, 9000), **unfit)]))


def test_a_better_host_that_is_silent_is_not_waited_for() -> None:
    assert starts(down(silent=[peer(2, 9000)]))


def test_a_vm_that_runs_on_a_live_host_is_left_there() -> None:
    decision = down(live=[peer(2, 0, UP)])
    assert codes(decision) == [Code.UP_ELSEWHERE]
    assert decision.state.name is S.ENGINE_DOWN
    assert decision.state.missing_since_s is None


def test_a_vm_that_a_silent_host_says_it_runs_is_not_believed() -> None:
    assert starts(down(silent=[peer(2, 3400, UP)]))


def test_a_vm_that_shows_up_here_is_watched_over() -> None:
    decision = down(local(BOOTING))
    assert decision.state.name is S.ENGINE_STARTING
    assert decision.actions == ()


@pytest.mark.parametrize("since_s", [None, NOW_S])
def test_nothing_is_started_while_the_storage_is_unreadable_or_just_back(
    since_s: float | None,
) -> None:
    decision = down(storage_good_since_s=since_s)
    assert not starts(decision)
    code = Code.STORAGE_UNREADABLE if since_s is None else Code.NOT_ENOUGH_DATA
    assert codes(decision) == [code]


def test_a_host_looks_for_as_long_as_a_silent_peer_needs_to_be_told_from_a_live_one() -> None:
    looks_s = TIMING.suspect_after + TIMING.beat
    assert not starts(down(storage_good_since_s=NOW_S - looks_s + MOMENT_S))
    assert starts(down(storage_good_since_s=NOW_S - looks_s))


def test_a_peer_that_may_be_alive_is_waited_for() -> None:
    decision = down(uncertain=[peer(2, 10)])
    assert codes(decision) == [Code.NOT_ENOUGH_DATA]


def test_nothing_is_started_while_it_is_not_known_whose_storage_this_is() -> None:
    decision = down(unsure=(2, 5))
    assert not starts(decision)
    assert codes(decision) == [Code.NOT_ENOUGH_DATA]
    assert "host(s) 2, 5" in decision.reasons[0].text
    assert decision.score.value > 0


@pytest.mark.parametrize("joined", [False, None])
def test_nothing_is_started_before_the_lockspace_is_joined(joined: bool | None) -> None:
    decision = down(lockspace_joined=joined)
    assert codes(decision) == [Code.LOCKSPACE_NOT_JOINED]
    # Who is known to be unable to start it is no candidate; who does not know yet may be.
    assert decision.score.value == (0 if joined is False else 3400)


def test_a_host_that_left_the_lockspace_but_runs_the_vm_keeps_its_score() -> None:
    decision = in_state(S.ENGINE_UP, local(UP), lockspace_joined=False)
    assert decision.score.value == 3400


@pytest.mark.parametrize(
    "state",
    [
        S.ENGINE_START,
        S.ENGINE_STARTING,
        S.ENGINE_STOP,
        S.ENGINE_FORCE_STOP,
        S.ENGINE_MIGRATING_AWAY,
    ],
)
def test_a_host_that_has_the_vm_in_its_hands_is_waited_for(state: StateName) -> None:
    decision = down(live=[peer(2, 10, state=state.value)])
    assert codes(decision) == [Code.BUSY_ELSEWHERE]
    assert starts(down(silent=[peer(2, 10, state=state.value)]))


def test_a_host_that_moves_the_vm_is_waited_for_until_the_end_that_it_named() -> None:
    moving = peer(2, 10, state=S.ENGINE_MIGRATING_AWAY.value, moving_until_s=NOW_S + MOMENT_S)
    waiting = down(live=[moving])
    assert codes(waiting) == [Code.BUSY_ELSEWHERE]
    assert "for 0 s at most" in waiting.reasons[0].text
    assert starts(down(live=[replace(moving, moving_until_s=NOW_S)]))


@pytest.mark.parametrize("state", ["", S.ENGINE_DOWN.value, S.ENGINE_UP.value, "of a later age"])
def test_a_host_in_any_other_state_is_not_waited_for(state: str) -> None:
    assert starts(down(live=[peer(2, 10, state=state)]))


def test_a_last_host_starts_the_vm_with_no_points_left() -> None:
    poor = local(network=0.0, bridge_up=False, config_up_to_date=False, cpu_load=2.0)
    decision = down(poor)
    assert starts(decision)


def test_a_sample_taken_before_the_last_action_ended_is_not_judged() -> None:
    """A start that has just ended would be begun once more on the VM's state before it."""
    for engine in (DOWN, UP):
        decision = down(local(engine), remembered=may_start(acted_s=NOW_S))
        assert decision.state.name is S.ENGINE_DOWN
        assert codes(decision) == [Code.AWAITING_SAMPLE]
    assert starts(down(remembered=may_start(acted_s=NOW_S - MOMENT_S)))


def test_a_sample_that_claims_to_be_from_the_future_is_no_younger_than_now() -> None:
    decision = down(local(engine_taken_s=NOW_S + 99), remembered=may_start(acted_s=NOW_S))
    assert codes(decision) == [Code.AWAITING_SAMPLE]


def test_nothing_is_started_while_another_action_is_under_way() -> None:
    decision = down(remembered=may_start(acting=True))
    assert codes(decision) == [Code.AWAITING_SAMPLE]
    assert decision.actions == ()


# --- ties -----------------------------------------------------------------------------------


def lives_of(*hosts: int, last_ran: int = 0, waiting: dict[int, Any] | None = None) -> Life:
    """Host 1 with live equals, the VM down everywhere and its lease free."""
    life = Life(peers=tuple(peer(h) for h in hosts), beating=set(hosts))
    for host_id, changed in (waiting or {}).items():
        life.change_peer(host_id, **changed)
    life.here = replace(life.here, last_ran=last_ran)
    return life


def start_moment(life: Life, beats: int = 40) -> float | None:
    """When host 1 starts the VM, its questions after the lease being answered at once."""
    outcomes: tuple[LeaseAnswer, ...] = ()
    for _ in range(beats):
        decision = life.beat(*outcomes)
        if StartEngine in kinds(decision):
            return life.now_s
        asked = AskLease in kinds(decision)
        outcomes = (free_lease(life.now_s),) if asked else ()
    return None


def test_the_lowest_host_id_of_equals_starts_first() -> None:
    first = start_moment(lives_of(2, 3))
    assert first is not None
    assert first <= TIMING.suspect_after + 3 * TIMING.beat


def test_the_host_that_ran_the_vm_last_comes_before_a_lower_id() -> None:
    alone = start_moment(lives_of())
    assert start_moment(lives_of(2, last_ran=3, waiting={2: {"last_ran": 2}})) == alone
    follower = start_moment(lives_of(2, last_ran=2, waiting={2: {"last_ran": 3}}))
    assert alone is not None
    assert follower is not None
    assert follower >= alone + TIMING.tie_follow


def test_each_host_follows_a_while_after_the_one_before_it() -> None:
    """Also in a cold start, where all of them see the same things from the same moment on."""
    alone = start_moment(lives_of())
    assert alone is not None
    ahead = {2: {"last_ran": 3}, 3: {"last_ran": 2}}
    one = start_moment(lives_of(2, waiting={2: ahead[2]}))
    two = start_moment(lives_of(2, 3, waiting=ahead))
    assert one is not None
    assert two is not None
    assert one >= alone + TIMING.tie_follow
    assert two >= alone + 2 * TIMING.tie_follow
    assert two <= alone + 2 * TIMING.tie_follow + TIMING.beat


def test_a_follower_says_how_many_come_first() -> None:
    decision = down(live=[peer(2, last_ran=9), peer(3, last_ran=8)])
    assert codes(decision)[-1] is Code.EQUAL_HOST_FIRST
    assert decision.reasons[-1].text.startswith("2 equally good host(s)")


@pytest.mark.parametrize(
    ("lease", "follow_s", "code"),
    [
        (free_lease(), TIMING.tie_follow, Code.EQUAL_HOST_FIRST),
        (lease_of(2), TIMING.takeover_follow, Code.TAKEOVER_TURN),
    ],
)
@pytest.mark.parametrize("since", ["ahead_since_s", "missing_since_s", "for_s"])
def test_a_follower_waits_exactly_its_time_from_the_last_of_three_moments(
    lease: LeaseAnswer, follow_s: float, code: Code, since: str
) -> None:
    """Since the other came first, the VM went missing and EngineDown was entered."""

    def decision(waited_s: float) -> Decision:
        remembered = may_start(
            lease=lease, ahead=(3,), ahead_since_s=NOW_S - 500, startable_since_s=NOW_S - 500
        )
        for_s = waited_s if since == "for_s" else 500.0
        if since != "for_s":
            remembered[since] = NOW_S - waited_s
        return down(
            live=[peer(3, last_ran=9)],
            silent=[peer(2)],
            remembered=remembered,
            for_s=for_s,
            fence_devices=frozenset({2}),
        )

    waiting = decision(follow_s - MOMENT_S)
    assert codes(waiting)[-1] is code
    assert not waiting.actions
    assert kinds(decision(follow_s)) == {StartEngine if lease.owner is None else AskPower}


def test_an_own_lease_may_have_come_with_the_vm() -> None:
    """A host that sent it may say so before libvirt here was asked again."""
    own = may_start(lease=lease_of(1), missing_since_s=NOW_S - 0.5)
    older = down(local(engine_taken_s=NOW_S - 0.6), remembered=own)
    assert not starts(older) and codes(older) == [Code.AWAITING_SAMPLE]
    assert starts(down(local(engine_taken_s=NOW_S - 0.4), remembered=own))


def test_a_lease_that_comes_free_after_a_long_wait_starts_no_race() -> None:
    """All hosts see it at once; who comes second still gives the first its time."""
    first_seen = down(
        live=[peer(3, last_ran=9)],
        remembered=may_start(ahead=(3,), ahead_since_s=NOW_S - 500),
        for_s=500.0,
    )
    assert codes(first_seen) == [Code.LEASE_FREE, Code.EQUAL_HOST_FIRST]
    assert first_seen.state.startable_since_s == NOW_S


@pytest.mark.parametrize("better_hosts", [1, 2])
def test_a_better_host_that_does_not_start_is_not_waited_for_for_ever(better_hosts: int) -> None:
    peers = [peer(2 + n, score=3400) for n in range(better_hosts)]
    ahead = tuple(p.host_id for p in peers)
    given_s = better_hosts * TIMING.takeover_follow

    def decision(waited_s: float) -> Decision:
        return down(
            live=peers,
            here=local(bridge_up=False),
            remembered=may_start(
                ahead=ahead, ahead_since_s=NOW_S - waited_s, startable_since_s=NOW_S - 500
            ),
            for_s=500.0,
        )

    assert codes(decision(given_s - MOMENT_S)) == [Code.BETTER_HOST]
    assert kinds(decision(given_s)) == {StartEngine}


def test_hosts_that_had_their_chance_may_change_places_as_they_like() -> None:
    """Two better hosts that did nothing kept a third from its turn for ever."""

    def decision(waited_s: float, *better: int) -> Decision:
        return down(
            live=[peer(host, score=3400 if host in better else 100) for host in (2, 3)],
            here=local(bridge_up=False),
            remembered=may_start(
                ahead=(2, 3), ahead_since_s=NOW_S - waited_s, startable_since_s=NOW_S - 500
            ),
            for_s=500.0,
        )

    for better in ((2,), (3,), (3, 2)):
        given_s = len(better) * TIMING.takeover_follow
        assert kinds(decision(given_s, *better)) == {StartEngine}
        assert codes(decision(given_s - MOMENT_S, *better)) == [Code.BETTER_HOST]


def test_a_new_better_host_gets_its_chance_and_is_remembered() -> None:
    decision = down(
        live=[peer(2, score=3400), peer(3, score=3400)],
        here=local(bridge_up=False),
        remembered=may_start(ahead=(2,), ahead_since_s=NOW_S - 500, startable_since_s=NOW_S - 500),
        for_s=500.0,
    )
    assert codes(decision) == [Code.BETTER_HOST]
    assert (decision.state.ahead, decision.state.ahead_since_s) == ((2, 3), NOW_S)


def test_once_the_vm_is_there_every_host_has_its_chance_again() -> None:
    seen = down(
        live=[peer(2, engine=UP)],
        remembered=may_start(ahead=(2, 3), ahead_since_s=NOW_S - 500),
    )
    assert seen.state.ahead == ()


def test_a_death_before_health_is_a_failed_start_and_health_forgives() -> None:
    remembered = {"retries": 2, "last_failure_s": NOW_S - 10}
    died = in_state(S.ENGINE_STARTING, local(DIED), remembered=remembered)
    assert died.state.retries == 3
    assert died.state.last_failure_s == NOW_S
    healthy = in_state(S.ENGINE_STARTING, local(UP), remembered=remembered)
    assert healthy.state.name is S.ENGINE_UP
    assert healthy.state.retries == 0


@pytest.mark.parametrize(
    ("sample", "part"),
    [
        ({"network": 0.0}, "network"),
        ({"bridge_up": False}, "bridge"),
        ({"mem_free_mb": 1.0}, "memory"),
        ({"cpu_load": 0.9}, "load"),
        ({"config_up_to_date": False}, "config"),
    ],
)
def test_every_sample_of_this_host_reaches_its_score(sample: dict[str, Any], part: str) -> None:
    fine = {"network": 1.0, "bridge_up": True, "mem_free_mb": 8000.0, "cpu_load": 0.1}
    here = local(DOWN, **{**fine, "config_up_to_date": True, **sample})
    decision = in_state(S.ENGINE_DOWN, here, live=[peer(2, engine=UP)])
    assert [penalty.name for penalty in decision.score.penalties] == [part]


def test_a_host_outside_the_lockspace_scores_0_and_says_so() -> None:
    decision = in_state(S.ENGINE_DOWN, lockspace_joined=False)
    assert decision.score.value == 0
    (penalty,) = decision.score.penalties
    assert (penalty.name, penalty.points) == ("lockspace", RULES.weights.base_score)
    assert penalty.why


@pytest.mark.parametrize("name", sorted(set(S) - {S.AGENT_STOPPED}))
@pytest.mark.parametrize("engine", [UP, DOWN])
def test_every_state_ends_when_the_agent_is_asked_to(name: StateName, engine: EngineStatus) -> None:
    decision = in_state(name, local(engine), stopping=True)
    assert decision.state.name is S.AGENT_STOPPED
    assert decision.actions == ()


def test_a_lease_that_is_lost_again_is_waited_for_anew() -> None:
    decision = down(
        silent=[peer(2)], remembered=may_start(lease=lease_of(2), startable_since_s=1.0)
    )
    assert decision.state.startable_since_s is None


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


def test_a_vm_without_its_lease_is_said_to_be_unprotected() -> None:
    assert Code.VM_UNPROTECTED in codes(in_state(S.ENGINE_UP, local(UP, lease_held=False)))
    for held in (True, None):
        assert Code.VM_UNPROTECTED not in codes(in_state(S.ENGINE_UP, local(UP, lease_held=held)))


def test_an_unanswered_question_does_not_forget_a_takeover() -> None:
    lease = LeaseAnswer(known=False, asked_s=NOW_S)
    pursued = Takeover(2, NOW_S - 2)
    decision = down(silent=[peer(2)], remembered={"lease": lease, "takeover": pursued})
    assert decision.state.takeover == pursued
    assert codes(decision) == [Code.LEASE_UNKNOWN]


def test_equals_are_counted_anew_after_a_global_maintenance() -> None:
    """The VM has been missing for long when it ends, and all hosts notice at once."""

    def started_after_s(last_ran_there: int) -> float:
        life = lives_of(2, last_ran=2, waiting={2: {"last_ran": last_ran_there}})
        for _ in range(4):
            life.beat()
        life.world = {"global_maintenance": True}
        life.beat(free_lease(life.now_s))
        for _ in range(100):
            life.beat()
        assert life.state.name is S.GLOBAL_MAINTENANCE
        life.world = {}
        ended_s = life.now_s
        started_s = start_moment(life)
        assert started_s is not None
        return started_s - ended_s

    assert started_after_s(3) >= started_after_s(1) + TIMING.tie_follow


# --- who owns the lease ---------------------------------------------------------------------


def test_the_lease_is_asked_for_before_a_start() -> None:
    decision = down(remembered={})
    assert decision.actions == (AskLease(),)
    assert codes(decision) == [Code.LEASE_ASKED]
    assert decision.state.asking_lease


def test_the_lease_is_not_asked_for_twice_at_once() -> None:
    decision = down(remembered={"asking_lease": True})
    assert decision.actions == ()
    assert codes(decision) == [Code.LEASE_ASKED]


def test_an_answer_from_before_the_vm_went_missing_is_not_used() -> None:
    since_s = NOW_S - 1
    old = free_lease(since_s - MOMENT_S)
    decision = down(remembered={"lease": old, "missing_since_s": since_s})
    assert codes(decision) == [Code.LEASE_ASKED]
    assert starts(down(remembered={"lease": free_lease(since_s), "missing_since_s": since_s}))


def test_the_lease_is_asked_for_again_every_second_beat_while_it_is_owned() -> None:
    live = [peer(2)]
    fresh = lease_of(2, NOW_S - 2 * TIMING.beat + MOMENT_S)
    assert down(live=live, remembered={"lease": fresh}).actions == ()
    old = lease_of(2, NOW_S - 2 * TIMING.beat)
    assert down(live=live, remembered={"lease": old}).actions == (AskLease(),)


def test_an_unanswered_question_after_the_lease_starts_nothing() -> None:
    decision = down(remembered={"lease": LeaseAnswer(False, NOW_S, detail="sanlock hangs")})
    assert not starts(decision)
    assert codes(decision) == [Code.LEASE_UNKNOWN]
    assert "sanlock hangs" in decision.reasons[0].text


def test_a_lease_that_is_this_hosts_own_may_be_used() -> None:
    assert starts(down(remembered={"lease": lease_of(1)}))


@pytest.mark.parametrize(
    ("changed", "gone"),
    [
        ({"standing": Standing.DEAD}, True),
        ({"standing": Standing.FREE}, True),
        ({"current_generation": 6}, True),
        ({"standing": Standing.LIVE}, False),
        ({"standing": Standing.FAIL}, False),
        ({"standing": Standing.UNKNOWN}, False),
        ({"current_generation": 0}, False),
    ],
)
def test_a_lease_may_be_used_when_sanlock_says_that_its_owner_is_gone(
    changed: dict[str, Any], gone: bool
) -> None:
    decision = down(silent=[peer(2)], remembered={"lease": lease_of(2, **changed)})
    assert starts(decision) == gone
    assert (Code.LEASE_OWNER_GONE in codes(decision)) == gone
    if gone:
        how = changed.get("standing", "another generation now")
        assert decision.reasons[0].text.endswith(f"but is {how}")


def test_a_host_that_came_back_anew_does_not_hold_what_it_held_before() -> None:
    """Its slot beats again, but with a newer generation: its old VM is gone."""
    rebooted = lease_of(2, current_generation=6)
    assert starts(down(live=[peer(2, 10)], remembered={"lease": rebooted}))


def test_a_live_owner_is_waited_for_and_never_asked_its_power() -> None:
    decision = down(
        live=[peer(2, 10)], remembered={"lease": lease_of(2)}, fence_devices=frozenset({2})
    )
    assert codes(decision) == [Code.LEASE_OWNER_LIVE]
    assert decision.actions == ()
    assert decision.state.takeover is None


def test_a_silent_owner_without_a_fence_device_is_waited_for_until_sanlock_calls_it_dead() -> None:
    lease = lease_of(2, NOW_S - 1, dead_in_s=140.0)
    decision = down(silent=[peer(2)], remembered={"lease": lease})
    assert codes(decision) == [Code.LEASE_WAIT]
    assert "free in 139 s" in decision.reasons[0].text
    assert decision.actions == ()


def test_a_wait_whose_end_is_not_known_says_none() -> None:
    lease = lease_of(2, dead_in_s=None)
    decision = down(silent=[peer(2)], remembered={"lease": lease})
    assert "free in" not in decision.reasons[0].text


def test_a_wait_that_should_be_over_counts_no_further_than_to_zero() -> None:
    lease = lease_of(2, NOW_S - 1, dead_in_s=0.5)
    decision = down(silent=[peer(2)], remembered={"lease": lease})
    assert "free in 0 s" in decision.reasons[0].text


def long_silent(**remembered: Any) -> dict[str, Any]:
    """The memory of a host that has seen the slot of host 2 stand still for a minute."""
    memory = {2: Seen(500, NOW_S - 60, changed=True)}
    return {"lease": lease_of(2), "seen": memory, **remembered}


@pytest.mark.parametrize("fence_devices", [frozenset(), frozenset({2})])
def test_while_the_owners_sanlock_renews_no_countdown_is_told(
    fence_devices: frozenset[int],
) -> None:
    """Each renewal would begin it anew: "free in 139 s", again and again."""
    owner = peer(2, renewal_s=NOW_S - 12)
    decision = down(silent=[owner], remembered=long_silent(), fence_devices=fence_devices)
    assert decision.reasons[-1].code is Code.OWNER_RENEWS
    assert decision.reasons[-1].text == (
        "host2 (id 2) is silent, but its sanlock renews its host id: the VM most likely runs "
        "there; look at ha-broker on that host"
    )
    assert Code.LEASE_WAIT not in codes(decision)
    assert codes(decision).count(Code.OWNER_RENEWS) == 1
    assert not starts(decision)


@pytest.mark.parametrize(
    "renewal_s",
    [None, NOW_S - 60 + RENEWAL_SEEN_LATE_S, NOW_S - 2.5 * RULES.io_timeout_s],
)
def test_the_last_renewal_of_a_dead_host_is_no_sign_of_life(renewal_s: float | None) -> None:
    decision = down(silent=[peer(2, renewal_s=renewal_s)], remembered=long_silent())
    assert codes(decision) == [Code.LEASE_WAIT]
    assert decision.reasons[0].text.endswith("free in 140 s unless its host id is renewed")


def test_the_takeover_says_less_of_a_renewal_and_gives_way() -> None:
    on = PowerAnswer(2, Power.ON, NOW_S - 1, identity_proven=True)
    given: dict[str, Any] = {"heartbeat_s": NOW_S - 60, "unanswered_since_s": NOW_S - 59}
    owner = peer(2, renewal_s=NOW_S - 12, renewal_timestamp=77, **given)
    remembered = long_silent(takeover=Takeover(2, NOW_S - 60, power=on, renewal=(5, 77)))
    decision = down(silent=[owner], remembered=remembered, fence_devices=frozenset({2}))
    assert codes(decision).count(Code.OWNER_RENEWS) == 1
    assert "most likely runs" in decision.reasons[-1].text


def test_a_silent_owner_with_a_fence_device_is_asked_its_power() -> None:
    decision = down(
        silent=[peer(2)], remembered={"lease": lease_of(2)}, fence_devices=frozenset({2})
    )
    assert decision.actions == (AskPower(2),)
    assert codes(decision) == [Code.POWER_ASKED, Code.LEASE_WAIT]
    assert decision.state.takeover is not None


def test_an_owner_without_a_slot_is_as_silent_as_any() -> None:
    decision = down(remembered={"lease": lease_of(9)}, fence_devices=frozenset({9}))
    assert decision.actions == (AskPower(9),)


# --- taking over ----------------------------------------------------------------------------

DEAD = 2


class Fall:
    """Host 2 ran the VM and falls silent at second 20; host 1 watches, one beat at a time.

    The questions of host 1 are answered at the next beat as the fields say.
    """

    def __init__(self, *others: int, device: bool = True) -> None:
        self.life = Life(
            peers=(peer(DEAD, 3400, UP), *(peer(h) for h in others)),
            beating={DEAD, *others},
            world={"fence_devices": frozenset({DEAD} if device else ())},
        )
        self.power = Power.OFF
        self.proven = True
        self.fence_given = True
        self.freed = True
        self.order_works = True
        self.start = StartResult.STARTED
        self.lease: dict[str, Any] = {}
        self.actions: list[object] = []
        for _ in range(20):
            self.beat()
        assert self.life.state.name is S.ENGINE_DOWN
        assert not self.actions
        self.life.beating.discard(DEAD)

    def beat(self, *extra: Any) -> Decision:
        outcomes = [self.answer(action) for action in self.pending()]
        given = [outcome for outcome in outcomes if outcome is not None]
        decision = self.life.beat(*given, *extra)
        self.actions.extend(decision.actions)
        return decision

    def pending(self) -> tuple[object, ...]:
        return self.life.history[-1].actions if self.life.history else ()

    def answer(self, action: object) -> Any:
        """What became of an action of the last beat; None: no outcome, or none yet."""
        now_s = self.life.now_s + 0.5
        match action:
            case AskLease():
                return lease_of(DEAD, now_s, **self.lease)
            case AskPower(host_id=host_id):
                return PowerAnswer(host_id, self.power, now_s, self.proven, "as read")
            case NoteFenceFailed():
                return None
            case PowerOffHost(host_id=host_id):
                if self.order_works:
                    self.power = Power.OFF
                return PowerOffEnded(host_id, self.order_works, "as ordered")
            case TakeFenceLease():
                self.life.world["fence_lease_held"] = self.fence_given
                return FenceLeaseAnswer(self.fence_given, now_s, "" if self.fence_given else "no")
            case DropFenceLease():
                self.life.world["fence_lease_held"] = False
                return None
            case AskFenceOwner():
                return FenceOwnerAnswer(free_lease(now_s))
            case FreeHostId(host_id=host_id):
                return HostIdFreed(host_id, self.freed, "" if self.freed else "still there")
            case StartEngine():
                if self.start is StartResult.STARTED:
                    self.life.here = replace(self.life.here, engine=UP)
                return EngineStartEnded(self.start, "so it ended")
        raise AssertionError(action)

    def run(self, beats: int) -> None:
        for _ in range(beats):
            self.beat()

    def until(self, kind: type, beats: int = 60) -> Decision:
        """Beat until an action of this kind is emitted."""
        for _ in range(beats):
            decision = self.beat()
            if kind in kinds(decision):
                return decision
        raise AssertionError(f"no {kind.__name__} within {beats} beats: {self.actions}")

    def did(self, kind: type) -> int:
        return sum(isinstance(action, kind) for action in self.actions)


def test_the_whole_way_from_a_host_that_fell_silent_to_the_vm_here() -> None:
    fall = Fall()
    fell_s = fall.life.now_s
    fall.until(FreeHostId)
    *asked, freed = [a for a in fall.actions if not isinstance(a, AskLease)]
    assert asked == [AskPower(DEAD), TakeFenceLease(), AskPower(DEAD)]
    assert isinstance(freed, FreeHostId)
    assert replace(freed, evidence="") == FreeHostId(DEAD, 5, 77, fall.life.now_s - 0.5)
    decision = fall.until(StartEngine)
    assert Code.HOST_ID_FREED in codes(decision)
    assert decision.state.takeover is None
    assert DropFenceLease in kinds(decision)
    # suspect_after, and a beat each for: lease, power, power again, freed, start.
    assert fall.life.now_s - fell_s <= TIMING.suspect_after + 6 * TIMING.beat
    # The VM's state is judged from the first sample on that is younger than the start.
    assert fall.beat().state.name is S.ENGINE_STARTING
    after = fall.beat()
    assert after.state.name is S.ENGINE_UP
    assert after.state.last_ran == 1
    assert fall.did(FreeHostId) == 1


def test_an_answer_of_the_time_before_the_freeing_starts_nothing_over() -> None:
    fall = Fall(3)
    fall.until(FreeHostId)
    asked_s = fall.life.now_s
    dead, heir = fall.life.peers
    fall.life.peers = (dead, replace(heir, last_ran=99))
    freed = fall.beat()
    assert codes(freed) == [Code.HOST_ID_FREED, Code.EQUAL_HOST_FIRST]
    assert AskLease not in kinds(freed)
    stale = fall.life.beat(lease_of(DEAD, asked_s))
    assert Code.HOST_ID_FREED in codes(stale)
    assert kinds(stale) == {AskLease}
    fresh = fall.life.beat(lease_of(DEAD, fall.life.now_s + 0.5, standing=Standing.FREE))
    assert Code.LEASE_OWNER_GONE in codes(fresh)
    assert fresh.state.takeover is None


def test_each_step_of_a_takeover_says_what_it_waits_for() -> None:
    """Sanlock's countdown is told as long as nothing better is in sight."""
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
    assert decision.state.takeover is not None
    assert decision.wake_s == decision.state.takeover.offs[-1].read_s + TIMING.power_reread


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
    assert not fall.did(StartEngine)
    # The broken device slows it down to sanlock's own verdict, and blocks nothing.
    fall.lease = {"standing": Standing.DEAD}
    fall.until(StartEngine, beats=5)


def test_an_off_followed_by_an_on_proves_nothing() -> None:
    fall = Fall()
    fall.until(TakeFenceLease)
    fall.power = Power.ON
    fall.run(30)
    assert not fall.did(FreeHostId)
    assert fall.life.state.takeover is not None
    assert fall.life.state.takeover.offs == ()


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
    assert again.state.takeover is not None
    assert len(again.state.takeover.offs) == 1, "what was read before the pause does not count"
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
    fall.until(StartEngine)


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
    assert fall.life.state.takeover is None
    assert fall.life.world["fence_lease_held"] is False


def test_an_owner_that_beats_again_ends_a_takeover() -> None:
    fall = Fall()
    fall.until(TakeFenceLease)
    fall.life.beating.add(DEAD)
    fall.run(20)
    assert not fall.did(FreeHostId)
    assert fall.life.state.takeover is None
    assert fall.life.world["fence_lease_held"] is False


def test_an_owner_that_beats_again_without_the_vm_is_waited_for() -> None:
    fall = Fall()
    fall.until(TakeFenceLease)
    fall.life.beating.add(DEAD)
    fall.life.change_peer(DEAD, engine=DOWN, score=0)
    decision = fall.beat()
    assert Code.LEASE_OWNER_LIVE in codes(decision)
    assert decision.state.takeover is None
    fall.run(20)
    assert not fall.did(FreeHostId)
    assert not fall.did(StartEngine)


def test_storage_that_becomes_unreadable_ends_a_takeover() -> None:
    fall = Fall()
    fall.until(TakeFenceLease)
    fall.life.world["storage_good_since_s"] = None
    fall.run(20)
    assert not fall.did(FreeHostId)
    assert fall.life.state.takeover is None


def test_the_fence_lease_outlasts_a_freeing_that_is_under_way() -> None:
    fall = Fall()
    fall.until(FreeHostId)
    fall.life.world["global_maintenance"] = True
    during = fall.life.beat()
    assert during.state.name is S.GLOBAL_MAINTENANCE
    assert DropFenceLease not in kinds(during)
    after = fall.life.beat(HostIdFreed(DEAD, True))
    assert DropFenceLease in kinds(after)
    assert after.state.takeover is None


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
    step = decision.state.takeover
    assert step is not None
    assert (step.host_id, step.offs, step.fence_since_s) == (DEAD, (), NOW_S - 2)


def test_answers_about_a_host_that_is_not_taken_over_from_change_nothing() -> None:
    for outcome in (
        off(9, NOW_S),
        HostIdFreed(9, True),
        PowerOffEnded(9, True),
        FenceLeaseAnswer(True, NOW_S),
    ):
        assert down(live=[peer(2, 0, UP)], outcomes=(outcome,)).state.takeover is None
    pursued = Takeover(DEAD, NOW_S - 5, asking_power=True)
    decision = down(
        silent=[peer(DEAD)],
        remembered={"lease": lease_of(DEAD), "takeover": pursued},
        fence_devices=frozenset({DEAD}),
        outcomes=(off(9, NOW_S), HostIdFreed(9, True), PowerOffEnded(9, True)),
    )
    after = decision.state.takeover
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
    fall.until(StartEngine)
    decision = fall.beat()
    assert decision.state.name is S.ENGINE_DOWN
    assert Code.START_LOST_RACE in codes(decision)
    assert decision.state.retries == 0
    assert decision.state.lease is None


# --- EngineStart ----------------------------------------------------------------------------


def test_a_start_under_way_is_waited_for_whatever_else_happens() -> None:
    """Leaving would forget it: the VM may come up at any moment."""
    for observed in (
        {"stopping": True},
        {"global_maintenance": True},
        {"newer_versions": (3,)},
        {"storage_good_since_s": None},
    ):
        decision = in_state(
            S.ENGINE_START, local(UNKNOWN), for_s=500, remembered=acting(), **observed
        )
        assert decision.state.name is S.ENGINE_START
        assert decision.actions == ()
        assert codes(decision) == [Code.STARTING]


def test_a_start_that_went_well_leads_to_engine_starting() -> None:
    outcome = EngineStartEnded(StartResult.STARTED)
    decision = in_state(S.ENGINE_START, for_s=3, remembered=acting(retries=2), outcomes=(outcome,))
    assert decision.state.name is S.ENGINE_STARTING
    assert decision.state.retries == 0
    assert not decision.state.acting
    assert decision.state.acted_s == NOW_S
    # The sample in this beat was taken before the start had ended: it says nothing yet.
    assert codes(decision) == [Code.STARTED, Code.AWAITING_SAMPLE]


@pytest.mark.parametrize(
    ("result", "retries"), [(StartResult.FAILED, 1), (StartResult.LEASE_HELD, 0)]
)
def test_a_start_that_failed_leads_back_to_engine_down(result: StartResult, retries: int) -> None:
    decision = in_state(
        S.ENGINE_START, for_s=3, remembered=acting(), outcomes=(EngineStartEnded(result, "why"),)
    )
    assert decision.state.name is S.ENGINE_DOWN
    assert decision.state.retries == retries
    assert decision.actions == ()
    assert "why" in decision.reasons[0].text


def test_a_start_not_yet_asked_for_gives_way_to_the_guards() -> None:
    decision = in_state(S.ENGINE_START, local(maintenance=True))
    assert decision.state.name is S.LOCAL_MAINTENANCE
    assert decision.actions == ()


def test_a_start_is_begun_in_the_beat_that_allowed_it_or_not_at_all() -> None:
    """However the host came to be in EngineStart without one under way."""
    decision = in_state(S.ENGINE_START, for_s=5, live=[peer(2, 9000)])
    assert decision.state.name is S.ENGINE_DOWN
    assert decision.actions == ()
    assert codes(decision) == [Code.START_FAILED, Code.BETTER_HOST]


def test_failed_starts_cost_50_each_then_everything_for_600_seconds() -> None:
    """Four failures in a row: 3350, 3300, 3250, 0; a full score again 600 s after the last."""
    life = Life()
    scores: list[int] = []
    outcomes: tuple[Any, ...] = ()
    while len(scores) < 4:
        decision = life.beat(*outcomes)
        outcomes = ()
        if AskLease in kinds(decision):
            outcomes = (free_lease(life.now_s),)
        if StartEngine in kinds(decision):
            decision = life.beat(EngineStartEnded(StartResult.FAILED, "no such disk"))
            assert Code.START_FAILED in codes(decision)
            assert decision.score.penalties[0].why.endswith("the last: no such disk")
            scores.append(decision.score.value)
        assert life.now_s < 100
    assert scores == [3350, 3300, 3250, 0]
    failed_s = life.now_s
    assert life.state.last_failure_s == failed_s
    while life.now_s < failed_s + 599:
        decision = life.beat()
        assert StartEngine not in kinds(decision)
        assert decision.score.value == 0
        assert Code.RETRIES_EXHAUSTED in codes(decision)
    decision = life.beat()
    assert decision.score.value == 3400
    assert (decision.state.retries, decision.state.last_failure) == (0, "")


def test_retries_expire_exactly_600_seconds_after_the_last_failure() -> None:
    def remembered(ago_s: float) -> dict[str, Any]:
        return may_start(retries=4, last_failure_s=NOW_S - ago_s)

    assert "pausing for 200 s" in down(remembered=remembered(400)).reasons[0].text
    waiting = down(remembered=remembered(600 - MOMENT_S))
    assert codes(waiting) == [Code.RETRIES_EXHAUSTED]
    assert not starts(waiting)
    assert starts(down(remembered=remembered(600)))


def test_up_to_three_failed_starts_leave_a_host_in_the_race() -> None:
    decision = down(remembered=may_start(retries=3, last_failure_s=NOW_S - 10))
    assert starts(decision)
    assert decision.score.value == 3250


# --- EngineStarting -------------------------------------------------------------------------


def test_a_vm_that_gets_healthy_is_up() -> None:
    decision = in_state(S.ENGINE_STARTING, local(UP), for_s=20)
    assert decision.state.name is S.ENGINE_UP
    assert decision.state.since_s == NOW_S
    assert codes(decision) == [Code.ENGINE_HEALTHY, Code.ENGINE_HEALTHY]


def test_a_vm_that_boots_is_given_600_seconds() -> None:
    waiting = in_state(S.ENGINE_STARTING, local(BOOTING), for_s=600 - MOMENT_S)
    assert waiting.state.name is S.ENGINE_STARTING
    assert waiting.actions == ()
    assert codes(waiting) == [Code.ENGINE_BOOTING]
    over = in_state(S.ENGINE_STARTING, local(BOOTING), for_s=600)
    assert over.state.name is S.ENGINE_STOP
    assert over.actions == (ShutdownEngine(),)
    assert codes(over) == [Code.STARTING_TIMEOUT, Code.STOP_REQUESTED]


def test_a_vm_whose_health_was_not_answered_is_not_stopped_for_it() -> None:
    """Law 7: unknown is not down."""
    decision = in_state(S.ENGINE_STARTING, local(UNANSWERED), for_s=9999)
    assert decision.state.name is S.ENGINE_STARTING
    assert decision.actions == ()


def test_a_vm_that_gets_healthy_at_the_last_moment_is_not_stopped() -> None:
    assert in_state(S.ENGINE_STARTING, local(UP), for_s=600).state.name is S.ENGINE_UP


@pytest.mark.parametrize("engine", [DOWN, MISSING])
def test_a_vm_that_vanishes_while_it_starts_may_be_away(engine: EngineStatus) -> None:
    assert in_state(S.ENGINE_STARTING, local(engine)).state.name is S.ENGINE_MAYBE_AWAY


def test_a_vm_that_dies_while_it_starts_is_unexpectedly_down() -> None:
    decision = in_state(S.ENGINE_STARTING, local(DIED), live=[peer(2)])
    assert decision.state.name is S.ENGINE_UNEXPECTEDLY_DOWN


def test_a_vm_that_lost_its_lease_to_another_host_is_cleaned_up() -> None:
    decision = in_state(S.ENGINE_STARTING, local(LOCKED_OUT))
    assert decision.state.name is S.ENGINE_FORCE_STOP
    assert decision.actions == (PowerOffEngine(),)
    assert codes(decision)[0] is Code.LEASE_LOST_RACE


def test_a_stale_sample_is_not_judged_while_the_vm_starts() -> None:
    for engine in (UP, DOWN, DIED, LOCKED_OUT):
        decision = in_state(
            S.ENGINE_STARTING, local(engine), for_s=9999, remembered={"acted_s": NOW_S}
        )
        assert decision.state.name is S.ENGINE_STARTING
        assert codes(decision) == [Code.AWAITING_SAMPLE]


def test_local_maintenance_lets_a_vm_that_boots_go_on_booting() -> None:
    decision = in_state(S.ENGINE_STARTING, local(BOOTING, maintenance=True), live=[peer(2)])
    assert decision.state.name is S.ENGINE_STARTING
    assert decision.actions == ()


# --- EngineUp -------------------------------------------------------------------------------


def test_a_healthy_vm_is_left_in_peace() -> None:
    decision = in_state(S.ENGINE_UP, local(UP), for_s=9999, live=[peer(2, 3400)])
    assert decision.state.name is S.ENGINE_UP
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
    assert decision.state.name is after
    assert codes(decision)[0] is code
    assert decision.state.since_s == NOW_S
    assert not kinds(decision) & VM_ACTIONS


@pytest.mark.parametrize("name", [S.ENGINE_UP, S.ENGINE_UP_BAD_HEALTH])
def test_a_vm_that_runs_elsewhere_too_is_stopped_where_it_holds_no_lease(name: StateName) -> None:
    decision = in_state(name, local(UP, lease_held=False), live=[peer(2, 100, UP)])
    assert decision.state.name is S.ENGINE_STOP
    assert decision.actions == (ShutdownEngine(),)
    assert codes(decision)[0] is Code.VM_TWICE


@pytest.mark.parametrize("held", [True, None])
def test_a_claim_to_run_the_vm_too_does_not_stop_one_that_may_hold_the_lease(
    held: bool | None,
) -> None:
    """A slot may lag behind a migration, and unknown is not "no"."""
    decision = in_state(S.ENGINE_UP, local(UP, lease_held=held), live=[peer(2, 100, UP)])
    assert decision.state.name is S.ENGINE_UP
    assert decision.actions == ()
    assert codes(decision) == [Code.VM_TWICE_CLAIMED, Code.ENGINE_HEALTHY]


def test_a_silent_hosts_claim_to_run_the_vm_too_is_not_heard() -> None:
    decision = in_state(S.ENGINE_UP, local(UP, lease_held=False), silent=[peer(2, 100, UP)])
    assert decision.state.name is S.ENGINE_UP
    assert codes(decision) == [Code.VM_UNPROTECTED, Code.ENGINE_HEALTHY]


def test_an_unhealthy_vm_is_watched_in_engine_up_bad_health() -> None:
    decision = in_state(S.ENGINE_UP, local(SICK), for_s=9999)
    assert decision.state.name is S.ENGINE_UP_BAD_HEALTH
    assert decision.state.since_s == NOW_S
    assert decision.actions == ()


def test_a_health_that_is_not_answered_changes_nothing() -> None:
    for name in (S.ENGINE_UP, S.ENGINE_UP_BAD_HEALTH):
        decision = in_state(name, local(UNANSWERED), for_s=9999)
        assert decision.state.name is name
        assert decision.actions == ()
        assert codes(decision) == [Code.ENGINE_HEALTH_UNKNOWN]


def test_an_unhealthy_vm_is_stopped_after_300_seconds() -> None:
    waiting = in_state(S.ENGINE_UP_BAD_HEALTH, local(SICK), for_s=300 - MOMENT_S)
    assert waiting.state.name is S.ENGINE_UP_BAD_HEALTH
    assert waiting.actions == ()
    over = in_state(S.ENGINE_UP_BAD_HEALTH, local(SICK), for_s=300)
    assert over.state.name is S.ENGINE_STOP
    assert over.actions == (ShutdownEngine(),)
    assert codes(over) == [Code.BAD_HEALTH_TIMEOUT, Code.STOP_REQUESTED]


def test_a_vm_that_gets_well_again_is_up_and_its_next_illness_counts_anew() -> None:
    life = Life(here=local(UP))
    life.beat()
    life.here = replace(life.here, engine=SICK)
    life.beat()
    life.beat(after_s=299.0)
    assert life.state.name is S.ENGINE_UP_BAD_HEALTH
    life.here = replace(life.here, engine=UP)
    assert life.beat().state.name is S.ENGINE_UP
    life.here = replace(life.here, engine=SICK)
    life.beat()
    assert life.beat(after_s=299.0).state.name is S.ENGINE_UP_BAD_HEALTH
    assert life.beat().state.name is S.ENGINE_STOP


def test_a_stale_sample_is_not_judged_while_the_vm_is_up() -> None:
    for name in (S.ENGINE_UP, S.ENGINE_UP_BAD_HEALTH):
        decision = in_state(name, local(DIED), for_s=999, remembered={"acted_s": NOW_S})
        assert decision.state.name is name
        assert codes(decision) == [Code.AWAITING_SAMPLE]


def test_a_migration_that_somebody_else_began_is_followed() -> None:
    decision = in_state(S.ENGINE_UP, local(LEAVING))
    assert decision.state.name is S.ENGINE_MIGRATING_AWAY
    assert decision.actions == ()


def test_who_comes_up_counts_one_higher_than_all_that_ran_before() -> None:
    peers = [peer(2, last_ran=4), peer(3, last_ran=9)]
    assert in_state(S.ENGINE_STARTING, local(UP), live=peers).state.last_ran == 10
    alone = in_state(S.ENGINE_STARTING, local(UP))
    assert alone.state.last_ran == 1
    for earlier in (3, 9):
        again = in_state(S.ENGINE_STARTING, local(UP), live=peers, remembered={"last_ran": earlier})
        assert again.state.last_ran == 10
    own = in_state(S.ENGINE_STARTING, local(UP), live=peers, remembered={"last_ran": 12})
    assert own.state.last_ran == 12, "it has been the last one already"
    well_again = in_state(S.ENGINE_UP_BAD_HEALTH, local(UP), live=peers)
    assert well_again.state.last_ran == 0, "it did not come up anew"


# --- moving a healthy VM --------------------------------------------------------------------


def test_a_much_better_host_gets_the_vm_after_the_dwell_by_live_migration() -> None:
    better = [peer(2, 4200)]
    since_s = NOW_S - TIMING.move_dwell
    waiting = in_state(
        S.ENGINE_UP, local(UP), live=better, remembered={"better_since_s": since_s + MOMENT_S}
    )
    assert waiting.actions == ()
    assert codes(waiting) == [Code.MOVE_DWELL, Code.ENGINE_HEALTHY]
    moving = in_state(S.ENGINE_UP, local(UP), live=better, remembered={"better_since_s": since_s})
    assert moving.actions == (MigrateEngine(2),)
    assert moving.state.moving_to == 2, "the others are told where it goes"
    assert moving.state.moving_until_s == NOW_S + RULES.migration_within_s, "and until when"
    assert moving.state.name is S.ENGINE_MIGRATING_AWAY
    assert codes(moving) == [Code.MOVE_STARTED, Code.MIGRATING]


def test_the_dwell_begins_when_a_host_is_800_better_and_ends_when_it_is_not() -> None:
    begun = in_state(S.ENGINE_UP, local(UP), live=[peer(2, 4200)])
    assert begun.state.better_since_s == NOW_S
    for others in ([peer(2, 4199)], []):
        ended = in_state(
            S.ENGINE_UP, local(UP), live=others, remembered={"better_since_s": NOW_S - 29}
        )
        assert ended.state.better_since_s is None
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
        assert life.beat().state.name is S.ENGINE_UP
    assert MigrateEngine(2) in life.beat().actions
    life.here = replace(life.here, engine=LEAVING)
    for _ in range(30):
        assert life.beat().actions == ()
    life.here = replace(life.here, engine=DOWN)
    life.change_peer(2, engine=UP)
    decision = life.beat(EngineMigrationEnded(2, ok=True))
    assert decision.state.name is S.ENGINE_DOWN
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
    assert decision.state.name is S.ENGINE_UP
    assert decision.actions == ()
    assert codes(decision) == [Code.MOVE_IMPOSSIBLE, Code.ENGINE_HEALTHY]


@pytest.mark.parametrize("unfit", [{"stopped": True}, {"maintenance": True}, {"engine": UNKNOWN}])
def test_the_vm_never_moves_to_a_host_that_cannot_take_it(unfit: dict[str, Any]) -> None:
    for draining in (False, True):
        decision = in_state(
            S.ENGINE_UP,
            local(UP, maintenance=draining),
            live=[replace(peer(2, 9000), **unfit)],
            silent=[peer(3, 9000)],
            uncertain=[peer(4, 9000)],
            remembered={"better_since_s": NOW_S - 999},
        )
        assert decision.actions == ()


@pytest.mark.parametrize("name", [S.ENGINE_UP, S.ENGINE_UP_BAD_HEALTH])
def test_local_maintenance_drains_the_host_at_once_without_a_dwell(name: StateName) -> None:
    decision = in_state(name, local(UP, maintenance=True), live=[peer(2, 5), peer(3, 4)])
    assert decision.state.name is S.ENGINE_MIGRATING_AWAY
    assert decision.actions == (MigrateEngine(2),)
    assert decision.score.value == 0


def test_a_host_that_cannot_be_drained_keeps_the_vm_and_says_so() -> None:
    decision = in_state(S.ENGINE_UP, local(UP, maintenance=True), for_s=9999)
    assert decision.state.name is S.ENGINE_UP
    assert decision.actions == ()
    assert codes(decision) == [Code.DRAIN_WAITING, Code.ENGINE_HEALTHY]


def test_after_a_failed_migration_the_next_waits_for_migrate_retry() -> None:
    life = Life(here=local(UP, maintenance=True), peers=(peer(2),), beating={2})
    life.beat()
    assert MigrateEngine(2) in life.beat().actions
    failed = life.beat(EngineMigrationEnded(2, ok=False, detail="refused"))
    failed_s = life.now_s
    assert failed.actions == ()
    assert codes(failed)[0] is Code.MIGRATION_FAILED
    while MigrateEngine not in kinds(life.beat()):
        assert life.state.name is S.ENGINE_UP
        assert life.now_s < failed_s + 100
    assert life.now_s == failed_s + TIMING.migrate_retry


def test_a_host_that_cannot_be_drained_to_one_is_drained_to_the_next() -> None:
    life = Life(here=local(UP, maintenance=True), peers=(peer(2), peer(3, 100)), beating={2, 3})
    life.beat()
    assert MigrateEngine(2) in life.beat().actions
    assert MigrateEngine(2) not in life.beat(EngineMigrationEnded(2, ok=False)).actions
    assert MigrateEngine(3) in life.beat().actions, "not in a minute: now"
    life.beat(EngineMigrationEnded(3, ok=False))
    failed_s = life.now_s
    while MigrateEngine not in kinds(decision := life.beat()):
        assert life.now_s < failed_s + 100
    assert MigrateEngine(2) in decision.actions
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
        outcomes=(EngineMigrationEnded(2, ok=False, detail="cancelled"),),
    )
    assert not moving.state.move_failed_s


def test_the_vm_is_not_moved_to_a_host_without_the_memory() -> None:
    here = local(UP, maintenance=True)
    earlier = replace(peer(2), memory_short=True)
    short = replace(peer(2), mem_free_mb=RULES.vm_memory_mb - 1)
    for without in (earlier, short):
        decision = in_state(S.ENGINE_UP, here, live=[without, peer(3, 100)])
        assert MigrateEngine(3) in decision.actions
        waiting = in_state(S.ENGINE_UP, here, live=[without])
        assert codes(waiting) == [Code.DRAIN_WAITING, Code.ENGINE_HEALTHY]
    enough = replace(peer(2), mem_free_mb=RULES.vm_memory_mb)
    assert MigrateEngine(2) in in_state(S.ENGINE_UP, here, live=[enough]).actions
    wants_more = replace(enough, memory_short=True)
    waits = in_state(S.ENGINE_UP, here, live=[wants_more])
    assert Code.DRAIN_WAITING in codes(waits), "its own definition may want more"


def test_the_vm_moves_to_a_host_that_answers_before_a_better_one_that_does_not() -> None:
    here = local(UP, maintenance=True)
    better, other = peer(2), peer(3, 2000)
    heard = replace(other, heartbeat_s=NOW_S - 5.0)
    unheard = replace(better, heartbeat_s=NOW_S - 60.0, unanswered_since_s=NOW_S - 50.0)
    for silent in (better, unheard):
        assert MigrateEngine(3) in in_state(S.ENGINE_UP, here, live=[silent, heard]).actions
        alone = in_state(S.ENGINE_UP, here, live=[silent, other])
        assert MigrateEngine(2) in alone.actions, "nobody answers: it may be this host's network"
    both = [replace(better, heartbeat_s=NOW_S - 9.0), heard]
    assert MigrateEngine(2) in in_state(S.ENGINE_UP, here, live=both).actions


def test_a_host_without_the_lock_driver_scores_0_and_one_that_does_not_tell_does_not() -> None:
    without = in_state(S.ENGINE_DOWN, replace(local(DOWN), lock_driver=False))
    assert without.score.value == 0
    assert [penalty.name for penalty in without.score.penalties] == ["lock-driver"]
    assert StartEngine not in kinds(without)
    for told in (None, True):
        assert in_state(S.ENGINE_DOWN, replace(local(DOWN), lock_driver=told)).score.value > 0
    running = in_state(S.ENGINE_UP, replace(local(UP), lock_driver=False))
    assert running.score.value > 0, "the VM that runs here is not chased away"


@pytest.mark.parametrize("obstacle", Obstacle)
def test_a_host_with_an_obstacle_scores_0_and_starts_nothing(obstacle: Obstacle) -> None:
    given = replace(local(DOWN), unfit=(Unfit(obstacle, "what to do"),))
    decision = in_state(S.ENGINE_DOWN, given)
    assert decision.score.value == 0
    assert [(p.name, p.why) for p in decision.score.penalties] == [(obstacle.value, "what to do")]
    assert codes(decision) == [Code(obstacle.value)]
    assert not decision.actions
    running = in_state(S.ENGINE_UP, replace(given, engine=UP))
    assert running.score.value > 0, "the VM that runs here is not chased away"


def test_two_obstacles_are_both_named() -> None:
    both = (Unfit(Obstacle.CANNOT_START, "no bridge"), Unfit(Obstacle.HELD_BACK, "an overlay"))
    decision = in_state(S.ENGINE_DOWN, replace(local(DOWN), unfit=both))
    assert [p.why for p in decision.score.penalties] == ["no bridge", "an overlay"]
    assert codes(decision) == [Code.CANNOT_START, Code.HELD_BACK]


# --- EngineStop, EngineForceStop ------------------------------------------------------------


def stopping_vm(engine: EngineStatus = SICK, **given: Any) -> Decision:
    """A decision in EngineStop, the guest having been asked to shut down."""
    given.setdefault("remembered", {"stop_asked": True, "acted_s": NOW_S - 1})
    here = local(engine, domain=DomainHere(pause=Pause.IO_ERROR if engine is PAUSED else None))
    return in_state(S.ENGINE_STOP, here, **given)


def test_a_guest_is_asked_to_shut_down_once() -> None:
    asked = in_state(S.ENGINE_STOP, local(SICK))
    assert asked.actions == (ShutdownEngine(),)
    assert asked.state.stop_asked
    assert stopping_vm(for_s=299).actions == ()


def test_a_guest_that_shut_down_is_down() -> None:
    decision = stopping_vm(DOWN, for_s=10, live=[peer(2, 9999)])
    assert decision.state.name is S.ENGINE_DOWN
    assert codes(decision) == [Code.VM_STOPPED, Code.BETTER_HOST]


def test_a_guest_that_does_not_shut_down_is_ended_after_300_seconds() -> None:
    assert stopping_vm(for_s=300 - MOMENT_S).state.name is S.ENGINE_STOP
    over = stopping_vm(for_s=300)
    assert over.state.name is S.ENGINE_FORCE_STOP
    assert over.actions == (PowerOffEngine(),)
    assert codes(over) == [Code.STOP_TIMEOUT, Code.STOP_REQUESTED]


def test_a_guest_that_is_paused_cannot_shut_down_and_is_ended() -> None:
    decision = stopping_vm(PAUSED, for_s=1)
    assert decision.state.name is S.ENGINE_FORCE_STOP
    assert decision.actions == (PowerOffEngine(),)
    assert codes(decision)[0] is Code.VM_PAUSED


def test_a_disk_that_fails_here_costs_the_host_a_start() -> None:
    """Otherwise it would be started here again and again, beside hosts that reach its disk."""
    decision = stopping_vm(PAUSED, for_s=1)
    assert (decision.state.retries, decision.state.last_failure_s) == (1, NOW_S)
    here = local(PAUSED, domain=DomainHere(pause=Pause.OTHER))
    assert in_state(S.ENGINE_STOP, here, for_s=1).state.retries == 0


def test_a_guest_is_not_ended_while_asking_it_is_still_under_way() -> None:
    for engine in (SICK, PAUSED, DOWN):
        decision = stopping_vm(engine, for_s=9999, remembered={"stop_asked": True, "acting": True})
        assert decision.state.name is S.ENGINE_STOP
        assert decision.actions == ()


def test_a_sample_from_before_the_request_is_not_judged() -> None:
    remembered = {"stop_asked": True, "acted_s": NOW_S}
    for engine in (PAUSED, DOWN):
        assert stopping_vm(engine, remembered=remembered).state.name is S.ENGINE_STOP


def test_a_guest_that_could_not_be_asked_is_looked_at_anew() -> None:
    decision = stopping_vm(
        SICK,
        remembered={"stop_asked": True, "acting": True},
        outcomes=(EngineStopEnded(False, "no libvirt"),),
    )
    assert codes(decision)[0] is Code.STOP_FAILED
    assert decision.state.name is S.ENGINE_STARTING
    assert decision.actions == ()


def test_a_request_that_was_passed_on_leaves_the_guest_its_time() -> None:
    decision = stopping_vm(
        SICK,
        for_s=5,
        remembered={"stop_asked": True, "acting": True},
        outcomes=(EngineStopEnded(True),),
    )
    assert decision.state.name is S.ENGINE_STOP
    assert codes(decision) == [Code.STOP_WAITING]


def test_ending_the_vm_is_begun_once_and_waited_for() -> None:
    begun = in_state(S.ENGINE_FORCE_STOP, local(SICK))
    assert begun.actions == (PowerOffEngine(),)
    guards: list[dict[str, Any]] = [{"global_maintenance": True}, {"stopping": True}, {}]
    for observed in guards:
        waiting = in_state(
            S.ENGINE_FORCE_STOP, local(SICK), for_s=9999, remembered=acting(), **observed
        )
        assert waiting.state.name is S.ENGINE_FORCE_STOP
        assert waiting.actions == ()
        assert codes(waiting) == [Code.STOP_WAITING]


@pytest.mark.parametrize(
    ("ok", "after", "code"),
    [
        (True, S.ENGINE_DOWN, Code.VM_STOPPED),
        (False, S.ENGINE_STARTING, Code.STOP_FAILED),
    ],
)
def test_an_end_of_the_vm_is_believed_as_it_is_told(ok: bool, after: StateName, code: Code) -> None:
    decision = in_state(
        S.ENGINE_FORCE_STOP,
        local(SICK),
        remembered=acting(),
        outcomes=(EngineStopEnded(ok, "because"),),
    )
    assert decision.state.name is after
    assert codes(decision) == [code, *codes(decision)[1:]]
    assert codes(decision)[-1] is Code.AWAITING_SAMPLE


# --- EngineMaybeAway, EngineUnexpectedlyDown ------------------------------------------------


def test_a_vm_that_left_has_40_seconds_to_show_up_elsewhere() -> None:
    waiting = in_state(S.ENGINE_MAYBE_AWAY, for_s=40 - MOMENT_S, live=[peer(2)])
    assert waiting.state.name is S.ENGINE_MAYBE_AWAY
    assert codes(waiting) == [Code.AWAY_WAITING]
    over = in_state(S.ENGINE_MAYBE_AWAY, for_s=40, live=[peer(2)])
    assert over.state.name is S.ENGINE_UNEXPECTEDLY_DOWN
    assert over.state.since_s == NOW_S
    assert codes(over)[0] is Code.AWAY_TIMEOUT


def test_a_vm_that_shows_up_elsewhere_has_moved() -> None:
    decision = in_state(S.ENGINE_MAYBE_AWAY, for_s=40, live=[peer(2, 3400, UP)])
    assert decision.state.name is S.ENGINE_DOWN
    assert codes(decision)[0] is Code.UP_ELSEWHERE


@pytest.mark.parametrize("name", [S.ENGINE_MAYBE_AWAY, S.ENGINE_UNEXPECTEDLY_DOWN])
def test_a_vm_that_is_here_again_is_watched_over(name: StateName) -> None:
    decision = in_state(name, local(BOOTING), for_s=9999)
    assert decision.state.name is S.ENGINE_STARTING


def test_a_host_where_the_vm_died_stays_away_from_it_for_560_seconds() -> None:
    waiting = in_state(
        S.ENGINE_UNEXPECTEDLY_DOWN, local(DIED), for_s=560 - MOMENT_S, live=[peer(2)]
    )
    assert waiting.state.name is S.ENGINE_UNEXPECTEDLY_DOWN
    assert waiting.score.value == 0
    assert codes(waiting) == [Code.UNEXPECTED_DOWN_WAITING]
    over = in_state(S.ENGINE_UNEXPECTEDLY_DOWN, local(DIED), for_s=560, live=[peer(2, 3399)])
    assert over.state.name is S.ENGINE_DOWN
    assert over.score.value == 3400
    assert codes(over)[0] is Code.UNEXPECTED_DOWN_OVER


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"live": [peer(2, 0)]},
        {"live": [peer(2, stopped=True), peer(3, maintenance=True)]},
        {"live": [peer(2, engine=UNKNOWN)]},
        {"silent": [peer(2, 3400)]},
        {"storage_good_since_s": NOW_S - TIMING.suspect_after},
    ],
)
def test_the_last_host_does_not_wait_for_nobody(others: dict[str, Any]) -> None:
    decision = in_state(S.ENGINE_UNEXPECTEDLY_DOWN, local(DIED), **others)
    assert decision.state.name is S.ENGINE_DOWN
    assert codes(decision)[0] is Code.LAST_HOST


@pytest.mark.parametrize(
    "not_sure",
    [
        {"uncertain": [peer(2)]},
        {"storage_good_since_s": None},
        {"live": [peer(2, 1)]},
        {"storage_good_since_s": NOW_S - TIMING.suspect_after + MOMENT_S},
    ],
)
def test_a_host_that_is_not_sure_to_be_the_last_one_waits(not_sure: dict[str, Any]) -> None:
    decision = in_state(S.ENGINE_UNEXPECTEDLY_DOWN, local(DIED), **not_sure)
    assert decision.state.name is S.ENGINE_UNEXPECTEDLY_DOWN


# --- EngineMigratingAway --------------------------------------------------------------------


def test_a_migration_under_way_is_waited_for_whatever_else_happens() -> None:
    for observed in ({"stopping": True}, {"global_maintenance": True}, {"newer_versions": (9,)}):
        for engine in (LEAVING, UNKNOWN, DOWN):
            decision = in_state(
                S.ENGINE_MIGRATING_AWAY, local(engine), for_s=999, remembered=acting(), **observed
            )
            assert decision.state.name is S.ENGINE_MIGRATING_AWAY
            assert codes(decision) == [Code.MIGRATING]


def test_a_migration_that_went_well_ends_in_engine_down() -> None:
    decision = in_state(
        S.ENGINE_MIGRATING_AWAY,
        local(LEAVING),
        live=[peer(2)],
        remembered=acting(),
        outcomes=(EngineMigrationEnded(2, ok=True),),
    )
    assert decision.state.name is S.ENGINE_DOWN
    assert decision.actions == ()
    assert codes(decision) == [Code.MIGRATED, Code.AWAITING_SAMPLE]
    assert not decision.state.move_failed_s


def test_a_migration_that_failed_leaves_the_vm_to_be_watched_over_here() -> None:
    decision = in_state(
        S.ENGINE_MIGRATING_AWAY,
        local(LEAVING),
        live=[peer(2)],
        remembered=acting(),
        outcomes=(EngineMigrationEnded(2, ok=False, detail="no route"),),
    )
    assert decision.state.name is S.ENGINE_STARTING
    assert decision.state.move_failed_s == {2: NOW_S}
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
    assert decision.state.name is after
    assert codes(decision)[0] is code
    assert not kinds(decision) & VM_ACTIONS


def test_a_migration_found_under_way_is_ended_when_its_time_is_over() -> None:
    """The agent that began it is gone; libvirt tells since when it is under way."""
    timeout_s = RULES.migration_timeout_s
    life = Life(here=local(UP), peers=(peer(2),), beating={2})
    life.beat()
    life.here = replace(life.here, engine=LEAVING, migrating_s=timeout_s - 1.5)
    found = life.beat()
    assert found.state.name is S.ENGINE_MIGRATING_AWAY
    assert found.state.moving_until_s == life.now_s - timeout_s + 1.5 + RULES.migration_within_s
    assert codes(found) == [Code.MIGRATING, Code.MIGRATING] and not found.actions
    life.here = replace(life.here, migrating_s=timeout_s - 0.5)
    assert not life.beat().actions
    life.here = replace(life.here, migrating_s=timeout_s)
    over = life.beat()
    assert over.actions == (CancelMigration(),)
    assert codes(over) == [Code.MIGRATION_OVERDUE]
    assert "300 s (libvirt.migration-timeout)" in over.reasons[0].text
    for _ in range(20):
        assert not life.beat().actions, "it has not been answered"
    asked = [bool(life.beat(MigrationCancelled(False, "post-copy")).actions)]
    asked += [bool(life.beat().actions) for _ in range(15)]
    assert asked == [False] * 15 + [True], "and later once more"
    life.here = replace(life.here, engine=UP, migrating_s=None)
    ended = life.beat(MigrationCancelled(True))
    assert ended.state.name is S.ENGINE_UP and not ended.state.asking_cancel
    assert ended.state.moving_until_s is None


def test_where_libvirt_does_not_tell_a_migration_counts_from_when_it_was_found() -> None:
    for_s = RULES.migration_timeout_s - 1
    kept = in_state(S.ENGINE_MIGRATING_AWAY, local(LEAVING), for_s=for_s)
    assert not kept.actions and kept.state.moving_until_s == NOW_S + 1 + MIGRATION_EXTRA_S
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
    assert held.state.name is S.GLOBAL_MAINTENANCE and not held.actions


def test_a_vm_that_boots_and_is_migrated_is_watched_over_too() -> None:
    leaving = replace(BOOTING, detail=DETAIL_MIGRATION_SOURCE)
    decision = in_state(S.ENGINE_STARTING, local(leaving), for_s=999)
    assert decision.state.name is S.ENGINE_MIGRATING_AWAY
    assert codes(decision)[0] is Code.MIGRATING


def test_a_host_drained_by_migration_is_in_local_maintenance_in_the_end() -> None:
    life = Life(here=local(UP, maintenance=True), peers=(peer(2),), beating={2})
    life.beat()
    assert MigrateEngine(2) in life.beat().actions
    life.here = replace(life.here, engine=DOWN)
    life.change_peer(2, engine=UP)
    life.beat(EngineMigrationEnded(2, ok=True))
    assert life.beat().state.name is S.LOCAL_MAINTENANCE


# --- memory ---------------------------------------------------------------------------------


def test_the_clock_of_a_state_starts_when_it_is_entered_and_is_not_kept_for_the_next_visit() -> (
    None
):
    """Half of bad-health, a while in UnknownLocalVmState, and the whole time counts anew."""
    life = Life(here=local(UP))
    life.beat()
    life.here = replace(life.here, engine=SICK)
    life.beat()
    life.beat(after_s=200.0)
    life.here = replace(life.here, engine=UNKNOWN)
    assert life.beat().state.name is S.UNKNOWN_LOCAL_VM_STATE
    life.here = replace(life.here, engine=SICK)
    decision = life.beat()
    assert decision.state.name is S.ENGINE_STARTING
    assert decision.state.since_s == life.now_s
    assert life.beat(after_s=250.0).state.name is S.ENGINE_STARTING


@pytest.mark.parametrize("name", [S.ENGINE_UP, S.ENGINE_STOP])
def test_what_belonged_to_a_state_is_forgotten_when_it_is_left(name: StateName) -> None:
    decision = in_state(
        name,
        local(UNKNOWN),
        remembered={"better_since_s": NOW_S - 10, "stop_asked": True},
    )
    assert decision.state.name is S.UNKNOWN_LOCAL_VM_STATE
    assert decision.state.better_since_s is None
    assert not decision.state.stop_asked
    assert decision.state.since_s == NOW_S


def test_unreadable_storage_forgets_who_lived_and_since_when_the_vm_is_missing() -> None:
    decision = in_state(S.ENGINE_DOWN, live=[peer(2, engine=UP)], storage_good_since_s=None)
    assert decision.state.seen == {}
    assert decision.state.missing_since_s is None


def test_a_vm_is_missing_from_the_first_beat_on_that_no_live_host_reports_it() -> None:
    life = Life(peers=(peer(2, engine=UP),), beating={2})
    life.beat()
    life.beat()
    assert life.state.missing_since_s is None
    life.beating.clear()
    life.beat(after_s=TIMING.suspect_after - MOMENT_S)
    assert life.state.missing_since_s is None
    life.beat(after_s=MOMENT_S)
    assert life.state.missing_since_s == pytest.approx(life.now_s)


def test_the_same_inputs_give_the_same_decision() -> None:
    peers = [peer(2, 4200), peer(3, engine=UP)]
    state = AgentState(RULES, S.ENGINE_UP, since_s=NOW_S - 5, seen=seen(live=peers))
    observation = observe(local(UP), peers=tuple(peers))
    assert decide(state, observation, NOW_S) == decide(state, observation, NOW_S)


def test_what_comes_in_is_not_changed() -> None:
    memory = {2: Seen(499, NOW_S - 1, changed=True)}
    state = AgentState(RULES, S.ENGINE_DOWN, since_s=NOW_S - 5, seen=memory)
    observation = observe(peers=(peer(2),), outcomes=(free_lease(),))
    decide(state, observation, NOW_S)
    assert memory == {2: Seen(499, NOW_S - 1, changed=True)}
    assert observation.outcomes == (free_lease(),)


@pytest.mark.parametrize(
    ("decision", "text"),
    [
        (in_state(S.ENGINE_UP_BAD_HEALTH, local(SICK), for_s=100), "stopping it in 200 s"),
        (in_state(S.ENGINE_MAYBE_AWAY, for_s=30, live=[peer(2)]), "10 s for it to show up"),
        (
            in_state(S.ENGINE_STOP, local(SICK), for_s=100, remembered={"stop_asked": True}),
            "shutting down, 200 s left",
        ),
        (
            in_state(S.ENGINE_UNEXPECTEDLY_DOWN, local(DIED), for_s=500, live=[peer(2)]),
            "score 0 for 60 s",
        ),
        (
            in_state(
                S.ENGINE_UP,
                local(UP),
                live=[peer(2, 4300)],
                remembered={"better_since_s": NOW_S - 10},
            ),
            "host2 (id 2) is 900 points better, moving there in 20 s",
        ),
        (
            in_state(
                S.ENGINE_UP,
                local(UP, maintenance=True),
                live=[peer(2)],
                remembered={"move_failed_s": {2: NOW_S - TIMING.migrate_retry + 15}},
            ),
            "the last migration failed, next try in 15 s",
        ),
    ],
)
def test_who_waits_says_for_how_long(decision: Decision, text: str) -> None:
    assert text in decision.reasons[0].text


def test_an_outcome_that_belongs_to_no_state_any_more_only_ends_its_action() -> None:
    decision = in_state(
        S.GLOBAL_MAINTENANCE,
        local(UP),
        remembered=acting(),
        global_maintenance=True,
        outcomes=(EngineStopEnded(True),),
    )
    assert not decision.state.acting
    assert decision.state.name is S.GLOBAL_MAINTENANCE


def test_every_state_has_its_row_in_the_table_and_none_may_be_left_for_itself() -> None:
    assert set(TRANSITIONS) == set(StateName)
    for name, after in TRANSITIONS.items():
        assert name not in after
    assert not TRANSITIONS[S.AGENT_STOPPED]


def test_the_only_way_into_a_start_leads_through_engine_down() -> None:
    assert [n for n, after in TRANSITIONS.items() if S.ENGINE_START in after] == [S.ENGINE_DOWN]


# --- a host that hangs with its power on ----------------------------------------------------


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
    fall.until(StartEngine)
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
    assert fall.did(FreeHostId) == fall.did(StartEngine) == 0
    fall.order_works = True
    fall.until(StartEngine, beats=70)


def test_the_owner_that_beats_again_in_the_middle_of_an_order_ends_the_takeover() -> None:
    """The order is under way: its outcome is waited for, and with it the fence lease held."""
    fall = hang()
    fall.until(PowerOffHost)
    fall.life.beating.add(DEAD)
    order, fall.life.history[-1] = fall.life.history[-1], replace(fall.life.history[-1], actions=())
    decision = fall.beat()
    assert decision.state.takeover is not None and decision.state.takeover.switching_off
    assert DropFenceLease not in kinds(decision)
    (act,) = [a for a in order.actions if isinstance(a, PowerOffHost)]
    decision = fall.beat(PowerOffEnded(act.host_id, True))
    assert decision.state.takeover is None
    assert DropFenceLease in kinds(decision)


# --- and is switched on again ---------------------------------------------------------------

SHOT = FenceRecord(7, FenceStep.DEAD, 1, DEAD, NOW_S - 30, ordered=True, boot_id="b")


INTENT = replace(SHOT, number=5, step=FenceStep.INTENT)
FAILED = replace(SHOT, number=6, step=FenceStep.FAILED)


def up_with(*log: FenceRecord, **given: Any) -> Decision:
    given.setdefault("silent", [peer(DEAD)])
    given.setdefault("fence_devices", frozenset({DEAD}))
    return in_state(S.ENGINE_UP, local(UP, lease_held=True), fence_log=log, **given)


def test_the_host_that_runs_the_vm_switches_the_fenced_one_on_again() -> None:
    decision = up_with(SHOT)
    assert PowerOnHost(DEAD) in decision.actions
    assert decision.state.switching_on == DEAD
    assert Code.POWER_ON_ORDERED in codes(decision)


@pytest.mark.parametrize("log", [(INTENT,), (INTENT, replace(SHOT, ordered=False))])
def test_one_whose_fencer_died_after_its_order_is_switched_on_too(
    log: tuple[FenceRecord, ...],
) -> None:
    """Its death is proven by another host that did not order it, or only time has passed."""
    assert PowerOnHost(DEAD) in up_with(*log).actions


@pytest.mark.parametrize(
    ("log", "given"),
    [
        ((), {}),
        ((replace(SHOT, ordered=False),), {}),
        ((replace(SHOT, step=FenceStep.FAILED),), {}),
        ((INTENT, FAILED, replace(SHOT, ordered=False)), {}),
        ((replace(INTENT, boot_id="an earlier one"), replace(SHOT, ordered=False)), {}),
        ((SHOT, replace(SHOT, number=8, step=FenceStep.BACK)), {}),
        ((replace(SHOT, at_s=NOW_S - 3600),), {}),
        ((replace(SHOT, target=1),), {}),
        ((SHOT,), {"silent": (), "live": [peer(DEAD)]}),
        ((SHOT,), {"silent": (), "uncertain": [peer(DEAD)]}),
        ((SHOT,), {"fence_devices": frozenset()}),
        ((SHOT,), {"remembered": {"rules": replace(RULES, fence_power_on=False)}}),
        ((SHOT,), {"remembered": {"switching_on": DEAD}}),
        ((SHOT,), {"remembered": {"switched_on_s": {DEAD: NOW_S - 59}}}),
        ((SHOT,), {"global_maintenance": True}),
    ],
)
def test_nobody_is_switched_on_who_was_not_switched_off_by_us_or_is_back(
    log: tuple[FenceRecord, ...], given: dict[str, Any]
) -> None:
    assert PowerOnHost not in kinds(up_with(*log, **given))


def test_it_is_tried_again_after_a_while() -> None:
    tried = up_with(SHOT, outcomes=(PowerOnEnded(DEAD, False, "no answer"),))
    assert tried.state.switched_on_s == {DEAD: NOW_S} and PowerOnHost not in kinds(tried)
    again = {"switched_on_s": {DEAD: NOW_S - TIMING.power_on_retry}}
    assert PowerOnHost(DEAD) in up_with(SHOT, remembered=again).actions


def test_the_fence_lease_is_kept_while_a_host_is_switched_on_and_then_dropped() -> None:
    during = up_with(SHOT, remembered={"switching_on": DEAD}, fence_lease_held=True)
    assert DropFenceLease not in kinds(during)
    after = up_with(
        SHOT,
        remembered={"switching_on": DEAD},
        fence_lease_held=True,
        outcomes=(PowerOnEnded(DEAD, True),),
    )
    assert DropFenceLease in kinds(after)


# --- a health check that was never seen to work -----------------------------------------------


def test_a_vm_that_was_never_healthy_is_left_running_and_told_critically() -> None:
    never = local(SICK, healthy_before=False, lease_held=True)
    started = in_state(S.ENGINE_STARTING, never, for_s=TIMING.engine_starting)
    for decision in (started, in_state(S.ENGINE_UP_BAD_HEALTH, never, for_s=TIMING.bad_health)):
        assert decision.state.name is S.ENGINE_UP_BAD_HEALTH
        assert decision.actions == ()
        assert codes(decision)[-1] is Code.NEVER_HEALTHY
        assert "the health page does not answer" in decision.reasons[-1].text
        assert decision.state.since_s == NOW_S, "its time begins once the check is known to work"
    assert in_state(S.ENGINE_STARTING, never, for_s=1).state.name is S.ENGINE_STARTING


def test_one_that_was_healthy_once_is_stopped_and_the_cause_is_told() -> None:
    for name, for_s, code in (
        (S.ENGINE_STARTING, TIMING.engine_starting, Code.STARTING_TIMEOUT),
        (S.ENGINE_UP_BAD_HEALTH, TIMING.bad_health, Code.BAD_HEALTH_TIMEOUT),
    ):
        decision = in_state(name, local(SICK, lease_held=True), for_s=for_s)
        assert decision.state.name is S.ENGINE_STOP
        assert decision.reasons[0].code is code
        assert "the health page does not answer" in decision.reasons[0].text


def test_a_paused_vm_is_surely_not_well_whatever_its_check_is_worth() -> None:
    stands = local(
        PAUSED,
        healthy_before=False,
        lease_held=False,
        domain=DomainHere(pause=Pause.IO_ERROR),
    )
    for name in (S.ENGINE_STARTING, S.ENGINE_UP_BAD_HEALTH):
        decision = in_state(name, stands, for_s=TIMING.bad_health)
        assert decision.state.name is S.ENGINE_FORCE_STOP

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an agent remembers from beat to beat, the table of states, and what a wait tells."""

from __future__ import annotations

import pytest

from scoring.decide import Decision, decide
from scoring.hosts.state import Seen
from scoring.observation import (
    VmStopEnded,
)
from scoring.vm.state import TRANSITIONS, StateName
from tests.unit.builders import (
    DIED,
    MOMENT_S,
    NOW_S,
    SICK,
    TIMING,
    UNKNOWN,
    UP,
    Life,
    acting,
    free_lease,
    in_state,
    local,
    observe,
    peer,
    replaced,
    seen,
    state_of,
)

S = StateName


def test_the_clock_of_a_state_starts_when_it_is_entered_and_is_not_kept_for_the_next_visit() -> (
    None
):
    """Half of bad-health, a while in UnknownLocalVmState, and the whole time counts anew."""
    life = Life(here=local(UP))
    life.beat()
    life.here = replaced(life.here, engine=SICK)
    life.beat()
    life.beat(after_s=200.0)
    life.here = replaced(life.here, engine=UNKNOWN)
    assert life.beat().state.engine.name is S.UNKNOWN_LOCAL_VM_STATE
    life.here = replaced(life.here, engine=SICK)
    decision = life.beat()
    assert decision.state.engine.name is S.ENGINE_STARTING
    assert decision.state.engine.since_s == life.now_s
    assert life.beat(after_s=250.0).state.engine.name is S.ENGINE_STARTING


@pytest.mark.parametrize("name", [S.ENGINE_UP, S.ENGINE_STOP])
def test_what_belonged_to_a_state_is_forgotten_when_it_is_left(name: StateName) -> None:
    decision = in_state(
        name,
        local(UNKNOWN),
        remembered={"better_since_s": NOW_S - 10, "stop_asked": True},
    )
    assert decision.state.engine.name is S.UNKNOWN_LOCAL_VM_STATE
    assert decision.state.engine.better_since_s is None
    assert not decision.state.engine.stop_asked
    assert decision.state.engine.since_s == NOW_S


def test_unreadable_storage_forgets_who_lived_and_since_when_the_vm_is_missing() -> None:
    decision = in_state(S.ENGINE_DOWN, live=[peer(2, engine=UP)], storage_good_since_s=None)
    assert decision.state.host.seen == {}
    assert decision.state.engine.missing_since_s is None


def test_a_vm_is_missing_from_the_first_beat_on_that_no_live_host_reports_it() -> None:
    life = Life(peers=(peer(2, engine=UP),), beating={2})
    life.beat()
    life.beat()
    assert life.state.engine.missing_since_s is None
    life.beating.clear()
    life.beat(after_s=TIMING.suspect_after - MOMENT_S)
    assert life.state.engine.missing_since_s is None
    life.beat(after_s=MOMENT_S)
    assert life.state.engine.missing_since_s == pytest.approx(life.now_s)


def test_the_same_inputs_give_the_same_decision() -> None:
    peers = [peer(2, 4200), peer(3, engine=UP)]
    state = state_of(name=S.ENGINE_UP, since_s=NOW_S - 5, seen=seen(live=peers))
    observation = observe(local(UP), peers=tuple(peers))
    assert decide(state, observation, NOW_S) == decide(state, observation, NOW_S)


def test_what_comes_in_is_not_changed() -> None:
    memory = {2: Seen(499, NOW_S - 1, changed=True)}
    state = state_of(name=S.ENGINE_DOWN, since_s=NOW_S - 5, seen=memory)
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
        outcomes=(VmStopEnded(True),),
    )
    assert not decision.state.engine.acting
    assert decision.state.engine.name is S.GLOBAL_MAINTENANCE


def test_every_state_has_its_row_in_the_table_and_none_may_be_left_for_itself() -> None:
    assert set(TRANSITIONS) == set(StateName)
    for name, after in TRANSITIONS.items():
        assert name not in after
    assert not TRANSITIONS[S.AGENT_STOPPED]


def test_the_only_way_into_a_start_leads_through_engine_down() -> None:
    assert [n for n, after in TRANSITIONS.items() if S.ENGINE_START in after] == [S.ENGINE_DOWN]

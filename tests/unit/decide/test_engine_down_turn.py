# SPDX-License-Identifier: LGPL-2.1-or-later
"""EngineDown: whose turn it is among hosts that are equally good."""

from __future__ import annotations

from typing import Any

import pytest

from scoring.decide import Decision
from scoring.decision import AskLease, AskPower, Code, StartVm
from scoring.observation import (
    LeaseAnswer,
)
from scoring.vm.state import StateName
from tests.unit.builders import (
    MOMENT_S,
    NOW_S,
    TIMING,
    UP,
    Life,
    codes,
    down,
    free_lease,
    kinds,
    lease_of,
    local,
    may_start,
    peer,
    replaced,
    starts,
)

S = StateName


def lives_of(*hosts: int, last_ran: int = 0, waiting: dict[int, Any] | None = None) -> Life:
    """Host 1 with live equals, the VM down everywhere and its lease free."""
    life = Life(peers=tuple(peer(h) for h in hosts), beating=set(hosts))
    for host_id, changed in (waiting or {}).items():
        life.change_peer(host_id, **changed)
    life.here = replaced(life.here, last_ran=last_ran)
    return life


def start_moment(life: Life, beats: int = 40) -> float | None:
    """When host 1 starts the VM, its questions after the lease being answered at once."""
    outcomes: tuple[LeaseAnswer, ...] = ()
    for _ in range(beats):
        decision = life.beat(*outcomes)
        if StartVm in kinds(decision):
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
    """The turns hold also in a cold start, where all hosts see the same from the same moment on."""
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
    assert kinds(decision(follow_s)) == {StartVm if lease.owner is None else AskPower}


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
    assert first_seen.state.engine.startable_since_s == NOW_S


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
    assert kinds(decision(given_s)) == {StartVm}


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
        assert kinds(decision(given_s, *better)) == {StartVm}
        assert codes(decision(given_s - MOMENT_S, *better)) == [Code.BETTER_HOST]


def test_a_new_better_host_gets_its_chance_and_is_remembered() -> None:
    decision = down(
        live=[peer(2, score=3400), peer(3, score=3400)],
        here=local(bridge_up=False),
        remembered=may_start(ahead=(2,), ahead_since_s=NOW_S - 500, startable_since_s=NOW_S - 500),
        for_s=500.0,
    )
    assert codes(decision) == [Code.BETTER_HOST]
    assert (decision.state.engine.ahead, decision.state.engine.ahead_since_s) == ((2, 3), NOW_S)


def test_once_the_vm_is_there_every_host_has_its_chance_again() -> None:
    seen = down(
        live=[peer(2, engine=UP)],
        remembered=may_start(ahead=(2, 3), ahead_since_s=NOW_S - 500),
    )
    assert seen.state.engine.ahead == ()


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
        assert life.state.engine.name is S.GLOBAL_MAINTENANCE
        life.world = {}
        ended_s = life.now_s
        started_s = start_moment(life)
        assert started_s is not None
        return started_s - ended_s

    assert started_after_s(3) >= started_after_s(1) + TIMING.tie_follow

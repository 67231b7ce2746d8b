# SPDX-License-Identifier: LGPL-2.1-or-later
"""EngineDown: who owns the lease of the VM, and how long its owner is waited for."""

from __future__ import annotations

from typing import Any

import pytest

from scoring.decision import (
    AskLease,
    AskPower,
    Code,
)
from scoring.hosts.evidence import RENEWAL_SEEN_LATE_S
from scoring.hosts.state import Takeover
from scoring.observation import (
    LeaseAnswer,
    Power,
    PowerAnswer,
    Standing,
)
from tests.unit.builders import (
    MOMENT_S,
    NOW_S,
    RULES,
    TIMING,
    codes,
    down,
    free_lease,
    lease_of,
    long_silent,
    may_start,
    peer,
    starts,
)


def test_a_lease_that_is_lost_again_is_waited_for_anew() -> None:
    decision = down(
        silent=[peer(2)], remembered=may_start(lease=lease_of(2), startable_since_s=1.0)
    )
    assert decision.state.engine.startable_since_s is None


@pytest.mark.parametrize(("owner", "is_started"), [(2, True), (3, False)])
def test_an_id_that_was_freed_gives_no_lease_of_another_host(owner: int, is_started: bool) -> None:
    """Two hosts died, and each had a VM: the death of one is no word about the other."""
    freed = Takeover(2, NOW_S - 3.0, freed_s=NOW_S - MOMENT_S)
    lease = lease_of(owner, NOW_S - 1.0)
    decision = down(silent=[peer(2), peer(3)], remembered=may_start(lease=lease, takeover=freed))
    assert starts(decision) is is_started
    assert (Code.HOST_ID_FREED in codes(decision)) is is_started


def test_without_an_answer_an_id_that_was_freed_gives_no_lease() -> None:
    freed = Takeover(2, NOW_S - 3.0, freed_s=NOW_S - MOMENT_S)
    decision = down(silent=[peer(2)], remembered=may_start(lease=None, takeover=freed))
    assert not starts(decision) and AskLease() in decision.actions


def test_the_lease_is_asked_for_before_a_start() -> None:
    decision = down(remembered={})
    assert decision.actions == (AskLease(),)
    assert codes(decision) == [Code.LEASE_ASKED]
    assert decision.state.engine.asking_lease


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
    """The host's slot beats again, but with a newer generation: its old VM is gone."""
    rebooted = lease_of(2, current_generation=6)
    assert starts(down(live=[peer(2, 10)], remembered={"lease": rebooted}))


def test_a_live_owner_is_waited_for_and_never_asked_its_power() -> None:
    decision = down(
        live=[peer(2, 10)], remembered={"lease": lease_of(2)}, fence_devices=frozenset({2})
    )
    assert codes(decision) == [Code.LEASE_OWNER_LIVE]
    assert decision.actions == ()
    assert decision.state.host.takeover is None


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
    assert decision.state.host.takeover is not None


def test_an_owner_without_a_slot_is_as_silent_as_any() -> None:
    decision = down(remembered={"lease": lease_of(9)}, fence_devices=frozenset({9}))
    assert decision.actions == (AskPower(9),)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leases: what an agent asks of sanlock, and takes of it.

What becomes of another host's lease takes sanlock's own times, and is in tests/lab.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.fence.driver import always
from scoring.decision import FreeHostId
from scoring.observation import LeaseAnswer, Standing
from tests.contract.real import RealLeases
from tests.contract.simulated import SimulatedLeases

Both = SimulatedLeases | RealLeases


@pytest.fixture(params=["simulated", "real"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Both]:
    made: Both
    if request.param == "real":
        request.getfixturevalue("sanlock_daemon")
        made = RealLeases(tmp_path)
    else:
        made = SimulatedLeases()
    yield made
    made.close()


def test_a_lease_that_nobody_owns_is_known_to_be_free(site: Both) -> None:
    for ask in (site.leases.ask_engine, site.leases.ask_fence):
        answer = site.call(ask)
        assert answer.known and answer.owner is None
        assert not answer.keeps_out(site.host_id)


def asked_until_it_lives(site: Both) -> LeaseAnswer:
    """Who holds the fence lease, once sanlock has looked at the hosts after it joined. Before that
    the real one refuses to tell (EAGAIN), and the simulated one says that it does not know; for
    both the owner is not gone."""
    for _ in range(100):
        answer = site.call(site.leases.ask_fence)
        if answer.standing is Standing.LIVE:
            break
        assert answer.standing is Standing.UNKNOWN
        site.pass_s(0.5)
    return answer


def test_the_fence_lease_is_held_from_its_taking_to_its_dropping(site: Both) -> None:
    assert not site.leases.fence_held
    taken = site.call(site.leases.take_fence)
    assert taken.held and not taken.detail and site.leases.fence_held
    answer = asked_until_it_lives(site)
    on_disk = site.call(lambda: site.leases.read_delta(site.host_id))
    assert on_disk is not None
    assert (answer.known, answer.owner, answer.standing) == (True, site.host_id, Standing.LIVE)
    assert answer.owner_generation == answer.current_generation == on_disk[0]
    assert answer.dead_in_s is not None and answer.dead_in_s > 0
    site.call(site.leases.drop_fence)
    assert not site.leases.fence_held
    for _ in range(300):
        site.pass_s(0.1)
        if site.call(site.leases.ask_fence).owner is None:
            break
    assert site.call(site.leases.ask_fence).owner is None


def test_an_own_lease_does_not_keep_its_host_out(site: Both) -> None:
    site.call(site.leases.take_fence)
    answer = asked_until_it_lives(site)
    assert not answer.keeps_out(site.host_id) and answer.keeps_out(site.other_id)


def test_a_host_id_that_nobody_used_is_free_on_disk(site: Both) -> None:
    on_disk = site.call(lambda: site.leases.read_delta(site.other_id))
    assert on_disk is not None and on_disk[1] == 0
    mine = site.call(lambda: site.leases.read_delta(site.host_id))
    assert mine is not None and mine[0] == 1 and mine[1] > 0


@pytest.mark.parametrize(
    ("target", "generation", "says"),
    [
        (1, 1, "it is this host's own id"),
        (2, 7, "its lease on disk shows generation and timestamp"),
    ],
)
def test_a_host_id_is_not_freed_where_the_disk_shows_another_story(
    site: Both, target: int, generation: int, says: str
) -> None:
    site.call(site.leases.take_fence)
    act = FreeHostId(target, generation, 99, 0.0, True, "read off twice")
    ended = site.call(lambda: site.leases.free_host_id(act, always))
    assert not ended.ok and ended.host_id == target
    assert says in ended.detail


def test_a_host_id_is_not_freed_without_the_fence_lease(site: Both) -> None:
    on_disk = site.call(lambda: site.leases.read_delta(site.other_id))
    assert on_disk is not None
    act = FreeHostId(site.other_id, *on_disk, 0.0, True, "read off twice")
    ended = site.call(lambda: site.leases.free_host_id(act, always))
    assert not ended.ok and ended.detail == "the fence lease is not held"


def test_what_sanlock_refuses_is_an_outcome_in_its_name(site: Both) -> None:
    """Here: to take a lease under a host id that was given back."""
    site.leave()
    taken = site.call(site.leases.take_fence)
    assert not taken.held and taken.detail.startswith("sanlock: ")
    assert not site.leases.fence_held

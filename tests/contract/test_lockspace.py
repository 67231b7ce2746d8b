# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lockspace: this host's id, joined and kept, held back and given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.lockspace.own_id import FenceOwner
from broker.lockspace.port import RELEASED
from tests.contract.real import ALIGN, RealLockspace
from tests.contract.simulated import SimulatedLockspace

Both = SimulatedLockspace | RealLockspace


@pytest.fixture(params=["simulated", "real"])
def site(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Both]:
    made: Both
    if request.param == "real":
        request.getfixturevalue("sanlock_daemon")
        made = RealLockspace(tmp_path, monkeypatch)
    else:
        made = SimulatedLockspace()
    yield made
    made.close()


def until(site: Both, true: Callable[[], bool]) -> None:
    """Some of the looks that it takes every two seconds."""
    for _ in range(400):
        if true():
            return
        site.pass_s(0.25)
    raise AssertionError((site.lockspace.joined, site.lockspace.problem))


def mine(site: Both) -> tuple[int, str]:
    """Generation and state of the own id, as sanlock tells them."""
    witness = site.lockspace.witnesses.get(site.host_id)
    return (0, "") if witness is None else (witness.generation, witness.state)


def test_an_id_is_joined_and_seen_to_live(site: Both) -> None:
    lockspace = site.lockspace
    assert lockspace.joined is None and lockspace.problem == "not joined yet"
    site.run()
    until(site, lambda: lockspace.joined is True and mine(site) == (1, "live"))
    assert lockspace.problem == ""


def test_what_holds_the_joining_back_is_the_problem_until_it_is_gone(site: Both) -> None:
    lockspace = site.lockspace
    lockspace.hold = "the slot is another host's"
    site.run()
    until(site, lambda: lockspace.joined is False)
    site.pass_s(1.0)
    assert (lockspace.joined, lockspace.problem) == (False, "the slot is another host's")
    lockspace.hold = ""
    until(site, lambda: lockspace.joined is True)


def test_an_id_that_must_not_be_joined_is_not_and_says_why(site: Both) -> None:
    lockspace = site.lockspace
    lockspace.no_join = True
    site.run()
    until(site, lambda: lockspace.joined is False)
    site.pass_s(1.0)
    assert (lockspace.joined, lockspace.problem) == (False, RELEASED)


def test_an_id_that_is_given_back_is_joined_anew_without_a_wait(site: Both) -> None:
    """The delta lease is free on disk; the next join counts one generation higher."""
    lockspace = site.lockspace
    site.run()
    until(site, lambda: lockspace.joined is True)
    lockspace.no_join = lockspace.stay_out = True
    until(site, lambda: lockspace.joined is False and lockspace.problem == RELEASED)
    assert lockspace.renewed_s is None and lockspace.witnesses == {}
    lockspace.no_join = lockspace.stay_out = False
    until(site, lambda: lockspace.joined is True and mine(site)[0] == 2)


@pytest.mark.parametrize("site", ["real"], indirect=True)
def test_a_lease_that_is_lost_is_found(
    site: RealLockspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is overwritten counts as lost once two looks have found the same in its place."""
    monkeypatch.setattr("broker.lockspace.sanlock.LEASES_EVERY_S", 0.1)
    monkeypatch.setattr("broker.lockspace.sanlock.AGAIN_S", 0.1)
    lockspace = site.lockspace
    lockspace.wanted_leases = lambda: {"engine": 1, "fence": 2}
    site.run()
    until(site, lambda: lockspace.joined is True)
    site.pass_s(1.0)
    assert lockspace.lost_leases == {}
    with site.path.open("r+b") as file:
        file.seek(ALIGN)
        engine = file.read(512)
        file.seek(ALIGN)
        file.write(bytes(512))
    until(site, lambda: lockspace.lost_leases == {"engine": "nothing that can be read"})
    with site.path.open("r+b") as file:
        file.truncate(6 * ALIGN)
        file.seek(5 * ALIGN)  # where a definition may name it as well
        file.write(engine)
    until(site, lambda: lockspace.lost_leases == {})


def test_an_id_that_is_to_stay_out_is_not_joined_in_the_first_place(site: Both) -> None:
    lockspace = site.lockspace
    lockspace.stay_out = True
    site.run()
    until(site, lambda: lockspace.joined is False)
    site.pass_s(1.0)
    assert (lockspace.joined, lockspace.problem) == (False, RELEASED)


def test_who_owns_the_fence_lease_is_looked_up_where_it_is_asked_for(site: Both) -> None:
    lockspace = site.lockspace
    lockspace.watch_fence = True
    site.run()
    until(site, lambda: lockspace.fence_owner is not None)
    assert lockspace.fence_owner == FenceOwner(0, 0)

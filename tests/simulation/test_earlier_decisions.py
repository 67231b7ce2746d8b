# SPDX-License-Identifier: LGPL-2.1-or-later
"""The earlier version's own decisions, as one of a simulated cluster's hosts makes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from scoring.decide import decide
from scoring.decision import MigrateVm
from scoring.hosts.state import HostState
from scoring.observation import (
    FenceRecord,
    FenceStep,
    LocalHost,
    Observation,
    Order,
    OrderKind,
    PeerReport,
)
from scoring.rules import Rules
from scoring.state import AgentState
from scoring.vm.state import StateName, VmState
from scoring.vm_facts import ENGINE, EngineStatus, Health, PeerVm, VmHere, VmStatus
from tests import earlier_version
from tests.simulation import earlier_decisions
from tests.simulation.earlier_decisions import NAME, NotToBeHad, counterparts, field_names
from tests.simulation.scenario import Player, parse


@pytest.fixture
def earlier() -> None:
    """Skips where git's history is not here."""
    try:
        earlier_decisions.must_be_had()
    except NotToBeHad as error:
        pytest.skip(str(error))


@pytest.fixture
def without_history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A tree that is no clone: it has no history."""
    monkeypatch.setattr(earlier_version, "ROOT", tmp_path)
    earlier_decisions._earlier.cache_clear()
    yield
    earlier_decisions._earlier.cache_clear()


def observation(order: Order | None = None, timestamp: int = 7) -> Observation:
    """The VM is up and healthy here, another host is as good, and all is read."""
    up = EngineStatus(VmStatus.UP, Health.GOOD)
    down = EngineStatus(VmStatus.DOWN, Health.UNKNOWN)
    return Observation(
        LocalHost(1, (VmHere(up, 100.0, lease_held=True),), network=1.0, mem_free_mb=9000.0),
        peers=(PeerReport(2, timestamp, 3400, {ENGINE: PeerVm(down)}, "host2", read_s=100.0),),
        storage_good_since_s=1.0,
        sweep=50,
        global_maintenance=False,
        lockspace_joined=True,
        migration_possible=True,
        order=order,
    )


def test_all_that_the_earlier_version_knows_is_given_to_it(earlier: None) -> None:
    """A field that was renamed since would be lost without a word."""
    kinds = dict(counterparts())
    assert {kind.__name__ for kind in kinds} >= {"AgentState", "Observation", "PeerReport", "Score"}
    for then, now in kinds.items():
        assert is_dataclass(then)
        if then.__name__ == "ScoreInput":
            # Not given to it: it makes them itself.
            continue
        assert now is not None, f"this version has no {then.__name__}"
        has = set(field_names(now))
        if now is AgentState:
            # One record then, apart today.
            has |= {each.name for part in (HostState, VmState) for each in fields(part)}
        lost = {each.name for each in fields(then)} - has
        assert not lost, f"{then.__name__}: {lost}"


def test_it_is_the_earlier_version_that_decides(earlier: None) -> None:
    """The earlier version moves the VM as this one does, but names no end of the move."""
    up = VmState(StateName.ENGINE_UP, since_s=10.0)
    state = AgentState(Rules(migration_timeout_s=77.0), vms={ENGINE: up})
    seen = decide(state, observation(timestamp=6), 99.0).state
    ordered = observation(Order(3, OrderKind.MIGRATE, 2))
    then, now = earlier_decisions.decide(seen, ordered, 100.0), decide(seen, ordered, 100.0)
    assert type(then) is type(now)
    assert then.actions == (MigrateVm(2),)
    assert then.state.engine.moving_to == 2
    assert then.state.engine.moving_until_s is None
    # This version asks the target's libvirt first, or says until when.
    assert then.actions != now.actions or now.state.engine.moving_until_s is not None
    assert then.state.rules == state.rules, "its own part of the rules does not take the rest away"


def test_what_it_does_not_know_is_not_there_for_it(earlier: None) -> None:
    """A step of the fence log that came later is as if it had not been written."""
    log = (
        FenceRecord(1, FenceStep.INTENT, 1, 2, 50.0),
        FenceRecord(2, FenceStep.FREEING, 1, 2, 51.0),
    )
    types = earlier_decisions.of_then()
    [record] = earlier_decisions.into(log, types)
    assert (record.number, record.step.value) == (1, "intent")
    assert type(record).__module__.startswith(NAME)


def test_without_the_history_it_says_so_and_what_to_do(without_history: None) -> None:
    """Tests and stories must not pass as if they had run the earlier version."""
    with pytest.raises(NotToBeHad, match=r"earlier version 9eaa995 is not to be had.*unshallow"):
        earlier_decisions.must_be_had()
    told = "# a\nhosts 2\nset decisions previous host1\nexpect moves 0\n"
    with pytest.raises(NotToBeHad):
        Player(parse("x.txt", told)).play()

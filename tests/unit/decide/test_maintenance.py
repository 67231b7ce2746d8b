# SPDX-License-Identifier: LGPL-2.1-or-later
"""LocalMaintenance and GlobalMaintenance."""

from __future__ import annotations

import pytest

from scoring.decision import Code
from scoring.vm.state import StateName
from scoring.vm_facts import EngineStatus
from tests.unit.builders import (
    BOOTING,
    DIED,
    DOWN,
    NOW_S,
    UNKNOWN,
    UP,
    codes,
    in_state,
    local,
)

S = StateName


def test_local_maintenance_lasts_while_it_is_set() -> None:
    decision = in_state(S.LOCAL_MAINTENANCE, local(DOWN, maintenance=True), for_s=9999)
    assert decision.state.engine.name is S.LOCAL_MAINTENANCE
    assert codes(decision) == [Code.LOCAL_MAINTENANCE]


def test_local_maintenance_ends_when_it_is_cleared() -> None:
    decision = in_state(S.LOCAL_MAINTENANCE, local(DOWN))
    assert decision.state.engine.name is S.ENGINE_DOWN
    assert codes(decision)[0] is Code.LOCAL_MAINTENANCE_OVER


def test_a_vm_that_appears_on_a_host_in_local_maintenance_is_watched_over() -> None:
    decision = in_state(S.LOCAL_MAINTENANCE, local(BOOTING, maintenance=True))
    assert decision.state.engine.name is S.ENGINE_STARTING
    assert decision.score.value == 0


def test_local_maintenance_gives_way_to_global_maintenance() -> None:
    decision = in_state(S.LOCAL_MAINTENANCE, local(DOWN, maintenance=True), global_maintenance=True)
    assert decision.state.engine.name is S.GLOBAL_MAINTENANCE
    assert decision.score.value == 0, "a host in local maintenance is no candidate in either"


@pytest.mark.parametrize("engine", [UP, BOOTING, DOWN, DIED, UNKNOWN])
def test_global_maintenance_lasts_while_it_is_set(engine: EngineStatus) -> None:
    decision = in_state(S.GLOBAL_MAINTENANCE, local(engine), for_s=99999, global_maintenance=True)
    assert decision.state.engine.name is S.GLOBAL_MAINTENANCE
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
    assert decision.state.engine.name is after

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guards: what holds, or moves, an agent whatever state it is in."""

from __future__ import annotations

from typing import Any

import pytest

from scoring.decision import (
    Code,
)
from scoring.vm.state import StateName
from tests.unit.builders import (
    DIED,
    DOWN,
    GUARDED,
    SICK,
    UNKNOWN,
    UP,
    VM_ACTIONS,
    codes,
    in_state,
    kinds,
    local,
)

S = StateName


@pytest.mark.parametrize("name", GUARDED)
def test_global_maintenance_comes_before_an_unknown_vm_and_local_maintenance(
    name: StateName,
) -> None:
    here = local(UNKNOWN, maintenance=True)
    decision = in_state(name, here, global_maintenance=True)
    assert decision.state.engine.name is S.GLOBAL_MAINTENANCE
    assert codes(decision)[0] is Code.GLOBAL_MAINTENANCE


@pytest.mark.parametrize("name", [*GUARDED, S.LOCAL_MAINTENANCE])
def test_an_unknown_vm_comes_before_local_maintenance(name: StateName) -> None:
    """(EngineForceStop and EngineStop look at local maintenance first, as the reference.)"""
    here = local(UNKNOWN, maintenance=True)
    first = name in (S.ENGINE_STOP, S.ENGINE_FORCE_STOP)
    decision = in_state(name, here)
    assert codes(decision)[0] is (Code.LOCAL_MAINTENANCE if first else Code.LOCAL_VM_UNKNOWN)
    # From LocalMaintenance, too, the unknown VM is what counts in the end.
    assert decision.state.engine.name is S.UNKNOWN_LOCAL_VM_STATE


@pytest.mark.parametrize("name", GUARDED)
def test_local_maintenance_of_a_host_without_the_vm_ends_in_local_maintenance(
    name: StateName,
) -> None:
    decision = in_state(name, local(DOWN, maintenance=True))
    assert decision.state.engine.name is S.LOCAL_MAINTENANCE
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
        assert decision.state.engine.name is name
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
    assert decision.state.engine.name is S.GLOBAL_MAINTENANCE

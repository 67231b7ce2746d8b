# SPDX-License-Identifier: LGPL-2.1-or-later
"""AgentStopped: each state ends there when the agent is asked to end."""

from __future__ import annotations

import pytest

from scoring.vm.state import StateName
from scoring.vm_facts import EngineStatus
from tests.unit.builders import (
    DIED,
    DOWN,
    GUARDED,
    UNKNOWN,
    UP,
    in_state,
    local,
)

S = StateName


@pytest.mark.parametrize("name", GUARDED)
def test_an_agent_that_is_asked_to_end_ends_and_leaves_the_vm_alone(name: StateName) -> None:
    for engine in (UP, DOWN, DIED, UNKNOWN):
        decision = in_state(name, local(engine), stopping=True, global_maintenance=True)
        assert decision.state.engine.name is S.AGENT_STOPPED
        assert decision.actions == ()
        assert decision.score.value == 0


@pytest.mark.parametrize("mode", [S.LOCAL_MAINTENANCE, S.GLOBAL_MAINTENANCE])
def test_an_agent_that_is_asked_to_end_ends_in_maintenance_too(mode: StateName) -> None:
    """Whichever mode its host is in: the score of a host without an agent is 0."""
    for both in (True, False):
        here = local(DOWN, maintenance=both or mode is S.LOCAL_MAINTENANCE)
        wide = both or mode is S.GLOBAL_MAINTENANCE
        decision = in_state(mode, here, stopping=True, global_maintenance=wide)
        assert decision.state.engine.name is S.AGENT_STOPPED


@pytest.mark.parametrize("engine", [UP, DOWN, UNKNOWN])
def test_a_stopped_agent_does_nothing_any_more(engine: EngineStatus) -> None:
    decision = in_state(
        S.AGENT_STOPPED, local(engine, maintenance=True), global_maintenance=True, for_s=9999
    )
    assert decision.state.engine.name is S.AGENT_STOPPED
    assert decision.actions == ()
    assert decision.score.penalties[0].name == "stopped"


@pytest.mark.parametrize("name", sorted(set(S) - {S.AGENT_STOPPED}))
@pytest.mark.parametrize("engine", [UP, DOWN])
def test_every_state_ends_when_the_agent_is_asked_to(name: StateName, engine: EngineStatus) -> None:
    decision = in_state(name, local(engine), stopping=True)
    assert decision.state.engine.name is S.AGENT_STOPPED
    assert decision.actions == ()

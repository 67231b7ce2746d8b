# SPDX-License-Identifier: LGPL-2.1-or-later
"""ReinitializeFSM: where an agent goes from that has just begun."""

from __future__ import annotations

from typing import Any

from scoring.decide import Decision, decide
from scoring.decision import Code
from scoring.observation import (
    LocalHost,
)
from scoring.state import AgentState
from scoring.vm.state import StateName
from tests.unit.builders import (
    BOOTING,
    DOWN,
    NOW_S,
    RULES,
    UP,
    codes,
    local,
    observe,
)

S = StateName


def first_beat(here: LocalHost, **observed: Any) -> Decision:
    return decide(AgentState(RULES), observe(here, **observed), NOW_S)


def test_a_new_agent_that_finds_the_vm_here_watches_over_it() -> None:
    decision = first_beat(local(BOOTING))
    assert decision.state.engine.name is S.ENGINE_STARTING
    assert decision.state.engine.since_s == NOW_S
    assert decision.actions == ()


def test_a_new_agent_that_finds_a_healthy_vm_here_is_in_engine_up_at_once() -> None:
    decision = first_beat(local(UP))
    assert decision.state.engine.name is S.ENGINE_UP
    assert codes(decision)[:2] == [Code.VM_FOUND_HERE, Code.ENGINE_HEALTHY]


def test_a_new_agent_without_the_vm_goes_to_engine_down() -> None:
    decision = first_beat(local(DOWN), storage_good_since_s=NOW_S)
    assert decision.state.engine.name is S.ENGINE_DOWN
    assert decision.state.engine.missing_since_s == NOW_S
    assert codes(decision) == [Code.VM_NOT_HERE, Code.NOT_ENOUGH_DATA]


def test_a_new_agent_remembers_the_last_run_that_its_own_slot_tells() -> None:
    assert first_beat(local(DOWN, last_ran=7)).state.engine.last_ran == 7

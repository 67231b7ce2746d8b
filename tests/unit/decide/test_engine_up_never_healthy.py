# SPDX-License-Identifier: LGPL-2.1-or-later
"""EngineStarting and EngineUpBadHealth: a health check that was never seen to work."""

from __future__ import annotations

from scoring.decision import Code
from scoring.vm.state import StateName
from scoring.vm_facts import DomainHere, Pause
from tests.unit.builders import (
    NOW_S,
    PAUSED,
    SICK,
    TIMING,
    codes,
    in_state,
    local,
)

S = StateName


def test_a_vm_that_was_never_healthy_is_left_running_and_told_critically() -> None:
    never = local(SICK, healthy_before=False, lease_held=True)
    started = in_state(S.ENGINE_STARTING, never, for_s=TIMING.engine_starting)
    for decision in (started, in_state(S.ENGINE_UP_BAD_HEALTH, never, for_s=TIMING.bad_health)):
        assert decision.state.engine.name is S.ENGINE_UP_BAD_HEALTH
        assert decision.actions == ()
        assert codes(decision)[-1] is Code.NEVER_HEALTHY
        assert "the health page does not answer" in decision.reasons[-1].text
        assert decision.state.engine.since_s == NOW_S, (
            "its time begins once the check is known to work"
        )
    assert in_state(S.ENGINE_STARTING, never, for_s=1).state.engine.name is S.ENGINE_STARTING


def test_one_that_was_healthy_once_is_stopped_and_the_cause_is_told() -> None:
    for name, for_s, code in (
        (S.ENGINE_STARTING, TIMING.engine_starting, Code.STARTING_TIMEOUT),
        (S.ENGINE_UP_BAD_HEALTH, TIMING.bad_health, Code.BAD_HEALTH_TIMEOUT),
    ):
        decision = in_state(name, local(SICK, lease_held=True), for_s=for_s)
        assert decision.state.engine.name is S.ENGINE_STOP
        assert decision.reasons[0].code is code
        assert "the health page does not answer" in decision.reasons[0].text


def test_a_paused_vm_is_surely_not_well_whatever_its_check_is_worth() -> None:
    stands = local(
        PAUSED,
        healthy_before=False,
        lease_held=False,
        domain=DomainHere(pause=Pause.IO_ERROR),
    )
    for name in (S.ENGINE_STARTING, S.ENGINE_UP_BAD_HEALTH):
        decision = in_state(name, stands, for_s=TIMING.bad_health)
        assert decision.state.engine.name is S.ENGINE_FORCE_STOP

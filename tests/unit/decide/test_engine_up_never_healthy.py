# SPDX-License-Identifier: LGPL-2.1-or-later
"""EngineStarting and EngineUpBadHealth: a health check that proves nothing."""

from __future__ import annotations

import pytest

from scoring.decision import Code, PowerOffVm
from scoring.vm.state import StateName
from scoring.vm_facts import DomainHere, EngineStatus, OutsideView, Pause
from tests.unit.builders import (
    NOW_S,
    PAUSED,
    SICK,
    TIMING,
    UP,
    codes,
    in_state,
    kinds,
    local,
    peer,
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


def _reaches(ago_s: float) -> OutsideView:
    return OutsideView(1, 7, NOW_S - ago_s, None)


def test_one_that_counts_as_starting_and_is_reached_is_left_running() -> None:
    """An agent that was started anew takes a VM that has run for days for one that boots."""
    for ago_s, name in ((1.0, S.ENGINE_UP_BAD_HEALTH), (TIMING.isolation_after, S.ENGINE_STOP)):
        decision = in_state(
            S.ENGINE_STARTING,
            local(SICK, lease_held=True),
            for_s=TIMING.engine_starting,
            live=[peer(2, outside=_reaches(ago_s))],
            remembered={"last_ran": 7},
        )
        assert decision.state.engine.name is name, ago_s
        assert decision.state.engine.sick is (name is S.ENGINE_STOP)


@pytest.mark.parametrize(
    ("engine", "ago_s", "sick", "name"),
    [
        (UP, None, True, S.ENGINE_UP),
        (SICK, 1.0, True, S.ENGINE_STARTING),
        (SICK, TIMING.isolation_after, True, S.ENGINE_FORCE_STOP),
        (SICK, None, True, S.ENGINE_FORCE_STOP),
        (UP, None, False, S.ENGINE_FORCE_STOP),
    ],
    ids=["healthy", "reached", "reached long ago", "sick", "stopped for another reason"],
)
def test_one_that_is_well_again_before_it_obeys_is_left_running(
    engine: EngineStatus, ago_s: float | None, sick: bool, name: S
) -> None:
    decision = in_state(
        S.ENGINE_STOP,
        local(engine, lease_held=True),
        for_s=TIMING.stop_grace,
        live=[peer(2, outside=None if ago_s is None else _reaches(ago_s))],
        remembered={"last_ran": 7, "stop_asked": True, "acted_s": NOW_S - 1, "sick": sick},
    )
    assert decision.state.engine.name is name
    assert (Code.HEALTHY_AGAIN in codes(decision)) is (name is not S.ENGINE_FORCE_STOP)
    said = [each.text for each in decision.reasons if each.code is Code.HEALTHY_AGAIN]
    assert all(text.startswith("the VM is healthy again") is (engine is UP) for text in said)
    assert (PowerOffVm in kinds(decision)) is (name is S.ENGINE_FORCE_STOP)
    assert decision.state.engine.sick is False

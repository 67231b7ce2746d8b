# SPDX-License-Identifier: LGPL-2.1-or-later
"""EngineStop and EngineForceStop: the VM is shut down here, or ended."""

from __future__ import annotations

from typing import Any

import pytest

from scoring.decide import Decision
from scoring.decision import Code, PowerOffVm, ShutDownVm
from scoring.observation import VmStopEnded
from scoring.vm.state import StateName
from scoring.vm_facts import DomainHere, EngineStatus, Pause
from tests.unit.builders import (
    DOWN,
    MOMENT_S,
    NOW_S,
    PAUSED,
    SICK,
    acting,
    codes,
    in_state,
    local,
    peer,
)

S = StateName


def stopping_vm(engine: EngineStatus = SICK, **given: Any) -> Decision:
    """A decision in EngineStop, the guest having been asked to shut down."""
    given.setdefault("remembered", {"stop_asked": True, "acted_s": NOW_S - 1})
    here = local(engine, domain=DomainHere(pause=Pause.IO_ERROR if engine is PAUSED else None))
    return in_state(S.ENGINE_STOP, here, **given)


def test_a_guest_is_asked_to_shut_down_once() -> None:
    asked = in_state(S.ENGINE_STOP, local(SICK))
    assert asked.actions == (ShutDownVm(),)
    assert asked.state.engine.stop_asked
    assert stopping_vm(for_s=299).actions == ()


def test_a_guest_that_shut_down_is_down() -> None:
    decision = stopping_vm(DOWN, for_s=10, live=[peer(2, 9999)])
    assert decision.state.engine.name is S.ENGINE_DOWN
    assert codes(decision) == [Code.VM_STOPPED, Code.BETTER_HOST]


def test_a_guest_that_does_not_shut_down_is_ended_after_300_seconds() -> None:
    assert stopping_vm(for_s=300 - MOMENT_S).state.engine.name is S.ENGINE_STOP
    over = stopping_vm(for_s=300)
    assert over.state.engine.name is S.ENGINE_FORCE_STOP
    assert over.actions == (PowerOffVm(),)
    assert codes(over) == [Code.STOP_TIMEOUT, Code.STOP_REQUESTED]


def test_a_guest_that_is_paused_cannot_shut_down_and_is_ended() -> None:
    decision = stopping_vm(PAUSED, for_s=1)
    assert decision.state.engine.name is S.ENGINE_FORCE_STOP
    assert decision.actions == (PowerOffVm(),)
    assert codes(decision)[0] is Code.VM_PAUSED


def test_a_disk_that_fails_here_costs_the_host_a_start() -> None:
    """The VM would be started here again and again otherwise, beside hosts that reach its disk."""
    decision = stopping_vm(PAUSED, for_s=1)
    assert (decision.state.engine.retries, decision.state.engine.last_failure_s) == (1, NOW_S)
    here = local(PAUSED, domain=DomainHere(pause=Pause.OTHER))
    assert in_state(S.ENGINE_STOP, here, for_s=1).state.engine.retries == 0


def test_a_guest_is_not_ended_while_asking_it_is_still_under_way() -> None:
    for engine in (SICK, PAUSED, DOWN):
        decision = stopping_vm(engine, for_s=9999, remembered={"stop_asked": True, "acting": True})
        assert decision.state.engine.name is S.ENGINE_STOP
        assert decision.actions == ()


def test_a_sample_from_before_the_request_is_not_judged() -> None:
    remembered = {"stop_asked": True, "acted_s": NOW_S}
    for engine in (PAUSED, DOWN):
        assert stopping_vm(engine, remembered=remembered).state.engine.name is S.ENGINE_STOP


def test_a_guest_that_could_not_be_asked_is_looked_at_anew() -> None:
    decision = stopping_vm(
        SICK,
        remembered={"stop_asked": True, "acting": True},
        outcomes=(VmStopEnded(False, "no libvirt"),),
    )
    assert codes(decision)[0] is Code.STOP_FAILED
    assert decision.state.engine.name is S.ENGINE_STARTING
    assert decision.actions == ()


def test_a_request_that_was_passed_on_leaves_the_guest_its_time() -> None:
    decision = stopping_vm(
        SICK,
        for_s=5,
        remembered={"stop_asked": True, "acting": True},
        outcomes=(VmStopEnded(True),),
    )
    assert decision.state.engine.name is S.ENGINE_STOP
    assert codes(decision) == [Code.STOP_WAITING]


def test_ending_the_vm_is_begun_once_and_waited_for() -> None:
    begun = in_state(S.ENGINE_FORCE_STOP, local(SICK))
    assert begun.actions == (PowerOffVm(),)
    guards: list[dict[str, Any]] = [{"global_maintenance": True}, {"stopping": True}, {}]
    for observed in guards:
        waiting = in_state(
            S.ENGINE_FORCE_STOP, local(SICK), for_s=9999, remembered=acting(), **observed
        )
        assert waiting.state.engine.name is S.ENGINE_FORCE_STOP
        assert waiting.actions == ()
        assert codes(waiting) == [Code.STOP_WAITING]


@pytest.mark.parametrize(
    ("ok", "after", "code"),
    [
        (True, S.ENGINE_DOWN, Code.VM_STOPPED),
        (False, S.ENGINE_STARTING, Code.STOP_FAILED),
    ],
)
def test_an_end_of_the_vm_is_believed_as_it_is_told(ok: bool, after: StateName, code: Code) -> None:
    decision = in_state(
        S.ENGINE_FORCE_STOP,
        local(SICK),
        remembered=acting(),
        outcomes=(VmStopEnded(ok, "because"),),
    )
    assert decision.state.engine.name is after
    assert codes(decision) == [code, *codes(decision)[1:]]
    assert codes(decision)[-1] is Code.AWAITING_SAMPLE

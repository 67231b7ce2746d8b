# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of the VM is left on a host that does not run it (scoring/vm/left_behind.py)."""

from __future__ import annotations

from typing import Any

import pytest

from scoring.decide import Decision
from scoring.decision import AskLease, Code, DisarmDomain, PowerOffVm
from scoring.observation import DomainDisarmed, LocalHost, VmStopEnded
from scoring.vm.left_behind import LEFTOVER_AFTER_S, RETRY_S
from scoring.vm.state import StateName
from scoring.vm_facts import DomainHere, EngineStatus, Health, Leftover, Pause, VmStatus
from tests.unit.builders import DIED, DOWN, NOW_S, UNKNOWN, UP, codes, in_state, kinds, local, peer

S = StateName
WAITS = EngineStatus(VmStatus.DOWN, Health.BAD, "not running yet", "the VM is being received")
EMPTY = [S.ENGINE_DOWN, S.ENGINE_UNEXPECTEDLY_DOWN, S.ENGINE_MAYBE_AWAY]


def crashed(**changed: Any) -> LocalHost:
    return local(DIED, domain=DomainHere(leftover=Leftover.CRASHED), **changed)


def orphan(for_s: float = LEFTOVER_AFTER_S, held: bool | None = False) -> LocalHost:
    facts = DomainHere(leftover=Leftover.NOT_RECEIVED, leftover_since_s=NOW_S - for_s)
    return local(WAITS, lease_held=held, domain=facts)


def image(engine: EngineStatus = DOWN, **facts: Any) -> LocalHost:
    return local(engine, lease_held=True, domain=DomainHere(memory_image=True, **facts))


def autostart(engine: EngineStatus = DOWN) -> LocalHost:
    return local(engine, lease_held=True, domain=DomainHere(autostart=True))


def ends(decision: Decision) -> bool:
    """Whether the decision ends the process, and does nothing else to the VM."""
    return kinds(decision) - {AskLease} == {PowerOffVm}


# --- a dead process --------------------------------------------------------------------------


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("held", [True, False, None])
def test_the_process_of_a_crashed_guest_is_ended(name: StateName, held: bool | None) -> None:
    """The process may hold the lease, which blocks every other host."""
    decision = in_state(name, crashed(lease_held=held), live=[peer(2)])
    assert ends(decision)
    assert decision.state.engine.name is name and decision.state.engine.acting
    assert codes(decision)[0] is Code.LEFTOVER_VM
    assert codes(decision)[-1] is not Code.LEFTOVER_VM, "the state's own reason stays the last"


def test_also_in_local_maintenance_and_where_it_just_died() -> None:
    drained = in_state(S.LOCAL_MAINTENANCE, crashed(maintenance=True))
    assert drained.actions == (PowerOffVm(),)
    died = in_state(S.ENGINE_UP, crashed(), live=[peer(2)])
    assert died.state.engine.name is S.ENGINE_UNEXPECTEDLY_DOWN
    assert died.actions == (PowerOffVm(),)


def test_no_sentence_of_libvirt_is_needed() -> None:
    here = local(
        EngineStatus(VmStatus.DOWN_UNEXPECTED, Health.BAD),
        domain=DomainHere(leftover=Leftover.CRASHED),
    )
    assert "(crashed)" in in_state(S.ENGINE_DOWN, here).reasons[0].text


def test_what_waits_to_be_received_is_ended_only_when_nobody_sends_it() -> None:
    assert ends(in_state(S.ENGINE_DOWN, orphan(), live=[peer(2)]))
    sends = peer(2, state=S.ENGINE_MIGRATING_AWAY.value)
    cases: list[Decision] = [
        in_state(S.ENGINE_DOWN, orphan(LEFTOVER_AFTER_S - 1), live=[peer(2)]),
        in_state(S.ENGINE_DOWN, orphan(held=None), live=[peer(2)]),
        in_state(S.ENGINE_DOWN, orphan(held=True), live=[peer(2)]),
        in_state(S.ENGINE_DOWN, orphan(), live=[sends]),
        in_state(S.ENGINE_DOWN, orphan(), uncertain=[peer(2)]),
    ]
    for decision in cases:
        assert PowerOffVm not in kinds(decision)


def test_a_guest_that_crashes_right_after_its_start_is_ended_at_once() -> None:
    """Seen in the lab: its process was left for 8 s beside the heir's."""
    decision = in_state(S.ENGINE_DOWN, crashed(), remembered={"acted_s": NOW_S - RETRY_S + 1})
    assert PowerOffVm in kinds(decision)


def test_it_is_not_ended_while_it_must_not_be_or_nothing_fresh_is_known() -> None:
    cases: list[Decision] = [
        in_state(S.ENGINE_DOWN, crashed(), global_maintenance=True),
        in_state(S.ENGINE_DOWN, crashed(), global_maintenance=None),
        in_state(S.ENGINE_DOWN, crashed(), newer_versions=(3,)),
        in_state(S.ENGINE_DOWN, crashed(), stopping=True),
        in_state(S.ENGINE_DOWN, crashed(engine_taken_s=1.0), remembered={"acted_s": 2.0}),
        in_state(S.ENGINE_DOWN, crashed(), remembered={"leftover_ended_s": NOW_S - RETRY_S + 1}),
        in_state(S.ENGINE_DOWN, local(UNKNOWN)),
        in_state(S.ENGINE_STARTING, local(UP, domain=DomainHere(leftover=Leftover.CRASHED))),
    ]
    for decision in cases:
        assert PowerOffVm not in kinds(decision)


def test_one_that_does_not_end_is_told_and_tried_again_later() -> None:
    failed = VmStopEnded(False, "device busy")
    acting = {"acting": True, "acted_s": NOW_S - 60}
    first = in_state(S.ENGINE_DOWN, crashed(), remembered=acting, outcomes=(failed,))
    assert codes(first)[0] is Code.STOP_FAILED and "device busy" in first.reasons[0].text
    assert not first.state.engine.acting and PowerOffVm not in kinds(first)
    again = in_state(S.ENGINE_DOWN, crashed(), remembered={"acted_s": NOW_S - RETRY_S})
    assert ends(again)
    gone = in_state(S.ENGINE_DOWN, local(DOWN), remembered=acting, outcomes=(VmStopEnded(True),))
    assert Code.STOP_FAILED not in codes(gone)


# --- a memory image ----------------------------------------------------------------------------


def test_an_image_is_discarded_once_the_vm_has_run_elsewhere_or_runs_here() -> None:
    elsewhere = in_state(S.ENGINE_DOWN, image(), live=[peer(2, engine=UP)])
    here = in_state(S.ENGINE_UP, image(UP))
    for decision in (elsewhere, here):
        assert decision.actions == (DisarmDomain(image=True),)
        assert decision.state.engine.disarming
        assert codes(decision)[0] is Code.MEMORY_IMAGE
        assert "it is discarded" in decision.reasons[0].text


def test_before_that_it_is_told_and_kept() -> None:
    """Nobody resumes it: our start boots."""
    waits = in_state(S.ENGINE_MAYBE_AWAY, image(), live=[peer(2)])
    assert waits.actions == ()
    assert codes(waits)[0] is Code.MEMORY_IMAGE
    assert "the next start discards it" in waits.reasons[0].text
    written = in_state(S.ENGINE_UP, image(UP, pause=Pause.SAVE))
    assert DisarmDomain not in kinds(written), "it is being written"


def test_autostart_is_turned_off_wherever_it_is_seen() -> None:
    for decision in (
        in_state(S.ENGINE_MAYBE_AWAY, autostart(), live=[peer(2)]),
        in_state(S.ENGINE_UP, autostart(UP)),
    ):
        assert decision.actions == (DisarmDomain(image=False),)
        assert codes(decision)[0] is Code.AUTOSTART


def test_nothing_is_disarmed_where_nothing_must_be_done() -> None:
    cases: list[Decision] = [
        in_state(S.ENGINE_UP, image(UP), global_maintenance=True),
        in_state(S.ENGINE_UP, image(UP), global_maintenance=None),
        in_state(S.ENGINE_UP, image(UP), newer_versions=(3,)),
        in_state(S.ENGINE_UP, image(UP), stopping=True),
        in_state(S.ENGINE_START, image(UP), remembered={"acting": True}),
        in_state(S.ENGINE_UP, image(UP), remembered={"disarming": True}),
        in_state(S.ENGINE_UP, image(UP), remembered={"disarmed_s": NOW_S - RETRY_S + 1}),
    ]
    for decision in cases:
        assert DisarmDomain not in kinds(decision)
        assert Code.MEMORY_IMAGE in codes(decision), "said all the same"


def test_what_could_not_be_taken_away_is_tried_again_later() -> None:
    for ok in (True, False):
        ended = in_state(
            S.ENGINE_UP,
            image(UP),
            remembered={"disarming": True},
            outcomes=(DomainDisarmed(ok, "busy"),),
        )
        assert not ended.state.engine.disarming and ended.state.engine.disarmed_s == NOW_S
        assert DisarmDomain not in kinds(ended)
    again = in_state(S.ENGINE_UP, image(UP), remembered={"disarmed_s": NOW_S - RETRY_S})
    assert again.actions == (DisarmDomain(image=True),)


def test_nothing_is_said_where_nothing_is_there_or_known() -> None:
    for facts in (DomainHere(), DomainHere(memory_image=False, autostart=False)):
        decision = in_state(S.ENGINE_UP, local(UP, lease_held=True, domain=facts))
        assert not {Code.MEMORY_IMAGE, Code.AUTOSTART} & set(codes(decision))
        assert decision.actions == ()

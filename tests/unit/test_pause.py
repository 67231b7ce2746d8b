# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM that stands still: who paused it decides what becomes of it (scoring/vm/pause.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scoring.decide import Decision
from scoring.decision import Code, MigrateVm, PowerOffVm, ShutDownVm
from scoring.observation import LocalHost, Order, OrderKind
from scoring.vm.state import StateName
from scoring.vm_facts import (
    DETAIL_PAUSED,
    PAUSED_ON_PURPOSE,
    DomainHere,
    EngineStatus,
    Health,
    Pause,
    VmStatus,
)
from tests.unit.builders import (
    NOW_S,
    SICK,
    TIMING,
    UP,
    codes,
    in_state,
    kinds,
    local,
    peer,
    replaced,
)

S = StateName
PAUSED = EngineStatus(VmStatus.UP, Health.BAD, DETAIL_PAUSED, "paused by somebody")
LONG_S = 10 * TIMING.engine_starting
#: Paused by what nobody asked for; NEVER_RAN is a case of its own.
UNWANTED = sorted(set(Pause) - PAUSED_ON_PURPOSE - {Pause.NEVER_RAN})
ALIVE = (S.ENGINE_STARTING, S.ENGINE_UP, S.ENGINE_UP_BAD_HEALTH)


def paused(pause: Pause | None, held: bool | None = False, **facts: Any) -> LocalHost:
    return local(PAUSED, lease_held=held, domain=DomainHere(pause=pause, **facts))


def ends(decision: Decision) -> bool:
    return PowerOffVm in kinds(decision)


@pytest.mark.parametrize("name", [*ALIVE, S.ENGINE_STOP])
@pytest.mark.parametrize("pause", sorted(PAUSED_ON_PURPOSE))
@pytest.mark.parametrize("outdated", [False, None])
def test_what_somebody_paused_is_left_alone_for_ever(
    name: StateName, pause: Pause, outdated: bool | None
) -> None:
    here = paused(pause, outdated=outdated)
    decision = in_state(name, here, for_s=LONG_S, live=[peer(2, score=9999)])
    assert decision.state.engine.name is name
    assert decision.actions == ()
    assert decision.state.engine.since_s == NOW_S, "its state's time begins anew once it is resumed"
    said = Code.VM_PAUSED if pause is Pause.USER else Code.VM_PAUSED_BRIEFLY
    assert codes(decision)[-1] is said
    assert "paused by somebody" in decision.reasons[-1].text
    assert Code.VM_UNPROTECTED not in codes(decision)


def test_a_sentence_is_there_where_libvirt_gave_none() -> None:
    here = replaced(paused(Pause.USER), engine=replace(PAUSED, reason=None))
    assert "the VM is paused;" in in_state(S.ENGINE_UP, here).reasons[-1].text


@pytest.mark.parametrize("name", ALIVE)
@pytest.mark.parametrize("pause", UNWANTED)
def test_what_nobody_paused_counts_as_bad_health(name: StateName, pause: Pause) -> None:
    """An I/O error, a watchdog: not at once, whatever restarts meanwhile, but after that time."""
    assert not ends(in_state(name, paused(pause), for_s=TIMING.bad_health - 1))
    late = in_state(name, paused(pause), for_s=TIMING.bad_health)
    if name is S.ENGINE_UP:
        assert late.state.engine.name is S.ENGINE_UP_BAD_HEALTH
    else:
        assert late.state.engine.name is S.ENGINE_FORCE_STOP and ends(late)
        assert "(paused by somebody)" in late.reasons[0].text, "the cause is told"


@pytest.mark.parametrize("name", [*ALIVE, S.ENGINE_STOP])
@pytest.mark.parametrize("pause", [Pause.NEVER_RAN, *sorted(PAUSED_ON_PURPOSE)])
def test_outdated_memory_is_ended_and_never_while_the_lease_is_held_or_that_is_not_known(
    name: StateName, pause: Pause
) -> None:
    ended = in_state(name, paused(pause, outdated=True))
    assert ended.state.engine.name is S.ENGINE_FORCE_STOP and ends(ended)
    said = Code.VM_PAUSED if pause is Pause.NEVER_RAN else Code.VM_OUTDATED
    assert codes(ended)[0] is said
    for held in (True, None):
        kept = in_state(name, paused(pause, held=held, outdated=True), for_s=1)
        assert not ends(kept) or (name is S.ENGINE_STOP and pause is Pause.NEVER_RAN)


def test_a_start_that_was_cut_short_is_ended() -> None:
    """QEMU is there and not one instruction of the guest ran: it blocks every other start."""
    left = in_state(S.ENGINE_STARTING, paused(Pause.NEVER_RAN))
    assert left.state.engine.name is S.ENGINE_FORCE_STOP
    assert kinds(left) == {PowerOffVm}
    for held in (True, None):
        assert (
            in_state(S.ENGINE_STARTING, paused(Pause.NEVER_RAN, held=held)).state.engine.name
            is S.ENGINE_STARTING
        )


def test_why_it_is_paused_is_not_known_then_nothing_is_done_for_it() -> None:
    for name in (S.ENGINE_STARTING, S.ENGINE_STOP):
        decision = in_state(
            name, paused(None), for_s=1, remembered={"stop_asked": True, "acted_s": NOW_S - 1}
        )
        assert decision.state.engine.name is name and decision.actions == ()


def test_what_runs_is_never_taken_for_paused() -> None:
    for engine in (UP, SICK):
        here = local(engine, lease_held=False, domain=DomainHere(pause=Pause.USER, outdated=True))
        assert not ends(in_state(S.ENGINE_UP, here))


def test_the_word_of_another_host_alone_ends_no_paused_vm() -> None:
    """What runs without its lease is stopped for it; what gave it back to be paused is not, until
    the lease itself shows that another host had it."""
    claims = [peer(2, engine=UP)]
    running = in_state(S.ENGINE_UP, local(UP, lease_held=False), live=claims)
    assert running.state.engine.name is S.ENGINE_STOP and Code.VM_TWICE in codes(running)
    for outdated, words in ((False, "no other host has held the lease"), (None, "not known")):
        kept = in_state(S.ENGINE_UP, paused(Pause.USER, outdated=outdated), live=claims)
        assert kept.state.engine.name is S.ENGINE_UP and not kept.actions
        claimed = next(r for r in kept.reasons if r.code is Code.VM_TWICE_CLAIMED)
        assert words in claimed.text


def test_a_guest_is_not_asked_to_shut_down_while_it_is_paused_on_purpose() -> None:
    decision = in_state(S.ENGINE_STOP, paused(Pause.USER), for_s=LONG_S)
    assert ShutDownVm not in kinds(decision) and not decision.state.engine.stop_asked


def test_a_paused_vm_is_not_moved_by_itself_nor_by_order() -> None:
    better = [peer(2, score=9999)]
    for maintenance in (False, True):
        here = replace(paused(Pause.USER), maintenance=maintenance)
        decision = in_state(
            S.ENGINE_UP, here, live=better, remembered={"better_since_s": NOW_S - LONG_S}
        )
        assert MigrateVm not in kinds(decision)
        assert decision.state.engine.better_since_s is None
    ordered = in_state(
        S.ENGINE_UP, paused(Pause.USER), live=better, order=Order(1, OrderKind.MIGRATE)
    )
    assert MigrateVm not in kinds(ordered)
    assert "virsh resume" in ordered.state.engine.answers[-1].text

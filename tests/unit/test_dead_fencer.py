# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that owns the fence lease is found off: its id is freed as any other's, and nobody is
switched off for it."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.lockspace.freeing_before import freeing_before
from scoring.decide import Decision
from scoring.decision import (
    AskFenceOwner,
    AskPower,
    Code,
    DropFenceLease,
    FreeHostId,
    PowerOffHost,
    TakeFenceLease,
)
from scoring.hosts.evidence import may_free_fencer
from scoring.hosts.state import Takeover
from scoring.observation import (
    FenceLeaseAnswer,
    FenceOwnerAnswer,
    HostIdFreed,
    LeaseAnswer,
    PeerReport,
    Power,
    PowerAnswer,
    Standing,
)
from scoring.vm.state import StateName
from tests.unit.builders import (
    NOW_S,
    RULES,
    TIMING,
    evidence,
    free_lease,
    in_state,
    lease_of,
    off,
    peer,
)

DEAD, FENCER = 2, 3
#: The VM's host hangs; the fence lease was not given.
REFUSED = Takeover(
    DEAD,
    NOW_S - 30,
    power=PowerAnswer(DEAD, Power.ON, NOW_S - 1, identity_proven=True),
    problem="the fence lease was not given: sanlock",
    not_before_s=NOW_S + 4,
    refused=True,
    fence_owner=lease_of(FENCER, NOW_S - 1),
)
FOUND = Takeover(
    FENCER,
    NOW_S - 3,
    offs=(off(FENCER, NOW_S - 2.5), off(FENCER, NOW_S - 1)),
    power=off(FENCER, NOW_S - 1),
)
PROVEN = replace(REFUSED, fencer=FOUND)


def silent(host_id: int, **changed: Any) -> PeerReport:
    slot: dict[str, Any] = {
        "heartbeat_s": NOW_S - 60,
        "unanswered_since_s": NOW_S - 59,
        "renewal_s": NOW_S - 60,
        "renewal_timestamp": 77,
    }
    return peer(host_id, **(slot | changed))


def decided(
    step: Takeover = REFUSED,
    live: tuple[PeerReport, ...] = (),
    hosts: tuple[PeerReport, ...] = (silent(DEAD), silent(FENCER)),
    remembered: dict[str, Any] | None = None,
    **observed: Any,
) -> Decision:
    known: dict[str, Any] = {
        "fence_devices": frozenset({DEAD, FENCER}),
        "fence_log": (),
        "announced": FENCER,
    }
    return in_state(
        StateName.ENGINE_DOWN,
        live=live,
        silent=hosts,
        remembered={"lease": lease_of(DEAD), "takeover": step} | (remembered or {}),
        for_s=900.0,
        **(known | observed),
    )


def codes(decision: Decision) -> list[Code]:
    return [reason.code for reason in decision.reasons]


def step_of(decision: Decision) -> Takeover:
    assert decision.state.host.takeover is not None
    return decision.state.host.takeover


def frees(decision: Decision) -> list[FreeHostId]:
    return [each for each in decision.actions if isinstance(each, FreeHostId)]


# --- who owns the fence lease --------------------------------------------------------------------


def test_who_owns_the_fence_lease_is_asked_when_it_is_not_given() -> None:
    assert AskFenceOwner() in decided(replace(REFUSED, fence_owner=None)).actions
    old = replace(REFUSED, fence_owner=lease_of(FENCER, NOW_S - 2 * TIMING.beat))
    asked = decided(old)
    assert AskFenceOwner() in asked.actions and step_of(asked).asking_owner
    assert AskFenceOwner() not in decided(replace(old, asking_owner=True)).actions
    assert AskFenceOwner() not in decided(REFUSED).actions, "the answer is fresh"


def test_an_acquire_that_takes_long_is_not_waited_for() -> None:
    under_way = replace(REFUSED, refused=False, taking_fence=True, fence_owner=None)
    assert AskFenceOwner() in decided(under_way).actions


def test_one_that_was_only_just_begun_is() -> None:
    ripe = replace(
        REFUSED, refused=False, not_before_s=0.0, fence_owner=None, offs=(off(DEAD, NOW_S - 1),)
    )
    begun = decided(ripe)
    assert TakeFenceLease() in begun.actions and AskFenceOwner() not in begun.actions


def test_with_the_fence_lease_nobody_is_looked_at() -> None:
    held = decided(PROVEN, fence_lease_held=True)
    assert step_of(held).fencer is None and not frees(held)
    given = decided(PROVEN, outcomes=(FenceLeaseAnswer(True, NOW_S),), fence_lease_held=True)
    assert not step_of(given).refused and step_of(given).fence_owner is None


def test_the_answer_is_remembered() -> None:
    asking = replace(REFUSED, asking_owner=True, fence_owner=None)
    after = step_of(decided(asking, outcomes=(FenceOwnerAnswer(lease_of(FENCER)),)))
    assert after.fence_owner == lease_of(FENCER) and not after.asking_owner


@pytest.mark.parametrize(
    "answer",
    [
        free_lease(),
        lease_of(1),
        lease_of(FENCER, standing=Standing.DEAD),
        lease_of(FENCER, standing=Standing.FREE),
        lease_of(FENCER, current_generation=6),
        replace(lease_of(FENCER), known=False),
    ],
)
def test_nobody_is_looked_at_who_does_not_keep_the_lease_from_us(answer: LeaseAnswer) -> None:
    decision = decided(replace(PROVEN, fence_owner=answer))
    assert not frees(decision) and AskPower(FENCER) not in decision.actions
    assert step_of(decision).fencer is None


def test_a_fencer_that_lives_is_left_alone() -> None:
    decision = decided(PROVEN, live=(peer(FENCER),), hosts=(silent(DEAD),))
    assert not frees(decision)
    assert "holds the fence lease, and lives" in decision.reasons[-2].text


def test_one_without_a_fence_device_is_waited_for() -> None:
    decision = decided(PROVEN, fence_devices=frozenset({DEAD}))
    assert not frees(decision) and Code.FENCE_LEASE_ELSEWHERE in codes(decision)


# --- what proves it dead -----------------------------------------------------------------------


def test_its_power_is_asked_once_at_a_time() -> None:
    decision = decided()
    assert AskPower(FENCER) in decision.actions
    fencer = step_of(decision).fencer
    assert fencer is not None and fencer.host_id == FENCER and fencer.asking_power
    again = decided(replace(REFUSED, fencer=fencer))
    assert AskPower(FENCER) not in again.actions
    answered = decided(
        replace(REFUSED, fencer=fencer), outcomes=(off(FENCER, NOW_S - 0.5),), announced=None
    )
    found = step_of(answered).fencer
    assert found is not None and len(found.offs) == 1
    assert answered.wake_s == NOW_S - 0.5 + TIMING.power_reread


def test_a_host_that_has_the_vm_as_well_is_asked_by_one_question() -> None:
    both = replace(REFUSED, fence_owner=lease_of(DEAD, NOW_S - 1), power=None)
    decision = decided(both)
    assert decision.actions.count(AskPower(DEAD)) == 1
    after = step_of(decision)
    assert after.asking_power and after.fencer is not None and after.fencer.asking_power
    assert AskPower(DEAD) not in decided(replace(both, asking_power=True)).actions
    read = step_of(decided(after, outcomes=(off(DEAD, NOW_S),)))
    assert read.offs and read.fencer is not None and read.fencer.offs


def test_a_fencer_that_is_found_off_is_freed() -> None:
    decision = decided(PROVEN)
    (act,) = frees(decision)
    assert (act.host_id, act.generation, act.timestamp) == (FENCER, 5, 77)
    assert act.fencer and not act.ordered and "announced" in act.evidence
    fencer = step_of(decision).fencer
    assert fencer is not None and fencer.freeing
    assert Code.PROVEN_OFF in codes(decision)
    assert not frees(decided(step_of(decision))), "once"


@pytest.mark.parametrize(
    ("missing", "changed"),
    [
        ("announced", {"announced": None}),
        ("announced", {"announced": DEAD}),
        ("no-sign-of-life-since", {"hosts": (silent(DEAD), silent(FENCER, heartbeat_s=NOW_S - 1))}),
    ],
)
def test_each_condition_alone_forbids_it(missing: str, changed: dict[str, Any]) -> None:
    assert not frees(decided(PROVEN, **changed))


@pytest.mark.parametrize(
    ("missing", "fencer", "seen"),
    [
        ("power-off-read-twice", replace(FOUND, offs=FOUND.offs[:1]), {}),
        (
            "read-fresh",
            replace(FOUND, offs=(off(FENCER, NOW_S - 13), off(FENCER, NOW_S - 10.1))),
            {},
        ),
        (
            "device-proven-its",
            replace(FOUND, offs=(FOUND.offs[0], off(FENCER, NOW_S - 1, proven=False))),
            {},
        ),
        ("no-sign-of-life-since", FOUND, {"slot_since_s": NOW_S - 2}),
        ("no-global-maintenance", FOUND, {"global_maintenance": None}),
        ("lease-owner-known", FOUND, {"lease": lease_of(DEAD)}),
        ("lease-owner-known", FOUND, {"lease": replace(lease_of(FENCER), known=False)}),
    ],
)
def test_the_list_of_conditions(missing: str, fencer: Takeover, seen: dict[str, Any]) -> None:
    def lacking(given: Takeover, **changed: Any) -> set[str]:
        conditions = may_free_fencer(given, evidence(FENCER, **changed), FENCER, NOW_S, RULES)
        return {condition.name for condition in conditions if not condition.holds}

    assert lacking(FOUND) == set()
    assert lacking(fencer, **seen) == {missing}


def test_nobody_is_switched_off_for_the_fence_lease() -> None:
    on = PowerAnswer(FENCER, Power.ON, NOW_S - 1, identity_proven=True)
    decision = decided(replace(REFUSED, fencer=replace(FOUND, offs=(), power=on)))
    assert not any(isinstance(action, PowerOffHost) for action in decision.actions)
    assert not frees(decision)
    assert "its power reads on" in decision.reasons[-2].text
    strange = replace(on, identity_proven=False)
    told = decided(replace(REFUSED, fencer=replace(FOUND, offs=(), power=strange)))
    assert "not proven to be its own" in told.reasons[-2].text


# --- and then -------------------------------------------------------------------------------------


def test_the_fence_lease_is_asked_for_at_once_when_the_fencer_is_freed() -> None:
    freeing = replace(
        PROVEN,
        fencer=replace(FOUND, freeing=True),
        power=off(DEAD, NOW_S - 2),
        offs=(off(DEAD, NOW_S - 2),),
    )
    freed = decided(freeing, outcomes=(HostIdFreed(FENCER, True),))
    assert TakeFenceLease() in freed.actions
    assert step_of(freed).freed_s is None, "the VM's host is not"
    assert step_of(freed).fencer is None


def test_a_host_that_had_the_vm_as_well_is_freed_of_both() -> None:
    both = replace(
        REFUSED,
        fence_owner=lease_of(DEAD, NOW_S - 1),
        fencer=replace(FOUND, host_id=DEAD, freeing=True),
    )
    freed = decided(both, outcomes=(HostIdFreed(DEAD, True),))
    assert freed.state.engine.name is StateName.ENGINE_START


def test_one_that_was_not_freed_is_proven_off_anew_after_a_pause() -> None:
    freeing = replace(PROVEN, fencer=replace(FOUND, freeing=True))
    failed = decided(freeing, outcomes=(HostIdFreed(FENCER, False, "changed"),))
    fencer = step_of(failed).fencer
    assert fencer is not None and not fencer.freeing and not fencer.offs
    assert fencer.not_before_s == NOW_S + TIMING.takeover_retry
    assert AskPower(FENCER) not in failed.actions


def test_another_owner_is_another_fencer_but_what_is_under_way_is_waited_for() -> None:
    other = replace(PROVEN, fence_owner=lease_of(4, NOW_S - 1))
    hosts = (silent(DEAD), silent(FENCER), silent(4))
    devices = frozenset({DEAD, FENCER, 4})
    fresh = step_of(decided(other, hosts=hosts, fence_devices=devices)).fencer
    assert fresh is not None and fresh.host_id == 4 and not fresh.offs
    busy = replace(other, fencer=replace(FOUND, freeing=True))
    waits = step_of(decided(busy, hosts=hosts, fence_devices=devices)).fencer
    assert waits is not None and waits.host_id == FENCER


def test_a_freeing_is_withdrawn_when_its_conditions_hold_no_longer() -> None:
    freeing = replace(PROVEN, fencer=replace(FOUND, freeing=True))

    def withdrawn(step: Takeover = freeing, **changed: Any) -> str:
        fencer = step_of(decided(step, **changed)).fencer
        assert fencer is not None
        return fencer.withdrawn

    assert withdrawn() == ""
    assert "announced holds no longer" in withdrawn(announced=None)
    lives = (silent(DEAD), silent(FENCER, heartbeat_s=NOW_S - 1))
    assert "no-sign-of-life" in withdrawn(hosts=lives)
    assert withdrawn(global_maintenance=True) != ""
    assert withdrawn(replace(freeing, fence_owner=None)) == "", "not answered withdraws nothing"
    unknown = replace(lease_of(FENCER, NOW_S - 1), known=False)
    assert withdrawn(replace(freeing, fence_owner=unknown)) == "", "nor does an answer without one"
    taken = withdrawn(replace(freeing, fence_owner=lease_of(4, NOW_S - 1)))
    assert taken.startswith("lease-owner-known holds no longer"), "one that says otherwise does"
    stays = replace(freeing, fencer=replace(FOUND, freeing=True, withdrawn="it lived"))
    assert withdrawn(stays) == "it lived"


def test_what_is_under_way_outlasts_the_takeover() -> None:
    freeing = replace(PROVEN, fencer=replace(FOUND, freeing=True), asking_owner=True)
    over = decided(freeing, global_maintenance=True)
    left = step_of(over)
    assert left.fencer is not None and left.fencer.freeing and left.asking_owner
    assert left.fencer.offs == () and "global maintenance" in left.fencer.withdrawn
    ended = (HostIdFreed(FENCER, True), FenceOwnerAnswer(free_lease()))
    gone = decided(freeing, global_maintenance=True, outcomes=ended)
    assert gone.state.host.takeover is None
    assert decided(PROVEN, global_maintenance=True).state.host.takeover is None


def test_an_answer_that_nobody_waits_for_changes_nothing() -> None:
    outcomes = (FenceOwnerAnswer(free_lease()), off(FENCER, NOW_S), HostIdFreed(FENCER, True))
    decision = decided(
        REFUSED, remembered={"takeover": None}, outcomes=outcomes, global_maintenance=True
    )
    assert decision.state.host.takeover is None
    assert DropFenceLease() not in decision.actions


# --- a broker without a word of its agent ------------------------------------------------------


def test_what_a_process_that_was_left_frees_is_found_by_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "freeing.json"
    assert freeing_before(path) is None
    path.write_text('{"host_id":3,"generation":5,"fencer":true}')
    assert freeing_before(path) is None, "nobody holds it: it has ended"
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert freeing_before(path) == 3
    path.write_text('{"host_id":3,"generation":5}')
    assert freeing_before(path) is None, "the fence lease and the fence log tell of it"
    path.write_text("torn")
    assert freeing_before(path) is None
    os.close(descriptor)

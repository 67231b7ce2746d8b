# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that was switched off is switched on again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scoring.decide import Decision
from scoring.decision import Code, DropFenceLease, PowerOnHost
from scoring.observation import (
    FenceRecord,
    FenceStep,
    PowerOnEnded,
)
from scoring.vm.state import StateName
from tests.unit.builders import (
    DEAD,
    NOW_S,
    RULES,
    TIMING,
    UP,
    codes,
    in_state,
    kinds,
    local,
    peer,
)

S = StateName


SHOT = FenceRecord(7, FenceStep.DEAD, 1, DEAD, NOW_S - 30, ordered=True, boot_id="b")


INTENT = replace(SHOT, number=5, step=FenceStep.INTENT)


FAILED = replace(SHOT, number=6, step=FenceStep.FAILED)


def up_with(*log: FenceRecord, **given: Any) -> Decision:
    given.setdefault("silent", [peer(DEAD)])
    given.setdefault("fence_devices", frozenset({DEAD}))
    return in_state(S.ENGINE_UP, local(UP, lease_held=True), fence_log=log, **given)


def test_the_host_that_runs_the_vm_switches_the_fenced_one_on_again() -> None:
    decision = up_with(SHOT)
    assert PowerOnHost(DEAD) in decision.actions
    assert decision.state.host.switching_on == DEAD
    assert Code.POWER_ON_ORDERED in codes(decision)


@pytest.mark.parametrize("log", [(INTENT,), (INTENT, replace(SHOT, ordered=False))])
def test_one_whose_fencer_died_after_its_order_is_switched_on_too(
    log: tuple[FenceRecord, ...],
) -> None:
    """The host's death is proven by another host that ordered nothing, or only time has passed."""
    assert PowerOnHost(DEAD) in up_with(*log).actions


@pytest.mark.parametrize(
    ("log", "given"),
    [
        ((), {}),
        ((replace(SHOT, ordered=False),), {}),
        ((replace(SHOT, step=FenceStep.FAILED),), {}),
        ((INTENT, FAILED, replace(SHOT, ordered=False)), {}),
        ((replace(INTENT, boot_id="an earlier one"), replace(SHOT, ordered=False)), {}),
        ((SHOT, replace(SHOT, number=8, step=FenceStep.BACK)), {}),
        ((replace(SHOT, at_s=NOW_S - 3600),), {}),
        ((replace(SHOT, target=1),), {}),
        ((SHOT,), {"silent": (), "live": [peer(DEAD)]}),
        ((SHOT,), {"silent": (), "uncertain": [peer(DEAD)]}),
        # The slot is of a later boot: somebody else has switched that host off since.
        ((SHOT,), {"silent": [replace(peer(DEAD), boot_id="another")]}),
        ((INTENT,), {"silent": [replace(peer(DEAD), boot_id="another")]}),
        ((SHOT,), {"fence_devices": frozenset()}),
        ((SHOT,), {"remembered": {"rules": replace(RULES, fence_power_on=False)}}),
        ((SHOT,), {"remembered": {"switching_on": DEAD}}),
        ((SHOT,), {"remembered": {"switched_on_s": {DEAD: NOW_S - 59}}}),
        ((SHOT,), {"global_maintenance": True}),
    ],
)
def test_nobody_is_switched_on_who_was_not_switched_off_by_us_or_is_back(
    log: tuple[FenceRecord, ...], given: dict[str, Any]
) -> None:
    assert PowerOnHost not in kinds(up_with(*log, **given))


def test_it_is_tried_again_after_a_while() -> None:
    tried = up_with(SHOT, outcomes=(PowerOnEnded(DEAD, False, "no answer"),))
    assert tried.state.host.switched_on_s == {DEAD: NOW_S} and PowerOnHost not in kinds(tried)
    again = {"switched_on_s": {DEAD: NOW_S - TIMING.power_on_retry}}
    assert PowerOnHost(DEAD) in up_with(SHOT, remembered=again).actions


def test_the_fence_lease_is_kept_while_a_host_is_switched_on_and_then_dropped() -> None:
    during = up_with(SHOT, remembered={"switching_on": DEAD}, fence_lease_held=True)
    assert DropFenceLease not in kinds(during)
    after = up_with(
        SHOT,
        remembered={"switching_on": DEAD},
        fence_lease_held=True,
        outcomes=(PowerOnEnded(DEAD, True),),
    )
    assert DropFenceLease in kinds(after)

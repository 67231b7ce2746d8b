# SPDX-License-Identifier: LGPL-2.1-or-later
"""UnknownLocalVmState: libvirt does not say whether the VM runs here."""

from __future__ import annotations

import pytest

from scoring.decision import Code
from scoring.vm.state import StateName
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.unit.builders import (
    DOWN,
    UNKNOWN,
    UP,
    codes,
    in_state,
    local,
)

S = StateName


def test_an_unknown_vm_tells_why_it_is_unknown() -> None:
    assert "libvirt hangs" in in_state(S.ENGINE_UP, local(UNKNOWN)).reasons[0].text
    silent = EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN)
    assert "no answer" in in_state(S.ENGINE_UP, local(silent)).reasons[0].text


def test_an_unknown_vm_is_waited_for_however_long_it_takes() -> None:
    decision = in_state(S.UNKNOWN_LOCAL_VM_STATE, local(UNKNOWN), for_s=99999)
    assert decision.state.engine.name is S.UNKNOWN_LOCAL_VM_STATE
    assert decision.actions == ()


@pytest.mark.parametrize(("engine", "after"), [(UP, S.ENGINE_UP), (DOWN, S.ENGINE_DOWN)])
def test_a_vm_that_is_known_again_is_looked_at_anew(engine: EngineStatus, after: StateName) -> None:
    decision = in_state(S.UNKNOWN_LOCAL_VM_STATE, local(engine), storage_good_since_s=None)
    assert decision.state.engine.name is after
    assert codes(decision)[0] is Code.LOCAL_VM_KNOWN

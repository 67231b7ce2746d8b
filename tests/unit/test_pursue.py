# SPDX-License-Identifier: LGPL-2.1-or-later
"""One machine for each dead host, however many VMs wait for it."""

from __future__ import annotations

from typing import Any

from scoring.decide import decide
from scoring.decision import AskPower, Code
from scoring.hosts import fencing
from scoring.hosts.state import HostState, Takeover
from scoring.hosts.turn import HostTurn
from scoring.observation import LeaseAnswer
from scoring.state import AgentState
from scoring.vm.seen import at
from scoring.vm.state import StateName, VmState
from scoring.vm_facts import ENGINE, VmSpec, VmStatus
from tests.unit.builders import LONG_S, NOW_S, RULES, UP, lease_of, local, observe, peer, seen

SILENT = (peer(2), peer(3))


def turn(waits: list[LeaseAnswer], takeover: Takeover | None = None) -> HostTurn:
    """A host that sees hosts 2 and 3 silent, and has a way to the devices of both."""
    observation = observe(local(), peers=SILENT, fence_devices=frozenset({2, 3}))
    state = HostState(seen(silent=SILENT), takeover)
    found = HostTurn(RULES, state, observation, NOW_S)
    fencing.pursue(found, waits)
    return found


def test_two_vms_that_wait_for_one_host_ask_one_device_once() -> None:
    found = turn([lease_of(2), lease_of(2)])
    assert found.actions == [AskPower(2)]
    assert found.state.takeover is not None and found.state.takeover.host_id == 2


def test_what_was_begun_is_gone_on_with_while_somebody_waits_for_it() -> None:
    """Another host that is waited for as well comes later: the fence lease is one."""
    waits = [lease_of(3), lease_of(2)]
    begun = turn(waits, Takeover(2, NOW_S - 1)).state.takeover
    assert begun is not None and begun.host_id == 2
    first = turn(waits).state.takeover
    assert first is not None and first.host_id == 3


def down(**changed: Any) -> VmState:
    """A VM that is missing for long."""
    return VmState(
        StateName.ENGINE_DOWN, since_s=NOW_S - LONG_S, missing_since_s=NOW_S - LONG_S, **changed
    )


def test_each_vm_keeps_its_own_memory_and_waits_for_its_own_host() -> None:
    """Two VMs in one decision: one waits for host 2, whose death is being proven; of the other
    nothing is known, which is not that it is down. Nothing of the one is in the other's memory."""
    registry = (VmSpec(2, "db", 1024),)
    vms = {ENGINE: down(lease=lease_of(2)), 2: down(retries=1, last_failure_s=NOW_S)}
    state = AgentState(RULES, HostState(seen(silent=SILENT), Takeover(2, NOW_S - 1)), vms)
    observation = observe(local(), peers=SILENT, fence_devices=frozenset({2, 3}), specs=registry)
    after = decide(state, observation, NOW_S)
    assert AskPower(2) in after.actions
    assert {number: vm.retries for number, vm in after.state.vms.items()} == {ENGINE: 0, 2: 1}
    assert after.state.engine.lease == lease_of(2) and after.state.vms[2].lease is None
    assert after.state.vms[2].name is StateName.UNKNOWN_LOCAL_VM_STATE
    assert after.state.host.takeover is not None and after.state.host.takeover.asking_power
    assert Code.LEASE_WAIT in [reason.code for reason in after.reasons]


def test_nothing_is_known_of_a_vm_on_a_host_that_says_nothing_of_it() -> None:
    assert at(peer(2, engine=UP), 2).report.vm is VmStatus.UNKNOWN
    assert at(peer(2, engine=UP), ENGINE).report == UP

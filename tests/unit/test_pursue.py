# SPDX-License-Identifier: LGPL-2.1-or-later
"""One machine for each dead host, however many VMs wait for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from scoring.decide import decide
from scoring.decision import AskPower, Code, PowerOffHost
from scoring.hosts import fencing
from scoring.hosts.state import HostState, Seen, Takeover
from scoring.hosts.turn import HostTurn
from scoring.observation import LeaseAnswer, Power, PowerAnswer
from scoring.state import AgentState
from scoring.vm.seen import at
from scoring.vm.state import StateName, VmState
from scoring.vm_facts import ENGINE, VmSpec, VmStatus
from tests.unit.builders import LONG_S, NOW_S, RULES, UP, lease_of, local, observe, off, peer, seen

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


@pytest.mark.parametrize(
    ("unwritten_s", "pursues"), [(None, True), (5.6, True), (7.4, True), (7.5, False)]
)
def test_who_cannot_write_the_fence_log_pursues_nobody(
    unwritten_s: float | None, pursues: bool
) -> None:
    """Else it would keep the fence lease from a host that can write."""
    since_s = None if unwritten_s is None else NOW_S - unwritten_s
    here = local(unwritten_since_s=since_s)
    observation = observe(here, peers=SILENT, fence_devices=frozenset({2, 3}))
    found = HostTurn(RULES, HostState(seen(silent=SILENT)), observation, NOW_S)
    fencing.pursue(found, [lease_of(2)])
    assert (found.actions == [AskPower(2)]) is pursues is found.pursued
    assert (Code.FENCE_HELD_BACK in [reason.code for reason in found.reasons]) is not pursues


@pytest.mark.parametrize(("vm", "name"), [(ENGINE, "the engine lease"), (2, "db's lease")])
def test_the_wait_names_the_lease_that_is_waited_for(vm: int, name: str) -> None:
    observation = observe(local(), peers=SILENT, specs=(VmSpec(2, "db", 1024),))
    found = HostTurn(RULES, HostState(seen(silent=SILENT)), observation, NOW_S)
    fencing.pursue(found, [lease_of(2, vm=vm)])
    assert [f"owns {name};" in reason.text for reason in found.reasons] == [True]


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


# --- several dead hosts ------------------------------------------------------------------------


def among(
    *waits: int,
    takeover: Takeover | None = None,
    living: tuple[int, ...] = (),
    aside: Mapping[int, Takeover] | None = None,
) -> HostState:
    """VMs wait for these hosts, all silent for a minute; the sanlock of `living` renews."""
    silent = [peer(n, renewal_s=NOW_S - (1 if n in living else 90)) for n in (2, 3, 4)]
    observation = observe(local(), peers=tuple(silent), fence_devices=frozenset({2, 3, 4}))
    since = {n: Seen(500, NOW_S - 60, changed=True) for n in (2, 3, 4)}
    state = HostState(since, takeover, aside=aside or {})
    found = HostTurn(RULES, state, observation, NOW_S)
    fencing.pursue(found, [lease_of(n) for n in waits])
    return found.state


def pursued(*waits: int, **given: Any) -> int:
    step = among(*waits, **given).takeover
    assert step is not None
    return step.host_id


ON = PowerAnswer(2, Power.ON, NOW_S - 1, identity_proven=True)
FRUITLESS = Takeover(2, NOW_S - 20, power=ON, not_off=fencing.FRUITLESS)


def test_a_host_that_seems_to_live_is_pursued_only_where_no_other_one_is_waited_for() -> None:
    assert pursued(3, 2, living=(3,)) == 2
    assert pursued(3, living=(3,)) == 3
    assert pursued(3, 2, living=(2, 3)) == 3
    begun = Takeover(2, NOW_S - 1)
    assert pursued(2, 3, takeover=begun, living=(2,)) == 3
    assert pursued(2, 3, takeover=begun, living=(2, 3)) == 2


def test_after_readings_that_prove_nothing_the_next_host_has_its_turn() -> None:
    assert pursued(2, 3, takeover=FRUITLESS) == 3
    assert pursued(2, takeover=FRUITLESS) == 2
    assert pursued(2, 3, takeover=replace(FRUITLESS, not_off=fencing.FRUITLESS - 1)) == 2
    assert pursued(2, 3, 4, takeover=replace(FRUITLESS, host_id=3)) == 4
    assert pursued(2, 3, 4, takeover=replace(FRUITLESS, host_id=4)) == 2


@pytest.mark.parametrize(
    "under_way",
    [
        {"asking_power": True},
        {"taking_fence": True},
        {"asking_owner": True},
        {"switching_off": True},
        {"freeing": True},
        {"offs": (off(2, NOW_S - 1),)},
        {"fencer": Takeover(3, NOW_S)},
        {"ordered_s": NOW_S - 1, "tries": 1},
    ],
)
def test_what_is_under_way_is_waited_for(under_way: dict[str, Any]) -> None:
    assert pursued(2, 3, takeover=replace(FRUITLESS, **under_way)) == 2


def test_what_was_ordered_counts_on_when_its_turn_comes_again() -> None:
    """A new count would keep the pauses between orders to a device that refuses them short."""
    refused = replace(FRUITLESS, tries=3, attempts=3, next_order_s=NOW_S + 9, problem="503")
    first = among(2, 3, takeover=refused)
    assert first.takeover is not None and first.takeover.host_id == 3
    assert first.takeover.tries == 0 and first.aside == {2: refused}
    second = among(
        2, 3, takeover=replace(FRUITLESS, host_id=3, fence_since_s=NOW_S - 5), aside=first.aside
    )
    step = second.takeover
    assert step is not None and (step.host_id, step.tries, step.attempts) == (2, 3, 3)
    assert (step.next_order_s, step.problem) == (NOW_S + 9, "503")
    assert step.power is None and step.fence_since_s == NOW_S - 5
    assert second.aside.keys() == {3}


def test_a_takeover_that_nobody_waits_for_is_not_kept() -> None:
    kept = {3: FRUITLESS, 4: FRUITLESS}
    assert among(2, 3, takeover=Takeover(2, NOW_S), aside=kept).aside.keys() == {3}
    state = HostState(seen(silent=SILENT), None, aside=kept)
    found = HostTurn(RULES, state, observe(local(), peers=SILENT), NOW_S)
    fencing.forget(found)
    assert found.state.aside == {}


# --- who cannot be pursued, and who is about to be switched off --------------------------------


def test_a_host_without_a_device_takes_no_turn_of_one_that_has_a_device() -> None:
    """A host without a device can never be proven dead: its turn would end what was remembered of
    the other one, and where it is waited for first, the other one would have no turn."""

    def state(takeover: Takeover | None, *waits: int) -> HostState:
        observation = observe(local(), peers=SILENT, fence_devices=frozenset({2}))
        found = HostTurn(RULES, HostState(seen(silent=SILENT), takeover), observation, NOW_S)
        fencing.pursue(found, [lease_of(n) for n in waits])
        fencing.forget(found)
        return found.state

    first = state(None, 3, 2).takeover
    assert first is not None and first.host_id == 2 and first.asking_power
    refused = replace(FRUITLESS, tries=3, attempts=3, next_order_s=NOW_S + 9, problem="503")
    later = state(refused, 2, 3).takeover
    assert later is not None and (later.host_id, later.tries) == (2, 3)
    assert state(None, 3).takeover is None


def test_a_host_that_is_about_to_be_switched_off_is_not_left_for_the_next_one() -> None:
    """The fence lease came while the device was read: the order rests on the reading after that.
    Left then, it would begin anew at each of its turns, and never come to the order."""
    long_s = NOW_S - 90
    told: dict[str, Any] = {
        "renewal_s": long_s,
        "heartbeat_s": long_s,
        "unanswered_since_s": long_s,
    }
    silent = tuple(peer(n, renewal_timestamp=77, **told) for n in (2, 3))
    since = {n: Seen(500, NOW_S - 90, changed=True) for n in (2, 3)}

    def host(**changed: Any) -> int:
        ripe = replace(
            FRUITLESS, renewal=(5, 77), renewal_since_s=NOW_S - 90, fence_since_s=NOW_S - 2
        )
        state = HostState(since, replace(ripe, **changed))
        observation = observe(
            local(),
            peers=silent,
            fence_devices=frozenset({2, 3}),
            fence_lease_held=True,
            fence_log=(),
        )
        found = HostTurn(RULES, state, observation, NOW_S)
        fencing.pursue(found, [lease_of(2), lease_of(3)])
        assert found.state.takeover is not None
        if found.state.takeover.host_id == 2:
            assert any(isinstance(action, PowerOffHost) for action in found.actions)
        return found.state.takeover.host_id

    assert host() == 2
    assert host(next_order_s=NOW_S + 9, tries=1) == 3

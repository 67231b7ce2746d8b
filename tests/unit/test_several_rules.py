# SPDX-License-Identifier: LGPL-2.1-or-later
"""Wishes of several VMs that meet: what was found by random clusters."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest

from scoring.decision import Action, StartVm
from scoring.observation import Outcome
from scoring.vm_facts import EngineStatus, Health, VmSpec, VmStatus
from tests.fakes.hosts import Host, Hosts

LONG = 700


def vm(number: int, memory_mb: int = 1024, **rules: object) -> VmSpec:
    return VmSpec(number, f"vm{number}", memory_mb, **rules)  # type: ignore[arg-type]


def test_a_vm_does_not_go_home_without_those_with_which_it_must_be() -> None:
    """A VM that went home alone would have to come back, and so on for ever."""
    hosts = Hosts((vm(2), vm(3, together=(2,), prefer=(2,), failback=True)), {1: 8192, 2: 8192})
    for number in (1, 2, 3):
        hosts.put(number, 1)
    hosts.run(3 * LONG)
    assert hosts.moves == []


class SlowStarts(Hosts):
    """A start takes three beats: the memory is gone from the first on, the VM is shown after the
    last."""

    TAKES_S = 3.0

    def beat(self) -> None:
        for at_s, host, outcome in list(self.later):
            if at_s <= self.now_s:
                self.later.remove((at_s, host, outcome))
                host.outcomes.append(outcome)
        super().beat()

    later: ClassVar[list[tuple[float, Host, Outcome]]] = []

    def _carry_out(self, host: Host, action: Action) -> None:
        super()._carry_out(host, action)
        if isinstance(action, StartVm):
            self.later.append((self.now_s + self.TAKES_S, host, host.outcomes.pop()))

    def _report(self, host: Host, vm: int) -> EngineStatus:
        if self.now_s - host.vms.get(vm, 0.0) < self.TAKES_S:
            return EngineStatus(VmStatus.DOWN, Health.BAD)
        return super()._report(host, vm)


def test_a_vm_whose_start_is_under_way_is_waited_for() -> None:
    """The VM's memory is taken before the VM is shown: that is no lack of a place."""
    hosts = SlowStarts((vm(2, 6144), vm(3, 512, after=(2,))), {1: 8192, 2: 2048})
    hosts.put(1, 2)
    hosts.run(60)
    at_s = {number: at_s for at_s, number, _ in hosts.starts}
    assert at_s[2] + 5 <= at_s[3]


# --- hosts that are cut off -----------------------------------------------------------------------


def planned(hosts: Hosts, by: int, number: int) -> tuple[int, ...]:
    last = hosts.hosts[by].last
    assert last is not None
    return last.plan.order[number]


@pytest.mark.parametrize(
    ("own", "others", "order"),
    [
        (False, True, (2, 3)),
        (False, None, (1, 2, 3)),
        (False, False, (1, 2, 3)),
        (None, True, (1, 2, 3)),
    ],
)
def test_a_host_that_is_cut_off_has_no_place_in_the_plan_where_another_is_not(
    own: bool | None, others: bool | None, order: tuple[int, ...]
) -> None:
    hosts = Hosts((vm(2, prefer=(1, 2, 3)),), {1: 8192, 2: 8192, 3: 8192})
    hosts.hosts[1].way_out = own
    for host in (2, 3):
        hosts.hosts[host].way_out = others
    hosts.run(2)
    assert planned(hosts, 1, 2) == planned(hosts, 2, 2) == planned(hosts, 3, 2) == order


def test_a_bridge_without_carrier_counts_for_the_vms_on_it_alone() -> None:
    hosts = Hosts((vm(2, prefer=(1, 2)), vm(3, prefer=(1, 2))), {1: 8192, 2: 8192})
    hosts.hosts[1].uplinks, hosts.hosts[2].uplinks = {2: False}, {2: True}
    hosts.run(2)
    assert planned(hosts, 1, 2) == planned(hosts, 2, 2) == (2,)
    assert planned(hosts, 1, 3) == planned(hosts, 2, 3) == (1, 2)


def test_a_bridge_without_carrier_everywhere_leaves_all_hosts_in_the_plan() -> None:
    hosts = Hosts((vm(2, prefer=(1, 2)),), {1: 8192, 2: 8192})
    hosts.hosts[1].uplinks = hosts.hosts[2].uplinks = {2: False}
    hosts.run(2)
    assert planned(hosts, 1, 2) == planned(hosts, 2, 2) == (1, 2)


# --- claims and moves that come to nothing --------------------------------------------------------


def said_of(hosts: Hosts, host: int, number: int) -> set[str]:
    last = hosts.hosts[host].last
    assert last is not None
    return {reason.code.value for reason in last.reasons if reason.vm == number}


def test_who_withdrew_its_claim_leaves_the_others_their_time() -> None:
    hosts = Hosts((vm(2),), {1: 8192})
    host = hosts.hosts[1]
    while 2 not in host.state.vms or host.state.vms[2].held is None:
        hosts.run(1)
    free = replace(host.state.vms[2], held=None, no_claim_until_s=hosts.now_s + 3)
    host.state = replace(host.state, vms={**host.state.vms, 2: free})
    hosts.run(1)
    assert "room-waiting" in said_of(hosts, 1, 2) and host.state.vms[2].held is None
    hosts.run(10)
    assert hosts.where() == {1: 1, 2: 1}


def test_where_no_host_takes_vms_the_engine_has_no_place_either() -> None:
    hosts = Hosts((vm(2),), {1: 8192, 2: 8192})
    for host in hosts.hosts.values():
        host.maintenance = True
    hosts.run(8)
    last = hosts.hosts[1].last
    assert last is not None and last.plan.order == {} and set(last.plan.short) == {1, 2}
    assert hosts.where() == {}


@pytest.mark.parametrize(
    ("specs", "free_mb"),
    [((vm(2), vm(3, together=(2,))), 8192), ((vm(2, 4096), vm(3, 4096)), 2048)],
    ids=["it would leave its mate", "no room there"],
)
def test_a_vm_stays_on_a_host_that_is_worse(specs: tuple[VmSpec, ...], free_mb: int) -> None:
    hosts = Hosts(specs, {1: 16384, 2: free_mb})
    hosts.put(1, 2)
    for spec in specs:
        hosts.put(spec.number, 1)
    hosts.hosts[1].load = 0.9
    hosts.run(700)
    assert [move for move in hosts.moves if move[1] != 1] == []
    assert hosts.where()[2] == hosts.where()[3] == 1


def test_a_vm_does_not_go_to_a_host_that_it_likes_no_better_while_the_liked_one_is_full() -> None:
    hosts = Hosts((vm(2, 4096, prefer=(2,), failback=True),), {1: 16384, 2: 2048, 3: 16384})
    hosts.put(1, 2)
    hosts.put(2, 1)
    hosts.run(700)
    assert hosts.moves == [] and hosts.where()[2] == 1

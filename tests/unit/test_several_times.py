# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM that boots, is unhealthy or shuts down has its own time for it where its record says so."""

from __future__ import annotations

import pytest

from scoring.decision import CancelMigration
from scoring.observation import Order, OrderKind
from scoring.rules import MIGRATION_EXTRA_S
from scoring.state import AgentState
from scoring.vm.state import StateName
from scoring.vm_facts import ENGINE, VmSpec, Want
from tests.fakes.hosts import Hosts, in_state

QUICK = {"starting_s": 30.0, "bad_health_s": 20.0, "stop_grace_s": 15.0}


def cluster(times: dict[str, float], number_of_hosts: int = 1) -> Hosts:
    """The first host has the engine, a VM with these times and one with the cluster's."""
    specs = (VmSpec(2, "db", 1024, **times), VmSpec(3, "web", 1024))  # type: ignore[arg-type]
    hosts = Hosts(specs, dict.fromkeys(range(1, number_of_hosts + 1), 8192))
    for number in (ENGINE, 2, 3):
        hosts.put(number, 1)
    hosts.run(5)
    return hosts


def state(hosts: Hosts, vm: int) -> StateName | None:
    return in_state(hosts, 1, vm)


def test_one_that_does_not_become_healthy_is_stopped_after_its_own_time() -> None:
    hosts = Hosts((VmSpec(2, "db", 1024, starting_s=30.0), VmSpec(3, "web", 1024)), {1: 8192})
    hosts.sick |= {2, 3}
    hosts.run(25)
    assert {state(hosts, 2), state(hosts, 3)} == {StateName.ENGINE_STARTING}
    hosts.run(30)
    assert [vm for _, vm, _ in hosts.starts].count(2) == 2, "after the pause of a failed start"
    assert [vm for _, vm, _ in hosts.starts].count(3) == 1


def test_one_that_is_unhealthy_is_stopped_after_its_own_time() -> None:
    hosts = cluster(QUICK)
    hosts.sick |= {2, 3}
    hosts.run(15)
    bad = StateName.ENGINE_UP_BAD_HEALTH
    assert {state(hosts, 2), state(hosts, 3)} == {bad}
    hosts.run(10)
    assert state(hosts, 2) is not bad and state(hosts, 3) is bad


@pytest.mark.parametrize(("times", "after_s"), [(QUICK, 15), ({}, 300)], ids=["own", "usual"])
def test_a_guest_that_does_not_shut_down_is_ended_after_its_own_time(
    times: dict[str, float], after_s: int
) -> None:
    hosts = cluster(times)
    hosts.stubborn.add(2)
    hosts.specs[2] = VmSpec(2, "db", 1024, want=Want.DOWN, **times)  # type: ignore[arg-type]
    hosts.run(after_s - 3)
    assert 2 in hosts.where() and state(hosts, 2) is StateName.ENGINE_STOP
    hosts.run(8)
    assert 2 not in hosts.where()


@pytest.mark.parametrize(
    ("own_s", "within_s", "key"),
    [(900.0, 900, "its own migration-timeout"), (None, 300, "libvirt.migration-timeout")],
    ids=["own", "usual"],
)
def test_a_migration_may_take_the_time_that_the_vm_has_for_it(
    own_s: float | None, within_s: int, key: str
) -> None:
    """The order has that time, and all hosts wait so long for the outcome. A migration that a
    restarted agent finds is cancelled when the time is over."""
    times = {} if own_s is None else {"migration_timeout_s": own_s}
    hosts = cluster(times, 2)
    host = hosts.hosts[1]
    hosts.arrives_late = True
    host.order = Order(1, OrderKind.MIGRATE, 2, vm=2)
    for _ in range(5):
        hosts.run(0 if hosts.ordered else 1)
    assert [(act.vm, act.timeout_s) for act in hosts.ordered] == [(2, own_s)]
    assert host.state.vms[2].moving_until_s == hosts.now_s + within_s + MIGRATION_EXTRA_S
    host.order, host.state = None, AgentState(hosts.rules)
    hosts.leaving.add(2)
    hosts.run(within_s)
    assert hosts.asked == []
    hosts.run(2)
    assert hosts.asked == [(1, CancelMigration(vm=2))]
    assert host.last is not None
    assert any(f"{within_s} s ({key})" in reason.text for reason in host.last.reasons)

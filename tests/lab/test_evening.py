# SPDX-License-Identifier: LGPL-2.1-or-later
"""The evening that users of this product described, on real parts: three services on three hosts
(a web page, a database that counts on its disk, an identity provider that the page needs) through a
drain, a power cut, a power loss of five seconds and a reboot of each host, with visitors on all
three services all the time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from . import ask, configs, vms
from .cluster import Cluster
from .conftest import three_vms
from .moving import order
from .visitors import Visitors

PER_SECOND = 5
BACK_S = 120.0
POWER_LOSS_S = 5.0


@pytest.fixture(scope="module")
def three_hosts(able: None) -> Iterator[Cluster]:
    with three_vms(3, configs.HASTE) as cluster:
        yield cluster


class Evening:
    """The visitors of all services. `counted`: the number that the database served last."""

    def __init__(self, cluster: Cluster, stack: contextlib.ExitStack) -> None:
        self._cluster = cluster
        self.services = [
            stack.enter_context(Visitors(cluster.switch_pid, PER_SECOND, vm)) for vm in vms.VMS
        ]
        self.counted = 0

    def healthy(self) -> None:
        """Wait until all three answer, with the shop that needs them all; nothing that the
        database has served is lost."""
        for vm in vms.VMS:
            self._cluster.wait_vm_healthy(vm, BACK_S)
        ask.until("the shop, which needs all three", BACK_S, self._cluster.shop)
        count = int((self._cluster.vm_page(vms.DB, 5.0) or "0").split()[-1])
        assert count > self.counted, "what was served before was on the disk"
        self.counted = count

    def failed_since(self, since_s: float) -> list[int]:
        """How many requests of each service were begun since then and had no answer."""
        return [sum(at > since_s for at in service.failed) for service in self.services]


@pytest.fixture
def evening(three_hosts: Cluster) -> Iterator[Evening]:
    """All is well, each host in its place, and visitors come."""
    with contextlib.ExitStack() as stack:
        evening = Evening(three_hosts, stack)
        evening.healthy()
        in_place(three_hosts)
        yield evening


def in_place(cluster: Cluster) -> None:
    """Wait until every host is on, and in its place as each of them sees it."""
    for host in cluster.hosts:
        ask.until(f"{host} is in its place", BACK_S, partial(ask.in_place, cluster, host))


def host_of(cluster: Cluster, vm: vms.LabVm) -> str:
    host = cluster.vm_host(vm)
    assert host is not None, f"{vm.name} runs nowhere"
    return host


def is_empty(cluster: Cluster, host: str) -> bool:
    places = [cluster.vm_host(vm) for vm in vms.VMS]
    return None not in places and host not in places


def print_gaps(evening: Evening, since_s: float, what: str) -> None:
    """What the visitors saw, for who reads the run."""
    for service in evening.services:
        came = [since_s, *sorted(at for at in service.answers if at > since_s)]
        gap = max(later - at for at, later in pairwise(came))
        failed = sum(at > since_s for at in service.failed)
        print(f"{what}: {service.vm.name}: {failed} failed, longest gap {gap:.1f} s")


def test_a_drain_costs_no_request(three_hosts: Cluster, evening: Evening) -> None:
    victim = host_of(three_hosts, vms.ENGINE)
    began_s = time.monotonic()
    done = order(three_hosts, victim, "maintenance", "local", "--wait")
    assert done.returncode == 0, done.stderr
    assert is_empty(three_hosts, victim), "the answer was: it is drained"
    evening.healthy()
    print_gaps(evening, began_s, "drain")
    assert evening.failed_since(began_s) == [0, 0, 0]
    assert order(three_hosts, victim, "maintenance", "none").returncode == 0


@pytest.mark.parametrize("vm", [vms.ENGINE, vms.DB], ids=lambda vm: vm.name)
def test_a_power_cut(three_hosts: Cluster, evening: Evening, vm: vms.LabVm) -> None:
    """The database loses its power with the counter on its way to the disk."""
    victim = host_of(three_hosts, vm)
    began_s = three_hosts.cut(victim)
    evening.healthy()
    assert is_empty(three_hosts, victim)
    print_gaps(evening, began_s, f"power cut of {vm.name}'s host")
    assert three_hosts.power_on(victim)
    three_hosts.wait_booted(victim)


def test_a_power_loss_of_five_seconds(three_hosts: Cluster, evening: Evening) -> None:
    victim = host_of(three_hosts, vms.ENGINE)
    began_s = three_hosts.cut(victim)
    time.sleep(POWER_LOSS_S)
    # Who proved it dead may have switched it on already.
    three_hosts.power_on(victim)
    three_hosts.wait_booted(victim)
    evening.healthy()
    in_place(three_hosts)
    print_gaps(evening, began_s, "power loss of five seconds")


def test_each_host_is_rebooted_and_no_request_is_lost(
    three_hosts: Cluster, evening: Evening, tmp_path: Path
) -> None:
    """A reboot as systemd does it: the unit drains the host, its power is off, and it boots."""
    systemctl = tmp_path / "systemctl"
    systemctl.write_text("#!/bin/sh\necho stopping\n")
    systemctl.chmod(0o755)
    began_s = time.monotonic()
    for host in three_hosts.hosts:
        in_place(three_hosts)
        path = f'PATH={tmp_path}:"$PATH" exec ha-agent host-shutdown'
        drained = three_hosts.sh(host, ["sh", "-c", path])
        assert drained.returncode == 0, drained.stdout + drained.stderr
        assert is_empty(three_hosts, host), drained.stdout
        three_hosts.cut(host)
        three_hosts.power_on(host)
        three_hosts.wait_booted(host)
    in_place(three_hosts)
    evening.healthy()
    print_gaps(evening, began_s, "reboot of each host")
    assert evening.failed_since(began_s) == [0, 0, 0]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes that lose their core for seconds, one after another, on hosts that are well.

An overloaded host, a debugger, a hypervisor below ours that is busy: each process stands still for
a while and goes on as if nothing had been. Nobody is switched off for it, and no VM starts anew.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from . import vms
from .cluster import Census, Cluster
from .conftest import three_vms
from .layout import DAEMONS

pytestmark = pytest.mark.long

SEED = 1
FOR_S = 400.0
#: Below fence-after (10 s) and what libvirt and sanlock bear at an io_timeout of 2 s.
STANDS_STILL_MAX_S = 6.0
APART_S = 0.7


@pytest.fixture
def three_hosts(able: None) -> Iterator[Cluster]:
    with three_vms(3) as cluster:
        yield cluster


def running(census: Census) -> dict[str, list[int]]:
    """The QEMUs of each VM, on all hosts."""
    hosts = census.processes
    return {
        vm.name: [pid for host in hosts for pid in census.engines(host, vm.name)] for vm in vms.VMS
    }


def candidates(cluster: Cluster) -> list[int]:
    """The main process of each daemon on each host, and each QEMU."""
    census = cluster.census()
    daemons = [census.daemon(host, name) for host in cluster.hosts for name in DAEMONS]
    qemus = [pid for pids in running(census).values() for pid in pids]
    return [*qemus, *(pid for pid in daemons if pid is not None)]


def test_a_process_that_stands_still_for_seconds_costs_nothing(three_hosts: Cluster) -> None:
    chance = random.Random(SEED)
    before = running(three_hosts.census())
    powered = {host: three_hosts.census().first[host] for host in three_hosts.hosts}
    stops = 0
    until_s = time.monotonic() + FOR_S
    while time.monotonic() < until_s:
        time.sleep(chance.expovariate(1 / APART_S))
        pid = chance.choice(candidates(three_hosts))
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(chance.uniform(0.05, STANDS_STILL_MAX_S))
        finally:
            os.kill(pid, signal.SIGCONT)
        stops += 1
    print(f"{stops} processes stood still for up to {STANDS_STILL_MAX_S:.0f} s each")
    after = three_hosts.census()
    assert running(after) == before, "each VM runs in the process that it had"
    assert after.first == powered, "no host was switched off"
    for vm in vms.VMS:
        three_hosts.wait_vm_healthy(vm, 60.0)

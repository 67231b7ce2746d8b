# SPDX-License-Identifier: LGPL-2.1-or-later
"""Several VMs on real parts: QEMUs, leases of their own, and disks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from . import ask, vms
from .cluster import Cluster
from .conftest import new_cluster, three_vms
from .processes import command_line, pids

HEALTHY_S = 60.0
#: Reads the registry once as the broker does, and keeps the copy that the agent reads.
READ_REGISTRY = """
import asyncio
from broker.config.places import default_path
from broker.config.secrets import load_cluster_key
from broker.config.load import load
from broker.main import registry_cache
from broker.whiteboard.signatures import Signatures
config = load(default_path())
cache = registry_cache(config, Signatures(load_cluster_key(config)))
asyncio.run(cache.look(0.0))
assert sorted(cache.cached.definitions) == [2, 3], cache.cached
"""


@pytest.fixture
def one_host(able: None) -> Iterator[Cluster]:
    """A host without daemons, in its lockspace, that knows the registry."""
    with new_cluster() as cluster:
        cluster.up(1, bmc=False, daemons=False, vms=3)
        host = cluster.hosts[0]
        cluster.join_lockspace(host)
        read = cluster.sh(host, [sys.executable, "-c", READ_REGISTRY])
        assert read.returncode == 0, read.stderr
        yield cluster


@contextlib.contextmanager
def disk_hangs(cluster: Cluster, vm: vms.LabVm) -> Iterator[None]:
    """The storage of that VM's disk stands still."""
    wanted = f"--socket={cluster.layout.disk_socket(vm.role)}"
    (server,) = [pid for pid in pids() if wanted in command_line(pid)]
    os.kill(server, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server, signal.SIGCONT)


def started(cluster: Cluster, enough: vms.LabVm, *which: vms.LabVm) -> list[dict[str, Any]]:
    """What comes of starting these at once, by the agent's own hands, until `enough` has ended."""
    numbers = [str(vm.number) for vm in (enough, *which)]
    argv = [sys.executable, "-m", "tests.contract.ask", "start-together", *numbers]
    done = cluster.sh(cluster.hosts[0], argv)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def lease_holders(cluster: Cluster, host: str) -> dict[str, int]:
    """By a lease's name the process that holds it, as the host's sanlock says."""
    shown = cluster.sh(host, ["sanlock", "client", "status"]).stdout
    words = [line.split() for line in shown.splitlines()]
    return {each[1].split(":")[1]: int(each[-1]) for each in words if each[:1] == ["r"]}


def test_a_start_that_hangs_delays_no_other_vm(one_host: Cluster) -> None:
    with disk_hangs(one_host, vms.DB):
        outcomes = started(one_host, vms.SSO, vms.DB, vms.SSO)
        assert [(one["vm"], one["known"], one["owner"]) for one in outcomes[:2]] == [
            (2, True, None),
            (3, True, None),
        ]
        assert outcomes[2:] == [
            {"kind": "VmStartEnded", "result": "started", "detail": "", "vm": 3}
        ]
        one_host.wait_vm_healthy(vms.SSO, HEALTHY_S)
        host = one_host.hosts[0]
        assert set(lease_holders(one_host, host)) == {vms.SSO.resource}
        assert one_host.vm_page(vms.DB) is None
    assert set(lease_holders(one_host, host)) == {vms.SSO.resource}, "nothing of db has run"


@pytest.fixture
def two_hosts(able: None) -> Iterator[Cluster]:
    with three_vms(2) as cluster:
        yield cluster


def places(cluster: Cluster) -> set[str | None]:
    """Where the VMs run."""
    return {cluster.vm_host(vm) for vm in vms.VMS}


def count(cluster: Cluster) -> int:
    """The number that the database serves, which is on its disk; 0: it does not answer."""
    said = cluster.vm_page(vms.DB)
    return int(said.split()[-1]) if said else 0


def state(cluster: Cluster, host: str) -> str:
    return ask.state(cluster, host)


def test_a_power_cut_of_the_host_of_three_vms(two_hosts: Cluster) -> None:
    """The VMs are drained to one host first, without downtime; then that host loses its power."""
    victim, heir = "host1", "host2"
    two_hosts.sh(heir, ["ha-agent", "maintenance", "local"])
    ask.until("all have left", 2 * HEALTHY_S, lambda: places(two_hosts) == {victim})
    two_hosts.sh(heir, ["ha-agent", "maintenance", "none"])
    ask.until("it is ready again", HEALTHY_S, lambda: state(two_hosts, heir) == "EngineDown")
    before = count(two_hosts)
    assert before > 0
    two_hosts.cut(victim)
    for vm in vms.VMS:
        assert two_hosts.wait_vm_healthy(vm, 2 * HEALTHY_S) == heir
    assert count(two_hosts) > before, "what was served before was on the disk"
    ask.until("the shop, which needs all three", HEALTHY_S, lambda: two_hosts.shop())
    log = two_hosts.log_path(heir, "agent").read_text()
    assert log.count("freed host id 1 ") == 1, "one proof and one freeing for all of them"

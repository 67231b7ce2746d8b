# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent reinitialize-lockspace` among real sanlocks: never under a host that is in it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from broker.daemon.exit_codes import ExitCode
from broker.lockspace.delta_leases import read_delta_leases, read_lease_volume
from broker.whiteboard.volume import Volume

from .cluster import Cluster
from .conftest import new_cluster


@pytest.fixture
def idle(able: None) -> Iterator[Cluster]:
    """Two hosts with sanlock and libvirt, and neither broker nor agent."""
    with new_cluster() as cluster:
        cluster.up(2, io_timeout_s=1, bmc=False, daemons=False)
        yield cluster


def reinitialize(lab: Cluster, host: str, *more: str) -> tuple[int, str]:
    done = lab.sh(host, ["ha-agent", "reinitialize-lockspace", "--yes", *more])
    return done.returncode, done.stdout + done.stderr


def used(lab: Cluster) -> dict[int, tuple[int, int]]:
    """Generation and timestamp of the host ids that were ever used."""
    with Volume(lab.layout.leases, read_only=True) as volume:
        head = read_lease_volume(volume)
        assert head is not None and set(head.resources.values()) == {"engine", "fence"}
        return read_delta_leases(volume, range(1, 100))


def test_it_is_written_anew_once_nobody_is_in_it_and_not_before(idle: Cluster) -> None:
    for host in ("host1", "host2"):
        idle.join_lockspace(host)
    code, said = reinitialize(idle, "host1")
    assert code == ExitCode.REFUSED, said
    assert "is in use: host 2 renews its id; there: systemctl stop" in said
    assert used(idle)[2][1] > 0, "nothing was written"

    assert idle.sh("host2", ["ha-agent", "leave", "--lockspace-only"]).returncode == 0
    code, said = reinitialize(idle, "host1", "--dry-run")
    assert code == ExitCode.OK and "would" in said, said
    assert set(used(idle)) == {1, 2}
    code, said = reinitialize(idle, "host1")
    assert code == ExitCode.OK, said
    assert used(idle) == {}, "no id of the old lockspace is known any more"
    for host in ("host1", "host2"):
        idle.join_lockspace(host)


@pytest.mark.long
def test_a_host_that_died_in_it_is_waited_for(idle: Cluster) -> None:
    """The dead host's VM may live until sanlock takes the host for dead."""
    for host in ("host1", "host2"):
        idle.join_lockspace(host)
    idle.cut("host2")
    idle.sh("host1", ["ha-agent", "leave", "--lockspace-only"])
    began_s = time.monotonic()
    code, said = reinitialize(idle, "host1")
    took_s = time.monotonic() - began_s
    assert code == ExitCode.OK and "ids 2 are dead" in said, said
    assert took_s >= 8 * 1 + 60
    print(f"waited {took_s:.0f} s for the dead host")

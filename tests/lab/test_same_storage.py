# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host on a copy of the volumes, and one on another cluster's: neither starts a second VM."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from . import ask, storage
from .cluster import Cluster
from .conftest import law_1, new_cluster
from .layout import CLUSTER_ID, LOCKSPACE, Layout, host_id_of

#: A free host id is joined in 2 to 3 s, and what is not seen for 5 s is elsewhere.
FOUND_S = 40.0
#: sanlock calls the owner dead 68 s after its renewals stand still, at io_timeout 1.
DEAD_S = 90.0


def qemus(lab: Cluster) -> int:
    """How many hosts' libvirt run the VM."""
    found = [lab.sh(host, ["virsh", "list", "--name"]).stdout for host in lab.hosts]
    return sum("HostedEngine" in text for text in found)


def of(lab: Cluster, host: str, other: str) -> dict[str, Any]:
    """What a host's status says of another one, or of itself."""
    found: dict[str, Any] = ask.status(lab, host).get("hosts", {}).get(str(host_id_of(other)), {})
    return found


def finds(lab: Cluster, host: str, other: str) -> bool:
    return bool(of(lab, host, other).get("other_storage"))


def owner_is_dead(lab: Cluster, host: str, owner: str) -> bool:
    return of(lab, host, owner).get("sanlock_state") == "dead"


def left(lab: Cluster, host: str) -> None:
    """End the host's daemons, and give its host id back."""
    for daemon in ("agent", "broker"):
        lab.stop(host, daemon)
    where = f"{LOCKSPACE}:{host_id_of(host)}:{lab.layout.leases}:0"
    done = lab.sh(host, ["sanlock", "client", "rem_lockspace", "-s", where])
    assert done.returncode == 0, done.stderr


def moved_to_a_copy(lab: Cluster, host: str) -> None:
    """End the host's daemons, and mount a copy of both files over its storage."""
    left(lab, host)
    below = lab.directory / "below"
    below.mkdir()
    for volume in (lab.layout.whiteboard, lab.layout.leases):
        shutil.copy(volume, below / volume.name)
    mount_over(lab, host, below)


def mount_over(lab: Cluster, host: str, folder: object) -> None:
    done = lab.sh(host, ["mount", "--bind", str(folder), str(lab.layout.shared)])
    assert done.returncode == 0, done.stderr


def test_a_stale_copy_below_the_mount_point(lab_without_bmc: Cluster) -> None:
    """Left alone it started a second VM when sanlock called the owner dead on the copy."""
    lab = lab_without_bmc
    owner = lab.engine_host()
    assert owner is not None
    standby = next(host for host in lab.hosts if host != owner)
    moved_to_a_copy(lab, standby)
    for daemon in ("broker", "agent"):
        lab.start(standby, daemon)
    ask.until(f"{standby} finds it", FOUND_S, partial(finds, lab, standby, owner))
    ask.until(f"{owner} finds it", FOUND_S, partial(finds, lab, owner, standby))
    ask.until("it scores 0", FOUND_S, lambda: of(lab, standby, standby)["score"] == 0)
    penalties = [part["name"] for part in of(lab, standby, standby)["penalties"]]
    assert "other-storage" in penalties
    for host, other in ((standby, owner), (owner, standby)):
        text = lab.sh(host, ["ha-agent", "--status"]).stdout
        assert f"OTHER STORAGE: {other} says that it" in text, text
        print(next(line for line in text.splitlines() if "OTHER STORAGE" in line))
    ask.until("sanlock gives it up", DEAD_S, partial(owner_is_dead, lab, standby, owner))
    ask.during("one VM, on its host", 10.0, lambda: qemus(lab) == 1 and lab.page_answers())
    assert lab.engine_host() == owner


def test_another_clusters_volumes_at_the_same_path(lab_without_bmc: Cluster) -> None:
    """The broker does not start, and says what lies there."""
    lab = lab_without_bmc
    owner = lab.engine_host()
    standby = next(host for host in lab.hosts if host != owner)
    moved_to_a_copy(lab, standby)
    board = lab.directory / "below" / lab.layout.whiteboard.name
    with board.open("r+b") as file:
        place = file.read().index(b"ha-agent volume 1")
        file.seek(place)
        file.write(bytes(4096))
    lab.start(standby, "broker")
    log = lab.log_path(standby, "broker")
    wanted = (
        f"has no identity; whiteboard 1ab00000-0000-4000-8000-000000000001 of cluster {CLUSTER_ID}"
    )
    ask.until("it says so", FOUND_S, lambda: wanted in log.read_text(errors="replace"))
    spaces = lab.sh(standby, ["sanlock", "client", "status"]).stdout
    assert f"s {LOCKSPACE}:" not in spaces
    assert qemus(lab) == 1


@pytest.fixture
def without_names(able: None) -> Iterator[Cluster]:
    """Two hosts whose configuration names no volumes."""
    with new_cluster() as cluster:
        cluster.up(2, io_timeout_s=1, bmc=False, named=False)
        with law_1(cluster):
            yield cluster


def test_new_empty_volumes_where_the_configuration_names_none(without_names: Cluster) -> None:
    """No slot there shows the others, but they ask; it started the VM a second time before."""
    lab = without_names
    owner = lab.engine_host()
    standby = next(host for host in lab.hosts if host != owner)
    left(lab, standby)
    new = Layout(lab.directory / "new")
    storage.create(new, lab.settings)
    mount_over(lab, standby, new.shared)
    for daemon in ("broker", "agent"):
        lab.start(standby, daemon)
    ask.until("it scores 0", FOUND_S, lambda: of(lab, standby, standby).get("score") == 0)

    def says() -> bool:
        penalties = of(lab, standby, standby).get("penalties", [])
        return "asked over the network" in str(penalties)

    ask.until("it says why", FOUND_S, says)
    ask.during("one VM, on its host", 15.0, lambda: qemus(lab) == 1 and lab.page_answers())
    assert lab.engine_host() == owner

# SPDX-License-Identifier: LGPL-2.1-or-later
"""CephFS: a monitor, three OSDs that keep their data in memory, an MDS and its standby."""

from __future__ import annotations

import uuid
from pathlib import Path

from ..layout import STORAGE_ADDRESS, HostLayout, Layout
from .running import Servers

OSDS = 3
FILE_SYSTEM = "cephfs"
READY_SECONDS_MAX = 90.0

#: Without the beacons and ticks of a second the monitor takes half a minute to miss a daemon, and
#: the lab's tests as long. The rest is what docs/storage.md asks for.
CONFIG = """[global]
fsid = {fsid}
mon host = [v2:{address}:3300,v1:{address}:6789]
public addr = {address}
cluster addr = {address}
ms bind ipv6 = false
run dir = {folder}/run
log file = {folder}/log/$cluster-$name.log
admin socket = {folder}/run/$cluster-$name.$pid.asok
mon data = {folder}/mon-$id
osd data = {folder}/osd-$id
mds data = {folder}/mds-$id
crash dir = {folder}/crash
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 3
osd pool default min size = 2
osd pool default pg num = 8
osd crush chooseleaf type = 0
osd pool default pg autoscale mode = off
mon data avail warn = 1
mon data avail crit = 1
osd objectstore = memstore
memstore device bytes = 402653184
mon osd min down reporters = 1
osd heartbeat interval = 1
osd heartbeat grace = 5
mon osd adjust heartbeat grace = false
mds beacon interval = 1
mds beacon grace = 5
mon tick interval = 1
mds tick interval = 1
mds cap revoke eviction timeout = 10
defer client eviction on laggy osds = false

[client]
fuse disable pagecache = true
log file = {folder}/log/$name.$pid.log
"""


def folder(layout: Layout) -> Path:
    """Where its daemons keep everything."""
    return layout.servers / "ceph"


def config(layout: Layout) -> Path:
    """The ceph.conf of servers and clients."""
    return folder(layout) / "ceph.conf"


def environment(layout: Layout) -> dict[str, str]:
    """What makes a command of Ceph find this cluster."""
    return {"CEPH_CONF": str(config(layout))}


def start(servers: Servers) -> None:
    """Make the cluster and its file system, and run its daemons; LabError."""
    layout = servers.layout
    place = folder(layout)
    for name in ("run", "log", "crash", "mon-a", "mds-a", "mds-b"):
        (place / name).mkdir(parents=True)
    fsid = str(uuid.uuid4())
    config(layout).write_text(CONFIG.format(fsid=fsid, address=STORAGE_ADDRESS, folder=place))
    servers.environment.update(environment(layout))
    monmap = f"{place}/monmap"
    address = f"[v2:{STORAGE_ADDRESS}:3300,v1:{STORAGE_ADDRESS}:6789]"
    servers.do(
        ["monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, monmap]
    )
    servers.do(["ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap])
    servers.run("mon-a", ["ceph-mon", "-f", "-i", "a"])
    servers.until("the monitor answers", ["ceph", "-s"], "quorum", READY_SECONDS_MAX)
    for number in range(OSDS):
        (place / f"osd-{number}").mkdir()
        name = str(uuid.uuid4())
        servers.do(["ceph", "osd", "new", name])
        servers.do(["ceph-osd", "--mkfs", "-i", str(number), "--osd-uuid", name])
        servers.run(f"osd-{number}", ["ceph-osd", "-f", "-i", str(number)])
    for name in ("a", "b"):
        servers.run(f"mds-{name}", ["ceph-mds", "-f", "-i", name])
    for kind in ("metadata", "data"):
        servers.do(["ceph", "osd", "pool", "create", f"{FILE_SYSTEM}_{kind}", "8"])
    servers.do(["ceph", "fs", "new", FILE_SYSTEM, f"{FILE_SYSTEM}_metadata", f"{FILE_SYSTEM}_data"])
    servers.until("an MDS is active", ["ceph", "mds", "stat"], "up:active", READY_SECONDS_MAX)
    servers.until("the OSDs are up", ["ceph", "osd", "stat"], f"{OSDS} up", READY_SECONDS_MAX)


def client(layout: Layout, host: HostLayout | None) -> list[str]:
    """The command that mounts it over the shared folder, and serves it until killed."""
    return ["ceph-fuse", "-f", "--client_fs", FILE_SYSTEM, str(layout.shared)]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""GlusterFS: a replica-3 volume of three bricks, with the settings that docs/storage.md asks
for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..errors import LabError
from ..layout import STORAGE_ADDRESS, HostLayout, Layout
from ..namespaces import MS_BIND, mount
from .running import Servers

VOLUME = "gv0"
BRICKS = 3
READY_SECONDS_MAX = 60.0
GROUP_VIRT = Path("/etc/glusterfs/group-virt.example")

GLUSTERD = """volume management
    type mgmt/glusterd
    option working-directory {folder}/glusterd
    option run-directory {folder}/run
    option logging-directory {folder}/log
    option glusterd-sockfile {folder}/run/glusterd.socket
    option transport-type socket
    option transport.address-family inet
    option transport.socket.bind-address {address}
    option transport.socket.listen-port 24007
    option base-port 49152
    option max-port 60999
end-volume
"""

#: Each is explained in docs/storage.md.
SETTINGS = (
    ("group", "virt"),
    ("cluster.eager-lock", "off"),
    ("network.ping-timeout", "5"),
    ("server.tcp-user-timeout", "4"),
    ("server.keepalive-time", "2"),
    ("server.keepalive-interval", "1"),
    ("server.keepalive-count", "2"),
)


def folder(layout: Layout) -> Path:
    """Where its daemons keep everything."""
    return layout.servers / "gluster"


def command(layout: Layout) -> list[str]:
    """The beginning of a command to this cluster's glusterd, as on a host that is a member."""
    place = folder(layout)
    socket = f"--glusterd-sock={place}/run/glusterd.socket"
    return ["gluster", "--mode=script", socket, f"--log-file={place}/log/cli.log"]


def start(servers: Servers) -> None:
    """Make the volume, and run its daemons; LabError."""
    place = folder(servers.layout)
    bricks = [place / f"brick-{number}" for number in range(1, BRICKS + 1)]
    for path in (place / "glusterd/groups", place / "log", place / "run", *bricks):
        path.mkdir(parents=True)
    if not GROUP_VIRT.exists():
        raise LabError(f"{GROUP_VIRT}: is not there; reinstall glusterfs-server")
    shutil.copy(GROUP_VIRT, place / "glusterd/groups/virt")
    # The bricks' sockets and one log have fixed places, which two labs would share.
    for path, target in (
        (place / "brick-run", "/run/gluster"),
        (place / "log", "/var/log/glusterfs"),
    ):
        path.mkdir(exist_ok=True)
        os.makedirs(target, exist_ok=True)
        mount(str(path), target, flags=MS_BIND)
    volfile = place / "glusterd.vol"
    volfile.write_text(GLUSTERD.format(folder=place, address=STORAGE_ADDRESS))
    argv = ["glusterd", "-N", "-f", str(volfile), "-l", f"{place}/log/glusterd.log"]
    servers.run("glusterd", [*argv, "-p", f"{place}/run/glusterd.pid"])
    gluster = command(servers.layout)
    servers.until("glusterd answers", [*gluster, "peer", "status"], "Peers", READY_SECONDS_MAX)
    places = [f"{STORAGE_ADDRESS}:{path}" for path in bricks]
    servers.do([*gluster, "volume", "create", VOLUME, "replica", str(BRICKS), *places, "force"])
    for key, value in SETTINGS:
        servers.do([*gluster, "volume", "set", VOLUME, key, value])
    servers.do([*gluster, "volume", "start", VOLUME])
    # glusterd starts the bricks; they are this supervisor's to kill and freeze by their number.
    for number, path in enumerate(bricks, start=1):
        record = (
            place / "run/vols" / VOLUME / f"{STORAGE_ADDRESS}-{str(path)[1:].replace('/', '-')}.pid"
        )
        again = [*gluster, "volume", "start", VOLUME, "force"]
        servers.adopt(f"brick-{number}", record, again, READY_SECONDS_MAX)


def client(layout: Layout, host: HostLayout | None) -> list[str]:
    """The command that mounts it over the shared folder, and serves it until killed."""
    log = f"--log-file={host.log if host else folder(layout) / 'log'}/gluster-client.log"
    server = f"--volfile-server={STORAGE_ADDRESS}"
    return ["glusterfs", "-N", log, server, f"--volfile-id={VOLUME}", str(layout.shared)]

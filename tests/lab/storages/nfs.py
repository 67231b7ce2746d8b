# SPDX-License-Identifier: LGPL-2.1-or-later
"""NFS 3: nfs-ganesha over a folder of this machine, and a client in user space per host.

No kernel client: this machine's kernel has none. The client (nfs_client.py) passes reads, writes
and names on; it knows no locks, so QEMU's lock on the image is not real here. Not version 4: its
library (libnfs 4.0.0) fails there to write 4096 bytes at once, "Failed to encode COMPOUND4args".
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..layout import STORAGE_ADDRESS, HostLayout, Layout
from .running import Servers

READY_SECONDS_MAX = 30.0

GANESHA = """NFS_CORE_PARAM {{
    NFS_Protocols = 3;
    NFS_Port = 2049;
    MNT_Port = 20048;
    Bind_addr = {address};
    Enable_NLM = false;
    Enable_RQUOTA = false;
    Enable_UDP = false;
}}
NFSv4 {{
    RecoveryRoot = {folder}/recovery;
}}
EXPORT {{
    Export_Id = 1;
    Path = {folder}/export;
    Access_Type = RW;
    Squash = No_Root_Squash;
    Protocols = 3;
    SecType = sys;
    FSAL {{ Name = VFS; }}
}}
"""


def folder(layout: Layout) -> Path:
    """Where the server keeps everything."""
    return layout.servers / "nfs"


def start(servers: Servers) -> None:
    """Run the server; LabError."""
    place = folder(servers.layout)
    for name in ("export", "recovery"):
        (place / name).mkdir(parents=True)
    config = place / "ganesha.conf"
    config.write_text(GANESHA.format(address=STORAGE_ADDRESS, folder=place))
    # ganesha registers with it; the clients know the ports.
    servers.run("rpcbind", rpcbind(place))
    argv = ["ganesha.nfsd", "-F", "-f", str(config), "-L", f"{place}/ganesha.log"]
    argv += ["-p", f"{place}/ganesha.pid", "-N", "NIV_EVENT"]
    servers.run("ganesha", in_its_own_run(place, argv))
    listening = ["ss", "-Hltn", "sport", "=", ":2049"]
    servers.until("the server listens", listening, "2049", READY_SECONDS_MAX)


def rpcbind(place: Path) -> list[str]:
    """The command of a server's rpcbind."""
    return in_its_own_run(place, ["rpcbind", "-f", "-w"])


def in_its_own_run(place: Path, argv: list[str]) -> list[str]:
    """The command with a /run of this server. rpcbind's lock and socket lie there: the one of a
    second lab ended at once, and its ganesha registered with the first lab's, as long as there was
    one."""
    run = place / "run"
    (run / "rpcbind").mkdir(parents=True, exist_ok=True)
    script = 'mount --bind "$0" /run && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(run), *argv]


def client(layout: Layout, host: HostLayout | None) -> list[str]:
    """The command that mounts it over the shared folder, and serves it until killed."""
    path = folder(layout) / "export"
    url = f"nfs://{STORAGE_ADDRESS}{path}?version=3&nfsport=2049&mountport=20048"
    return [sys.executable, "-m", "tests.lab.storages.nfs_client", url, str(layout.shared)]

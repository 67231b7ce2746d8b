# SPDX-License-Identifier: LGPL-2.1-or-later
"""The storage: its daemons, and the volumes on it. Runs under the switch, in its namespaces, so
that its network is the storage's; takes orders about its daemons.

``python -m tests.lab.storages.server RUN-DIRECTORY``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from .. import guest, storage
from ..layout import Layout
from ..settings import Settings
from ..supervisor import say
from . import block, ceph, gluster, nfs
from .client import mount_storage
from .kinds import BLOCK, CEPH, GLUSTER, NFS
from .running import Servers

STARTS: dict[str, Callable[[Servers], None]] = {
    CEPH: ceph.start,
    GLUSTER: gluster.start,
    NFS: nfs.start,
    **dict.fromkeys(BLOCK, block.start),
}


def main() -> None:
    """Never returns."""
    layout = Layout(Path(sys.argv[1]))
    settings = Settings.load(layout)
    servers = Servers(layout, settings)
    layout.servers.mkdir(exist_ok=True)
    STARTS[settings.storage](servers)
    mount_storage(layout, settings.storage, None)
    storage.create(layout, settings)
    if settings.vms > 1:
        storage.register(layout, settings, guest.build())
    say(f"storage up: {', '.join(servers.names) or settings.storage}")
    servers.supervisor.run()


if __name__ == "__main__":
    main()

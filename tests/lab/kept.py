# SPDX-License-Identifier: LGPL-2.1-or-later
"""The logs of a lab that is gone."""

from __future__ import annotations

import shutil
from pathlib import Path

from .cluster import Cluster

KEPT = Path("build/lab-logs")


def keep_logs(cluster: Cluster, folder: Path) -> None:
    """Copy each host's logs into a folder of its name, and those of the storage's daemons into
    `servers`."""
    for kept in cluster.layout.directory.glob("hosts/*/log"):
        shutil.copytree(kept, folder / kept.parent.name, dirs_exist_ok=True)
    servers = cluster.layout.servers
    for kept in servers.glob("**/*.log"):
        place = folder / "servers" / kept.relative_to(servers)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(kept, place)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mounts the storage over the shared folder, in whichever namespace it is called."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from .. import storage_fault
from ..environment import clean
from ..errors import LabError
from ..layout import CHECKOUT, HostLayout, Layout
from . import ceph, gluster, nfs
from .kinds import CEPH, FUSE, GLUSTER, MOUNTED, NFS

MOUNT_SECONDS_MAX = 30.0


def mount_storage(layout: Layout, kind: str, host: HostLayout | None) -> None:
    """Returns when it is mounted, or is of a kind that is not; LabError. `host` None: for the
    servers themselves."""
    if kind not in MOUNTED:
        return
    if is_mount(layout.shared):
        # What the servers have mounted there shows in a host too, until it has its own.
        subprocess.run(["umount", "-l", str(layout.shared)], check=True)
    match kind:
        case _ if kind == CEPH:
            argv = ceph.client(layout, host)
        case _ if kind == GLUSTER:
            argv = gluster.client(layout, host)
        case _ if kind == NFS:
            argv = nfs.client(layout, host)
        case _:
            assert kind == FUSE and host is not None
            argv = storage_fault.argv(host)
    log_path = (host.log if host is not None else layout.servers) / "storage.log"
    with log_path.open("ab") as log:
        server = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**clean(host), **(ceph.environment(layout) if kind == CEPH else {})},
            cwd=CHECKOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + MOUNT_SECONDS_MAX
    # A stat of it would hang where the storage does: the fault outlives a power cut.
    while not is_mount(layout.shared):
        if server.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"{layout.shared} was not mounted; see {log_path}")
        time.sleep(0.02)


def is_mount(path: Path) -> bool:
    """Whether something is mounted right there."""
    with open("/proc/self/mounts") as mounts:
        return any(line.split()[1] == os.fspath(path) for line in mounts)

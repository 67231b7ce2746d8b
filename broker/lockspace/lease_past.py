# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds out whether another host has held the engine lease since the VM's process gave it back.

libvirt's lock driver gives the lease back when a VM is paused, and takes it again when it is
resumed, even if another host ran the VM in between. The lease on disk names its last owner also
while nobody holds it (sanlock's src/leader.h, owner_id), so that it can be seen beforehand.
"""

from __future__ import annotations

import contextlib
import logging
import struct
from pathlib import Path

from broker.daemon.atomic_file import write_atomically
from broker.lockspace.delta_leases import read_last_owner
from broker.whiteboard.volume import Volume, VolumeError

log = logging.getLogger("ha-broker.engine")


class LeasePast:
    """Remembers, over restarts of the broker, which process here was seen to hold the lease.

    `path`: the file. `boot_id`: of this boot; a process id of an earlier one means nothing. Both
    methods block, so they belong into a thread.
    """

    def __init__(self, path: Path, boot_id: str, leases: str, resource: str, host_id: int) -> None:
        self._path = path
        self._boot_id = boot_id
        self._leases = leases
        self._resource = resource
        self._host_id = host_id
        self._holder: int | None = None
        with contextlib.suppress(OSError, ValueError):
            pid, boot = path.read_text().split()
            self._holder = int(pid) if boot == boot_id else None

    def holds(self, pid: int) -> None:
        """Note that this process holds the lease now."""
        if pid == self._holder:
            return
        self._holder = pid
        try:
            write_atomically(self._path, f"{pid} {self._boot_id}\n".encode())
        except OSError as error:
            log.warning("%s: cannot be written: %s", self._path, error.strerror)

    def is_outdated(self, pid: int) -> bool | None:
        """Whether another host has held the lease since this process, which does not hold it now,
        did. None: it was never seen to hold it, or the lease volume cannot be read."""
        if pid != self._holder:
            return None
        try:
            with Volume(self._leases, read_only=True) as volume:
                owner = read_last_owner(volume, self._resource)
        except (VolumeError, KeyError, struct.error):
            return None
        return None if not owner else owner != self._host_id

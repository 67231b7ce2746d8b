# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps the lease volume open, so that a question during a takeover need not open it.

While a client of a cluster file system is silent, opening a file or asking for its size may wait
until the storage evicts that client (CephFS: a minute), since the metadata server first recalls the
capabilities of the silent client. A read through a descriptor that is already open does not wait.

Rules:

1. The volume is opened ahead, and anew only after a failure.
2. Its identity is read and compared through the open descriptor each time.
3. One object is used by one thread at a time; a call blocks for as long as the storage likes.
"""

from __future__ import annotations

import struct

from broker.lockspace.delta_leases import Layout, read_delta_lease
from broker.lockspace.lease_records import LeaseRecord, decode
from broker.whiteboard.identity import Expected, check_identity
from broker.whiteboard.lease_sectors import sector_of_leases
from broker.whiteboard.volume import Volume, VolumeError, VolumeFault


class OpenLeases:
    """One lease volume, for one thread."""

    def __init__(self, path: str, wanted: Expected) -> None:
        self._path = path
        self._wanted = wanted
        self._volume: Volume | None = None

    def now(self) -> Volume:
        """The volume, opened where it is not, its identity compared; VolumeError."""
        if self._volume is None:
            self._volume = Volume(self._path, read_only=True)
        try:
            check_identity(self._volume, self._wanted)
        except VolumeError:
            self.close()
            raise
        return self._volume

    def layout(self) -> Layout:
        """How the volume is divided; VolumeError."""
        return Layout(sector_of_leases(self.now()))

    def owner_of(self, lockspace: str, resource: str, offset: int) -> LeaseRecord:
        """The record of a lease; VolumeError, also where that lease is not there."""
        found = self.record(offset)
        if found is None or (found.lockspace, found.resource) != (lockspace, resource):
            what = "no lease that can be read" if found is None else f"lease {found.resource}"
            raise VolumeError(
                VolumeFault.OTHER_VOLUME,
                self._path,
                f"holds {what} at {offset}, not {resource} of {lockspace}",
                "check storage.leases and storage.lockspace",
            )
        return found

    def delta(self, host_id: int) -> tuple[int, int] | None:
        """(generation, timestamp) of a host id on disk; None where there is none; VolumeError."""
        volume = self.now()
        try:
            return read_delta_lease(volume, host_id)
        except (KeyError, struct.error):
            return None
        except VolumeError:
            self.close()
            raise

    def close(self) -> None:
        """Close it; the next call opens it anew."""
        volume, self._volume = self._volume, None
        if volume is not None:
            volume.close()

    def record(self, offset: int) -> LeaseRecord | None:
        """The record of whatever lease is there; None where none can be read; VolumeError."""
        volume = self.now()
        try:
            return decode(volume.read_at(offset))
        except VolumeError:
            self.close()
            raise

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The delta leases of a sanlock lockspace, read from the volume itself: who renews which id."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from broker.lockspace.rejoin import OwnLease
from broker.whiteboard.lease_sectors import ALIGN_OF_SECTOR, DELTA_MAGIC, sector_of_leases
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.volume import Volume

#: sanlock_rv.h
SANLK_HOSTID_BUSY = -262
#: What a volume without a lockspace answers: wrong magic, version, checksum, lockspace.
NOT_A_LOCKSPACE = frozenset({-223, -224, -226, -229})
#: sanlock's src/leader.h, little endian: struct leader_record of a delta lease.
_MAGIC = _SECTOR_SIZE = struct.Struct("<I")
_OWNER_GENERATION = struct.Struct("<QQ")
_TIMESTAMP = struct.Struct("<Q")
_SECTOR_SIZE_AT, _OWNER_AT, _TIMESTAMP_AT = 12, 32, 152


def read_delta_leases(volume: Volume, host_ids: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Host id -> (generation, timestamp), of these hosts and of all in the same 4096 bytes.

    Raises VolumeError, and KeyError or struct.error where the volume ends before. A sector that
    is no delta lease of its place's host id is left out.
    """
    return {
        host_id: (
            _OWNER_GENERATION.unpack_from(record, _OWNER_AT)[1],
            _TIMESTAMP.unpack_from(record, _TIMESTAMP_AT)[0],
        )
        for host_id, record in _records(volume, host_ids).items()
    }


def read_delta_lease(volume: Volume, host_id: int) -> tuple[int, int] | None:
    """(generation, timestamp) of one host id; None where its place holds no delta lease of it. Of
    an id that nobody ever used both are 0. Raises as `read_delta_leases`."""
    first = volume.read_slots([0])[0]
    sector = _SECTOR_SIZE.unpack_from(first, _SECTOR_SIZE_AT)[0]
    if sector not in ALIGN_OF_SECTOR:
        return None
    block, at = divmod((host_id - 1) * sector, SLOT_BYTES)
    record = volume.read_slots([block])[block][at : at + sector]
    owner, generation = _OWNER_GENERATION.unpack_from(record, _OWNER_AT)
    if _MAGIC.unpack_from(record)[0] != DELTA_MAGIC or owner not in (0, host_id):
        return None
    return generation, _TIMESTAMP.unpack_from(record, _TIMESTAMP_AT)[0]


def read_named_leases(volume: Volume, host_ids: Iterable[int]) -> dict[int, OwnLease]:
    """The leases with the names of the sanlocks that wrote them; an id that no host ever had is
    left out. Raises as `read_delta_leases`."""
    return {
        host_id: OwnLease(
            _name(record, _RESOURCE_AT),
            _OWNER_GENERATION.unpack_from(record, _OWNER_AT)[1],
            _TIMESTAMP.unpack_from(record, _TIMESTAMP_AT)[0],
            _IO_TIMEOUT.unpack_from(record, _IO_TIMEOUT_AT)[0],
        )
        for host_id, record in _records(volume, host_ids).items()
    }


def _records(volume: Volume, host_ids: Iterable[int]) -> dict[int, bytes]:
    first = volume.read_slots([0])[0]
    sector = _SECTOR_SIZE.unpack_from(first, _SECTOR_SIZE_AT)[0]
    if sector not in (512, 4096):
        return {}
    blocks = {(host_id - 1) * sector // SLOT_BYTES for host_id in host_ids}
    found: dict[int, bytes] = {}
    for number, block in {0: first, **volume.read_slots(blocks - {0})}.items():
        for offset in range(0, SLOT_BYTES, sector):
            record = block[offset : offset + sector]
            owner = _OWNER_GENERATION.unpack_from(record, _OWNER_AT)[0]
            its_id = (number * SLOT_BYTES + offset) // sector + 1
            if _MAGIC.unpack_from(record)[0] == DELTA_MAGIC and owner == its_id:
                found[its_id] = record
    return found


@dataclass(frozen=True, slots=True)
class LeaseVolume:
    """What a lease volume says of itself. `io_timeout`: seconds, 0: sanlock's default.
    `resources`: names by offset, of those that were looked for. `align`: bytes."""

    lockspace: str
    sector: int
    io_timeout: int
    align: int
    resources: dict[int, str]


#: sanlock's src/leader.h: PAXOS_DISK_MAGIC, and where a record's names and its timeout are.
PAXOS_MAGIC = 0x06152010
#: The lease of who switches a host off or frees its id, and its alignment unit.
FENCE_RESOURCE, FENCE_UNIT = "fence", 2
_SPACE_AT, _RESOURCE_AT, _NAME_BYTES = 56, 104, 48
_IO_TIMEOUT, _IO_TIMEOUT_AT = struct.Struct("<H"), 174


@dataclass(frozen=True, slots=True)
class Layout:
    """How a lease volume is divided, in bytes: sanlock asks for both in each reading call, and
    answers EINVAL where its defaults (512, 1 MiB) are not the volume's."""

    sector: int

    @property
    def align(self) -> int:
        """From one lease to the next."""
        return ALIGN_OF_SECTOR[self.sector]

    @property
    def fence_at(self) -> int:
        """The offset of the fence lease."""
        return FENCE_UNIT * self.align

    @property
    def words(self) -> dict[str, int]:
        """The layout as arguments of sanlock's library."""
        return {"align": self.align, "sector": self.sector}


def layout_at(path: str) -> Layout:
    """The layout of the lease volume that lies there now; blocks as reads do; VolumeError."""
    with Volume(path, read_only=True) as volume:
        return Layout(sector_of_leases(volume))


def read_lease_volume(volume: Volume) -> LeaseVolume | None:
    """The lockspace at offset 0 and the two resources behind it; None: no lockspace is there.

    Raises VolumeError, and KeyError or struct.error where the volume is too short for one.
    """
    first = volume.read_slots([0])[0]
    sector = _SECTOR_SIZE.unpack_from(first, _SECTOR_SIZE_AT)[0]
    if _MAGIC.unpack_from(first)[0] != DELTA_MAGIC or sector not in ALIGN_OF_SECTOR:
        return None
    align = ALIGN_OF_SECTOR[sector]
    resources = {}
    for offset in (align, 2 * align):
        record = volume.read_at(offset)
        if len(record) >= SLOT_BYTES and _MAGIC.unpack_from(record)[0] == PAXOS_MAGIC:
            resources[offset] = _name(record, _RESOURCE_AT)
    io_timeout = _IO_TIMEOUT.unpack_from(first, _IO_TIMEOUT_AT)[0]
    return LeaseVolume(_name(first, _SPACE_AT), sector, io_timeout, align, resources)


def read_last_owner(volume: Volume, resource: str) -> int | None:
    """The host id that holds a resource's lease, or held it last; 0: nobody ever did; None: there
    is no such resource. Raises as `read_lease_volume`."""
    head = read_lease_volume(volume)
    for offset, name in head.resources.items() if head is not None else ():
        if name == resource:
            return int(_OWNER_GENERATION.unpack_from(volume.read_at(offset), _OWNER_AT)[0])
    return None


def _name(record: bytes, at: int) -> str:
    return record[at : at + _NAME_BYTES].partition(b"\0")[0].decode(errors="replace")

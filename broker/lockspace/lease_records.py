# SPDX-License-Identifier: LGPL-2.1-or-later
"""The leases of a lease volume, read from the volume itself: who holds which.

sanlock's own call reads a lease's whole area, 1 or 8 MiB, to find the one record that says who
holds it: 50 VMs would be 50 to 400 MiB at each look. That record is the lease's first sector. It is
read here as sanlock reads it, its checksum compared: a record that is damaged is not a free lease.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from broker.lockspace.delta_leases import PAXOS_MAGIC
from broker.whiteboard.lease_sectors import ALIGN_OF_SECTOR, sector_of_leases
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.volume import Volume

#: sanlock's src/leader.h, little endian: struct leader_record. The checksum is a CRC-32C of what
#: stands before it (its src/paxos_lease.c, leader_checksum).
_HEAD = struct.Struct("<II")
_OWNER, _OWNER_AT = struct.Struct("<QQ"), 32
_SPACE_AT, _RESOURCE_AT, _NAME_BYTES = 56, 104, 48
_TIMESTAMP, _TIMESTAMP_AT = struct.Struct("<Q"), 152
_CHECKSUM, _CHECKSUM_AT = struct.Struct("<I"), 168
_CRC_SEED = 0xFFFFFFFE


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """One lease. `lockspace`, `resource`: their names. `owner`: the host id that holds it, or held
    it last, 0: nobody ever did; `generation`: of that id then. `held`: it was not given back, so it
    is held as long as that generation of the id lives."""

    lockspace: str
    resource: str
    owner: int
    generation: int
    held: bool


def read_lease_records(volume: Volume, units: Iterable[int]) -> dict[int, LeaseRecord | None]:
    """The lease in each alignment unit; None where there is none, or none that can be read.
    VolumeError."""
    align = ALIGN_OF_SECTOR[sector_of_leases(volume)]
    return {unit: decode(volume.read_at(unit * align)) for unit in units}


def decode(data: bytes) -> LeaseRecord | None:
    """The lease in a sector; None where none can be read there."""
    if len(data) < SLOT_BYTES or _HEAD.unpack_from(data)[0] != PAXOS_MAGIC:
        return None
    if _CHECKSUM.unpack_from(data, _CHECKSUM_AT)[0] != _crc32c(data[:_CHECKSUM_AT]):
        return None
    owner, generation = _OWNER.unpack_from(data, _OWNER_AT)
    timestamp = _TIMESTAMP.unpack_from(data, _TIMESTAMP_AT)[0]
    return LeaseRecord(
        _name(data, _SPACE_AT), _name(data, _RESOURCE_AT), owner, generation, timestamp != 0
    )


def _name(data: bytes, at: int) -> str:
    return data[at : at + _NAME_BYTES].partition(b"\0")[0].decode(errors="replace")


def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE = _table()


def _crc32c(data: bytes) -> int:
    crc = _CRC_SEED
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc

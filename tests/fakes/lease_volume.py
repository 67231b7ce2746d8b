# SPDX-License-Identifier: LGPL-2.1-or-later
"""A lease volume of sectors of 512 bytes, written without sanlock (its src/leader.h)."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from broker.lockspace.delta_leases import PAXOS_MAGIC
from broker.lockspace.lease_records import _crc32c
from broker.whiteboard.lease_sectors import DELTA_MAGIC

UNIT = 1 << 20


def lease_volume(
    path: Path,
    lockspace: str = "hosted-engine",
    held: Mapping[str, tuple[int, int]] | None = None,
    renewals: Mapping[int, tuple[int, int]] | None = None,
) -> Path:
    """Write lockspace, `engine` and `fence`. `held`: resource -> (host id, generation) of its
    owner; `renewals`: host id -> (generation, timestamp)."""
    with path.open("wb") as file:
        os.truncate(path, 5 * UNIT)
        for host, (generation, timestamp) in {1: (1, 1), **(renewals or {})}.items():
            file.seek((host - 1) * 512)
            file.write(_record(DELTA_MAGIC, lockspace, "", host, generation, timestamp))
        for unit, resource in ((1, "engine"), (2, "fence")):
            host, generation = (held or {}).get(resource, (0, 0))
            file.seek(unit * UNIT)
            file.write(_record(PAXOS_MAGIC, lockspace, resource, host, generation, min(host, 1)))
    return path


def _record(
    magic: int, lockspace: str, resource: str, owner: int, generation: int, timestamp: int
) -> bytes:
    record = bytearray(512)
    struct.pack_into("<I", record, 0, magic)
    struct.pack_into("<I", record, 12, 512)
    struct.pack_into("<QQ", record, 32, owner, generation)
    struct.pack_into("<48s48s", record, 56, lockspace.encode(), resource.encode())
    struct.pack_into("<Q", record, 152, timestamp)
    struct.pack_into("<I", record, 168, _crc32c(bytes(record[:168])))
    return bytes(record)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""How large the sectors of a lease volume are, read from sanlock's own records there."""

from __future__ import annotations

import struct

from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.volume import Volume

#: sanlock's src/leader.h, little endian: struct leader_record of a delta lease.
DELTA_MAGIC = 0x12212010
_MAGIC = _SECTOR_SIZE = struct.Struct("<I")
_SECTOR_SIZE_AT = 12
#: sanlock's sizes for 2000 hosts: a sector each, rounded up (sanlock(8), align and sector size).
ALIGN_OF_SECTOR = {512: 1 << 20, 4096: 8 << 20}


def sector_of_leases(volume: Volume) -> int:
    """The sector size of a lease volume, bytes; 512 where it holds no lockspace; VolumeError."""
    first = volume.read_at(0)
    if len(first) < SLOT_BYTES or _MAGIC.unpack_from(first)[0] != DELTA_MAGIC:
        return 512
    sector = _SECTOR_SIZE.unpack_from(first, _SECTOR_SIZE_AT)[0]
    return sector if sector in ALIGN_OF_SECTOR else 512

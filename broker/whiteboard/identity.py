# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a volume says that it is: of which cluster, which volume, of what kind, made when. Pure,
but for `check`, which reads it.

A path proves nothing: below a mount point that is not mounted lies some other file. So the volume
carries its own name where neither the reference nor sanlock ever looks, the configuration says
which name it must be, and whoever opens the volume compares.

Rules of this file:

1. One block of 4096 bytes: lines of text, and behind them "end=" with the CRC-32 of those lines in
   8 hex digits, NUL padded. The first line has the version; a later version's block is not guessed
   at. Lines that this version does not know are ignored.
2. On a whiteboard it is slot IDENTITY_SLOT (volume_layout.py). On a lease volume it is the first
   block of alignment unit LEASES_UNIT, behind lockspace, engine and fence lease and the unit that
   is kept for the registry.
3. A configuration without ids is of an earlier version: nothing is compared.
4. A copy of a volume carries its name too. What tells a copy from the original is
   scoring/hosts/same_storage.py.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from enum import StrEnum

from broker.config.sections import Config
from broker.whiteboard.layout import IDENTITY_SLOT
from broker.whiteboard.lease_sectors import ALIGN_OF_SECTOR, sector_of_leases
from broker.whiteboard.slot import EMPTY_SLOT, SLOT_BYTES
from broker.whiteboard.volume import Volume, VolumeError, VolumeFault

#: Of the lease volume's alignment units: 0 lockspace, 1 engine, 2 fence, 3 registry; 4 to 15 kept.
LEASES_UNIT = 4
_HEAD = b"ha-agent volume "
_VERSION = 1
_FIRST_CHARS_MAX = 40
_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_END = re.compile(rb"end=([0-9a-f]{8})\n\0*")
_STEP = "check what is mounted there, and that the path is the same on all hosts"


class VolumeKind(StrEnum):
    """Which of the two volumes it is."""

    WHITEBOARD = "whiteboard"
    LEASES = "leases"


@dataclass(frozen=True, slots=True)
class Identity:
    """A volume's name. `made_at`: UTC seconds since 1970."""

    kind: VolumeKind
    cluster: str
    volume: str
    made_at: int


@dataclass(frozen=True, slots=True)
class Expected:
    """What a volume must say that it is. `volume` "": nothing is compared."""

    kind: VolumeKind
    cluster: str = ""
    volume: str = ""


class BadIdentity(Exception):
    """There is something where the name should be that cannot be read: what it is."""


def expected(config: Config, kind: VolumeKind) -> Expected:
    """What the configuration says of one of its volumes."""
    given = config.storage
    volume = given.whiteboard_id if kind is VolumeKind.WHITEBOARD else given.leases_id
    return Expected(kind, config.cluster.id, volume)


def encode(identity: Identity) -> bytes:
    """The block."""
    lines = (
        f"ha-agent volume {_VERSION}\nkind={identity.kind}\ncluster={identity.cluster}\n"
        f"volume={identity.volume}\nmade-at={identity.made_at}\n"
    ).encode()
    return (lines + b"end=%08x\n" % zlib.crc32(lines)).ljust(SLOT_BYTES, b"\0")


def decode(raw: bytes) -> Identity | None:
    """The name in a block; None where it is empty or not there; BadIdentity."""
    if not raw or raw == EMPTY_SLOT[: len(raw)]:
        return None
    if not raw.startswith(_HEAD):
        raise BadIdentity("something else lies where its identity should be")
    lines, _, rest = raw.partition(b"end=")
    found = _END.fullmatch(b"end=" + rest)
    if len(raw) != SLOT_BYTES or found is None or int(found.group(1), 16) != zlib.crc32(lines):
        raise BadIdentity("its identity is damaged or cut off")
    first, *others = lines.decode(errors="replace").splitlines()
    if first != f"ha-agent volume {_VERSION}":
        raise BadIdentity(
            f"its identity is of a later version ({first[:_FIRST_CHARS_MAX]!r}): upgrade this host"
        )
    fields = dict(line.partition("=")[::2] for line in others)
    try:
        kind = VolumeKind(fields["kind"])
        made_at = int(fields["made-at"])
    except (KeyError, ValueError):
        raise BadIdentity("its identity cannot be read") from None
    ids = fields.get("cluster", ""), fields.get("volume", "")
    if not all(re.fullmatch(_ID, each) for each in ids):
        raise BadIdentity("its identity cannot be read")
    return Identity(kind, *ids, made_at)


def problem(raw: bytes, wanted: Expected) -> str:
    """Why a volume with this block is not the one that is wanted; "" where it is."""
    if not wanted.volume:
        return ""
    is_of = f"{wanted.kind} {wanted.volume} of cluster {wanted.cluster} is expected"
    try:
        found = decode(raw)
    except BadIdentity as error:
        return f"{error}; {is_of}"
    if found is None:
        return f"has no identity; {is_of}"
    if (found.kind, found.cluster, found.volume) != (wanted.kind, wanted.cluster, wanted.volume):
        return f"is {found.kind} {found.volume} of cluster {found.cluster}; {is_of}"
    return ""


def place_of(volume: Volume, kind: VolumeKind) -> int:
    """Where its name stands or belongs, bytes; VolumeError."""
    if kind is VolumeKind.WHITEBOARD:
        return IDENTITY_SLOT * SLOT_BYTES
    return LEASES_UNIT * ALIGN_OF_SECTOR[sector_of_leases(volume)]


def read(volume: Volume, kind: VolumeKind) -> bytes:
    """The block of its name, shorter or empty where the volume ends before; VolumeError."""
    return volume.read_at(place_of(volume, kind))


def check(volume: Volume, wanted: Expected) -> None:
    """VolumeError where it is not the volume that is wanted."""
    if not wanted.volume:
        return
    found = problem(read(volume, wanted.kind), wanted)
    if found:
        raise VolumeError(VolumeFault.OTHER_VOLUME, volume.path, found, _STEP)


def check_at(path: str, wanted: Expected) -> None:
    """The same of the volume that lies there now. Blocks as reads do."""
    if wanted.volume:
        with Volume(path, read_only=True) as volume:
            check(volume, wanted)

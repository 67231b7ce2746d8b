# SPDX-License-Identifier: LGPL-2.1-or-later
"""The identity of a volume: of which cluster it is, which volume, of what kind, made when. Pure,
but for `check`, which reads it.

A path proves nothing: below a mount point that is not mounted lies some other file. So the volume
carries its identity where neither the reference nor sanlock ever looks, the configuration names the
identity that it must have, and each program that opens the volume compares.

Rules of this file:

1. One block of 4096 bytes: lines of text, followed by "end=" with the CRC-32 of those lines in
   8 hex digits, NUL padded. The first line has the version; the block of a later version is an
   error. Lines that this version does not know are ignored.
2. On a whiteboard it is slot IDENTITY_SLOT (layout.py). On a lease volume it is the first
   block of alignment unit LEASES_UNIT, behind lockspace, engine and fence lease and the unit that
   is kept for the registry.
3. A configuration without ids was made by an earlier version: nothing is compared.
4. A volume that is smaller than the part that the cluster uses has shrunk, or is another one with
   a copied beginning: it is refused like another volume.
5. A copy of a volume has the same identity; scoring/hosts/same_storage.py finds the copy.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from enum import StrEnum

from broker.config.sections import Config
from broker.whiteboard.errors import WhiteboardError
from broker.whiteboard.layout import IDENTITY_SLOT
from broker.whiteboard.lease_sectors import ALIGN_OF_SECTOR, sector_of_leases
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import EMPTY_SLOT
from broker.whiteboard.volume import Volume, VolumeError, VolumeFault

#: An alignment unit of the lease volume: 0 lockspace, 1 engine, 2 fence, 3 registry; 4 to 15 are
#: reserved.
LEASES_UNIT = 4
_HEAD = b"ha-agent volume "
_VERSION = 1
_FIRST_CHARS_MAX = 40
_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_END = re.compile(rb"end=([0-9a-f]{8})\n\0*")
STEP = "check what is mounted there, and that the path is the same on all hosts"


class VolumeKind(StrEnum):
    """Which of the two volumes it is."""

    WHITEBOARD = "whiteboard"
    LEASES = "leases"


@dataclass(frozen=True, slots=True)
class Identity:
    """A volume's identity. `made_at`: UTC seconds since 1970. `bytes`: the part of the volume that
    the cluster uses; `sector`: the sector size that it was made for; 0: an earlier version wrote
    it, and nobody knows."""

    kind: VolumeKind
    cluster: str
    volume: str
    made_at: int
    bytes: int = 0
    sector: int = 0


@dataclass(frozen=True, slots=True)
class Expected:
    """The identity that a volume must have. `volume` "": nothing is compared."""

    kind: VolumeKind
    cluster: str = ""
    volume: str = ""


class BadIdentity(WhiteboardError):
    """The identity's block holds something that cannot be read as one."""


def expected(config: Config, kind: VolumeKind) -> Expected:
    """The identity that the configuration demands of one of its volumes."""
    given = config.storage
    volume = given.whiteboard_id if kind is VolumeKind.WHITEBOARD else given.leases_id
    return Expected(kind, config.cluster.id, volume)


def encode(identity: Identity) -> bytes:
    """The block of an identity."""
    lines = (
        f"ha-agent volume {_VERSION}\nkind={identity.kind}\ncluster={identity.cluster}\n"
        f"volume={identity.volume}\nmade-at={identity.made_at}\n"
    ).encode()
    if identity.bytes:
        lines += b"bytes=%d\nsector=%d\n" % (identity.bytes, identity.sector)
    return (lines + b"end=%08x\n" % zlib.crc32(lines)).ljust(SLOT_BYTES, b"\0")


def decode(raw: bytes) -> Identity | None:
    """The identity in a block; None where the block is empty or missing; BadIdentity."""
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
        sizes = int(fields.get("bytes", 0)), int(fields.get("sector", 0))
    except (KeyError, ValueError):
        raise BadIdentity("its identity cannot be read") from None
    ids = fields.get("cluster", ""), fields.get("volume", "")
    if not all(re.fullmatch(_ID, each) for each in ids):
        raise BadIdentity("its identity cannot be read")
    return Identity(kind, *ids, made_at, *sizes)


def problem(raw: bytes, wanted: Expected) -> str:
    """Why a volume with this block is not the expected one; "" where it is."""
    if not wanted.volume:
        return ""
    is_of = f"{wanted.kind} {wanted.volume} of cluster {wanted.cluster} is expected"
    try:
        found = decode(raw)
    except BadIdentity as error:
        return f"{error}; {is_of}"
    if found is None and len(raw) < SLOT_BYTES:
        return f"ends before its identity: it has shrunk, or is another volume; {is_of}"
    if found is None:
        return f"has no identity; {is_of}"
    if (found.kind, found.cluster, found.volume) != (wanted.kind, wanted.cluster, wanted.volume):
        return f"is {found.kind} {found.volume} of cluster {found.cluster}; {is_of}"
    return ""


def used_bytes(raw: bytes) -> int:
    """The size that an identity's block says is used; 0: it says nothing."""
    try:
        found = decode(raw)
    except BadIdentity:
        return 0
    return 0 if found is None else found.bytes


def place_of(volume: Volume, kind: VolumeKind) -> int:
    """The offset of the volume's identity, in bytes; VolumeError."""
    if kind is VolumeKind.WHITEBOARD:
        return IDENTITY_SLOT * SLOT_BYTES
    return LEASES_UNIT * ALIGN_OF_SECTOR[sector_of_leases(volume)]


def read(volume: Volume, kind: VolumeKind) -> bytes:
    """The block of the identity, shorter or empty where the volume ends before; VolumeError."""
    return volume.read_at(place_of(volume, kind))


def check_identity(volume: Volume, wanted: Expected) -> bytes:
    """VolumeError where the open volume says that it is not the expected one; else the block of its
    identity. One read, and nothing that a file system's server is asked for besides."""
    if not wanted.volume:
        return b""
    raw = read(volume, wanted.kind)
    found = problem(raw, wanted)
    if found:
        raise VolumeError(VolumeFault.OTHER_VOLUME, volume.path, found, STEP)
    return raw


def check(volume: Volume, wanted: Expected) -> None:
    """VolumeError where the open volume is not the expected one, or has shrunk."""
    used = used_bytes(check_identity(volume, wanted))
    if used and (has := volume.size_bytes) < used:
        raise VolumeError(
            VolumeFault.SHRUNK,
            volume.path,
            f"has shrunk: it has {has} bytes, and {used} are used",
            "enlarge it to its old size, or put the right one there",
        )


def check_at(path: str, wanted: Expected) -> None:
    """VolumeError where the volume at `path` is not the expected one. May block, as any read."""
    if wanted.volume:
        with Volume(path, read_only=True) as volume:
            check(volume, wanted)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration that all hosts share, on the registry's volume.

    block 129        its head: the generation, and where its last texts are
    from block 136   eight places of 32 KiB for the texts, zlib compressed

Rules:

1. A change goes: the text to the place of the oldest, read back; then the head, one write, which
   *is* the change. A writer that dies in between leaves everything as it was.
2. The head is signed with the cluster key, and names the digest of each text.
3. Only who holds the lease `registry` changes anything, and only on top of the generation that it
   has read.
4. Blocks of NUL bytes are a cluster in which nothing is shared yet: hosts of an earlier version
   neither read nor write these blocks.
5. Calls block for as long as the storage likes.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from broker.daemon.foreign import clean
from broker.registry.record import COUNT_MAX, Generation
from broker.registry.volume import BadRegistry, Blocks
from broker.whiteboard.signatures import GOOD, Signature, Signatures, Unsigned
from broker.whiteboard.signed_json import framed, framed_in, signature_in
from broker.whiteboard.sizes import SLOT_BYTES

HEAD, TEXTS_AT = 129, 136 * SLOT_BYTES
TEXTS, TEXT_BYTES, TEXT_CHARS_MAX = 8, 32 * 1024, 256 * 1024
MAGIC: Final = "ha-agent configuration"
VERSION = 1
#: The kind of record, as the MAC covers it.
KIND = "ha-agent shared configuration 1"


class SharedText(msgspec.Struct, frozen=True, kw_only=True):
    """One text. `place`: 0 to 7. `stored`: its bytes there. `wall_s`: UTC seconds since 1970 by the
    clock of the writer, `by`; `change`: what it changed, in words."""

    place: Annotated[int, Meta(ge=0, lt=TEXTS)]
    stored: Annotated[int, Meta(ge=1, le=TEXT_BYTES)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    generation: Generation
    wall_s: Annotated[float, Meta(ge=0, le=COUNT_MAX)]
    by: Annotated[str, Meta(max_length=253)] = ""
    change: Annotated[str, Meta(max_length=120)] = ""


class SharedHead(msgspec.Struct, frozen=True, kw_only=True):
    """`texts`: the newest first; none: nothing is shared yet."""

    magic: Literal["ha-agent configuration"] = MAGIC
    version: Annotated[int, Meta(ge=1)] = VERSION
    cluster: Annotated[str, Meta(max_length=64)]
    generation: Generation = 0
    texts: Annotated[tuple[SharedText, ...], Meta(max_length=TEXTS)] = ()

    def free_place(self) -> int:
        """The place for the next text: an unused one, or the oldest."""
        held = [one.place for one in self.texts]
        unused = set(range(TEXTS)) - set(held)
        return min(unused) if unused else held[-1]


class SharedConfig:
    """The shared configuration of one cluster on an open volume."""

    def __init__(self, volume: Blocks, cluster: str, signatures: Signatures) -> None:
        self._volume, self._cluster, self._signatures = volume, cluster, signatures

    def head(self) -> SharedHead:
        """The head; one of generation 0 where nothing is shared yet. BadRegistry where it cannot be
        read, or does not count."""
        data = self._volume.read_at(HEAD * SLOT_BYTES)
        if not data.strip(b"\0"):
            return SharedHead(cluster=self._cluster)
        head = framed_in(data, SharedHead)
        if head is None or len({one.place for one in head.texts}) != len(head.texts):
            raise self._error("cannot be read")
        if head.cluster != self._cluster:
            raise self._error("belongs to another cluster")
        signature = signature_in(data, KIND, HEAD, self._signatures)
        if self._signatures.unsigned is not Unsigned.TRUST and signature not in GOOD:
            raise self._error("is not signed with this cluster's key")
        texts = tuple(
            msgspec.structs.replace(one, by=clean(one.by), change=clean(one.change))
            for one in head.texts
        )
        return msgspec.structs.replace(head, texts=texts)

    def text(self, kept: SharedText) -> str:
        """A text; BadRegistry where it is not what was written."""
        unpacking = zlib.decompressobj()
        try:
            data = unpacking.decompress(self._stored(kept), TEXT_CHARS_MAX)
            if unpacking.eof and hashlib.sha256(data).hexdigest() == kept.sha256:
                return data.decode()
        except (zlib.error, UnicodeDecodeError):
            pass
        raise self._error(f"of generation {kept.generation} is damaged")

    def write(self, head: SharedHead, text: str, wall_s: float, by: str, change: str) -> SharedHead:
        """Write a text on top of `head`, which was read under the lease; the new head. BadRegistry
        where it does not fit, or is not read as it was written."""
        data = text.encode()
        packed = zlib.compress(data, 9)
        if len(data) > TEXT_CHARS_MAX or len(packed) > TEXT_BYTES:
            raise self._error(f"would have {len(data)} bytes, more than fits")
        kept = SharedText(
            place=head.free_place(),
            stored=len(packed),
            sha256=hashlib.sha256(data).hexdigest(),
            generation=head.generation + 1,
            wall_s=wall_s,
            by=by,
            change=change[:120],
        )
        for offset in range(0, len(packed), SLOT_BYTES):
            block = packed[offset : offset + SLOT_BYTES].ljust(SLOT_BYTES, b"\0")
            self._volume.write_at(_at(kept) + offset, block)
        if self._stored(kept) != packed:
            raise self._error("is not read as it was written; nothing was changed")
        older = tuple(one for one in head.texts if one.place != kept.place)
        return self._put(
            SharedHead(
                cluster=self._cluster,
                generation=kept.generation,
                texts=(kept, *older[: TEXTS - 1]),
            )
        )

    def empty(self) -> None:
        """Empty the head: nothing is shared. The caller holds the lease."""
        self._volume.write_at(HEAD * SLOT_BYTES, bytes(SLOT_BYTES))

    def sign_anew(self) -> int:
        """Sign with the present key what the accepted one signed; how many blocks that were."""
        data = self._volume.read_at(HEAD * SLOT_BYTES)
        head = self.head()
        if not head.texts or signature_in(data, KIND, HEAD, self._signatures) is Signature.GOOD:
            return 0
        self._put(head)
        return 1

    def _put(self, head: SharedHead) -> SharedHead:
        block = framed(head, KIND, HEAD, self._signatures).ljust(SLOT_BYTES, b"\0")
        self._volume.write_at(HEAD * SLOT_BYTES, block)
        if self._volume.read_at(HEAD * SLOT_BYTES) != block:
            raise self._error("is not read as it was written")
        return head

    def _stored(self, kept: SharedText) -> bytes:
        offsets = range(0, kept.stored, SLOT_BYTES)
        return b"".join(self._volume.read_at(_at(kept) + o) for o in offsets)[: kept.stored]

    def _error(self, what: str) -> BadRegistry:
        return BadRegistry(
            self._volume.path,
            f"the shared configuration {what}",
            "the hosts go on with the one that they know; see: ha-agent config history",
        )


def _at(kept: SharedText) -> int:
    return TEXTS_AT + kept.place * TEXT_BYTES

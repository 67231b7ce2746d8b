# SPDX-License-Identifier: LGPL-2.1-or-later
"""The registry on its volume: read as a whole, changed one record at a time.

    block 0          the header: whose cluster it is, and its generation
    blocks 1..128    a record for each VM
    from 1 MiB on    four places of 64 KiB for each VM's definitions, zlib compressed

Rules:

1. A change goes: the definition to a place that no kept one uses, read back; the record, one write,
   which *is* the change; the header with the larger generation. A writer that dies in between
   leaves the VM as it was, or changed; the next change makes up for the header.
2. Only the holder of the lease `registry` writes.
3. A damaged record is named and left out. A damaged header is an error, since it is not known whose
   volume it is. A definition whose digest is not the record's is not returned.
4. Calls block for as long as the storage likes.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from broker.registry.record import (
    DEFINITION_BYTES_MAX,
    PLACE_BYTES,
    PLACES,
    VERSION,
    Definition,
    Header,
    RegistryError,
    VmRecord,
    decode_header,
    decode_record,
    encode,
    is_unused,
    signature,
)
from broker.whiteboard.signatures import GOOD, Signature, Signatures, Unsigned
from broker.whiteboard.sizes import SLOT_BYTES
from broker.wire.limits import VMS_MAX

#: Where the definitions begin, and what a registry takes in all: 33 MiB.
DEFINITIONS_AT = 1024 * 1024
REGISTRY_BYTES = DEFINITIONS_AT + VMS_MAX * PLACES * PLACE_BYTES


class Blocks(Protocol):
    """A volume that is read and written in blocks of 4096 bytes (broker/whiteboard/volume.py)."""

    path: str

    @property
    def size_bytes(self) -> int:
        """The size of the volume now."""

    def read_slots(self, ids: Iterable[int]) -> dict[int, bytes]:
        """The first blocks by their number, as far as the volume reaches; few reads."""

    def read_at(self, offset: int) -> bytes:
        """4096 bytes from a multiple of 4096 on; fewer where the volume ends."""

    def write_at(self, offset: int, data: bytes) -> None:
        """Write 4096 bytes at a multiple of 4096; on return they are on the storage."""


class BadRegistry(RegistryError):
    """The registry cannot be used as it is. str(): one line that names the volume, what is wrong
    and the next step."""

    def __init__(self, path: str, what: str, step: str) -> None:
        super().__init__(path, what, step)
        self.path = path
        self.what = what
        self.step = step

    def __str__(self) -> str:
        return f"registry {self.path}: {self.what}; {self.step}"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a reading found. `records`: VM number -> its record, removed ones among them.
    `damaged`: numbers whose block cannot be read. `refused`: numbers whose record is not signed,
    or wrongly, and counts for nothing."""

    generation: int
    records: dict[int, VmRecord] = field(default_factory=dict)
    damaged: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()

    @property
    def vms(self) -> dict[int, VmRecord]:
        """The VMs that are protected."""
        return {number: one for number, one in self.records.items() if not one.removed}

    def named(self, name: str) -> VmRecord | None:
        """The VM of that name."""
        return next((one for one in self.vms.values() if one.name == name), None)

    def free_numbers(self) -> tuple[int, ...]:
        """Numbers that a new VM may get, the best first: never used ones before those of removed
        VMs, whose lease must be found free first. 1 is the engine's."""
        taken = self.damaged | self.refused
        fresh = [n for n in range(2, VMS_MAX + 1) if n not in self.records and n not in taken]
        return (*fresh, *(n for n, one in sorted(self.records.items()) if one.removed and n > 1))


class Registry:
    """The registry of one cluster on an open volume. `cluster`: the cluster's id."""

    def __init__(self, volume: Blocks, cluster: str, signatures: Signatures) -> None:
        self._volume = volume
        self._cluster = cluster
        self._signatures = signatures

    def make(self) -> None:
        """Make an empty registry. RegistryError where the volume is too small, or holds anything
        that is not an empty registry of this cluster."""
        size = self._volume.size_bytes
        if size < REGISTRY_BYTES:
            raise self._error(
                f"is too small: {size} bytes, a registry takes {REGISTRY_BYTES}", "make it larger"
            )
        head = self._volume.read_at(0)
        if not is_unused(head):
            self._header(head)
            if self.read().records:
                raise self._error("holds VMs already", "name another volume, or use this one")
            return
        for number in range(1, VMS_MAX + 1):
            self._write(number, bytes(SLOT_BYTES))
        self._write(0, encode(Header(cluster=self._cluster), 0, self._signatures))

    def generation(self) -> int:
        """The generation by the header: has anything changed? RegistryError."""
        return self._header(self._volume.read_at(0)).generation

    def read(self) -> Contents:
        """All records. RegistryError where the header cannot be read or names another cluster."""
        blocks = self._volume.read_slots(range(VMS_MAX + 1))
        return self._records(blocks, self._header(blocks.get(0, b"")).generation)

    def salvaged(self) -> Contents | None:
        """All records that can be read, of a registry whose header cannot; None: its header can be
        read. RegistryError where that one names another cluster, is of a newer version, or is not
        signed with the cluster's key."""
        blocks = self._volume.read_slots(range(VMS_MAX + 1))
        if decode_header(blocks.get(0, b"")) is not None:
            self._header(blocks[0])
            return None
        return self._records(blocks, 0)

    def _records(self, blocks: Mapping[int, bytes], newest: int) -> Contents:
        records: dict[int, VmRecord] = {}
        damaged, refused = set(), set()
        for number in range(1, VMS_MAX + 1):
            data = blocks.get(number, b"")
            if is_unused(data):
                continue
            record = decode_record(data, number)
            if record is None:
                damaged.add(number)
            elif not self._counts(data, number):
                refused.add(number)
            else:
                records[number] = record
                newest = max(newest, record.generation)
        return Contents(newest, records, frozenset(damaged), frozenset(refused))

    def definition(self, record: VmRecord, back: int = 0) -> bytes:
        """The XML of a VM; `back`: 0 the newest, 1 the one before. RegistryError where there is
        none, or it is not what was written."""
        if back >= len(record.definitions):
            raise self._error(f"holds no such definition of {record.name}", "see: vm history")
        kept = record.definitions[back]
        xml = self._xml(record.number, kept)
        if xml is None:
            raise self._error(
                f"the definition of {record.name} is damaged",
                f"define it anew, or restore an older one: ha-agent vm history {record.name}",
            )
        return xml

    def put(
        self, record: VmRecord, xml: bytes | None, wall_s: float, by: str, above: int = 0
    ) -> VmRecord:
        """Write a record, with a new definition or with those that it has; what then stands
        there. RegistryError where it does not fit, or is not read back as it was written.

        `record`: as it is to be, on top of the one that stands there. `above`: a generation that
        hosts have seen, of a volume that was lost. The caller holds the lease.
        """
        generation = max(self.read().generation, above) + 1
        record = msgspec.structs.replace(record, generation=generation)
        if xml is not None:
            kept = self._write_definition(record, xml, generation, wall_s, by)
            older = [one for one in record.definitions if one.place != kept.place]
            record = msgspec.structs.replace(record, definitions=(kept, *older[: PLACES - 1]))
        block = encode(record, record.number, self._signatures)
        self._write(record.number, block)
        if self._volume.read_at(record.number * SLOT_BYTES) != block:
            raise self._error(
                f"the record of {record.name} is not read as it was written", "check the storage"
            )
        self.write_header(generation)
        return record

    def sign_anew(self) -> int:
        """Sign with the present key what the accepted one signed; how many blocks that were. The
        caller holds the lease."""
        contents, signed = self.read(), 0
        blocks: dict[int, Header | VmRecord] = {
            0: Header(cluster=self._cluster, generation=contents.generation)
        }
        for place, block in (blocks | contents.records).items():
            data = self._volume.read_at(place * SLOT_BYTES)
            if signature(data, place, self._signatures) is not Signature.GOOD:
                self._write(place, encode(block, place, self._signatures))
                signed += 1
        return signed

    def mend_header(self, above: int) -> bool:
        """Write the header anew where it cannot be read, on a volume whose records prove that it
        is this cluster's: at least one can be read and counts; whether that was needed.
        RegistryError where nothing proves it. `above`: as in `put`. The caller holds the lease."""
        found = self.salvaged()
        if found is None:
            return False
        if not found.records:
            self.generation()  # says what is wrong with the header
        self.write_header(max(above, found.generation))
        return True

    def write_header(self, generation: int) -> None:
        """Write the header anew, whatever stands there. The caller holds the lease, and knows that
        this is the volume of this cluster's registry."""
        header = Header(cluster=self._cluster, generation=generation)
        self._write(0, encode(header, 0, self._signatures))

    def forget(self, number: int) -> None:
        """Empty the block of a record that cannot be read, of a VM that nobody knows. The caller
        holds the lease."""
        self._write(number, bytes(SLOT_BYTES))

    def intact(self, record: VmRecord) -> tuple[Definition, ...]:
        """The definitions of a record that are still what was written."""
        return tuple(one for one in record.definitions if self._xml(record.number, one) is not None)

    def _write_definition(
        self, record: VmRecord, xml: bytes, generation: int, wall_s: float, by: str
    ) -> Definition:
        packed = zlib.compress(xml, 9)
        if len(xml) > DEFINITION_BYTES_MAX or len(packed) > PLACE_BYTES:
            raise self._error(
                f"the definition of {record.name} has {len(xml)} bytes, {len(packed)} compressed;"
                f" {DEFINITION_BYTES_MAX} and {PLACE_BYTES} fit",
                "take out its metadata and comments",
            )
        kept = Definition(
            place=record.free_place(),
            stored=len(packed),
            sha256=hashlib.sha256(xml).hexdigest(),
            generation=generation,
            wall_s=wall_s,
            by=by,
        )
        at = _place_at(record.number, kept.place)
        for offset in range(0, len(packed), SLOT_BYTES):
            block = packed[offset : offset + SLOT_BYTES].ljust(SLOT_BYTES, b"\0")
            self._volume.write_at(at + offset, block)
        if self._read_place(record.number, kept) != packed:
            raise self._error(
                f"the definition of {record.name} is not read as it was written",
                "check the storage; the VM is defined as before",
            )
        return kept

    def _xml(self, number: int, kept: Definition) -> bytes | None:
        """A definition; None where it is not what was written."""
        xml = _unpacked(self._read_place(number, kept))
        return xml if xml is None or hashlib.sha256(xml).hexdigest() == kept.sha256 else None

    def _read_place(self, number: int, kept: Definition) -> bytes:
        at = _place_at(number, kept.place)
        blocks = (self._volume.read_at(at + o) for o in range(0, kept.stored, SLOT_BYTES))
        return b"".join(blocks)[: kept.stored]

    def _write(self, block: int, data: bytes) -> None:
        self._volume.write_at(block * SLOT_BYTES, data)

    def _counts(self, data: bytes, place: int) -> bool:
        """Whether what stands there may decide: signed, or nobody asks for that."""
        if self._signatures.unsigned is Unsigned.TRUST:
            return True
        return signature(data, place, self._signatures) in GOOD

    def _header(self, data: bytes) -> Header:
        if is_unused(data):
            raise self._error(
                "holds no registry",
                "make one: ha-agent storage grow; if it held VMs: ha-agent vm rebuild",
            )
        header = decode_header(data)
        if header is None:
            raise self._error(
                "its header cannot be read",
                "check that this is the right volume; if it is: ha-agent vm rebuild",
            )
        if header.version > VERSION:
            raise self._error(
                f"is of version {header.version}, this one reads {VERSION}", "update ha-agent"
            )
        if header.cluster != self._cluster:
            raise self._error("belongs to another cluster", "check storage.registry")
        if not self._counts(data, 0):
            raise self._error(
                "its header is not signed by this cluster's key", "check the cluster key"
            )
        return header

    def _error(self, what: str, step: str) -> BadRegistry:
        return BadRegistry(self._volume.path, what, step)


def _place_at(number: int, place: int) -> int:
    return DEFINITIONS_AT + ((number - 1) * PLACES + place) * PLACE_BYTES


def _unpacked(packed: bytes) -> bytes | None:
    """The XML, no more of it than may be; None where it is damaged."""
    unpacking = zlib.decompressobj()
    try:
        xml = unpacking.decompress(packed, DEFINITION_BYTES_MAX)
    except zlib.error:
        return None
    return xml if unpacking.eof else None

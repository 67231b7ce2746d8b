# SPDX-License-Identifier: LGPL-2.1-or-later
"""The blocks of the registry as bytes: its header, and one record for each VM. Pure.

A VM that is lost from the registry is not started when its host dies. So a record must never be
half written: it is one block of 4096 bytes, which the storage writes as a whole or not at all. The
definition (libvirt's XML) to which it points was written and read back before.

Rules:

1. A block is JSON in one line, followed by "end=" with the CRC-32 of that line in 8 hex digits,
   NUL padded. The JSON's last field, "mac", signs what stands before it with the cluster key, as a
   registry record of that place.
2. A block that cannot be read is damaged: that costs this VM its next start, and nothing else. A
   block of NUL bytes is unused.
3. A record keeps its last definitions, the newest first, each in a place of its own; the next one
   is written to the place of the oldest.
4. `health` is the VM's health check: the URL of a page, `tcp:HOST:PORT`, `guest-agent`, or "" for
   none; `expect` is the regular expression that must match in the page.
   `starting_s`, `bad_health_s`, `stop_grace_s` and `migration_timeout_s` are None where the
   cluster's own durations count.
5. A VM that was removed leaves its number, its name and `removed`; the number is free again once
   its lease was found free.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import clean
from broker.whiteboard.padding import unpadded
from broker.whiteboard.signatures import Signature, Signatures
from broker.whiteboard.signed_json import framed, framed_in, signature_in
from broker.whiteboard.sizes import SLOT_BYTES
from broker.wire.limits import HOST_ID_MAX, VMS_MAX
from scoring.vm_facts import ORDINARY_PAGES_KB, VmSpec, Want

#: The number of a VM's definitions, and the size of each, compressed and in full.
PLACES = 4
PLACE_BYTES = 64 * 1024
DEFINITION_BYTES_MAX = 1024 * 1024
MAGIC: Final = "ha-agent registry"
VERSION = 1
#: The kind of record, as the MAC covers it.
REGISTRY = "ha-agent registry record 1"
#: A double represents each generation up to here.
COUNT_MAX = 2**53
#: 64 TiB.
MEMORY_MB_MAX = 2**26
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z"
_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z"

HEALTH = r"^(guest-agent|tcp:(?:[^\s:\[\]]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}|https?://[^\s/]+\S*|)\Z"
#: The unit of the lease `registry`, which who changes the registry holds; and the last unit that
#: is kept for other purposes.
REGISTRY_RESOURCE, REGISTRY_UNIT, _KEPT_UNITS = "registry", 3, 14

VmNumber = Annotated[int, Meta(ge=1, le=VMS_MAX)]
HostId = Annotated[int, Meta(ge=1, le=HOST_ID_MAX)]
Numbers = Annotated[tuple[VmNumber, ...], Meta(max_length=VMS_MAX)]
HostIds = Annotated[tuple[HostId, ...], Meta(max_length=256)]
Generation = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
#: The longest patience: as long as the cluster's own durations may be (scoring/timing.py).
PATIENCE_S_MAX = 86_400
Patience = Annotated[float, Meta(gt=0, le=PATIENCE_S_MAX)] | None


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Block 0. `cluster`: the cluster's id. `generation`: grows with each change of a record."""

    magic: Literal["ha-agent registry"] = MAGIC
    version: Annotated[int, Meta(ge=1)] = VERSION
    cluster: Annotated[str, Meta(max_length=64)]
    generation: Generation = 0


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """The place of one definition. `place`: 0 to 3 of this VM's. `stored`: its bytes there.
    `sha256`: of the whole XML, in hex. `generation`: the registry's when it was written. `wall_s`:
    UTC seconds since 1970 by the writer's clock, `by` its name."""

    place: Annotated[int, Meta(ge=0, lt=PLACES)]
    stored: Annotated[int, Meta(ge=1, le=PLACE_BYTES)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    generation: Generation
    wall_s: Annotated[float, Meta(ge=0, le=COUNT_MAX)]
    by: Annotated[str, Meta(max_length=253)] = ""


class VmRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One protected VM: what `ha-agent vm add|define|set` wrote. Fields as VmSpec has them;
    `definitions`: the newest first. `generation`: the registry's when the record was written."""

    number: VmNumber
    name: Annotated[str, Meta(pattern=NAME)]
    uuid: Annotated[str, Meta(pattern=_UUID)]
    generation: Generation
    memory_mb: Annotated[int, Meta(ge=1, le=MEMORY_MB_MAX)]
    pages_kb: Annotated[int, Meta(ge=4, le=2**22)] = ORDINARY_PAGES_KB
    want: Want = Want.UP
    priority: Annotated[int, Meta(ge=0, le=100)] = 50
    after: Numbers = ()
    apart: Numbers = ()
    together: Numbers = ()
    only: HostIds = ()
    prefer: HostIds = ()
    failback: bool = False
    overcommit: bool = False
    health: Annotated[str, Meta(pattern=HEALTH, max_length=512)] = ""
    expect: Annotated[str, Meta(max_length=256)] = ""
    starting_s: Patience = None
    bad_health_s: Patience = None
    stop_grace_s: Patience = None
    migration_timeout_s: Patience = None
    removed: bool = False
    definitions: Annotated[tuple[Definition, ...], Meta(max_length=PLACES)] = ()

    @property
    def resource(self) -> str:
        """The name of its lease; the engine's is `storage.resource` instead."""
        return "vm-" + self.uuid.replace("-", "")

    @property
    def unit(self) -> int:
        """The alignment unit of its lease."""
        return unit_of(self.number)

    def spec(self) -> VmSpec:
        """The part of the record that the decision needs."""
        return VmSpec(
            self.number,
            self.name,
            self.memory_mb,
            pages_kb=self.pages_kb,
            priority=self.priority,
            after=self.after,
            apart=self.apart,
            together=self.together,
            only=self.only,
            prefer=self.prefer,
            failback=self.failback,
            want=self.want,
            overcommit=self.overcommit,
            starting_s=self.starting_s,
            bad_health_s=self.bad_health_s,
            stop_grace_s=self.stop_grace_s,
            migration_timeout_s=self.migration_timeout_s,
        )

    def why_not_on(self, host_id: int) -> str:
        """Why the VM must not be started on that host, by what an administrator wants; "": it may.
        For the last look of a start: a decision on this record would not have begun it."""
        if self.want is Want.DOWN:
            return f"{self.name} is wanted down since this start was decided"
        if self.only and host_id not in self.only:
            hosts = ", ".join(map(str, self.only))
            return f"{self.name} may run on hosts {hosts} alone since this start was decided"
        return ""

    def free_place(self) -> int:
        """The place for the next definition: an unused one, or the oldest."""
        held = [kept.place for kept in self.definitions]
        unused = set(range(PLACES)) - set(held)
        return min(unused) if unused else held[-1]


def unit_of(number: int) -> int:
    """The alignment unit of a VM's lease in the lease volume."""
    return 1 if number == 1 else _KEPT_UNITS + number


def number_of(unit: int) -> int:
    """The VM whose lease is in that unit."""
    return 1 if unit == 1 else unit - _KEPT_UNITS


def units_for(vms: int) -> int:
    """The units of a lease volume that has a lease for each VM from number 2 to `vms`."""
    return unit_of(vms) + 1


class RegistryError(HaError):
    """The registry, or a record of it, cannot be used."""

    code = ExitCode.STORAGE


class RecordTooLarge(RegistryError):
    """The record does not fit into its block: the administrator's rules name too many hosts or
    VMs."""


def encode(block: Header | VmRecord, place: int, signatures: Signatures | None = None) -> bytes:
    """The 4096 bytes of a block, signed where there is a key. `place`: its number in the volume.
    RecordTooLarge."""
    data = framed(block, REGISTRY, place, signatures)
    if len(data) > SLOT_BYTES:
        raise RecordTooLarge(f"{len(data)} bytes, a record of the registry has {SLOT_BYTES}")
    return data.ljust(SLOT_BYTES, b"\0")


def is_unused(data: bytes) -> bool:
    """Whether nothing was ever written there."""
    return not unpadded(data)


def decode_header(data: bytes) -> Header | None:
    """The header in a block; None where there is none, or none that can be read."""
    return framed_in(data, Header)


def decode_record(data: bytes, number: int) -> VmRecord | None:
    """The record in the block of that number; None where there is none that can be read."""
    record = framed_in(data, VmRecord)
    if record is None:
        return None
    places = [kept.place for kept in record.definitions]
    if record.number != number or len(set(places)) != len(places):
        return None
    kept = tuple(msgspec.structs.replace(one, by=clean(one.by)) for one in record.definitions)
    return msgspec.structs.replace(record, definitions=kept)


def signature(data: bytes, place: int, signatures: Signatures) -> Signature:
    """The state of a readable block's signature."""
    return signature_in(data, REGISTRY, place, signatures)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The record of what ran last (what_ran.py) as bytes, and which bytes count.

A start opens the disks that the record names. A writer to this volume that is no member could have
a host open any file or device of its own, boot an older disk, or hold every start back. So the
record is signed, as everything else here is (signatures.py).

Rules of this file:

1. A place holds "what-ran GENERATION LAST-RAN LENGTH CRC-OF-THE-REST CRC-OF-THIS\\n", then the
   rest: JSON, zlib. "mac=" and the MAC over everything before it follow. Earlier versions do not
   read that far.
2. A write that broke off has no good MAC, and its head must still be believed. So the two counts of
   the head are signed by themselves: the "seal", the first field of the JSON, which stands
   uncompressed in the first sector, where the head is.
3. With a key, only a signed record counts; an unsigned one counts while a host of an earlier
   version is a member, or `storage.unsigned` is "trust".
4. The last record that counted stays in memory until a newer one counts: nobody can remove it by
   wiping or overwriting the places, or by restoring their earlier content. The host that runs the
   VM then writes the record again.
5. A broker that has seen no record yet and finds only ones that do not count cannot know what ran
   last: no start is made until a member writes the record, or a person decides.
"""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from broker.daemon.foreign import clean
from broker.daemon.foreign_json import decoded
from broker.vm import domain_facts
from broker.vm.errors import BadDomain
from broker.whiteboard.layout import WHAT_RAN_SLOTS
from broker.whiteboard.signatures import GOOD, RAN, Signature, Signatures, Unsigned
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.what_ran import ADOPT, GENERATION_MAX, KEEP, OnDisk, images_of
from broker.wire.what_ran import WhatRan

log = logging.getLogger("ha-broker.what-ran")

_HEAD = re.compile(
    rb"(what-ran ([0-9]{1,15}) ([0-9]{1,15}) ([0-9]{1,4}) ([0-9a-f]{8})) ([0-9a-f]{8})\n"
)
_HEAD_BYTES_MAX = 96
_SPARE_BYTES = 128
_MAC = re.compile(rb"mac=([0-9a-f]{64})")
#: Behind the two bytes of zlib's head and the five of a stored block's.
_SEAL_AT = 7
_SEAL = re.compile(rb'\{"seal":"([0-9a-f]{64})",')
#: The largest size of an unpacked record.
RECORD_BYTES_MAX = 262_144
#: A count of runs above it was counted by nobody.
LAST_RAN_MAX = 10**14
#: Both places hold the same bytes, so the signature names the first of them.
_PLACE = WHAT_RAN_SLOTS[0]


@dataclass(frozen=True, slots=True)
class _Found:
    """What a place holds. `key`: last_ran and generation; `record`: None: a write that broke off;
    `signature`: of the record, or of the head of one that broke off."""

    key: tuple[int, int]
    record: WhatRan | None
    signature: Signature


def encode(record: WhatRan, signatures: Signatures | None = None) -> bytes | None:
    """The 4096 bytes of a place; None where they do not suffice."""
    by = signatures or Signatures()
    rest = _packed(msgspec.json.encode(record), by.sign(RAN, _PLACE, _sealed(record.key)))
    head = b"what-ran %d %d %d %08x" % (*reversed(record.key), len(rest), zlib.crc32(rest))
    data = head + b" %08x\n" % zlib.crc32(head) + rest
    mac = by.sign(RAN, _PLACE, data)
    has_room = _HEAD.match(data[:_HEAD_BYTES_MAX])
    data += f"mac={mac}".encode() if mac else b""
    return data.ljust(SLOT_BYTES, b"\0") if has_room and len(data) <= SLOT_BYTES else None


def fits(record: WhatRan, signatures: Signatures | None = None) -> bool:
    """Whether a place has room for it, whatever its numbers will be."""
    data = encode(record, signatures)
    return data is not None and not any(data[-_SPARE_BYTES:])


def _sealed(key: tuple[int, int]) -> bytes:
    return b"seal %d %d" % key


def _packed(text: bytes, seal: str) -> bytes:
    """zlib of the JSON; with a seal, that stands first, as it is."""
    if not seal:
        return zlib.compress(text, 9)
    begin, behind = f'{{"seal":"{seal}",'.encode(), text[1:]
    stored = b"\0" + struct.pack("<HH", len(begin), len(begin) ^ 0xFFFF) + begin
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = deflate.compress(behind) + deflate.flush()
    return b"\x78\xda" + stored + packed + struct.pack(">I", zlib.adler32(begin + behind))


def _decode(data: bytes, signatures: Signatures) -> _Found | None:
    """What a place holds; None where it is no record at all."""
    head = _HEAD.match(data[:_HEAD_BYTES_MAX])
    if head is None or zlib.crc32(head.group(1)) != int(head.group(6), 16):
        return None
    generation, last_ran, length = (int(head.group(at)) for at in (2, 3, 4))
    if generation > GENERATION_MAX or last_ran > LAST_RAN_MAX:
        return None
    key = last_ran, generation
    rest = data[head.end() : head.end() + length]
    record = _unpacked(rest) if zlib.crc32(rest) == int(head.group(5), 16) else None
    if record is not None and record.key == key:
        mac = _MAC.match(data[head.end() + length :])
        part = None if mac is None else (data[: head.end() + length], mac.group(1).decode())
        return _Found(key, record, signatures.look(RAN, _PLACE, part))
    seal = _SEAL.match(data[head.end() + _SEAL_AT :])
    part = None if seal is None else (_sealed(key), seal.group(1).decode())
    return _Found(key, None, signatures.look(RAN, _PLACE, part))


def _unpacked(rest: bytes) -> WhatRan | None:
    try:
        unpacked = zlib.decompressobj().decompress(rest, RECORD_BYTES_MAX)
        record = decoded(unpacked, WhatRan)
        for text in record.disks.values():
            domain_facts.parse_disk(text)
    except (
        zlib.error,
        msgspec.MsgspecError,
        UnicodeDecodeError,
        RecursionError,
        BadDomain,
    ):
        return None
    # Whoever shows it shows it as it is; what is compared is written clean.
    return msgspec.structs.replace(
        record,
        by_name=clean(record.by_name),
        disks={clean(target): text for target, text in record.disks.items()},
        instead_of={clean(key): clean(each) for key, each in record.instead_of.items()},
        held=clean(record.held),
        adopted=tuple(map(clean, record.adopted)),
        kept=tuple(map(clean, record.kept)),
        decided=clean(record.decided),
    )


class RanPlaces:
    """The two places as this host reads them. `has_earlier`: whether a host of an earlier version,
    which signs nothing, takes part. `on_disk`: None before the first read."""

    def __init__(self, signatures: Signatures, has_earlier: Callable[[], bool]) -> None:
        self._signatures = signatures
        self._has_earlier = has_earlier
        self._raw: object = None
        #: What counted last.
        self._counted: OnDisk | None = None
        self._is_warned = False
        self.on_disk: OnDisk | None = None

    def learn(self, slots: Mapping[int, bytes]) -> OnDisk:
        """Take in what was read."""
        data = tuple(slots.get(slot, b"") for slot in WHAT_RAN_SLOTS)
        trusts = self._signatures.unsigned is Unsigned.TRUST or (
            self._signatures.unsigned is Unsigned.SHOW and self._has_earlier()
        )
        raw = data, trusts, self._signatures.key
        if self.on_disk is None or raw != self._raw:
            self._raw, self.on_disk = raw, self._read(data, trusts)
        return self.on_disk

    def _read(self, data: tuple[bytes, ...], trusts: bool) -> OnDisk:
        found = [place for each in data if (place := _decode(each, self._signatures)) is not None]
        counting = [
            place
            for place in found
            if place.signature in GOOD or (trusts and place.signature is Signature.NONE)
        ]
        before = self._counted if self._signatures.key is not None else None
        if before is not None:
            if max((place.key for place in counting), default=(0, 0)) < before.last:
                return self._as_before(before)
        elif len(counting) < len(found) and not any(place.record for place in counting):
            return self._not_known(found)
        self._counted = self._of(counting, len(found))
        self._is_warned = False
        return self._counted

    def _of(self, counting: list[_Found], places: int) -> OnDisk:
        whole = [place.record for place in counting if place.record is not None]
        torn = [place.key for place in counting if place.record is None]
        newest = max(whole, key=lambda record: record.key, default=None)
        last = max((place.key for place in counting), default=(0, 0))
        if torn and (newest is None or max(torn) >= newest.key):
            text = (
                "the record of the disks that ran last was being written when its host ended, and"
                f" cannot be read: see where the VM's newest data are, then {KEEP} (the definition"
                f" is right) or {ADOPT} (the record before that one is)"
            )
            return OnDisk(newest, text, False, last)
        signed = self._signatures.key is None or all(
            place.signature is Signature.GOOD for place in counting
        )
        is_whole = whole == [newest, newest] and signed
        return OnDisk(newest, "", is_whole or (newest is None and places == 0), last)

    def _as_before(self, before: OnDisk) -> OnDisk:
        """Somebody took the record away, or put another one in its place: it is as it was."""
        if not self._is_warned:
            log.warning(
                "the record of the disks that ran last was wiped or replaced, not by a host of this"
                " cluster: what was read before counts (who else writes to this volume?)"
            )
        self._is_warned = True
        return msgspec.structs.replace(before, is_whole=False)

    def _not_known(self, found: list[_Found]) -> OnDisk:
        records = [place.record for place in found if place.record is not None]
        newest = max(records, key=lambda record: record.key, default=None)
        named = ", ".join(images_of(newest)) if newest is not None else ""
        text = (
            "the record of the disks that ran last is not signed by a host of this cluster"
            f" ({f'it names {named}' if named else 'it names no disk'}): see where the VM's newest"
            f" data are, then {KEEP} (the definition is right) or {ADOPT} (that record is)"
        )
        return OnDisk(newest, text, False, max(place.key for place in found))

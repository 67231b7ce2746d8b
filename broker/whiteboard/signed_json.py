# SPDX-License-Identifier: LGPL-2.1-or-later
"""A record of JSON in a block of the shared storage: the frame that shows it is whole, and signed.

The JSON is one line, followed by "end=" with the CRC-32 of that line in 8 hex digits. The JSON's
last field, "mac", signs what stands before it, as its kind of record in its place. Pure.
"""

from __future__ import annotations

import re
import zlib
from typing import TypeVar

import msgspec

from broker.daemon.foreign_json import decoded
from broker.whiteboard.padding import unpadded
from broker.whiteboard.signatures import Signature, Signatures

_Record = TypeVar("_Record", bound=msgspec.Struct)

_END = re.compile(rb"end=([0-9a-f]{8})\n?")
_MAC = re.compile(rb"(.*),\"mac\":\"([0-9a-f]{64})\"\}", re.DOTALL)


def framed(record: msgspec.Struct, kind: str, place: int, signatures: Signatures | None) -> bytes:
    """The bytes of a record without padding, signed where there is a key; of any length."""
    line = msgspec.json.encode(record)
    mac = "" if signatures is None else signatures.sign(kind, place, line[:-1])
    if mac:
        line = line[:-1] + f',"mac":"{mac}"}}'.encode()
    line += b"\n"
    return line + b"end=%08x\n" % zlib.crc32(line)


def framed_in(data: bytes, kind: type[_Record]) -> _Record | None:
    """The record in a block; None where there is none of that type, or none that can be read."""
    line, newline, rest = unpadded(data).partition(b"\n")
    found = _END.fullmatch(rest)
    if found is None or int(found.group(1), 16) != zlib.crc32(line + newline):
        return None
    try:
        return decoded(line, kind)
    except msgspec.MsgspecError:
        return None


def signature_in(data: bytes, kind: str, place: int, signatures: Signatures) -> Signature:
    """The state of a readable record's signature."""
    found = _MAC.fullmatch(data.partition(b"\n")[0])
    part = None if found is None else (found.group(1), found.group(2).decode())
    return signatures.look(kind, place, part)

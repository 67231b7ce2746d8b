# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lines of a host's slot behind its head: key=value, and an end line with their checksum. Pure.

1. Lines that have no room are dropped from the end, and a line says how many.
2. The lines are believed only with the end line that fits them and the head: then they are of the
   same write.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Mapping

from broker.config.cluster_key import MAC_DIGITS
from broker.daemon.foreign import clean
from broker.whiteboard.padding import unpadded
from broker.whiteboard.sizes import EXTRA_BYTES, HEAD_BYTES, SLOT_BYTES
from broker.whiteboard.text import cut_bytes, is_utf8

#: One line, key, "=" and value, without its newline. Longer values are cut.
EXTRA_LINE_BYTES_MAX = 1024
#: The line that says how many lines had no room.
LEFT_OUT_KEY = "truncated"
MAC_KEY = "mac"
_END_LINE_BYTES = len("end=01234567\n")
_END_LINE = re.compile(rb"end=([0-9a-f]{8})\n")
_MAC_LINE_BYTES = len(f"{MAC_KEY}=") + MAC_DIGITS + 1
_MAC_LINE = re.compile(rb"mac=([0-9a-f]{64})\n?")

#: The room for the lines of a slot, beside the line of the left-out ones, the signature and the end
#: line.
EXTRA_ROOM_BYTES = EXTRA_BYTES - _MAC_LINE_BYTES - _END_LINE_BYTES - len(f"{LEFT_OUT_KEY}=0000\n")


def encode(extra: Mapping[str, str]) -> bytes:
    """The lines that have room beside the end line, in order, and how many had none."""
    lines: dict[str, bytes] = {}
    for key, value in extra.items():
        known, line = _clean_line(key, value)
        lines[known] = line
    lines.pop(MAC_KEY, None)
    room = EXTRA_BYTES - _MAC_LINE_BYTES - _END_LINE_BYTES
    if sum(map(len, lines.values())) <= room:
        return b"".join(lines.values())

    # Drop from the end. A caller's own line of that name gives way to the marker.
    lines.pop(LEFT_OUT_KEY, None)
    kept = list(lines.values())
    while True:
        marker = _extra_line(LEFT_OUT_KEY, str(len(lines) - len(kept)))
        if sum(map(len, kept)) + len(marker) <= room:
            return b"".join(kept) + marker
        kept.pop()


# Nearly all lines are the same from beat to beat.
@functools.lru_cache(512)
def _clean_line(key: str, value: str) -> tuple[str, bytes]:
    """The key as it is written, and its line."""
    known = clean(key).replace("=", "_") or "_"
    known = cut_bytes(known, EXTRA_LINE_BYTES_MAX // 2)
    return known, _extra_line(known, clean(value))


def line_bytes(key: str, value: str) -> int:
    """The room that a line takes in a slot."""
    return len(_clean_line(key, value)[1])


def _extra_line(key: str, value: str) -> bytes:
    return cut_bytes(f"{key}={value}", EXTRA_LINE_BYTES_MAX).encode() + b"\n"


def decode(data: bytes) -> tuple[dict[str, str], bool]:
    """The lines after the head, and whether they are ours and complete. Never raises.

    Text that is not UTF-8 yields nothing; lines without "=" are text for people and skipped.
    """
    raw = unpadded(data[HEAD_BYTES:])
    if not is_utf8(raw):
        return {}, False
    trusted, end = False, _END_LINE.fullmatch(raw[-_END_LINE_BYTES:])
    if end is not None:
        before = len(raw) - _END_LINE_BYTES
        # The line must begin at a line's start: after the head or after a newline.
        starts_a_line = before == 0 or raw[before - 1 : before] == b"\n"
        fits = int(end.group(1), 16) == zlib.crc32(data[: HEAD_BYTES + before])
        trusted = starts_a_line and fits
        if trusted:
            raw = raw[:before]
    extra: dict[str, str] = {}
    for line in raw.decode().split("\n"):
        key, equals, value = line.partition("=")
        if equals and key and key != MAC_KEY:
            extra[clean(key)] = clean(value)
    return extra, trusted


def signed_part(data: bytes) -> tuple[bytes, str] | None:
    """The signed part of a host's slot, and its signature; None: it has none."""
    raw = unpadded(data[:SLOT_BYTES])
    end, before = raw[-_END_LINE_BYTES:], raw[: -_END_LINE_BYTES - _MAC_LINE_BYTES]
    found = _MAC_LINE.fullmatch(raw[len(before) : -_END_LINE_BYTES])
    if found is None or _END_LINE.fullmatch(end) is None or len(before) < HEAD_BYTES:
        return None
    starts_a_line = len(before) == HEAD_BYTES or before.endswith(b"\n")
    return (before, found.group(1).decode()) if starts_a_line else None


def signed_part_of_cluster(data: bytes) -> tuple[bytes, str] | None:
    """The signed part of the cluster slot, and its signature; None: it has none."""
    before, newline, last = unpadded(data[:SLOT_BYTES]).rpartition(b"\n")
    found = _MAC_LINE.fullmatch(last)
    return (before, found.group(1).decode()) if newline and found is not None else None

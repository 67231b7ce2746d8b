# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fence log: who switched which host off, why, and what came of it. On the shared storage,
behind the whiteboard's last slot, where the reference never looks. Pure.

Rules of this file:

1. Only who holds the fence lease writes. A record is a slot of its own, RECORDS of them in a
   ring, numbered from 1 on: nothing is ever changed, the oldest is written over.
2. A record is JSON in one line, and behind it "end=" with the CRC-32 of that line in 8 hex
   digits, NUL padded to 4096 bytes. What does not read as that costs that record alone.
3. A reader looks at the whole ring once and then only where the next record will be.
4. The freeing of a host id is written down before it begins, and how it ended takes the place
   of that record, with its number. So an act that is under way is always the newest record; an
   earlier version of this file cannot read it, and reads what takes its place. Whoever comes
   next does the same: the fence lease was not free before the act had ended.
5. When something was is told by its wall clock; who sees it happen goes by his own
   monotonic one.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

import msgspec

from broker.volume_layout import FENCE_LOG_FIRST, FENCE_LOG_RECORDS
from broker.whiteboard import EMPTY_SLOT, SLOT_BYTES
from scoring.observation import FenceRecord, FenceStep

#: First slot of the ring, and how many records it holds: 1 MiB.
FIRST_SLOT = FENCE_LOG_FIRST
RECORDS = FENCE_LOG_RECORDS
#: Records that are handed on to decisions: so new, and so many.
RECENT_S = 86_400.0
RECENT_MAX = 32
#: A writer looks at so many records ahead first, for those it has not seen yet.
AHEAD = 4
TEXT_CHARS_MAX = 2000
_END = re.compile(rb"end=([0-9a-f]{8})\n?")


class LogRecord(msgspec.Struct, frozen=True):
    """One record. `wall_s`: UTC seconds since 1970 by the writer's clock. `boot_id`: of the boot
    that the target was in, "" where it published none. `text`: the evidence, or the problem.
    `by_generation`: of the writer's own host id, 0 where that is not known; `by_boot`: its boot.
    `over`: of a FREEING, why it came to nothing; "" while it is under way. `withdrawn`: of a
    FAILED, no order was given."""

    number: int
    step: FenceStep
    by: int
    by_name: str
    target: int
    target_name: str
    boot_id: str
    wall_s: float
    ordered: bool = False
    text: str = ""
    by_generation: int = 0
    by_boot: str = ""
    over: str = ""
    withdrawn: bool = False


def slot_of(number: int) -> int:
    """Where the record of that number stands."""
    assert number >= 1, number
    return FIRST_SLOT + (number - 1) % RECORDS


def encode(record: LogRecord) -> bytes:
    """The 4096 bytes of a record; a text that is too long is cut."""
    text = record.text[:TEXT_CHARS_MAX]
    while True:
        line = msgspec.json.encode(msgspec.structs.replace(record, text=text)) + b"\n"
        data = line + b"end=%08x\n" % zlib.crc32(line)
        if len(data) <= SLOT_BYTES:
            return data.ljust(SLOT_BYTES, b"\0")
        assert text, "names are at most 253 bytes each"
        text = text[: len(text) // 2]


def decode(data: bytes) -> LogRecord | None:
    """The record in a slot; None where there is none, or none that can be read."""
    line, newline, rest = data.rstrip(b"\0").partition(b"\n")
    found = _END.fullmatch(rest)
    if found is None or int(found.group(1), 16) != zlib.crc32(line + newline):
        return None
    try:
        return msgspec.json.decode(line, type=LogRecord)
    except msgspec.MsgspecError:
        return None


class FenceLog:
    """What this host knows of the log. `known`: the whole ring was read once."""

    def __init__(self) -> None:
        self.known = False
        self.records: dict[int, LogRecord] = {}
        self._at_s: dict[int, float] = {}

    @property
    def next_number(self) -> int:
        """The number of the record that comes next: of a new one, or of a FREEING (rule 4)."""
        newest = max(self.records, default=0)
        is_freeing = newest and self.records[newest].step is FenceStep.FREEING
        return newest if is_freeing else newest + 1

    @property
    def under_way(self) -> LogRecord | None:
        """The freeing of a host id that is not told to be over."""
        record = self.records[max(self.records)] if self.records else None
        is_open = record is not None and record.step is FenceStep.FREEING and not record.over
        return record if is_open else None

    def slots_to_read(self, ahead: int = 1) -> list[int]:
        """What a read has to bring."""
        if not self.known:
            return list(range(FIRST_SLOT, FIRST_SLOT + RECORDS))
        return sorted({slot_of(self.next_number + more) for more in range(ahead)})

    def learn(self, slots: Mapping[int, bytes], now_s: float, wall_s: float) -> list[LogRecord]:
        """Take in what a read of `slots_to_read` brought; the new records.

        Slots that are not the ring's are ignored. A volume that ends before it holds none yet.
        """
        ring = range(FIRST_SLOT, FIRST_SLOT + RECORDS)
        mine = {slot: data for slot, data in slots.items() if slot in ring}
        first_look = not self.known
        new = []
        for data in mine.values():
            record = None if data == EMPTY_SLOT else decode(data)
            if record is None or record.number < 1 or self._is_known(record):
                continue
            if not first_look and record.number < self.next_number:
                continue
            new.append(record)
        for record in sorted(new, key=lambda one: one.number):
            self.records[record.number] = record
            # What happened before we looked is as old as its wall clock says.
            age_s = max(0.0, wall_s - record.wall_s) if first_look else 0.0
            self._at_s[record.number] = now_s - age_s
        for number in sorted(self.records)[:-RECORDS]:
            del self.records[number], self._at_s[number]
        self.known = True
        return [] if first_look else new

    def _is_known(self, record: LogRecord) -> bool:
        """What takes the place of a FREEING is new; of what else is there nothing changes."""
        known = self.records.get(record.number)
        return known == record or (known is not None and known.step is not FenceStep.FREEING)

    def recent(self, now_s: float) -> tuple[FenceRecord, ...] | None:
        """What decisions have to know, oldest first; None while the log is not known."""
        if not self.known:
            return None
        found = [
            FenceRecord(
                number,
                one.step,
                one.by,
                one.target,
                self._at_s[number],
                one.ordered,
                one.boot_id,
                one.withdrawn,
            )
            for number, one in sorted(self.records.items())
            if now_s - self._at_s[number] < RECENT_S and one.step is not FenceStep.FREEING
        ]
        return tuple(found[-RECENT_MAX:])

    def last(self, count: int) -> list[LogRecord]:
        """The newest records, newest first."""
        return [self.records[number] for number in sorted(self.records)[::-1][:count]]

    def certificate(self, host_id: int, boot_id: str) -> LogRecord | None:
        """Why that boot of a host ended: the newest record that somebody switched it off, or
        meant to; None where nobody did, or whoever meant to withdrew before any order."""
        if not boot_id:
            return None
        found: dict[int, LogRecord] = {}
        for number, record in sorted(self.records.items()):
            if (record.target, record.boot_id) != (host_id, boot_id):
                continue
            if record.step in (FenceStep.INTENT, FenceStep.DEAD):
                found[number] = record
            elif record.withdrawn:
                intents = (n for n, one in found.items() if one.by == record.by)
                found.pop(max(intents, default=0), None)
        return found[max(found)] if found else None

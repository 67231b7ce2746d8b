# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fence log: which host switched which one off, why, and with what result. It lies on the
shared storage, behind the whiteboard's last slot, where the reference never reads. Pure.

Rules of this file:

1. Only the holder of the fence lease writes. A record is a slot of its own, RECORDS of them in a
   ring, numbered from 1 on: no record is changed, the oldest one is overwritten.
2. A record is JSON in one line, followed by "end=" with the CRC-32 of that line in 8 hex digits,
   NUL padded to 4096 bytes. The JSON's last field, "mac", signs what stands before it
   (broker/whiteboard/signatures.py). A record that cannot be read is ignored, and only that
   record; so is one with an impossible number, host id or time, and one in a place that does not
   fit its number. A few records with numbers far above all others are damage: the next record is
   numbered after the others.
3. A reader reads the whole ring once, and then only the place of the next record.
4. The freeing of a host id is recorded before it begins, and the record of its end overwrites
   that record, with its number. So an act that is under way is always the newest record; an
   earlier version of this file cannot read it, and reads the one that overwrites it. The next
   writer overwrites it in the same way: the fence lease was not free before the act had ended.
5. An unsigned record counts only while `counts` allows it for its writer (a host of an earlier
   version); one with a wrong signature never counts. Both are shown.
6. The time of a record is the wall clock of its writer; a host that sees it arrive uses its own
   monotonic clock instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from broker.daemon.foreign import clean
from broker.whiteboard.layout import FENCE_LOG_FIRST, FENCE_LOG_RECORDS
from broker.whiteboard.signatures import FENCE, GOOD, Signature, Signatures, Unsigned
from broker.whiteboard.signed_json import framed, framed_in, signature_in
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import EMPTY_SLOT
from broker.wire.limits import HOST_ID_MAX
from scoring.observation import FenceRecord, FenceStep

#: First slot of the ring, and how many records it holds: 1 MiB.
FIRST_SLOT = FENCE_LOG_FIRST
RECORDS = FENCE_LOG_RECORDS
#: Records that decisions get: at most so old, and at most so many.
RECENT_S = 86_400.0
RECENT_MAX = 32
#: A writer first reads so many records ahead, to find those that it has not seen.
AHEAD = 4
TEXT_CHARS_MAX = 2000
#: Numbers above are impossible: one record a second for a hundred years.
NUMBER_MAX = 2**32
#: A double represents each whole second, and each generation, up to here.
COUNT_MAX = 2**53
#: A host that has not read for a long time has missed at most so many records.
_BEHIND_MAX = 64 * RECORDS
_TEXTS = ("by_name", "target_name", "boot_id", "text", "by_boot", "over")


HostId = Annotated[int, Meta(ge=1, le=HOST_ID_MAX)]
Text = Annotated[str, Meta(max_length=SLOT_BYTES)]


class LogRecord(msgspec.Struct, frozen=True):
    """One record. `wall_s`: UTC seconds since 1970 by the writer's clock. `boot_id`: of the boot
    that the target was in, "" where it published none. `text`: the evidence, or the problem.
    `by_generation`: of the writer's own host id, 0 where that is not known; `by_boot`: its boot.
    `over`: of a FREEING, why it came to nothing; "" while it is under way. `withdrawn`: of a
    FAILED, no order was given."""

    number: Annotated[int, Meta(ge=1, le=NUMBER_MAX)]
    step: FenceStep
    by: HostId
    by_name: Text
    target: HostId
    target_name: Text
    boot_id: Text
    wall_s: Annotated[float, Meta(ge=0, le=COUNT_MAX)]
    ordered: bool = False
    text: Text = ""
    by_generation: Annotated[int, Meta(ge=0, le=COUNT_MAX)] = 0
    by_boot: Text = ""
    over: Text = ""
    withdrawn: bool = False


def slot_of(number: int) -> int:
    """The slot in which the record of that number lies."""
    assert number >= 1, number
    return FIRST_SLOT + (number - 1) % RECORDS


def encode(record: LogRecord, signatures: Signatures | None = None) -> bytes:
    """The 4096 bytes of a record; a text that is too long is cut."""
    text = record.text[:TEXT_CHARS_MAX]
    while True:
        shortened = msgspec.structs.replace(record, text=text)
        data = framed(shortened, FENCE, slot_of(record.number), signatures)
        if len(data) <= SLOT_BYTES:
            return data.ljust(SLOT_BYTES, b"\0")
        assert text, "names are at most 253 bytes each"
        text = text[: len(text) // 2]


def decode(data: bytes) -> LogRecord | None:
    """The record in a slot; None where there is none, or none that can be read."""
    record = framed_in(data, LogRecord)
    if record is None:
        return None
    texts = {name: clean(getattr(record, name)) for name in _TEXTS}
    return msgspec.structs.replace(record, **texts)


def _counted(records: Iterable[LogRecord]) -> list[LogRecord]:
    """The records of the ring whose numbers belong together, ascending: of several groups that lie
    more than a ring apart the one with the most records, of equals the earlier."""
    groups: list[list[LogRecord]] = []
    for record in sorted(records, key=lambda one: one.number):
        if not groups or record.number - groups[-1][-1].number > RECORDS:
            groups.append([])
        groups[-1].append(record)
    return max(groups, key=len, default=[])


def signature(data: bytes, slot: int, signatures: Signatures) -> Signature:
    """The state of a readable record's signature."""
    return signature_in(data, FENCE, slot, signatures)


class FenceLog:
    """The log as this host knows it. `known`: the whole ring was read once. `records`: those that
    count, by number. `doubtful`: those without a good signature, by slot.
    `counts`: whether an unsigned record counts all the same."""

    def __init__(self, signatures: Signatures | None = None) -> None:
        self.known = False
        self.doubtful: dict[int, tuple[LogRecord, Signature]] = {}
        self.counts: Callable[[LogRecord], bool] = lambda record: True
        self._signatures = signatures or Signatures()
        self._signed: dict[int, LogRecord] = {}
        self._at_s: dict[LogRecord, float] = {}

    @property
    def records(self) -> dict[int, LogRecord]:
        """The records that count. A signed one is preferred to an unsigned one of that number."""
        if not self.doubtful or self._signatures.unsigned is not Unsigned.SHOW:
            return self._signed
        unsigned = {
            record.number: record
            for record, found in self.doubtful.values()
            if found is Signature.NONE and self.counts(record)
        }
        return unsigned | self._signed

    @property
    def next_number(self) -> int:
        """The number of the next record: a new one, or that of the open FREEING (rule 4)."""
        records = self.records
        newest = max(records, default=0)
        is_freeing = newest and records[newest].step is FenceStep.FREEING
        return newest if is_freeing else newest + 1

    @property
    def under_way(self) -> LogRecord | None:
        """The record of a freeing whose end was not recorded."""
        records = self.records
        record = records[max(records)] if records else None
        is_open = record is not None and record.step is FenceStep.FREEING and not record.over
        return record if is_open else None

    def slots_to_read(self, ahead: int = 1) -> list[int]:
        """The slots that the next read must include."""
        if not self.known:
            return list(range(FIRST_SLOT, FIRST_SLOT + RECORDS))
        return sorted({slot_of(self.next_number + more) for more in range(ahead)})

    def learn(self, slots: Mapping[int, bytes], now_s: float, wall_s: float) -> list[LogRecord]:
        """Take in the slots of a read of `slots_to_read`; returns the new records.

        Slots that are not the ring's are ignored. A volume that ends before it holds none yet.
        """
        ring = range(FIRST_SLOT, FIRST_SLOT + RECORDS)
        mine = {slot: data for slot, data in slots.items() if slot in ring}
        first_look = not self.known
        new = []
        for slot, data in mine.items():
            record = None if data == EMPTY_SLOT else decode(data)
            if record is None or slot_of(record.number) != slot:
                self._forget(slot)
                continue
            found = signature(data, slot, self._signatures)
            is_sure = found in GOOD or self._signatures.unsigned is Unsigned.TRUST
            if not is_sure:
                if self.doubtful.get(slot) == (record, found):
                    continue
                self._forget(slot)
                self.doubtful[slot] = (record, found)
                self._at_s[record] = self._at(record, first_look, now_s, wall_s)
                if self.records.get(record.number) is record:
                    new.append(record)
                continue
            self._forget(slot)
            if self._is_known(record):
                continue
            if not first_look and not 0 <= record.number - self.next_number <= _BEHIND_MAX:
                continue
            new.append(record)
        if first_look:
            sure = [one for one in new if slot_of(one.number) not in self.doubtful]
            counted = {one.number for one in _counted(sure)}
            new = [one for one in new if one not in sure or one.number in counted]
        for record in sorted(new, key=lambda one: one.number):
            self._at_s[record] = self._at(record, first_look, now_s, wall_s)
            if slot_of(record.number) not in self.doubtful:
                self._signed[record.number] = record
        for number in sorted(self._signed)[:-RECORDS]:
            self._at_s.pop(self._signed.pop(number), None)
        self.known = True
        return [] if first_look else new

    def _at(self, record: LogRecord, first_look: bool, now_s: float, wall_s: float) -> float:
        """When it happened; for a record of before the first read by its wall clock."""
        return now_s - (max(0.0, wall_s - record.wall_s) if first_look else 0.0)

    def _forget(self, slot: int) -> None:
        """Forget an unsigned record that is not there any more."""
        gone = self.doubtful.pop(slot, None)
        if gone is not None:
            self._at_s.pop(gone[0], None)

    def _is_known(self, record: LogRecord) -> bool:
        """Whether the record is not new. One that overwrites a FREEING is new."""
        known = self._signed.get(record.number)
        return known == record or (known is not None and known.step is not FenceStep.FREEING)

    def recent(self, now_s: float) -> tuple[FenceRecord, ...] | None:
        """The records that decisions need, oldest first; None while the log is not known."""
        if not self.known:
            return None
        found = [
            FenceRecord(
                number,
                one.step,
                one.by,
                one.target,
                self._at_s[one],
                one.ordered,
                one.boot_id,
                one.withdrawn,
            )
            for number, one in sorted(self.records.items())
            if now_s - self._at_s[one] < RECENT_S and one.step is not FenceStep.FREEING
        ]
        return tuple(found[-RECENT_MAX:])

    def last(self, count: int) -> list[LogRecord]:
        """The newest records, newest first."""
        records = self.records
        return [records[number] for number in sorted(records)[::-1][:count]]

    def shown(self, count: int) -> list[tuple[LogRecord, str]]:
        """The newest records, newest first, with those that do not count, and the fault of each
        signature; "" where there is none."""
        found = [(record, "") for record in self.last(count)]
        known = {record.number for record, _ in found}
        for record, signature in self.doubtful.values():
            if record.number in known:
                found = [(r, signature.value if r is record else why) for r, why in found]
            else:
                found.append((record, signature.value))
        return sorted(found, key=lambda one: -one[0].number)[:count]

    def certificate(self, host_id: int, boot_id: str) -> LogRecord | None:
        """Why that boot of a host ended: the newest record that somebody switched it off, or
        intended to; None where nobody did, or every intent was withdrawn before an order."""
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

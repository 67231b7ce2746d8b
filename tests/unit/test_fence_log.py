# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fence log: records on the shared storage, seen by all, survived whatever they hold."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.events.notice import Notice
from broker.notify.notices import Notices
from broker.whiteboard.board import Board
from broker.whiteboard.fence_log import (
    FIRST_SLOT,
    RECENT_MAX,
    RECENT_S,
    RECORDS,
    FenceLog,
    LogRecord,
    decode,
    encode,
    slot_of,
)
from broker.whiteboard.layout import IDENTITY_SLOT, WHAT_RAN_SLOTS
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import EMPTY_SLOT
from broker.whiteboard.store import StorageTrouble
from broker.wire.exchange import FenceNote
from broker.wire.kinds import Kind
from broker.wire.limits import HOST_ID_MAX
from scoring.observation import FenceStep
from tests.fakes.broker import make_broker, report
from tests.fakes.slot_store import MemoryStore, MemoryVolume

WALL_S = 1_800_000_000.0


def record(number: int = 1, **changed: object) -> LogRecord:
    one = LogRecord(
        number, FenceStep.INTENT, 1, "host1", 2, "host2", "its-boot", WALL_S, True, "evidence"
    )
    return msgspec.structs.replace(one, **changed)


def ring(*records: LogRecord) -> dict[int, bytes]:
    """A read of the whole ring that holds these."""
    slots = dict.fromkeys(range(FIRST_SLOT, FIRST_SLOT + RECORDS), EMPTY_SLOT)
    return slots | {slot_of(one.number): encode(one) for one in records}


# --- bytes --------------------------------------------------------------------------------


def test_the_ring_lies_behind_the_whiteboard_and_ends_where_the_volume_may() -> None:
    assert slot_of(1) == HOST_ID_MAX + 1
    assert slot_of(RECORDS) == IDENTITY_SLOT - 1
    assert slot_of(RECORDS + 1) == slot_of(1)


def test_a_record_comes_back_as_it_was_written() -> None:
    data = encode(record())
    assert len(data) == SLOT_BYTES
    assert decode(data) == record()


def test_a_text_that_is_too_long_is_cut_and_the_record_kept() -> None:
    back = decode(encode(record(text="\N{SNOWMAN}" * 5000, by_name="x" * 253)))
    assert back is not None
    assert 0 < len(back.text) <= 5000 and set(back.text) == {"\N{SNOWMAN}"}


@given(st.binary(max_size=SLOT_BYTES))
def test_any_bytes_are_survived(data: bytes) -> None:
    assert decode(data.ljust(SLOT_BYTES, b"\0")) is None or data.startswith(b"{")


@given(st.integers(0, 200), st.integers(0, 7))
def test_one_flipped_bit_costs_the_record(place: int, bit: int) -> None:
    data = bytearray(encode(record()))
    data[place] ^= 1 << bit
    assert decode(bytes(data)) is None


# --- what a host knows of it ----------------------------------------------------------------


def test_nothing_is_known_before_the_first_look_and_all_after_it() -> None:
    log = FenceLog()
    assert log.recent(100.0) is None
    assert log.slots_to_read() == list(range(FIRST_SLOT, FIRST_SLOT + RECORDS))
    assert log.learn(ring(record(1), record(2)), 100.0, WALL_S + 30) == [], "old news"
    assert log.slots_to_read() == [slot_of(3)]
    recent = log.recent(100.0)
    assert recent is not None
    assert [(one.number, one.at_s) for one in recent] == [(1, 70.0), (2, 70.0)]


def test_a_volume_that_ends_before_the_ring_holds_none() -> None:
    log = FenceLog()
    log.learn({}, 100.0, WALL_S)
    assert log.recent(100.0) == ()
    assert log.next_number == 1


def test_what_lies_behind_the_ring_is_none_of_it() -> None:
    """One read brings the log, the volume's identity and what ran last."""
    log = FenceLog()
    behind = dict.fromkeys((IDENTITY_SLOT, *WHAT_RAN_SLOTS), encode(record(7)))
    log.learn(behind | ring(record(1)), 100.0, WALL_S)
    assert list(log.records) == [1]


def test_a_new_record_is_as_old_as_it_is_known_here_whatever_the_writer_s_clock_says() -> None:
    log = FenceLog()
    log.learn(ring(), 100.0, WALL_S)
    new = log.learn({slot_of(1): encode(record(wall_s=WALL_S + 5000))}, 110.0, WALL_S)
    assert [one.number for one in new] == [1]
    recent = log.recent(115.0)
    assert recent is not None and recent[0].at_s == 110.0
    assert log.learn({slot_of(1): encode(record())}, 120.0, WALL_S) == [], "not twice"


def test_a_wall_clock_that_is_behind_makes_nothing_come_from_the_future() -> None:
    log = FenceLog()
    log.learn(ring(record()), 100.0, WALL_S - 9999)
    recent = log.recent(100.0)
    assert recent is not None and recent[0].at_s == 100.0


def test_the_ring_goes_round_and_keeps_the_newest() -> None:
    log = FenceLog()
    log.learn(ring(*map(record, range(300, 300 + RECORDS))), 0.0, WALL_S)
    assert log.next_number == 300 + RECORDS
    log.learn({slot_of(log.next_number): encode(record(log.next_number))}, 1.0, WALL_S)
    assert len(log.records) == RECORDS and 300 not in log.records
    recent = log.recent(1.0)
    assert recent is not None and len(recent) == RECENT_MAX
    assert log.last(2) == [record(556), record(555)]


def test_decisions_are_not_told_of_what_is_long_past() -> None:
    log = FenceLog()
    log.learn(ring(record()), 0.0, WALL_S + RECENT_S + 1)
    assert log.recent(0.0) == ()
    assert len(log.last(10)) == 1, "people are"


def test_an_old_record_that_is_read_again_is_no_news() -> None:
    """A stale read of the next slot brings what stood there a round ago."""
    log = FenceLog()
    log.learn(ring(*map(record, range(300, 300 + RECORDS))), 0.0, WALL_S)
    stale = {slot_of(log.next_number): encode(record(log.next_number - RECORDS))}
    assert log.learn(stale, 1.0, WALL_S) == []


def test_the_certificate_is_of_that_very_boot() -> None:
    log = FenceLog()
    dead = record(2, step=FenceStep.DEAD)
    back = record(3, step=FenceStep.BACK)
    log.learn(ring(record(1), dead, back), 0.0, WALL_S)
    assert log.certificate(2, "its-boot") == dead
    assert log.certificate(2, "another boot") is None
    assert log.certificate(3, "its-boot") is None
    assert log.certificate(2, "") is None


def test_an_order_that_was_withdrawn_ended_no_boot() -> None:
    """The host panicked an hour later, of itself."""
    over = record(2, step=FenceStep.FAILED, withdrawn=True)
    log = FenceLog()
    log.learn(ring(record(1), over), 0.0, WALL_S)
    assert log.certificate(2, "its-boot") is None
    recent = log.recent(0.0)
    assert recent is not None and [one.withdrawn for one in recent] == [False, True]
    twice = FenceLog()
    other = record(3, by=3)
    twice.learn(ring(record(1), other, record(4, step=FenceStep.FAILED, withdrawn=True)), 0.0, 0.0)
    assert twice.certificate(2, "its-boot") == other, "another host's order was given"
    lost = FenceLog()
    lost.learn(ring(over), 0.0, WALL_S)
    assert lost.certificate(2, "its-boot") is None
    failed = FenceLog()
    failed.learn(ring(record(1), record(2, step=FenceStep.FAILED)), 0.0, WALL_S)
    assert failed.certificate(2, "its-boot") == record(1), "it may have been given"


def test_a_record_of_an_earlier_version_was_not_withdrawn() -> None:
    line = msgspec.json.decode(encode(record(1, step=FenceStep.FAILED)).partition(b"\n")[0])
    del line["withdrawn"]
    data = msgspec.json.encode(line) + b"\n"
    old = data + b"end=%08x\n" % zlib.crc32(data)
    assert decode(old.ljust(SLOT_BYTES, b"\0")) == record(1, step=FenceStep.FAILED)


# --- on the storage -------------------------------------------------------------------------


def test_what_one_host_appends_the_others_see_with_their_next_read() -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, two = (Board(MemoryStore(volume), i, lambda: WALL_S) for i in (1, 2))
        heard: list[int] = []
        two.on_fence_record = lambda found: heard.append(found.number)
        await one.read(1.0)
        await two.read(1.0)
        for _ in range(3):
            await one.append_to_log(record, 2.0)
            await two.read(3.0)
        assert heard == [1, 2, 3]
        # Another writer goes on where the last one ended, whatever he has seen of it.
        three = Board(MemoryStore(volume), 3, lambda: WALL_S)
        assert (await three.append_to_log(record, 4.0)).number == 4

    asyncio.run(run())


def test_a_record_that_is_not_there_afterwards_is_trouble() -> None:
    class Forgetful(MemoryStore):
        async def write(self, slot: int, data: bytes) -> None:
            pass

    async def run() -> None:
        board = Board(Forgetful(MemoryVolume()), 1)
        with pytest.raises(StorageTrouble, match="does not show"):
            await board.append_to_log(record, 1.0)

    asyncio.run(run())


def test_a_note_names_the_host_and_its_boot_and_the_host_finds_it_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices: list[Notice] = []
    monkeypatch.setattr(Notices, "notify", lambda self, notice: notices.append(notice))

    async def run() -> None:
        volume = MemoryVolume()
        one = make_broker(tmp_path, volume, 1, "boot-of-1")
        two = make_broker(tmp_path, volume, 2, "first-boot")
        for broker in (two, one):
            broker.take_report(report(), 1.0)
            await broker.beat(1.0)
        note = FenceNote(FenceStep.DEAD, 2, True, "it hung")
        written = await one.asked.note_fence(note)
        assert written is not None
        assert (written.by_name, written.target_name) == ("host1", "host2")
        assert written.boot_id == "first-boot"
        # The record is not shown in its own boot; in the next one it is, even after a restart.
        assert two.status(2.0).switched_off is None
        for _ in range(2):
            again = make_broker(tmp_path, volume, 2, "second-boot")
            await again.beat(3.0)
            await again.beat(4.0)
            told = again.status(4.0).switched_off
            assert told is not None and (told.by_name, told.text) == ("host1", "it hung")
        third = make_broker(tmp_path, volume, 2, "third-boot")
        await third.beat(5.0)
        assert third.status(5.0).switched_off is None

    asyncio.run(run())
    told = [notice for notice in notices if notice.kind is Kind.WAS_SWITCHED_OFF]
    assert [notice.subject for notice in told] == ["host2"], "once, over a restart too"
    assert "switched off by host1" in told[0].detail


def test_the_intent_of_a_host_is_in_its_slot(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, two = make_broker(tmp_path, volume, 1), make_broker(tmp_path, volume, 2)
        one.take_report(msgspec.structs.replace(report(), intent="fence 3"), 1.0)
        await one.beat(1.0)
        await two.beat(1.0)
        assert two.status(1.0).hosts[1].intent == "fence 3"

    asyncio.run(run())


def test_the_records_of_decisions_are_in_order() -> None:
    log = FenceLog()
    log.learn(ring(record(2), record(1), record(3)), 0.0, WALL_S)
    recent = log.recent(0.0)
    assert recent is not None
    assert [one.number for one in recent] == [1, 2, 3]
    assert replace(recent[0], number=2) == recent[1]


# --- a freeing that is under way --------------------------------------------------------------


def test_how_a_freeing_ended_takes_its_place() -> None:
    log = FenceLog()
    log.learn(ring(record(1), record(2, step=FenceStep.FREEING)), 0.0, WALL_S)
    assert log.under_way == record(2, step=FenceStep.FREEING)
    assert log.next_number == 2 and log.slots_to_read() == [slot_of(2)]
    recent = log.recent(0.0)
    assert recent is not None and [one.number for one in recent] == [1], "nothing was decided yet"
    dead = record(2, step=FenceStep.DEAD)
    assert log.learn({slot_of(2): encode(dead)}, 9.0, WALL_S) == [dead]
    assert log.under_way is None and log.next_number == 3
    recent = log.recent(9.0)
    assert recent is not None and recent[-1].at_s == 9.0
    assert log.learn({slot_of(2): encode(record(2))}, 9.0, WALL_S) == [], "that is no change"


def test_one_that_came_to_nothing_is_not_under_way_and_gives_its_place_away() -> None:
    log = FenceLog()
    log.learn(ring(record(1, step=FenceStep.FREEING, over="killed")), 0.0, WALL_S)
    assert log.under_way is None and log.next_number == 1
    again = record(1, step=FenceStep.FREEING, by=3)
    assert log.learn({slot_of(1): encode(again)}, 1.0, WALL_S) == [again]
    assert log.under_way == again


def test_an_earlier_version_reads_what_takes_the_place_of_a_freeing() -> None:
    """The earlier version does not know that word, and reads on where it stopped: at that slot."""

    class EarlierRecord(msgspec.Struct, frozen=True):
        number: int
        step: Literal["intent", "dead", "failed", "back"]
        by: int
        target: int
        ordered: bool = False
        text: str = ""

    def earlier(data: bytes) -> EarlierRecord | None:
        try:
            return msgspec.json.decode(data.partition(b"\n")[0], type=EarlierRecord)
        except msgspec.MsgspecError:
            return None

    log = FenceLog()
    log.learn(ring(record(1)), 0.0, WALL_S)
    freeing = record(log.next_number, step=FenceStep.FREEING)
    assert earlier(encode(freeing)) is None
    log.learn({slot_of(freeing.number): encode(freeing)}, 1.0, WALL_S)
    dead = earlier(encode(record(log.next_number, step=FenceStep.DEAD, over="", by_boot="b")))
    assert dead is not None and dead.number == 2


def test_a_write_that_was_given_up_is_known_to_be_under_way() -> None:
    """Until it has ended the fence lease must not go: it would land over another's record."""

    boards: list[Board] = []

    class Slow(MemoryStore):
        rests = True

        def at_rest(self) -> bool:
            return self.rests

        async def write(self, slot: int, data: bytes) -> None:
            assert boards[0].log_is_written
            self.rests = False
            raise StorageTrouble("no answer", hung=True)

    async def run() -> None:
        store = Slow(MemoryVolume())
        board = Board(store, 1)
        boards.append(board)
        assert not board.log_is_written
        with pytest.raises(StorageTrouble, match="no answer"):
            await board.append_to_log(record, 1.0)
        assert board.log_is_written
        await board.read(2.0)
        assert board.log_is_written
        store.rests = True
        await board.read(3.0)
        assert not board.log_is_written

    asyncio.run(run())


def test_a_write_that_ends_a_little_late_leaves_nothing_behind() -> None:
    class Late(MemoryStore):
        looks = 0

        def at_rest(self) -> bool:
            self.looks += 1
            return self.looks > 2

        async def write(self, slot: int, data: bytes) -> None:
            raise StorageTrouble("no answer", hung=True)

    async def run() -> None:
        board = Board(Late(MemoryVolume()), 1)
        with pytest.raises(StorageTrouble):
            await board.append_to_log(record, 1.0)
        assert not board.log_is_written

    asyncio.run(run())

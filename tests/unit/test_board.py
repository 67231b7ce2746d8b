# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whiteboard as a host lives with it, on the real volume and on the simulated one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from broker.whiteboard.board import STILL_MAX, Board
from broker.whiteboard.errors import SlotFault
from broker.whiteboard.mode import Mode
from broker.whiteboard.plan import ALWAYS, SWEEP_BEATS, WINDOW
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import SlotReport, encode_cluster, encode_slot
from broker.whiteboard.store import SlotStore, StorageTrouble, VolumeStore
from broker.wire.limits import HOST_ID_MAX
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes import virtual_time
from tests.fakes.slot_store import MemoryStore, MemoryVolume

Poke = Callable[[int, bytes], None]


def report(host_id: int, timestamp: int = 1) -> SlotReport:
    status = EngineStatus(VmStatus.DOWN, Health.BAD)
    return SlotReport(host_id, timestamp, 3400, status, f"host{host_id}", extra={"state": "x"})


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[SlotStore, Poke]:
    """A store of each kind, and a way to change its bytes behind its back."""
    if request.param == "memory":
        volume = MemoryVolume()

        def poke(slot: int, data: bytes) -> None:
            volume.data[slot * SLOT_BYTES : slot * SLOT_BYTES + len(data)] = data

        return MemoryStore(volume), poke
    path = tmp_path / "whiteboard"
    path.write_bytes(bytes(2001 * SLOT_BYTES))

    def poke_file(slot: int, data: bytes) -> None:
        with path.open("r+b") as file:
            file.seek(slot * SLOT_BYTES)
            file.write(data)

    return VolumeStore(str(path), 2.0), poke_file


def test_what_one_host_writes_the_other_reads(store: tuple[SlotStore, Poke]) -> None:
    async def run() -> None:
        one, two = Board(store[0], 1), Board(store[0], 2)
        await one.write(report(1), 10.0)
        await two.read(11.0)
        assert two.reports[1].hostname == "host1"
        assert two.storage_good_since_s == 11.0
        assert two.global_maintenance is False
        assert not two.problem

    asyncio.run(run())


def test_a_bad_slot_costs_that_slot_and_keeps_its_last_good_report(
    store: tuple[SlotStore, Poke],
) -> None:
    async def run() -> None:
        board = Board(store[0], 3)
        store[1](1, encode_slot(report(1, 7)))
        store[1](2, encode_slot(report(2, 8)))
        await board.read(1.0)
        store[1](1, b"\xff" * SLOT_BYTES)
        await board.read(2.0)
        assert board.bad[1].fault is SlotFault.NOT_UTF8
        assert board.reports[1].timestamp == 7
        assert board.reports[2].timestamp == 8
        assert board.storage_good_since_s == 1.0
        store[1](1, encode_slot(report(1, 9)))
        await board.read(3.0)
        assert board.reports[1].timestamp == 9
        assert not board.bad

    asyncio.run(run())


def test_an_emptied_slot_is_a_host_that_left(store: tuple[SlotStore, Poke]) -> None:
    async def run() -> None:
        board = Board(store[0], 3)
        store[1](1, encode_slot(report(1)))
        await board.read(1.0)
        store[1](1, bytes(SLOT_BYTES))
        await board.read(2.0)
        assert board.reports == {}

    asyncio.run(run())


@pytest.mark.parametrize("damage", [b"\xff" * SLOT_BYTES, b"x", bytes(SLOT_BYTES)])
def test_an_unreadable_cluster_slot_never_ends_a_global_maintenance(
    store: tuple[SlotStore, Poke], damage: bytes
) -> None:
    async def run() -> None:
        board = Board(store[0], 1)
        await board.set_global_maintenance(Mode())
        await board.read(1.0)
        store[1](0, damage)
        await board.read(2.0)
        assert board.global_maintenance is True
        assert 0 in board.bad
        store[1](0, encode_cluster(False))
        await board.read(3.0)
        assert board.global_maintenance is True, "one read ends no maintenance: it may be old"
        await board.read(3.5)
        assert board.global_maintenance is False
        assert not board.bad

    asyncio.run(run())


def test_a_peer_of_a_newer_version_is_named(store: tuple[SlotStore, Poke]) -> None:
    async def run() -> None:
        board = Board(store[0], 1)
        store[1](9, b"2|2|whatever".ljust(SLOT_BYTES, b"\0"))
        await board.read(1.0)
        assert list(board.newer_versions) == [9]

    asyncio.run(run())


def test_storage_trouble_is_remembered_and_ends_with_the_trouble() -> None:
    async def run() -> None:
        store = MemoryStore(MemoryVolume())
        board = Board(store, 1)
        await board.read(1.0)
        store.fault = "eio"
        await board.write(report(1), 2.0)
        await board.read(2.0)
        assert "Input/output error" in board.problem
        assert board.storage_good_since_s is None
        with pytest.raises(StorageTrouble):
            await board.set_global_maintenance(Mode())
        store.fault = ""
        await board.write(report(1), 3.0)
        await board.read(3.0)
        assert not board.problem
        assert board.storage_good_since_s == 3.0

    asyncio.run(run())


def test_a_volume_that_lost_its_end_or_its_all_is_survived(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "whiteboard"
        path.write_bytes(encode_cluster(False) + encode_slot(report(1)) + encode_slot(report(2)))
        board = Board(VolumeStore(str(path), 2.0), 1)
        await board.read(1.0)
        assert board.reports[2].host_id == 2
        with path.open("r+b") as file:
            file.truncate(2 * SLOT_BYTES + 100)
        await board.read(2.0)
        assert board.bad[2].fault is SlotFault.SHORT
        with path.open("r+b") as file:
            file.truncate(0)
        await board.read(3.0)
        assert board.storage_good_since_s is None
        assert "slot 0" in board.problem
        path.unlink()
        path.mkdir()
        await board.read(4.0)
        assert board.storage_good_since_s is None

    asyncio.run(run())


def test_a_whiteboard_that_is_not_there_says_where(tmp_path: Path) -> None:
    async def run() -> None:
        board = Board(VolumeStore(str(tmp_path / "gone"), 2.0), 1)
        await board.read(1.0)
        assert str(tmp_path / "gone") in board.problem

    asyncio.run(run())


def test_how_long_reads_and_writes_take_is_counted_and_so_are_failures() -> None:
    async def run() -> None:
        store = MemoryStore(MemoryVolume())
        board = Board(store, 1)
        await board.write(report(1), 1.0)
        await board.read(1.0)
        await board.read(1.5, second_look=True)
        assert (board.write_times.count, board.read_times.count, board.errors) == (1, 2, 0)
        store.fault = "eio"
        await board.write(report(1), 2.0)
        await board.read(2.0)
        assert (board.write_times.count, board.read_times.count, board.errors) == (1, 2, 2)
        assert board.trouble_since_s is not None and not board.is_hung

    asyncio.run(run())


def test_a_storage_that_hangs_is_another_trouble_than_one_that_fails() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        store = MemoryStore(MemoryVolume(), deadline_s=0.01)
        board = Board(store, 1)
        began_s = loop.time()
        store.fault = "hang"
        await board.read(1.0)
        assert board.is_hung and board.trouble_since_s is not None
        since_s = board.trouble_since_s
        assert since_s - began_s < 0.01, "from the question on, not from its deadline on"
        store.fault = "eio"
        await board.write(report(1), 2.0)
        assert not board.is_hung
        assert board.trouble_since_s == since_s, "one trouble, whatever its face"
        store.fault = ""
        await board.read(3.0)
        assert board.trouble_since_s == since_s, "what is read well is not yet written well"
        await board.write(report(1), 4.0)
        await board.read(4.0)
        assert (board.trouble_since_s, board.is_hung, board.problem) == (None, False, "")

    virtual_time.run(run())


# --- a late write to slot 0 ------------------------------------------------------------------

MODE = Mode("root@host1", "disks", 1_800_000_000, None)


def late(volume: MemoryVolume) -> bytes:
    """Slot 0 as it is now, to land once more."""
    return bytes(volume.data[:SLOT_BYTES])


def lands(volume: MemoryVolume, data: bytes) -> None:
    volume.data[:SLOT_BYTES] = data


@pytest.mark.parametrize("newest", [MODE, None])
def test_an_older_mode_that_lands_late_is_put_right(newest: Mode | None) -> None:
    """Whichever it says: after a minute it once was believed."""

    async def run() -> None:
        volume = MemoryVolume()
        one, two = Board(MemoryStore(volume), 1), Board(MemoryStore(volume), 2)
        await one.set_global_maintenance(None if newest else MODE)
        old = late(volume)
        await two.set_global_maintenance(newest)
        newer = late(volume)
        await one.read(-1.0)
        await one.read(0.0)
        lands(volume, old)
        for now_s in (1.0, 3.0, 5.9):
            await one.read(now_s)
            await one.put_cluster_right(now_s)
            assert one.global_mode == newest and late(volume) == old
        await one.read(6.0)
        await one.put_cluster_right(6.0)
        assert late(volume) == newer
        await one.read(7.0)
        await one.put_cluster_right(90.0)
        assert one.global_mode == newest and late(volume) == newer

    asyncio.run(run())


def test_what_was_set_meanwhile_is_not_written_over() -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, two = Board(MemoryStore(volume), 1), Board(MemoryStore(volume), 2)
        await one.set_global_maintenance(MODE)
        old = late(volume)
        await one.set_global_maintenance(None)
        await one.read(0.0)
        lands(volume, old)
        await one.read(1.0)
        await two.read(1.0)
        await two.set_global_maintenance(None)
        await two.set_global_maintenance(MODE)
        newest = late(volume)
        await one.put_cluster_right(7.0)
        assert late(volume) == newest

    asyncio.run(run())


def test_a_slot_that_cannot_be_read_or_written_is_tried_again() -> None:
    async def run() -> None:
        volume = MemoryVolume()
        store = MemoryStore(volume)
        board = Board(store, 1)
        await board.set_global_maintenance(MODE)
        old = late(volume)
        await board.set_global_maintenance(None)
        newest = late(volume)
        await board.read(0.0)
        lands(volume, old)
        await board.read(1.0)
        store.fault = "eio"
        await board.put_cluster_right(7.0)
        store.fault = ""
        lands(volume, b"mainte\xffance=1".ljust(SLOT_BYTES, b"\0"))
        await board.put_cluster_right(8.0)
        lands(volume, old)
        await board.put_cluster_right(9.0)
        assert late(volume) == newest

    asyncio.run(run())


def test_a_broker_that_has_read_nothing_yet_gives_no_serial_twice() -> None:
    async def run() -> None:
        volume = MemoryVolume()
        old = Board(MemoryStore(volume), 1)
        for mode in (MODE, None, MODE, None):
            await old.set_global_maintenance(mode)
        await old.read(0.0)
        await Board(MemoryStore(volume), 2).set_global_maintenance(MODE)
        await old.read(1.0)
        assert old.global_maintenance, "it is not taken for an older one"

    asyncio.run(run())


def test_what_was_written_once_into_all_slots_costs_next_to_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every host saw the others silent: it was busy with two thousand slots."""

    async def run() -> None:
        volume = MemoryVolume()
        store = MemoryStore(volume)
        for host in range(21, 2001):
            data = encode_slot(report(host)) if host % 2 else b"x" * SLOT_BYTES
            await store.write(host, data)
        board = Board(store, 1)
        board.in_use = frozenset({2000})
        for beat in range(2 * SWEEP_BEATS):
            await board.read(float(beat))
        seen = board.reports.keys() | board.bad.keys()
        assert seen == {*range(21, 21 + STILL_MAX), 2000}
        wanted: list[list[int]] = []
        real = store.read

        async def read(slots: Sequence[int]) -> Mapping[int, bytes]:
            wanted.append([slot for slot in slots if slot <= HOST_ID_MAX])
            return await real(slots)

        store.read = read  # type: ignore[method-assign]
        await board.read(900.0)
        assert len(wanted[0]) <= ALWAYS + STILL_MAX + 1 + WINDOW
        # A host that comes is seen, wherever its slot is.
        for beat in range(2 * SWEEP_BEATS):
            alive = report(1777, 100 + beat)
            await store.write(1777, encode_slot(alive))
            await board.read(1000.0 + beat)
        assert board.reports[1777].timestamp == alive.timestamp

    asyncio.run(run())
    assert sum("written by nobody" in record.getMessage() for record in caplog.records) == 1


def test_the_journal_says_when_the_whiteboard_fails_and_when_it_is_well_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        store = MemoryStore(MemoryVolume())
        board = Board(store, 1)
        whole = store.volume.data

        async def beat(now_s: float) -> None:
            await board.write(report(1), now_s)
            await board.read(now_s)
            board.journal(now_s)

        await beat(0.0)
        # One that comes and goes is one trouble.
        for now_s in range(1, 21):
            store.fault = "eio" if now_s % 3 else ""
            await beat(float(now_s))
        store.fault = ""
        for now_s in range(21, 41):
            await beat(float(now_s))
        store.volume.data = bytearray()
        await board.read(50.0)
        board.journal(50.0)
        store.volume.data = whole
        await beat(51.0)
        await beat(56.0)

    asyncio.run(run())
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("ERROR", "the whiteboard fails on this host: writing slot 1: Input/output error"),
        ("WARNING", "the whiteboard is read and written again; its trouble lasted for 19 s"),
        (
            "ERROR",
            "the whiteboard fails on this host: the whiteboard is empty or was cut off: slot 0 is"
            " not there",
        ),
        ("WARNING", "the whiteboard is read and written again; its trouble lasted for 0 s"),
    ]


def of_boot(host_id: int, timestamp: int, boot_id: str = "b") -> SlotReport:
    status = EngineStatus(VmStatus.DOWN, Health.BAD)
    extra = {"boot-id": boot_id} if boot_id else {}
    return SlotReport(host_id, timestamp, 3400, status, f"host{host_id}", extra=extra)


def test_a_whiteboard_that_is_set_back_is_looked_at_anew(store: tuple[SlotStore, Poke]) -> None:
    """Older slots of the same boot, another host's or the own: what they say of the VM is past.
    Not again for a minute, so that one host that writes in disorder keeps nobody from starting."""

    async def run() -> None:
        for host in (1, 3):
            board = Board(store[0], 3)
            store[1](host, encode_slot(of_boot(host, 70)))
            await board.read(1.0)
            await board.read(2.0)
            assert board.storage_good_since_s == 1.0 and not board.set_back_unfit(2.0)
            store[1](host, encode_slot(of_boot(host, 50)))
            await board.read(3.0)
            assert board.storage_good_since_s == 3.0 and not board.problem
            assert "older slots" in board.set_back_unfit(3.0)
            assert not board.set_back_unfit(8.0)
            store[1](host, encode_slot(of_boot(host, 71)))
            await board.read(4.0)
            store[1](host, encode_slot(of_boot(host, 60)))
            await board.read(5.0)
            assert board.storage_good_since_s == 3.0
            store[1](host, encode_slot(of_boot(host, 55)))
            await board.read(63.0)
            assert board.storage_good_since_s == 63.0

    asyncio.run(run())


def test_another_boot_or_one_that_is_not_told_counts_anew(store: tuple[SlotStore, Poke]) -> None:
    """After a boot the count may be lower; the reference tells no boot."""

    async def run() -> None:
        board = Board(store[0], 3)
        for boot_id, now_s in (("b", 1.0), ("c", 2.0), ("", 3.0), ("", 4.0), ("b", 5.0)):
            store[1](1, encode_slot(of_boot(1, 100 - int(now_s), boot_id)))
            await board.read(now_s)
        assert board.storage_good_since_s == 1.0

    asyncio.run(run())

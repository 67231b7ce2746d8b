# SPDX-License-Identifier: LGPL-2.1-or-later
"""The record of what ran last: what it says, how it survives, and whom it holds back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.this_host.disks_record import CannotDecide
from broker.this_host.disks_shown import codes, differences, problem, record, unfit
from broker.vm.domain_facts import Layer, parse, read
from broker.vm.in_use import InUse
from broker.vm.shared_paths import SharedPaths
from broker.whiteboard import what_ran
from broker.whiteboard.layout import WHAT_RAN_SLOTS
from broker.whiteboard.ran_places import RanPlaces, encode
from broker.whiteboard.signatures import Signatures
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import EMPTY_SLOT
from broker.whiteboard.store import StorageTrouble
from broker.whiteboard.what_ran import EMPTY, OnDisk, held_back, says_the_same
from broker.wire.what_ran import WhatRan
from scoring.vm_facts import Obstacle
from tests.fakes.definitions import BASE, OVERLAY, domain
from tests.fakes.slot_store import MemoryVolume
from tests.fakes.what_ran import Host, running, stamped

A, B = WHAT_RAN_SLOTS


def nothing_is_shared(layer: Layer) -> bool:
    return False


def on_disk(record: WhatRan | None) -> OnDisk:
    return OnDisk(record, last=(0, 0) if record is None else record.key)


# --- what it says -----------------------------------------------------------------------------


def test_of_a_vm_that_runs_as_defined_there_is_nothing_to_say() -> None:
    assert says_the_same(running(domain()), EMPTY)
    assert says_the_same(running(domain(BASE, "/srv/below.qcow2")), EMPTY)


def test_an_overlay_on_the_shared_storage_is_started_by_every_host() -> None:
    ran = running(domain(OVERLAY, BASE))
    assert OVERLAY in ran.disks["vda"] and "backingStore" not in ran.disks["vda"]
    assert (ran.held, ran.only) == ("", 0)
    assert [held_back(on_disk(ran), read(domain()), host) for host in (1, 2)] == ["", ""]


def test_an_overlay_on_one_host_is_started_there_alone() -> None:
    ran = running(domain(OVERLAY, BASE), shared=nothing_is_shared)
    assert ran.only == 1
    assert held_back(on_disk(ran), read(domain()), 1) == ""
    text = held_back(on_disk(ran), read(domain()), 2)
    assert text == (
        "vda ran last from /srv/overlay.qcow2, which only host1 is known to have: start the VM"
        " there, or put it where every host reads it and type ha-agent vm adopt; or, to boot"
        " /srv/base.qcow2 (qcow2) and lose what was written since, ha-agent vm keep"
    )


def test_a_shared_overlay_on_a_local_image_is_as_local_as_that() -> None:
    ran = running(domain(OVERLAY, "/local/x.qcow2"), shared=lambda layer: "/srv" in layer.place)
    assert "/local/x.qcow2" in ran.held


def test_what_is_below_the_recorded_image_is_not_the_record_s_matter() -> None:
    assert says_the_same(running(domain(BASE, "/local/x"), shared=nothing_is_shared), EMPTY)


@pytest.mark.parametrize(("ready", "is_held"), [("", False), ("yes", True), ("pivot", True)])
def test_a_disk_that_may_go_over_to_another_image_holds_all_back(ready: str, is_held: bool) -> None:
    word = f" ready='{ready}'" if ready else ""
    job = f"<mirror type='file' job='active-commit'{word}><source file='{BASE}'/></mirror>"
    ran = running(domain(OVERLAY, BASE, job=job))
    for host in (1, 2):
        assert bool(held_back(on_disk(ran), read(domain()), host)) is is_held
    assert ("--pivot or --abort" in ran.held) is is_held


def test_a_disk_that_was_added_is_part_of_what_ran() -> None:
    added = "<disk type='file'><source file='/srv/b'/><target dev='vdb'/></disk>"
    ran = running(domain(extra=added))
    assert list(ran.disks) == ["vdb"] and ran.instead_of == {"vdb": ""}
    assert "boot without it" in running(domain(extra=added), shared=nothing_is_shared).held


def test_a_recorded_chain_that_is_another_one_now_is_left_to_the_images() -> None:
    mine = domain(BASE, "/srv/below")
    ran = what_ran.of_running(read(mine), read(domain()), parse(domain()), bool, None, 1, "h")
    assert "backingStore" not in ran.disks["vda"]


def test_a_definition_that_was_changed_since_holds_that_host_back() -> None:
    ran = running(domain(OVERLAY, BASE))
    text = held_back(on_disk(ran), read(domain("/srv/new.qcow2")), 1)
    assert "the definition here was changed since: it names /srv/new.qcow2 (qcow2)" in text
    assert held_back(on_disk(ran), read(domain(OVERLAY)), 1) == "", "it was brought up to date"
    assert "no such disk" in held_back(on_disk(ran), read("<domain/>"), 1)
    assert held_back(on_disk(ran), None, 1) == "", "what cannot be read is not started"


# --- decisions ----------------------------------------------------------------------------------


def test_adopted_every_host_starts_it_and_it_stays_so_while_it_runs() -> None:
    local = running(domain(OVERLAY, BASE), shared=nothing_is_shared)
    ran = what_ran.adopted(on_disk(local), "root@host2")
    assert ran.decided == "adopted by root@host2"
    for definition in (domain(), domain("/srv/new.qcow2")):
        assert held_back(on_disk(ran), read(definition), 2) == ""
    again = running(domain(OVERLAY, BASE), ran, nothing_is_shared)
    assert says_the_same(again, ran) and again.decided == ran.decided
    other = running(domain("/srv/second.qcow2", OVERLAY), ran, nothing_is_shared)
    assert "/srv/second.qcow2" in other.held, "decided was about the other image"
    assert other.adopted == () and other.decided == ""


def test_kept_the_definition_is_started_and_it_stays_so_while_it_runs() -> None:
    xml = domain(OVERLAY, BASE)
    local = running(xml, shared=nothing_is_shared)
    ran = what_ran.kept(on_disk(local), read(xml), "root@host1")
    assert (ran.disks, ran.held) == ({}, "")
    assert held_back(on_disk(ran), read(domain()), 2) == ""
    assert says_the_same(running(xml, ran, nothing_is_shared), ran)
    other = running(domain("/srv/second.qcow2", OVERLAY), ran, nothing_is_shared)
    assert "/srv/second.qcow2" in other.held and other.kept == ()


def test_decided_without_a_record_there_is_one() -> None:
    assert says_the_same(what_ran.adopted(OnDisk(), "x"), EMPTY)
    assert says_the_same(what_ran.kept(OnDisk(), None, "x"), EMPTY)


# --- how it survives ------------------------------------------------------------------------------


def read_places(slots: Mapping[int, bytes]) -> OnDisk:
    """What one read brings to a host of a cluster that signs nothing."""
    return RanPlaces(Signatures(), lambda: False).learn(slots)


def bytes_of(record: WhatRan) -> bytes:
    data = encode(record)
    assert data is not None and len(data) == SLOT_BYTES
    return data


def test_it_is_read_as_it_was_written() -> None:
    found = read_places(dict.fromkeys((A, B), bytes_of(stamped())))
    assert found == OnDisk(stamped(), "", True, (1, 1))
    assert read_places({}) == read_places({A: EMPTY_SLOT, B: EMPTY_SLOT}) == OnDisk()


def test_of_two_the_newest_counts_whoever_wrote_last() -> None:
    """A write of an earlier owner that lands late has the smaller count."""
    late, mine = stamped(7, 4), stamped(3, 5, domain("/srv/mine.qcow2"))
    for slots in ({A: bytes_of(late), B: bytes_of(mine)}, {A: bytes_of(mine), B: bytes_of(late)}):
        found = read_places(slots)
        assert (found.record, found.problem, found.is_whole) == (mine, "", False)
    assert OnDisk(last=(5, 3)).next(EMPTY, 4).key == (5, 4), "never an older one"
    assert OnDisk(last=(5, 3)).next(EMPTY, 6).key == (6, 4)


def torn(new: WhatRan, old: WhatRan) -> bytes:
    return bytes_of(new)[:120] + bytes_of(old)[120:]


def test_a_write_that_broke_off_may_have_been_the_newest_and_holds_back() -> None:
    old = stamped(1, 1, domain("/srv/old.qcow2"))
    found = read_places({A: torn(stamped(2), old), B: bytes_of(old)})
    assert (found.record, found.last) == (old, (1, 2))
    assert "was being written when its host ended" in held_back(found, read(domain()), 1)
    first = read_places({A: torn(stamped(1), EMPTY)})
    assert first.record is None and held_back(first, read(domain()), 1)


def test_one_that_broke_off_behind_a_whole_one_takes_nothing_away() -> None:
    new, old = stamped(2), stamped(1, 1, domain("/srv/old.qcow2"))
    head_of_old = bytes_of(old)[:100] + bytes_of(new)[100:]
    found = read_places({A: bytes_of(new), B: head_of_old})
    assert (found.record, found.problem, found.is_whole) == (new, "", False)


def test_what_is_no_record_is_none() -> None:
    """A block device may have anything there."""
    assert (
        read_places({A: b"\xff" * SLOT_BYTES, B: b"what-ran 1 1 1 00000000 00000000\n"}) == OnDisk()
    )
    lies = msgspec.structs.replace(stamped(), disks={"vda": "<disk"})
    assert read_places({A: bytes_of(lies)}).problem
    other = bytearray(bytes_of(stamped()))
    assert read_places({A: bytes(other[:20])}) == OnDisk()


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_at_all_are_survived(junk: bytes, at: int) -> None:
    data = bytearray(bytes_of(stamped()))
    data[at : at + len(junk)] = junk
    read_places({A: bytes(data[:SLOT_BYTES]), B: junk})


def test_what_has_no_room_is_not_half_written() -> None:
    many = {f"vd{n}": f"<disk><source file='/{os.urandom(600).hex()}'/></disk>" for n in range(9)}
    assert encode(msgspec.structs.replace(EMPTY, disks=many)) is None


# --- where a path lies ------------------------------------------------------------------------


def test_a_path_is_shared_where_the_volumes_or_the_defined_disks_are(tmp_path: Path) -> None:
    whiteboard = tmp_path / "whiteboard"
    whiteboard.touch()
    paths = SharedPaths([str(whiteboard), "/dev/null", "/not/there"])
    assert paths.has_file(str(tmp_path / "overlay")) and paths.has_file("/dev/null")
    assert not paths.has_file("/proc/version") and not paths.has_file("/not/here/x")
    (tmp_path / "link").symlink_to("/proc/version")
    assert not paths.has_file(str(tmp_path / "link"))
    assert paths.has(Layer("file", str(whiteboard), "raw"))
    assert paths.has(Layer("network", "name=x protocol=rbd name=a", "raw"))
    assert not paths.has(Layer("network", "name=x protocol=nbd socket=/x transport=unix", "raw"))
    assert paths.has(Layer("block", "/dev/null", "raw"))
    assert not paths.has(Layer("block", "/dev/zero", "raw"))
    assert not paths.has(Layer("volume", "pool=p volume=v", "raw"))


# --- kept by a host ---------------------------------------------------------------------------


@pytest.fixture
def volume() -> MemoryVolume:
    return MemoryVolume()


def writes(host: Host) -> list[int]:
    made: list[int] = []
    write = host.store.write

    async def note(slot: int, data: bytes) -> None:
        made.append(slot)
        await write(slot, data)

    host.store.write = note  # type: ignore[method-assign]
    return made


def test_an_owner_records_once_and_an_heir_starts_it(volume: MemoryVolume) -> None:
    async def run() -> None:
        owner, heir = Host(volume, 1), Host(volume, 2)
        made = writes(owner)
        await owner.beat(owns=True)
        assert made == [], "nothing differs, nothing is recorded"
        owner.runs(domain(OVERLAY, BASE))
        await owner.beat(owns=False)
        assert made == [], "without the lease it is no owner"
        await owner.beat(owns=True)
        await owner.beat(owns=True)
        assert made == [A, B]
        await heir.beat()
        assert OVERLAY in heir.record.ran["vda"] and heir.record.held_back == ""
        heir.runs(domain(OVERLAY, BASE))
        await heir.beat(owns=True, last_ran=2)
        assert heir.board.what_ran is not None and heir.board.what_ran.last == (2, 2)
        owner.runs(domain())
        heir.runs(domain())
        await heir.beat(owns=True, last_ran=2)
        assert BASE in heir.record.ran["vda"], "the pivot back is recorded too"
        for definition, is_held in ((domain(), False), (domain("/srv/older.qcow2"), True)):
            owner.runs("", definition=definition)
            await owner.beat()
            assert bool(owner.record.held_back) is is_held

    asyncio.run(run())


def test_what_was_overwritten_is_written_again(volume: MemoryVolume) -> None:
    async def run() -> None:
        owner = Host(volume, 1)
        owner.runs(domain(OVERLAY, BASE))
        await owner.beat(owns=True, last_ran=5)
        mine = owner.board.what_ran
        assert mine is not None
        late = bytes_of(stamped(9, 4, domain("/srv/late.qcow2")))
        await owner.store.write(A, late)
        await owner.beat(owns=True, last_ran=5)
        again = owner.board.what_ran
        assert again.is_whole and again.record is not None and mine.record is not None  # type: ignore[union-attr]
        assert again.record.disks == mine.record.disks  # type: ignore[union-attr]
        await owner.store.write(A, torn(stamped(50, 9), EMPTY))
        await owner.beat(owns=True, last_ran=5)
        assert owner.board.what_ran is not None and not owner.board.what_ran.problem

    asyncio.run(run())


def test_what_cannot_be_recorded_is_said_and_tried_again(volume: MemoryVolume) -> None:
    async def run() -> None:
        owner = Host(volume, 1)
        owner.runs(domain(OVERLAY, BASE))
        await owner.board.read(1.0)
        owner.store.fault = "eio"
        await owner.record.look(True, 1)
        assert "could not be recorded: writing slot" in problem(owner.record)
        owner.store.fault = ""
        await owner.beat(owns=True)
        assert problem(owner.record) == ""

    asyncio.run(run())


def test_a_write_that_is_not_there_afterwards_is_no_record(volume: MemoryVolume) -> None:
    async def run() -> None:
        owner = Host(volume, 1)
        await owner.board.read(1.0)

        async def lost(slot: int, data: bytes) -> None:
            """Nothing arrives."""

        owner.store.write = lost  # type: ignore[method-assign]
        with pytest.raises(StorageTrouble, match="does not show what was written"):
            await owner.board.write_what_ran(stamped())

    asyncio.run(run())


def test_more_than_has_room_holds_back_everywhere_else(volume: MemoryVolume) -> None:
    async def run() -> None:
        owner, heir = Host(volume, 1), Host(volume, 2)
        extra = "".join(
            f"<disk><source file='/srv/{os.urandom(300).hex()}'/><target dev='vd{n}'/></disk>"
            for n in "bcdefghijkl"
        )
        owner.runs(domain(extra=extra))
        made = writes(owner)
        await owner.beat(owns=True)
        await owner.beat(owns=True)
        assert made == [A, B], "once"
        await heir.beat()
        assert "has more disks of its own" in heir.record.held_back
        await owner.board.read(1.0)
        assert owner.record.held_back == ""

    asyncio.run(run())


def test_a_decision_is_taken_where_it_can_be_known(volume: MemoryVolume) -> None:
    async def run() -> None:
        owner, heir = Host(volume, 1), Host(volume, 2)
        with pytest.raises(CannotDecide, match="was not read yet"):
            await heir.record.decide(True, "x", None, 1)
        owner.runs(domain(OVERLAY, BASE), nothing_is_shared)
        await owner.beat(owns=True)
        await heir.beat()
        assert unfit(heir.record)[0].obstacle is Obstacle.HELD_BACK
        with pytest.raises(CannotDecide, match="the VM runs on host1: type it there"):
            await heir.record.decide(True, "x", "host1", 1)
        await heir.record.decide(True, "root@host2", None, 1)
        assert unfit(heir.record) == ()
        shown = record(heir.record.on_disk)
        assert shown is not None and shown.disks == {"vda": f"{OVERLAY} (qcow2)"}
        assert shown.decided == "adopted by root@host2"
        await heir.record.decide(False, "root@host2", None, 1)
        assert heir.record.ran == {}
        await owner.beat(owns=True)
        assert owner.record.ran == {}, "kept as long as the same image runs"
        owner.record.in_use = lambda: None
        with pytest.raises(CannotDecide, match="cannot be read now"):
            await owner.record.decide(True, "x", None, 1)

    asyncio.run(run())


def test_what_differs_is_shown_by_code() -> None:
    assert (differences(None), codes(None), record(None)) == ((), (), None)
    from broker.vm.domain_facts import differences as compared

    mine, theirs = read(domain()), read(domain(OVERLAY, extra="<rng/>"))
    use = InUse(mine, of_running=compared(mine, theirs), of_libvirt=compared(theirs, mine))
    assert codes(use) == ("devices-differ", "disks-differ")
    assert {each.where for each in differences(use)} == {"running", "libvirt"}
    assert "running: vda: recorded" in use.problem and str(use) == "differs"
    assert str(InUse(mine)) == "as recorded"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The record of what ran last is signed: who can write to the volume, and is no member, neither has
a host open a disk of his choice nor keeps the VM from being started."""

from __future__ import annotations

import asyncio
import hashlib
import json
import zlib

import msgspec
import pytest

from broker.config.cluster_key import ClusterKey
from broker.vm.domain_facts import read
from broker.whiteboard.layout import WHAT_RAN_SLOTS
from broker.whiteboard.ran_places import LAST_RAN_MAX, RanPlaces, encode, fits
from broker.whiteboard.signatures import Signatures, Unsigned
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import EMPTY_SLOT
from broker.whiteboard.what_ran import EMPTY, GENERATION_MAX, held_back
from broker.wire.what_ran import WhatRan
from tests.fakes.definitions import BASE, OVERLAY, domain
from tests.fakes.slot_store import MemoryStore, MemoryVolume
from tests.fakes.what_ran import Host, stamped

A, B = WHAT_RAN_SLOTS
KEY, NEXT, OTHER = (ClusterKey(letter * 32) for letter in (b"k", b"n", b"o"))
SIGNED = Signatures(KEY)
FORGED = stamped(GENERATION_MAX, LAST_RAN_MAX, domain("/dev/sda"))


def at(record: WhatRan, by: Signatures | None = SIGNED) -> bytes:
    data = encode(record, by)
    assert data is not None and len(data) == SLOT_BYTES
    return data


def both(data: bytes) -> dict[int, bytes]:
    return {A: data, B: data}


def reader(
    unsigned: Unsigned = Unsigned.SHOW, earlier: bool = False, key: ClusterKey | None = KEY
) -> RanPlaces:
    return RanPlaces(Signatures(key, unsigned), lambda: earlier)


def torn(new: bytes, old: bytes) -> bytes:
    """A write that broke off; what is above stands in the first sector of any record."""
    return new[:170] + old[170:]


def test_what_is_signed_is_read_as_it_was_written_also_by_an_earlier_version() -> None:
    found = reader().learn(both(at(stamped())))
    assert (found.record, found.problem, found.is_whole) == (stamped(), "", True)
    # As that one did it: the length of the head, zlib, JSON with fields it does not know.
    head, _, rest = at(stamped()).partition(b"\n")
    packed = rest[: int(head.split()[3])]
    fields = json.loads(zlib.decompress(packed))
    assert len(fields.pop("seal")) == 64
    assert msgspec.json.decode(json.dumps(fields), type=WhatRan) == stamped()
    assert zlib.crc32(packed) == int(head.split()[4], 16)


@pytest.mark.parametrize("by", [None, Signatures(OTHER)])
def test_a_record_of_nobody_opens_no_disk_and_holds_nothing_back(by: Signatures | None) -> None:
    """Both where there was a record, and where there was none."""
    for own in ({}, both(at(stamped()))):
        host = reader()
        before = host.learn(own)
        after = host.learn(both(at(FORGED, by)))
        assert (after.record, after.problem, after.last) == (before.record, "", before.last)
        assert not after.is_whole, "its owner writes it again"


@pytest.mark.parametrize("data", [EMPTY_SLOT, b"", b"\xff" * SLOT_BYTES])
def test_nobody_takes_the_record_away(data: bytes) -> None:
    host = reader()
    host.learn(both(at(stamped())))
    after = host.learn(both(data))
    assert (after.record, after.problem, after.is_whole) == (stamped(), "", False)


def test_an_older_record_that_is_put_back_does_not_count() -> None:
    host = reader()
    host.learn(both(at(stamped(2))))
    assert host.learn(both(at(stamped(1, 1, domain("/srv/old.qcow2"))))).record == stamped(2)


def test_a_write_of_a_member_that_broke_off_holds_back_and_one_of_nobody_does_not() -> None:
    old, new = stamped(1), stamped(2, 2, domain("/srv/new.qcow2"))
    for know in (False, True):
        host = reader()
        if know:
            host.learn(both(at(old)))
        found = host.learn({A: torn(at(new), at(old)), B: at(old)})
        assert (found.record, found.last) == (old, (2, 2))
        assert "was being written when its host ended" in held_back(found, read(domain()), 2)
    for by in (None, Signatures(OTHER)):
        found = reader().learn({A: torn(at(FORGED, by), at(old)), B: at(old)})
        assert (found.record, found.problem, found.is_whole) == (old, "", False)


def test_a_seal_belongs_to_its_own_counts() -> None:
    new, old = at(stamped(2)), at(stamped(1))
    other = at(stamped(9, 9), None)
    head = other[: other.index(b"\n") + 1]
    moved = (head + new[new.index(b"\n") + 1 :])[:SLOT_BYTES]
    assert reader().learn({A: moved, B: old}).problem == ""


def test_who_has_seen_nothing_yet_starts_nothing_and_says_what_it_names() -> None:
    for by in (None, Signatures(OTHER)):
        found = reader().learn(both(at(FORGED, by)))
        said = held_back(found, read(domain()), 1)
        assert "not signed by a host of this cluster" in said and "/dev/sda" in said
        assert found.record == FORGED, "what a person decides about"
    host = reader()
    host.learn(both(at(FORGED, None)))
    found = host.learn(both(at(stamped())))
    assert (found.record, found.problem) == (stamped(), ""), "a member has written it"


def test_one_of_an_earlier_version_counts_while_there_is_one() -> None:
    earlier = [True]
    host = RanPlaces(Signatures(KEY), lambda: earlier[0])
    found = host.learn(both(at(stamped(), None)))
    assert (found.record, found.problem, found.is_whole) == (stamped(), "", False)
    earlier[0] = False
    assert host.learn(both(at(stamped(), None))).record == stamped(), "it was good when it was read"
    assert host.learn(both(at(FORGED, None))).record == stamped()


def test_what_is_not_signed_is_a_matter_of_the_configuration() -> None:
    data = both(at(stamped(), None))
    assert reader(Unsigned.TRUST).learn(data).record == stamped()
    assert reader(Unsigned.TRUST).learn(data).problem == ""
    assert reader(Unsigned.IGNORE, earlier=True).learn(data).problem
    unsigned = reader(key=None).learn(data)
    assert (unsigned.record, unsigned.problem, unsigned.is_whole) == (stamped(), "", True)


def test_a_record_by_the_key_that_is_only_accepted_is_written_anew() -> None:
    host = reader(key=ClusterKey(NEXT.writes, KEY.writes))
    found = host.learn(both(at(stamped())))
    assert (found.record, found.problem, found.is_whole) == (stamped(), "", False)


def test_counts_that_nobody_has_are_no_record() -> None:
    for key in ((GENERATION_MAX + 1, 1), (1, LAST_RAN_MAX + 1)):
        assert reader().learn(both(at(stamped(*key), None))).record is None
        assert reader().learn(both(at(stamped(*key), None))).problem == ""


def test_the_owner_writes_it_again_a_beat_later() -> None:
    async def main() -> None:
        volume = MemoryVolume(B + 1)
        host, heir = Host(volume, 1, KEY), Host(volume, 2, KEY)
        for top, below in ((BASE, ""), (OVERLAY, BASE)):
            host.runs(domain(top, below))
            await host.beat(owns=True)
            await heir.beat()
            for place in (A, B):
                await MemoryStore(volume).write(place, at(FORGED, None))
            await heir.beat()
            assert heir.record.held_back == "" and "/dev/sda" not in str(heir.record.ran)
            await host.beat(owns=True)
            late = Host(volume, 3, KEY)
            await late.beat()
            assert late.record.held_back == "" and host.record.problem == ""
            assert (OVERLAY in str(late.record.ran)) is (top == OVERLAY)

    asyncio.run(main())


def test_room_is_left_for_the_signature() -> None:
    noise = hashlib.shake_256(b"x").digest(4096).hex()
    records = [msgspec.structs.replace(EMPTY, held=noise[:length]) for length in range(0, 8192, 8)]
    assert not all(fits(record, SIGNED) for record in records)
    for record in records:
        if fits(record, SIGNED):
            biggest = msgspec.structs.replace(
                record, generation=GENERATION_MAX, last_ran=LAST_RAN_MAX, at=1.8e9
            )
            assert encode(biggest, SIGNED) is not None

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is signed on the shared storage, what is refused, and that nothing is lost in an upgrade."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from broker.config.cluster_key import ClusterKey
from broker.whiteboard.board import Board
from broker.whiteboard.cluster_slot import PUT_RIGHT_S
from broker.whiteboard.errors import SlotFault
from broker.whiteboard.extra import signed_part, signed_part_of_cluster
from broker.whiteboard.fence_log import FenceLog, LogRecord, encode, signature, slot_of
from broker.whiteboard.mode import Mode
from broker.whiteboard.signatures import (
    CLUSTER,
    COUNTER_LINE,
    COUNTER_WALL_MAX,
    FENCE,
    SLOT,
    Signature,
    Signatures,
    Unsigned,
    counter_of,
    next_counter,
)
from broker.whiteboard.sizes import EXTRA_BYTES, SLOT_BYTES
from broker.whiteboard.slot import (
    EMPTY_SLOT,
    SlotReport,
    decode_cluster,
    decode_slot,
    encode_cluster,
    encode_slot,
)
from scoring.observation import FenceStep
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.slot_store import MemoryStore, MemoryVolume

KEY, NEXT = ClusterKey(b"k" * 32), ClusterKey(b"n" * 32)
UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")


def report(host: int = 2, counter: int = 7, boot: str = "boot-1", timestamp: int = 1) -> SlotReport:
    lines = {"boot-id": boot, COUNTER_LINE: str(counter), "state": "EngineUp"}
    return SlotReport(host, timestamp, 3400, UP, f"host{host}", extra=lines)


def slot(key: ClusterKey | None = KEY, made: SlotReport | None = None) -> bytes:
    made = made or report()
    return encode_slot(made, partial(Signatures(key).sign, SLOT, made.host_id))


def looked_at(signatures: Signatures, data: bytes, host: int = 2) -> Signature:
    found = decode_slot(host, data)
    assert found is not None
    return signatures.look_at_slot(found, data)


def test_a_signed_slot_is_read_by_all_and_good_for_who_has_the_key() -> None:
    data = slot()
    found = decode_slot(2, data)
    assert found is not None and found.extra_trusted
    assert found.extra == report().extra, "the signature is no line for readers"
    assert looked_at(Signatures(KEY), data) is Signature.GOOD
    assert looked_at(Signatures(ClusterKey(b"n" * 32, b"k" * 32)), data) is Signature.OTHER_KEY
    assert looked_at(Signatures(NEXT), data) is Signature.WRONG
    assert looked_at(Signatures(KEY), slot(None)) is Signature.NONE
    assert looked_at(Signatures(None), data) is Signature.NONE, "nobody can tell"


def test_no_bit_of_a_signed_slot_can_be_changed() -> None:
    """By somebody who puts the checksums right."""
    forged = encode_slot(report(timestamp=2)).replace(b"end=", b"END=")
    part = signed_part(slot())
    assert part is not None
    for changed in (report(timestamp=2), report(counter=8), report(boot="boot-2")):
        plain = encode_slot(changed)
        body = plain.rstrip(b"\0")[: -len("end=01234567\n")]
        tail = f"mac={part[1]}\n".encode()
        assert Signatures(KEY).look(SLOT, 2, (body, part[1])) is Signature.WRONG, tail
    assert signed_part(forged) is None


def test_what_is_signed_for_one_place_is_not_good_in_another() -> None:
    signatures, data = Signatures(KEY), b"x" * 600
    mac = signatures.sign(SLOT, 2, data)
    assert signatures.look(SLOT, 2, (data, mac)) is Signature.GOOD
    for kind, place in ((SLOT, 3), (FENCE, 2), (CLUSTER, 2)):
        assert signatures.look(kind, place, (data, mac)) is Signature.WRONG, kind


@pytest.mark.parametrize("cut", range(1, 90, 7))
def test_a_torn_slot_is_not_signed(cut: int) -> None:
    whole = slot().rstrip(b"\0")
    assert signed_part(whole[:-cut].ljust(SLOT_BYTES, b"\0")) is None


@pytest.mark.parametrize(
    "data", [b"", bytes(SLOT_BYTES), b"\xff" * SLOT_BYTES, b"mac=" + b"0" * 64]
)
def test_any_bytes_have_a_signature_or_none(data: bytes) -> None:
    assert signed_part(data) is None
    assert signed_part_of_cluster(data) is None


def test_the_fullest_slot_has_room_for_its_signature() -> None:
    lines = {f"line-{n}": "x" * 500 for n in range(20)}
    made = SlotReport(2, 1, 3400, UP, "host2", extra=lines | {"mac": "mine"})
    data = slot(KEY, made)
    assert len(data) == SLOT_BYTES and EXTRA_BYTES < 20 * 500
    assert looked_at(Signatures(KEY), data) is Signature.GOOD
    found = decode_slot(2, data)
    assert found is not None and "mac" not in found.extra


# --- the counter ------------------------------------------------------------------------------


def test_an_older_slot_is_a_replay_and_the_same_one_is_not() -> None:
    reader = Signatures(KEY)
    assert looked_at(reader, slot(made=report(counter=7))) is Signature.GOOD
    assert looked_at(reader, slot(made=report(counter=9))) is Signature.GOOD
    assert looked_at(reader, slot(made=report(counter=7))) is Signature.REPLAYED
    assert looked_at(reader, slot(made=report(counter=9))) is Signature.GOOD, "as it was"
    same = report(counter=9, timestamp=5)
    assert looked_at(reader, slot(made=same)) is Signature.REPLAYED, "one counter, two slots"
    assert looked_at(reader, slot(made=report(counter=1, boot="boot-0"))) is Signature.REPLAYED


def test_a_host_whose_counter_was_lost_is_let_in_by_its_word_over_the_network() -> None:
    reader, heard = Signatures(KEY), {2: "boot-1"}
    reader.boot_heard = lambda host: heard.get(host, "")
    assert looked_at(reader, slot(made=report(counter=900))) is Signature.GOOD
    lost = slot(made=report(counter=3, boot="boot-2"))
    assert looked_at(reader, lost) is Signature.REPLAYED
    heard[2] = "boot-2"
    assert looked_at(reader, lost) is Signature.GOOD
    old = slot(made=report(counter=899, boot="boot-1"))
    assert looked_at(reader, old) is Signature.REPLAYED, "of the boot before, with a higher counter"
    assert looked_at(reader, slot(made=report(counter=2, boot="boot-2"))) is Signature.REPLAYED
    assert looked_at(reader, slot(made=report(counter=4, boot="boot-2"))) is Signature.GOOD
    heard[2] = "boot-3"
    assert looked_at(reader, slot(made=report(counter=1, boot="boot-3"))) is Signature.GOOD


def test_the_counter_goes_on_above_what_was_written_without_any_memory() -> None:
    assert next_counter(0, 1_800_000_000.0) == 1_800_000_000_000
    assert next_counter(1_800_000_000_000, 1_800_000_000.0) == 1_800_000_000_001
    assert next_counter(5, -1.0) == 6, "a clock before 1970"
    assert next_counter(0, 1e300) == COUNTER_WALL_MAX


@pytest.mark.parametrize("text", ["", "x", "-1", "9" * 16, "\u0663"])
def test_what_is_no_counter_counts_as_the_least(text: str) -> None:
    made = SlotReport(2, 1, 0, UP, "h", extra={COUNTER_LINE: text}, extra_trusted=True)
    assert counter_of(made) == 0


# --- the board --------------------------------------------------------------------------------


def boards(
    *settings: tuple[ClusterKey | None, Unsigned],
) -> tuple[MemoryVolume, list[Board], Callable[[int, bytes], None]]:
    volume = MemoryVolume()
    made = [
        Board(MemoryStore(volume), host, lambda: 1e9, Signatures(key, unsigned))
        for host, (key, unsigned) in enumerate(settings, 1)
    ]

    def poke(place: int, data: bytes) -> None:
        volume.data[place * SLOT_BYTES : place * SLOT_BYTES + len(data)] = data

    return volume, made, poke


SHOW, IGNORE, TRUST = (KEY, Unsigned.SHOW), (KEY, Unsigned.IGNORE), (KEY, Unsigned.TRUST)


def test_hosts_with_one_key_read_each_other_and_the_key_can_change() -> None:
    async def run() -> None:
        _, (one, two), _ = boards(SHOW, SHOW)
        await one.write(report(1), 1.0)
        await two.read(2.0)
        assert two.signed == {1: Signature.GOOD} and not two.bad
        two.signatures.key = ClusterKey(b"n" * 32, b"k" * 32)
        await one.write(report(1, 8, timestamp=2), 3.0)
        await two.read(4.0)
        assert two.signed == {1: Signature.OTHER_KEY} and two.reports[1].timestamp == 2
        two.signatures.key = NEXT
        await one.write(report(1, 9, timestamp=3), 5.0)
        await two.read(6.0)
        assert two.bad[1].fault is SlotFault.WRONG_MAC
        assert two.reports[1].timestamp == 2, "its last good one"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("setting", "is_shown"),
    [(SHOW, True), (IGNORE, False), (TRUST, True), ((None, Unsigned.IGNORE), True)],
)
def test_an_unsigned_slot_is_shown_refused_or_trusted(
    setting: tuple[ClusterKey | None, Unsigned], is_shown: bool
) -> None:
    async def run() -> None:
        _, (board,), poke = boards(setting)
        poke(2, encode_slot(report()))
        await board.read(1.0)
        assert (2 in board.reports) is is_shown
        assert (2 in board.bad) is not is_shown

    asyncio.run(run())


@pytest.mark.parametrize("forged", [slot(None), slot(NEXT), slot(made=report(counter=3))])
def test_who_signs_is_not_believed_without_a_good_signature(forged: bytes) -> None:
    async def run() -> None:
        _, (board,), poke = boards(SHOW)
        poke(2, slot(made=report(counter=9, timestamp=4)))
        await board.read(1.0)
        poke(2, forged)
        await board.read(2.0)
        assert 2 in board.bad and board.reports[2].timestamp == 4
        poke(2, slot(made=report(counter=10, timestamp=5)))
        await board.read(3.0)
        assert not board.bad and board.reports[2].timestamp == 5

    asyncio.run(run())


def test_a_host_of_an_earlier_version_that_is_upgraded_signs_from_then_on() -> None:
    async def run() -> None:
        _, (board,), poke = boards(SHOW)
        poke(2, encode_slot(report(timestamp=4)))
        await board.read(1.0)
        assert board.signed == {2: Signature.NONE}
        poke(2, slot(made=report(timestamp=5)))
        await board.read(2.0)
        assert board.signed == {2: Signature.GOOD}

    asyncio.run(run())


# --- the cluster slot -------------------------------------------------------------------------


def test_nobody_without_the_key_sets_or_ends_global_maintenance() -> None:
    async def run() -> None:
        volume, (one, two), poke = boards(SHOW, SHOW)
        for on in (False, True):
            await one.set_global_maintenance(Mode() if on else None)
            good = bytes(volume.data[:SLOT_BYTES])
            for at_s in (1.0, 2.0):
                await two.read(at_s)
            assert two.global_maintenance is on
            for forged in (encode_cluster(not on, {"serial": "99"}), EMPTY_SLOT):
                poke(0, forged)
                for at_s in (3.0, 4.0, 99.0):
                    await two.read(at_s)
                assert two.global_maintenance is on and two.bad[0].fault is SlotFault.UNSIGNED
                await two.put_cluster_right(99.0 + PUT_RIGHT_S)
                assert bytes(volume.data[:SLOT_BYTES]) == good
                await two.read(120.0)
                assert not two.bad

    asyncio.run(run())


def test_an_older_signed_cluster_slot_is_never_believed() -> None:
    async def run() -> None:
        volume, (one, two), poke = boards(SHOW, SHOW)
        await one.set_global_maintenance(Mode())
        old = bytes(volume.data[:SLOT_BYTES])
        await one.set_global_maintenance(None)
        await two.read(1.0)
        poke(0, old)
        for at_s in range(2, 200, 10):
            await two.read(float(at_s))
        assert two.global_maintenance is False
        await two.put_cluster_right(200.0)
        await two.read(201.0)
        assert decode_cluster(bytes(volume.data[:SLOT_BYTES])).maintenance is False

    asyncio.run(run())


def test_during_an_upgrade_an_unsigned_cluster_slot_counts_and_is_signed() -> None:
    async def run() -> None:
        volume, (board,), poke = boards(SHOW)
        poke(0, encode_cluster(True, {"serial": "4", "owner": "me", "reason": "new storage"}))
        poke(1, encode_slot(report(1)))
        await board.read_own()
        await board.read(1.0)
        assert board.global_maintenance is True and board.global_mode is not None
        assert board.global_mode.reason == "new storage"
        await board.put_cluster_right(1.0 + PUT_RIGHT_S)
        data = bytes(volume.data[:SLOT_BYTES])
        assert signed_part_of_cluster(data) is not None
        assert decode_cluster(data).extra["reason"] == "new storage"
        assert decode_cluster(data).extra["serial"] == "4"
        # A host of an earlier version ends it.
        board.has_earlier = lambda: True
        poke(0, encode_cluster(False, {"serial": "5"}))
        await board.read(10.0)
        await board.read(11.0)
        assert board.global_maintenance is False
        # All are upgraded; one of them has it signed.
        await board.put_cluster_right(11.0 + PUT_RIGHT_S)
        board.has_earlier = lambda: False
        await board.read(20.0)
        assert not board.bad and board.global_maintenance is False
        poke(0, encode_cluster(True, {"serial": "6"}))
        await board.read(21.0)
        assert board.global_maintenance is False and 0 in board.bad

    asyncio.run(run())


def test_where_nobody_ever_signed_it_nobody_is_believed_without() -> None:
    """A cluster that never was in maintenance: its slot 0 is empty."""

    async def run() -> None:
        volume, (board,), poke = boards(SHOW)
        poke(1, slot(made=report(1)))
        await board.read_own()
        await board.read(1.0)
        poke(0, encode_cluster(True, {"serial": "4"}))
        for at_s in (2.0, 3.0, 99.0):
            await board.read(at_s)
        assert board.global_maintenance is False and board.bad[0].fault is SlotFault.UNSIGNED
        await board.put_cluster_right(99.0)
        assert bytes(volume.data[:SLOT_BYTES]) == EMPTY_SLOT

    asyncio.run(run())


def test_who_never_knew_the_cluster_slot_writes_nothing_over_it() -> None:
    async def run() -> None:
        volume, (board,), poke = boards(SHOW)
        forged = encode_cluster(True, {"serial": "4"})
        poke(0, forged)
        for at_s in (1.0, 2.0, 99.0):
            await board.read(at_s)
        assert board.global_maintenance is None
        await board.put_cluster_right(99.0)
        assert bytes(volume.data[:SLOT_BYTES]) == forged

    asyncio.run(run())


@pytest.mark.parametrize("on", [True, False])
def test_under_ignore_a_cluster_slot_that_was_never_signed_says_nothing(on: bool) -> None:
    async def run() -> None:
        _, (board,), poke = boards(IGNORE)
        await board.read(1.0)
        assert board.global_maintenance is False, "it was never set"
        poke(0, encode_cluster(on, {"serial": "4"}))
        await board.read(2.0)
        assert board.global_maintenance is False and 0 in board.bad

    asyncio.run(run())


# --- fence records ----------------------------------------------------------------------------


def record(number: int = 1, by: int = 2, step: FenceStep = FenceStep.INTENT) -> LogRecord:
    return LogRecord(number, step, by, f"host{by}", 3, "host3", "boot", 1e9, text='"}, "mac":"x"')


def learned(log: FenceLog, *data: tuple[int, bytes]) -> None:
    log.learn(dict(data), 1.0, 1e9)


@pytest.mark.parametrize("key", [KEY, NEXT, None])
def test_a_fence_record_is_signed_by_who_has_the_key(key: ClusterKey | None) -> None:
    reader = Signatures(KEY)
    data = encode(record(), Signatures(key))
    wanted = {KEY: Signature.GOOD, NEXT: Signature.WRONG, None: Signature.NONE}[key]
    assert signature(data, slot_of(1), reader) is wanted
    assert signature(data, slot_of(2), reader) is not Signature.GOOD, "in another place"
    changed = data.replace(b"host3", b"host4")
    assert signature(changed, slot_of(1), reader) is not Signature.GOOD


@pytest.mark.parametrize(
    ("unsigned", "is_earlier", "counted"),
    [
        (Unsigned.SHOW, False, 0),
        (Unsigned.SHOW, True, 3),
        (Unsigned.IGNORE, True, 0),
        (Unsigned.TRUST, False, 3),
    ],
)
def test_three_forged_intents_hold_nothing_back(
    unsigned: Unsigned, is_earlier: bool, counted: int
) -> None:
    log = FenceLog(Signatures(KEY, unsigned))
    log.counts = lambda record: is_earlier
    learned(log, *((slot_of(n), encode(record(n))) for n in (1, 2, 3)))
    assert len(log.recent(2.0) or ()) == counted
    assert log.next_number == counted + 1
    shown = log.shown(10)
    assert [one.number for one, _ in shown] == [3, 2, 1]
    assert {why for _, why in shown} == ({"" if unsigned is Unsigned.TRUST else "unsigned"})


def test_a_record_with_another_key_never_counts_and_is_shown() -> None:
    log = FenceLog(Signatures(KEY))
    learned(log, (slot_of(1), encode(record(1, step=FenceStep.FREEING), Signatures(NEXT))))
    assert log.under_way is None and log.recent(2.0) == ()
    assert [why for _, why in log.shown(10)] == ["wrong-mac"]


def test_a_signed_record_stays_whatever_is_written_over_it() -> None:
    signer = Signatures(KEY)
    log = FenceLog(Signatures(KEY))
    learned(log, (slot_of(1), encode(record(1), signer)))
    forged = encode(record(1, by=9, step=FenceStep.DEAD))
    log.learn({slot_of(1): forged}, 2.0, 1e9)
    assert [one.by for one in log.last(10)] == [2]
    log.learn({slot_of(2): encode(record(2), signer)}, 3.0, 1e9)
    assert [one.number for one in log.last(10)] == [2, 1]
    log.learn({slot_of(1): EMPTY_SLOT}, 4.0, 1e9)
    assert [why for _, why in log.shown(10)] == ["", ""]


def test_a_record_in_the_place_of_another_number_is_none() -> None:
    log = FenceLog(Signatures(None))
    learned(log, (slot_of(2), encode(record(1))), (slot_of(7), encode(record(10**18))))
    assert log.last(10) == [] and log.next_number == 1


def test_unsigned_records_of_an_earlier_version_go_on_into_signed_ones() -> None:
    log = FenceLog(Signatures(KEY))
    learned(log, (slot_of(1), encode(record(1))))
    assert log.next_number == 2
    new = log.learn({slot_of(2): encode(record(2))}, 2.0, 1e9)
    assert [one.number for one in new] == [2], "it is news"
    assert log.learn({slot_of(2): encode(record(2))}, 3.0, 1e9) == [], "once"
    log.learn({slot_of(3): encode(record(3), Signatures(KEY))}, 4.0, 1e9)
    assert [one.number for one in log.last(10)] == [3, 2, 1]

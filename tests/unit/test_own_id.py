# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether another host may still free this host's id: who says so, and when that is over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import pytest

from broker.broker import Broker
from broker.lockspace.own_id import FenceOwner, OwnId
from broker.lockspace.own_id_guard import LOG_NOT_READ
from broker.lockspace.renewals import Renewals
from broker.whiteboard.fence_log import LogRecord, encode, slot_of
from broker.whiteboard.lines import Freeing, freeings_of
from broker.whiteboard.sizes import SLOT_BYTES
from broker.wire.exchange import FenceNote
from scoring.observation import FenceStep
from tests.fakes.broker import make_broker, report
from tests.fakes.lockspace import FakeLockspace
from tests.fakes.slot_store import MemoryStore, MemoryVolume

IO_S = 10.0
#: sanlock's host-dead time, and one io_timeout for what the storage holds.
DEAD_S = 8 * IO_S + 60.0
ACT = Freeing(3, "host3 (id 3)", 5, "boot-a")
HELD = FenceOwner(3, 5)


async def _nothing(host_ids: Iterable[int]) -> Mapping[int, tuple[int, int]]:
    return {}


def renewals(generation: int = 5, timestamp: int = 77, at_s: float = 0.0) -> Renewals:
    found = Renewals(_nothing)
    found.learn({3: (generation, timestamp)}, at_s)
    return found


def look(
    own: OwnId,
    now_s: float,
    owner: FenceOwner | None = HELD,
    seen: Renewals | None = None,
    boot_id: str = "boot-a",
) -> Freeing | None:
    return own.look([ACT], owner, seen or renewals(at_s=now_s), {3: boot_id}, now_s)


def test_nobody_frees_it() -> None:
    assert OwnId(IO_S).look([], None, Renewals(_nothing), {}, 0.0) is None


def test_who_frees_the_owner_of_the_fence_lease_holds_none() -> None:
    """Whose it is says nothing of that act; that its host has booted anew does."""
    own, act = OwnId(IO_S), Freeing(3, "host3 (id 3)", 0, "boot-a", under_lease=False)
    for now_s in (0.0, IO_S, 100.0):
        for owner in (None, FenceOwner(2, 9), FenceOwner(0, 0)):
            assert own.look([act], owner, renewals(at_s=now_s), {3: "boot-a"}, now_s) == act
    assert own.look([act], None, renewals(), {3: "boot-b"}, 100.0) == act
    assert own.look([act], None, renewals(), {3: "boot-b"}, 100.0 + IO_S) is None


@pytest.mark.parametrize("now_s", [0.0, DEAD_S, 10 * DEAD_S])
def test_while_its_fencer_holds_the_fence_lease_and_lives_it_is_under_way(now_s: float) -> None:
    assert look(OwnId(IO_S), now_s) == ACT


def test_while_nothing_is_known_it_is_under_way() -> None:
    own = OwnId(IO_S)
    for now_s in (0.0, 9 * DEAD_S):
        assert own.look([ACT], None, Renewals(_nothing), {}, now_s) == ACT


@pytest.mark.parametrize(
    "changed",
    [
        {"owner": FenceOwner(0, 0)},
        {"owner": FenceOwner(2, 9)},
        {"owner": FenceOwner(3, 6)},
        {"boot_id": "boot-b"},
        {"seen": renewals(timestamp=0)},
        {"seen": renewals(generation=6)},
        {"owner": None, "seen": renewals(at_s=-DEAD_S)},
    ],
    ids=["lease free", "lease of another", "joined anew", "booted", "id free", "newer", "dead"],
)
def test_it_is_over_one_io_timeout_after_its_fencer_can_write_no_more(
    changed: dict[str, object],
) -> None:
    own = OwnId(IO_S)
    assert look(own, 0.0, **changed) == ACT  # type: ignore[arg-type]
    assert look(own, IO_S - 0.1, **changed) == ACT  # type: ignore[arg-type]
    assert look(own, IO_S, **changed) is None  # type: ignore[arg-type]


def test_what_is_so_no_more_is_counted_anew() -> None:
    own = OwnId(IO_S)
    free = FenceOwner(0, 0)
    assert look(own, 0.0, free) == ACT
    assert look(own, 5.0) == ACT
    assert look(own, 11.0, free) == ACT
    assert look(own, 21.0, free) is None


def test_a_fencer_that_stood_still_a_moment_less_is_not_dead() -> None:
    own = OwnId(IO_S)
    seen = renewals(at_s=0.0)
    assert look(own, DEAD_S - 0.1, None, seen) == ACT
    assert look(own, DEAD_S, None, seen) == ACT
    assert look(own, DEAD_S + IO_S, None, seen) is None


def test_of_two_the_one_that_is_not_over_counts() -> None:
    own, other = OwnId(IO_S), Freeing(4, "host4", 0, "")
    for now_s in (0.0, 2 * IO_S):
        found = own.look([ACT, other], FenceOwner(4, 1), renewals(at_s=now_s), {}, now_s)
    assert found == other


def test_a_generation_that_is_not_known_says_nothing() -> None:
    own, act = OwnId(IO_S), Freeing(3, "host3", 0, "")
    for now_s in (0.0, 9 * IO_S):
        seen = renewals(generation=9, at_s=now_s)
        assert own.look([act], FenceOwner(3, 9), seen, {3: "boot-b"}, now_s) == act


# --- who says so ----------------------------------------------------------------------------


def record(**changed: object) -> LogRecord:
    one = LogRecord(
        1, FenceStep.FREEING, 1, "host1", 2, "host2", "its-boot", 1.8e9, False, "off", 4, "boot-1"
    )
    return msgspec.structs.replace(one, **changed)


def test_the_log_and_the_slots_say_who_frees_it() -> None:
    assert freeings_of(2, record(), ()) == [Freeing(1, "host1 (id 1)", 4, "boot-1")]
    assert freeings_of(3, record(), ()) == []
    assert freeings_of(2, None, ()) == []


def returned(tmp_path: Path, volume: MemoryVolume, joined: bool | None = False) -> Broker:
    broker = make_broker(tmp_path, volume, 2, "its-next-boot")
    broker.lockspace.joined = joined
    return broker


def put(volume: MemoryVolume, one: LogRecord) -> None:
    start = slot_of(one.number) * SLOT_BYTES
    if len(volume.data) < start + SLOT_BYTES:
        volume.data.extend(bytes(start + SLOT_BYTES - len(volume.data)))
    volume.data[start : start + SLOT_BYTES] = encode(one)


def test_a_host_that_is_back_does_not_join_before_it_has_read_the_log(tmp_path: Path) -> None:
    async def run() -> None:
        broker = returned(tmp_path, MemoryVolume())
        assert broker.lockspace.hold == LOG_NOT_READ
        store = broker.board._store
        assert isinstance(store, MemoryStore)
        store.fault = "eio"
        await broker.beat(1.0)
        assert broker.lockspace.hold == LOG_NOT_READ, "not readable is not known"
        store.fault = ""
        await broker.beat(2.0)
        assert broker.lockspace.hold == ""

    asyncio.run(run())


def test_a_host_whose_id_is_being_freed_stays_out_and_says_why(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        put(volume, record())
        broker = returned(tmp_path, volume)
        lockspace = broker.lockspace
        assert isinstance(lockspace, FakeLockspace)
        await broker.beat(1.0)
        assert "host1 (id 1)" in lockspace.hold and lockspace.watch_fence and lockspace.stay_out
        assert 1 in lockspace.renewals.watch, "whether its fencer lives is looked at"
        lockspace.fence_owner = FenceOwner(1, 4)
        await broker.beat(500.0)
        assert lockspace.hold, "its fencer holds the fence lease: it is not over"
        # How it ended takes the place of the record.
        put(volume, record(step=FenceStep.DEAD))
        await broker.beat(501.0)
        assert not lockspace.hold and not lockspace.watch_fence and not lockspace.stay_out

    asyncio.run(run())


def test_it_is_over_when_nobody_is_left_to_say_so_and_the_fence_lease_has_gone(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        put(volume, record())
        broker = returned(tmp_path, volume)
        await broker.beat(1.0)
        broker.lockspace.fence_owner = FenceOwner(0, 0)
        await broker.beat(2.0)
        await broker.beat(11.0)
        assert broker.lockspace.hold
        await broker.beat(12.0)
        assert not broker.lockspace.hold

    asyncio.run(run())


def test_a_slot_says_it_too(tmp_path: Path) -> None:
    """A record can be lost to a late write; the slot of the host that acts is another way."""

    async def run() -> None:
        volume = MemoryVolume()
        fencer = make_broker(tmp_path, volume, 1)
        fencer.take_report(msgspec.structs.replace(report(), freeing=2), 1.0)
        await fencer.beat(1.0)
        broker = returned(tmp_path, volume)
        await broker.beat(1.0)
        assert "(id 1)" in broker.lockspace.hold
        fencer.take_report(report(), 2.0)
        await fencer.beat(2.0)
        await broker.beat(2.0)
        assert broker.lockspace.hold == ""

    asyncio.run(run())


def test_what_is_over_is_not_under_way_again(tmp_path: Path) -> None:
    """Whose the fence lease is goes on being read for as long as anybody speaks of the act."""

    async def run() -> None:
        volume = MemoryVolume()
        put(volume, record())
        broker = returned(tmp_path, volume)
        holds = []
        for second in range(1, 40):
            is_asked = broker.lockspace.watch_fence
            broker.lockspace.fence_owner = FenceOwner(5, 1) if is_asked else None
            await broker.beat(float(second))
            holds.append(bool(broker.lockspace.hold))
        assert holds[:10] == [True] * 10
        assert holds[15:] == [False] * 24

    asyncio.run(run())


def test_a_freeing_without_the_fence_lease_is_announced_by_the_slot(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        fencer = make_broker(tmp_path, volume, 1)
        frees = msgspec.structs.replace(report(), freeing=2, freeing_fencer=True)
        fencer.take_report(frees, 1.0)
        assert fencer.view(1.0).announced is None, "not written yet"
        await fencer.beat(1.0)
        assert fencer.view(1.0).announced == 2
        broker = returned(tmp_path, volume)
        await broker.beat(1.0)
        for second in range(2, 60):
            broker.lockspace.fence_owner = FenceOwner(2, 5)
            await broker.beat(float(second))
        assert broker.lockspace.hold, "that this host owned the fence lease ends nothing"
        under_lease = msgspec.structs.replace(report(), freeing=2)
        fencer.take_report(under_lease, 2.0)
        await fencer.beat(2.0)
        assert fencer.view(2.0).announced is None
        fencer.take_report(report(), 3.0)
        await fencer.beat(3.0)
        assert fencer.view(3.0).announced is None

    asyncio.run(run())


def test_a_broker_that_no_agent_has_spoken_to_says_what_an_earlier_one_began(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        volume, left = MemoryVolume(), [2]
        fencer = make_broker(tmp_path, volume, 1)
        fencer.this_host.agent._look_for_freeing = lambda: left[0] if left else None
        fencer.this_host.agent._freeing_left = 2
        await fencer.beat(1.0)
        broker = returned(tmp_path, volume)
        await broker.beat(1.0)
        assert "(id 1)" in broker.lockspace.hold
        left.clear()
        await fencer.beat(2.0)
        await broker.beat(2.0)
        assert broker.lockspace.hold == ""

    asyncio.run(run())


def test_one_that_has_joined_meanwhile_looks_again_before_it_counts(tmp_path: Path) -> None:
    """The fencer writes the record, then looks at the id for the last time: whoever joins in
    between finds the record after it has joined."""

    async def run() -> None:
        volume = MemoryVolume()
        broker = returned(tmp_path, volume)
        await broker.beat(1.0)
        assert broker.view(1.0).lockspace_joined is False
        broker.lockspace.joined = True
        assert broker.view(1.5).lockspace_joined is None, "not looked since"
        put(volume, record())
        await broker.beat(2.0)
        assert broker.view(2.0).lockspace_joined is False and broker.lockspace.stay_out
        put(volume, record(step=FenceStep.DEAD))
        await broker.beat(3.0)
        await broker.beat(4.0)
        assert broker.view(4.0).lockspace_joined is True and not broker.lockspace.stay_out

    asyncio.run(run())


def test_a_read_that_brings_records_may_not_have_brought_all(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        broker = returned(tmp_path, volume)
        await broker.beat(1.0)
        put(volume, record(step=FenceStep.INTENT))
        put(volume, record(number=2))
        broker.lockspace.joined = True
        await broker.beat(2.0)
        assert broker.view(2.0).lockspace_joined is not True
        await broker.beat(3.0)
        assert broker.view(3.0).lockspace_joined is False

    asyncio.run(run())


def test_a_note_names_the_writer_s_boot_and_generation(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        broker = make_broker(tmp_path, volume, 1, "boot-1")
        broker.lockspace.renewals.learn({1: (4, 9)}, 0.0)
        await broker.beat(1.0)
        written = await broker.asked.note_fence(FenceNote(FenceStep.FREEING, 2, False, "off"))
        assert written is not None
        assert (written.by_boot, written.by_generation) == ("boot-1", 4)
        assert not [e for e in broker.events.after(0).events if "fence" in e.kind], "no news yet"
        over = FenceNote(FenceStep.FREEING, 2, False, "off", "killed", only_closes=True)
        written = await broker.asked.note_fence(over)
        assert written is not None and written.number == 1
        assert broker.status(1.0).fence_log[0].text == "came to nothing: killed; off"
        assert await broker.asked.note_fence(over) is None, "nothing is under way"

    asyncio.run(run())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Does a member see what a host that joins writes: the signed question, a real listener that
answers it from its storage, and what `join` makes of the answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.doctor.seen_elsewhere import visible
from agent.setup import seen as asking
from agent.setup.seen import Word, judged, unknown, words
from agent.terminal.errors import CommandError
from broker.config.cluster_key import ClusterKey
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import clean
from broker.peers.errors import BadAnswer
from broker.peers.heartbeat import new_nonce
from broker.peers.signed_answer import ANSWER_BYTES_MAX, PROBLEM_CHARS_MAX
from broker.peers.slot_question import (
    Seen,
    SlotQuestion,
    answer,
    digest_of,
    seen_in,
)
from broker.whiteboard.board import Board
from broker.whiteboard.slot import EMPTY_SLOT, SlotReport, encode_slot
from broker.whiteboard.store import SlotStore, VolumeStore
from broker.whiteboard.volume import Volume
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.broker import make_broker
from tests.fakes.keyed import with_cluster_key
from tests.fakes.listener import listening
from tests.fakes.slot_store import MemoryStore, MemoryVolume

KEY, OTHER = ClusterKey(b"k" * 32), ClusterKey(b"o" * 32)
EMPTY = digest_of(EMPTY_SLOT)


def question(host_id: int = 2, key: ClusterKey = KEY) -> SlotQuestion:
    return SlotQuestion(host_id, EMPTY, new_nonce()).signed(key)


# --- the messages -------------------------------------------------------------------------------


def test_a_question_counts_from_who_has_the_key_alone_and_as_it_was_asked() -> None:
    asked = question()
    assert asked.is_from(KEY) and not asked.is_from(OTHER)
    for changes in (
        {"host_id": 3},
        {"host_id": 0},
        {"host_id": 2001},
        {"digest": "0" * 64},
        {"digest": "x"},
        {"nonce": new_nonce()},
        {"mac": ""},
    ):
        assert not msgspec.structs.replace(asked, **changes).is_from(KEY), changes


@given(st.text(max_size=2 * PROBLEM_CHARS_MAX))
def test_an_answer_is_one_line_and_fits(problem: str) -> None:
    asked = question()
    raw = answer(KEY, asked, Seen.UNKNOWN, problem)
    assert len(raw) <= ANSWER_BYTES_MAX
    said = seen_in(KEY, raw, asked).problem
    assert said == clean(" ".join(problem.split())[:PROBLEM_CHARS_MAX])


def test_an_answer_counts_from_who_has_the_key_and_to_this_question_alone() -> None:
    asked = question()
    raw = answer(KEY, asked, Seen.NO)
    assert seen_in(KEY, raw, asked).seen is Seen.NO
    for wrong, why in (
        (answer(OTHER, asked, Seen.YES), "another key"),
        (raw.replace(b'"seen":"no"', b'"seen":"yes"'), "another key"),
        (answer(KEY, question(), Seen.YES), "another question"),
        (answer(KEY, msgspec.structs.replace(asked, host_id=3), Seen.YES), "another question"),
        (raw.replace(b'"seen":"no"', b'"seen":"perhaps"'), "cannot be read"),
        (b"\xff", "cannot be read"),
    ):
        with pytest.raises(BadAnswer, match=why):
            seen_in(KEY, wrong, asked)


# --- a member and a host that joins -------------------------------------------------------------


def served(
    tmp_path: Path,
    test: Callable[[int], Awaitable[None]],
    store: SlotStore,
    key: ClusterKey | None = KEY,
) -> None:
    """The listener of a member with that storage."""

    async def main() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        broker.board = Board(store, 1)
        broker.heartbeats.key = key
        async with listening(broker) as port:
            await test(port)

    asyncio.run(main())


@pytest.fixture
def joining(site: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """What host 2 is about to be: the member's file, and the key."""
    monkeypatch.setattr(asking, "PAUSE_S", 0.0)
    config = with_cluster_key(site, KEY)
    host = msgspec.structs.replace(config.host, name="host2")
    return msgspec.structs.replace(config, host=host)


def publish(config: Config, host: int, api: str, stopped: bool = False) -> None:
    report = SlotReport(
        host_id=host,
        timestamp=1,
        score=0,
        engine_status=EngineStatus(VmStatus.DOWN, Health.UNKNOWN, "off"),
        hostname=f"host{host}",
        maintenance=False,
        stopped=stopped,
        extra={"api": api},
    )
    with Volume(config.storage.whiteboard) as volume:
        volume.write_slot(host, encode_slot(report))


def slot(config: Config, host: int) -> bytes:
    with Volume(config.storage.whiteboard, read_only=True) as volume:
        return volume.read_slots([host])[host]


def test_the_member_sees_it_and_the_slot_is_left_as_it_was(tmp_path: Path, joining: Config) -> None:
    async def test(port: int) -> None:
        publish(joining, 1, f"127.0.0.1:1,127.0.0.1:{port}")
        publish(joining, 3, "", stopped=True)
        said = await asyncio.to_thread(words, joining, 2)
        assert said == [Word("host1 (id 1)", Seen.YES)], "one that has stopped is not asked"
        assert "host1 (id 1) saw what this host wrote" in judged(joining, 2, said, False)
        assert unknown(joining, said) == ""
        assert slot(joining, 2) == EMPTY_SLOT

    served(tmp_path, test, VolumeStore(joining.storage.whiteboard, 2.0))


def test_a_member_on_other_storage_refuses_the_newcomer(tmp_path: Path, joining: Config) -> None:
    """A replica shows the member's writes here, and keeps ours to itself."""

    async def test(port: int) -> None:
        publish(joining, 1, f"127.0.0.1:{port}")
        said = await asyncio.to_thread(words, joining, 2)
        assert said == [Word("host1 (id 1)", Seen.NO)]
        with pytest.raises(CommandError, match="it is not the same storage there and") as caught:
            judged(joining, 2, said, False)
        assert caught.value.code == ExitCode.STORAGE
        assert "did not see" in judged(joining, 2, said, True), "--unproven"

    served(tmp_path, test, MemoryStore(MemoryVolume()))


def test_who_sees_it_late_has_seen_it(
    tmp_path: Path, joining: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stale = VolumeStore(joining.storage.whiteboard, 2.0), MemoryStore(MemoryVolume())
    stores: Iterator[SlotStore] = iter([stale, real])

    class Late(Board):
        async def read_slot(self, host_id: int) -> bytes:
            self._store = next(stores)
            return await super().read_slot(host_id)

    monkeypatch.setattr("tests.unit.test_slot_seen.Board", Late)

    async def test(port: int) -> None:
        publish(joining, 1, f"127.0.0.1:{port}")
        assert await asyncio.to_thread(words, joining, 2) == [Word("host1 (id 1)", Seen.YES)]

    served(tmp_path, test, stale)


def test_who_cannot_be_asked_has_said_nothing(tmp_path: Path, joining: Config) -> None:
    async def away(port: int) -> None:
        publish(joining, 1, "127.0.0.1:1")
        said = await asyncio.to_thread(words, joining, 2)
        assert said == [
            Word("host1 (id 1)", Seen.UNKNOWN, "127.0.0.1:1: [Errno 111] Connection refused")
        ]
        assert judged(joining, 2, said, False) == ""
        assert "is not known (host1 (id 1): 127.0.0.1:1: " in unknown(joining, said)

    async def keyless(port: int) -> None:
        publish(joining, 1, f"127.0.0.1:{port}")
        (word,) = await asyncio.to_thread(words, joining, 2)
        assert word.seen is Seen.UNKNOWN and "no cluster key" in word.problem

    async def broken(port: int) -> None:
        publish(joining, 1, f"127.0.0.1:{port}")
        (word,) = await asyncio.to_thread(words, joining, 2)
        assert word.seen is Seen.UNKNOWN and "Input/output error" in word.problem

    store = MemoryStore(MemoryVolume())
    served(tmp_path, away, store)
    served(tmp_path, keyless, store, key=None)
    store.fault = "eio"
    served(tmp_path, broken, store)


def test_a_member_of_an_earlier_version_is_named(tmp_path: Path, joining: Config) -> None:
    """The earlier version has no such page."""

    async def test(port: int) -> None:
        publish(joining, 1, f"127.0.0.1:{port}")
        (word,) = await asyncio.to_thread(words, joining, 2)
        assert word.seen is Seen.UNKNOWN
        assert "a member of an earlier version does not answer" in unknown(joining, [word])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.api.pages.SlotSeenRoute.add_to", lambda route, router: None)
        served(tmp_path, test, MemoryStore(MemoryVolume()))


def test_an_empty_cluster_has_nobody_to_ask(joining: Config) -> None:
    assert words(joining, 2) == []
    assert "there is no member to ask" in unknown(joining, [])


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/slot-seen", 400),
        (f"/slot-seen?id=99999&digest={EMPTY}&nonce={'0' * 32}", 400),
        (f"/slot-seen?id=2&digest={EMPTY}&nonce={'0' * 32}&mac={'0' * 64}", 403),
    ],
)
def test_without_the_key_no_slot_is_read(tmp_path: Path, target: str, status: int) -> None:
    async def test(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {target} HTTP/1.1\r\nHost: ha\r\nConnection: close\r\n\r\n".encode())
        assert (await reader.read()).startswith(f"HTTP/1.1 {status} ".encode())
        writer.close()

    store = MemoryStore(MemoryVolume())
    store.fault = "eio"
    served(tmp_path, test, store)


@pytest.mark.parametrize("is_same", [True, False])
def test_doctor_asks_a_member_when_it_sees_what_the_broker_here_writes(
    is_same: bool, tmp_path: Path, joining: Config
) -> None:
    host = msgspec.structs.replace(joining.host, id=2)
    config = msgspec.structs.replace(joining, host=host)
    path = config.storage.whiteboard

    async def look(period_s: float) -> tuple[str, str]:
        """The finding about the member, while this host writes once in `period_s`."""
        looking = asyncio.create_task(
            asyncio.to_thread(lambda: list(visible(config, 6 * period_s)))
        )
        with Volume(path) as volume:
            for number in itertools.count():
                await asyncio.to_thread(volume.write_slot, 2, b"%04d" % number + EMPTY_SLOT[4:])
                if (await asyncio.wait([looking], timeout=period_s))[0]:
                    break
        ((verdict, text, _),) = await looking
        return verdict, text

    async def test(port: int) -> None:
        publish(config, 1, f"127.0.0.1:{port}")
        expected = "ok" if is_same else "fail"
        # Where this machine is slow, each write is gone before the member has been asked about it.
        for period_s in (0.1, 0.4, 1.6, 6.4):
            verdict, text = await look(period_s)
            if verdict == expected:
                break
        assert verdict == expected, text
        assert text.startswith("host1 (id 1) " + ("sees a write of" if is_same else "read none of"))

    served(tmp_path, test, VolumeStore(path, 2.0) if is_same else MemoryStore(MemoryVolume()))


def test_doctor_says_where_nobody_can_be_asked(joining: Config) -> None:
    ((verdict, text, _),) = visible(joining, 0.1)
    assert verdict == "warn" and text.endswith("was not measured: there is no other member")

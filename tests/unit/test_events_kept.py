# SPDX-License-Identifier: LGPL-2.1-or-later
"""Events outlive the broker: what a file keeps, a torn or foreign one, a disk that fails."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import msgspec
import pytest

from broker.events import kept as kept_events
from broker.events.kept import FILE_NAME, KeptEvents
from broker.events.notice import Notice
from broker.events.ring import Events
from broker.wire.events import Event
from broker.wire.kinds import Kind

NOON_S = 1_800_000_000.0
PATIENCE_S = 10.0


def one_life(directory: Path, *details: str, wall_s: float = NOON_S, size: int = 5) -> Events:
    """A broker that starts, has something to tell, and ends."""
    kept = KeptEvents(directory, size)
    events = Events(lambda: wall_s, 1, "host1", size, kept)
    for detail in details:
        events.add(Notice(Kind.PEER_SILENT, "host2", detail, {"host_id": 2}))
    kept.flush(PATIENCE_S)
    return events


def texts(events: Events, after: int = 0) -> list[str]:
    return [event.text for event in events.after(after).events]


def test_the_next_broker_remembers_the_same(tmp_path: Path) -> None:
    before = one_life(tmp_path, "a", "b").after(0)
    after = one_life(tmp_path, "c", wall_s=NOON_S + 60)
    assert after.after(0).events[:2] == before.events
    assert texts(after) == ["a", "b", "c"]
    found = after.after(before.last)
    assert [event.text for event in found.events] == ["c"]
    assert not found.missed, "who followed before goes on where he was"


def test_ids_grow_though_the_clock_went_back(tmp_path: Path) -> None:
    one_life(tmp_path, "a")
    events = one_life(tmp_path, "b", wall_s=NOON_S - 3600)
    first, second = events.after(0).events
    assert second.id == first.id + 1


def test_who_knows_of_more_than_was_kept_is_told(tmp_path: Path) -> None:
    last = one_life(tmp_path, "a", "b").after(0).last
    lines = (tmp_path / FILE_NAME).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE_NAME).write_bytes(lines[0])
    found = one_life(tmp_path, "c", wall_s=NOON_S + 60).after(last)
    assert found.missed
    assert [event.text for event in found.events] == ["a", "c"]


@pytest.mark.parametrize(
    "damage",
    [b"{", b"\xff\xfe\n", b"[]\n", b"\n\n", b'{"id": "x"}\n', b"\0" * 100],
    ids=["torn", "no-utf8", "no-object", "empty", "wrong-type", "zeros"],
)
def test_a_damaged_line_takes_no_other_with_it(tmp_path: Path, damage: bytes) -> None:
    one_life(tmp_path, "a")
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(damage)
    one_life(tmp_path, "b", wall_s=NOON_S + 1)
    assert texts(one_life(tmp_path, wall_s=NOON_S + 2)) == ["a", "b"]


def test_the_file_stays_small(tmp_path: Path) -> None:
    for number in range(30):
        one_life(tmp_path, str(number), wall_s=NOON_S + number)
        assert len((tmp_path / FILE_NAME).read_bytes().splitlines()) <= 10
    assert texts(one_life(tmp_path)) == ["25", "26", "27", "28", "29"]


def test_ids_that_do_not_grow_are_passed_over(tmp_path: Path) -> None:
    one_life(tmp_path, "a", "b")
    lines = (tmp_path / FILE_NAME).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE_NAME).write_bytes(lines[1] + lines[0] + lines[1])
    assert texts(one_life(tmp_path)) == ["b"]


def test_without_a_place_nothing_is_kept_and_it_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "place"
    place.write_bytes(b"no folder")
    with caplog.at_level(logging.WARNING, "ha-broker.events"):
        events = one_life(place, "a")
        events.add(Notice(Kind.PEER_SILENT, "host2", "b", {"host_id": 2}))
    assert texts(events) == ["a", "b"]
    told = [r.getMessage() for r in caplog.records if str(place) in r.getMessage()]
    assert len(told) >= 1
    assert sum("cannot be written" in text for text in told) == 1


def test_a_disk_that_hangs_does_not_hold_up_who_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(kept_events, "append_lines", lambda path, data: answers.wait())
    kept = KeptEvents(tmp_path, 5)
    event = Event(1, "", "test", "info", "host1", 1, "text", {})
    for number in range(100):
        kept.keep(msgspec.structs.replace(event, id=number + 1))
    assert kept.is_writing, "and still it waits for the disk"
    answers.set()
    kept.flush(PATIENCE_S)
    assert not kept.is_writing

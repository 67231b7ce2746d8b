# SPDX-License-Identifier: LGPL-2.1-or-later
"""Log lines: as the journal takes them, on a socket like its own, and never too many."""

from __future__ import annotations

import logging
import re
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.daemon.log_lines import (
    BURST,
    REMEMBERED_MAX,
    WINDOW_S,
    Journal,
    Lines,
    Repeats,
    datagram,
    fields,
)

ROOT = Path(__file__).parents[2]


def record(
    text: str, level: int = logging.WARNING, always: bool = False, **about: object
) -> logging.LogRecord:
    made = logging.LogRecord("ha-agent", level, "beat.py", 7, text, (), None, "step")
    vars(made).update(fields(about, always=always))
    return made


def parsed(raw: bytes) -> dict[str, str]:
    """The fields of a datagram, read by the protocol's two forms."""
    found = {}
    while raw:
        head, _, rest = raw.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if equals:
            raw = rest
        else:
            (size,) = struct.unpack("<Q", rest[:8])
            value, raw = rest[8 : 8 + size], rest[8 + size :]
            assert raw[:1] == b"\n"
            raw = raw[1:]
        found[name.decode()] = value.decode()
    return found


# --- the journal --------------------------------------------------------------------------------


def test_what_is_in_a_line_is_there_as_fields() -> None:
    made = record(
        "EngineUp -> EngineDown",
        logging.INFO,
        event="transition",
        reason="up-elsewhere",
        beat=12,
        host=None,
    )
    found = parsed(datagram(made))
    assert found["MESSAGE"] == "EngineUp -> EngineDown"
    assert (found["PRIORITY"], found["LOGGER"], found["CODE_FUNC"]) == ("6", "ha-agent", "step")
    assert {name: found[name] for name in found if name.startswith("HA_")} == {
        "HA_EVENT": "transition",
        "HA_REASON": "up-elsewhere",
        "HA_BEAT": "12",
    }


@given(st.text(), st.text())
def test_no_text_makes_a_field_of_its_own(text: str, value: str) -> None:
    made = record("x", host=value)
    made.msg = text
    made.args = ()
    found = parsed(datagram(made))
    clean = [one.encode(errors="replace").decode() for one in (text, value)]
    assert [found["MESSAGE"], found["HA_HOST"]] == clean
    assert len(found) == 8


def test_a_traceback_is_part_of_the_message() -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        made = record("it failed")
        made.exc_info = sys.exc_info()
    message = parsed(datagram(made))["MESSAGE"]
    assert message.startswith("it failed\nTraceback") and message.endswith("ValueError: boom")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """The journal's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.setblocking(False)
        yield listening


def test_lines_reach_the_journal_and_what_does_not_goes_elsewhere(
    journal: socket.socket, tmp_path: Path
) -> None:
    elsewhere: list[logging.LogRecord] = []
    way = Journal(str(tmp_path / "socket"), elsewhere.append)
    way.send(record("one"))
    assert parsed(journal.recv(65536))["MESSAGE"] == "one"
    assert elsewhere == []
    way.send(record("x" * 10_000_000))
    for _ in range(5000):  # until its queue is full: nobody reads
        way.send(record("more"))
    assert {len(one.msg) for one in elsewhere} == {10_000_000, 4}
    journal.close()
    way.send(record("after its end"))
    assert elsewhere[-1].msg == "after its end"
    way.close()
    way.send(record("after ours"))
    assert elsewhere[-1].msg == "after ours"


# --- repeats ------------------------------------------------------------------------------------


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_same_line_is_held_back_and_the_count_is_told() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    out = [repeats.lets_out(record(f"slot {n} is bad")) for n in range(100)]
    assert out == [True] * BURST + [False] * (100 - BURST)
    assert repeats.lets_out(record("something else"))
    assert repeats.due() == []
    clock.now_s = WINDOW_S
    (told,) = repeats.due()
    assert told.msg == f"{100 - BURST} more like this were held back, the last one: slot 99 is bad"
    assert repeats.lets_out(record("slot 1 is bad"))


def test_a_transition_is_never_held_back() -> None:
    repeats = Repeats(Clock())
    assert all(repeats.lets_out(record("a -> b", always=True)) for _ in range(100))


def test_so_many_different_lines_are_remembered_and_no_count_is_lost() -> None:
    repeats = Repeats(Clock())
    words = [f"{'x' * n}" for n in range(REMEMBERED_MAX + 5)]
    for word in words:
        for _ in range(BURST + 1):
            repeats.lets_out(record(word))
    assert len(repeats.due()) == 5
    assert len(repeats.due(everything=True)) == REMEMBERED_MAX


def test_a_logger_tells_what_was_held_back_at_the_end() -> None:
    sent: list[str] = []
    handler = Lines(lambda one: sent.append(one.getMessage()))
    for _ in range(BURST + 3):
        handler.handle(record("again"))
    handler.close()
    assert sent == [*["again"] * BURST, "3 more like this were held back, the last one: again"]


# --- the page -----------------------------------------------------------------------------------


def test_every_field_in_the_code_is_in_its_page_and_no_other() -> None:
    used = {"HELD_BACK"}
    for path in [*ROOT.glob("agent/**/*.py"), *ROOT.glob("broker/**/*.py")]:
        text = path.read_text()
        for call in re.findall(r"(?<!def )\bfields\(((?:[^()]|\([^()]*\))*)\)", text):
            used |= {name.upper() for name in re.findall(r"(\w+)=", call)} - {"ALWAYS"}
    used |= {"FROM", "STATE", "REASON", "REASONS", "SCORE", "BEAT", "HOST", "HOST_ID"}
    page = (ROOT / "docs" / "logs.md").read_text()
    assert set(re.findall(r"^\| `HA_([A-Z_]+)` \|", page, re.M)) == used

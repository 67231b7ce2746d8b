# SPDX-License-Identifier: LGPL-2.1-or-later
"""What commands print: a line for a program, whole words for a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import termios
from collections.abc import Callable
from typing import TextIO

import pytest

from agent import main
from agent.commands import events
from agent.terminal.columns import say
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign import cut
from broker.wire.events import Event

LONG = "host2 is silent: " + "it does not publish any more, " * 8


def on_terminal(columns: int, print_it: Callable[[TextIO], None]) -> list[str]:
    """The lines that a terminal of that width is sent."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(slave, "w") as stream:
        print_it(stream)
    # The kernel hands a terminal's bytes over in pieces, later; EIO: there are no more.
    text = b""
    with contextlib.suppress(OSError):
        while piece := os.read(master, 1 << 16):
            text += piece
    os.close(master)
    return text.decode().replace("\r", "").splitlines()


def test_no_word_is_broken_at_the_edge_of_a_terminal_and_all_of_them_are_there() -> None:
    lines = on_terminal(80, lambda stream: say(LONG, 4, stream))
    assert len(lines) > 3
    assert max(map(len, lines)) <= 80
    assert all(line.startswith("    ") for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == LONG.strip()


def test_a_terminal_of_no_width_gets_the_line_as_a_program_does() -> None:
    assert on_terminal(0, lambda stream: say(LONG, 4, stream)) == [LONG]


def test_events_and_errors_fit_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    event = Event(1, "2027-01-15T08:00:00.000Z", "peer-silent", "critical", "host2", 2, LONG, {})

    def shown(stream: TextIO) -> None:
        monkeypatch.setattr("sys.stdout", stream)
        events._print([event], as_json=False)
        monkeypatch.setattr("sys.stderr", stream)
        main._say(ExitCode.FAILED, "failed", LONG, as_json=False)

    monkeypatch.setenv("NO_COLOR", "1")
    lines = on_terminal(80, shown)
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("2027-01-15 08:00:00 UTC  CRITICAL  host2  peer-silent: host2")
    assert lines[1].startswith(" " * events.TEXT_AT)
    assert sum(line.startswith("ha-agent: ") for line in lines) == 1


@pytest.mark.parametrize(
    ("text", "most", "wanted"),
    [
        ("no machine UUID to compare with", 31, "no machine UUID to compare with"),
        ("no machine UUID to compare with", 30, "no machine UUID to compare..."),
        ("no machine UUID to compare with", 28, "no machine UUID to..."),
        ("ipmi, 10.77.0.101", 10, "ipmi..."),
        ("one " + "x" * 40, 20, "one xxxxxxxxxxxxx..."),
    ],
)
def test_what_is_too_long_ends_with_a_whole_word(text: str, most: int, wanted: str) -> None:
    assert cut(text, most) == wanted
    assert len(cut(text, most)) <= most

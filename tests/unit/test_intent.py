# SPDX-License-Identifier: LGPL-2.1-or-later
"""An intent as text: what is written is read as the same, by this version and by earlier ones."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.wire.intent import Act, Intent, read

#: As the version before wrote and read it.
EARLIER = re.compile(
    r"(migrate (?:([0-9]{1,4})|away))(?: from ([0-9]{1,4}) within ([0-9]{1,6}) s)?"
)
HOSTS = st.integers(1, 2000)


@given(st.sampled_from(Act), HOSTS)
def test_each_act_survives_its_text(act: Act, host: int) -> None:
    assert read(Intent(act, host).line) == Intent(act, host)


@given(st.none() | HOSTS, HOSTS, st.integers(0, 99_999))
def test_a_move_survives_its_text_and_an_earlier_version_reads_it(
    host: int | None, source: int, left_s: int
) -> None:
    move = Intent(Act.MIGRATE, host, source, float(left_s))
    assert read(move.line) == move
    found = EARLIER.fullmatch(move.line)
    assert found is not None and found.group(1) == move.words


@pytest.mark.parametrize(
    ("line", "intent"),
    [
        ("migrate 3", Intent(Act.MIGRATE, 3)),
        ("migrate away", Intent(Act.MIGRATE, None)),
        ("switch on 3", Intent(Act.SWITCH_ON, 3)),
        ("fence 3", Intent(Act.FENCE, 3)),
    ],
)
def test_what_earlier_versions_wrote_is_read(line: str, intent: Intent) -> None:
    assert read(line) == intent and intent.line == line


@pytest.mark.parametrize(
    "line", ["", "fence", "fence away", "fence 3 from 1 within 2 s", "fence 12345", "switch off 3"]
)
def test_anything_else_is_no_intent(line: str) -> None:
    assert read(line) is None


def test_the_seconds_are_rounded_up_and_never_negative() -> None:
    assert Intent(Act.MIGRATE, 3, 1, 0.1).line == "migrate 3 from 1 within 1 s"
    assert Intent(Act.MIGRATE, 3, 1, -5.0).line == "migrate 3 from 1 within 0 s"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Times as people type them."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.terminal.errors import CommandError
from agent.terminal.times import FUTURE_MAX_S, moment, shown

NOON = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("2h", "2026-11-28 10:00:00 UTC"),
        ("10 min ago", "2026-11-28 11:50:00 UTC"),
        ("-1h", "2026-11-28 11:00:00 UTC"),
        ("1 hour 30 minutes ago", "2026-11-28 10:30:00 UTC"),
        ("1w", "2026-11-21 12:00:00 UTC"),
        ("now", "2026-11-28 12:00:00 UTC"),
        ("today", "2026-11-28 00:00:00 UTC"),
        ("Yesterday", "2026-11-27 00:00:00 UTC"),
        ("yesterday 21:58", "2026-11-27 21:58:00 UTC"),
        ("yesterday 9:58", "2026-11-27 09:58:00 UTC"),
        ("2026-11-27 9:58", "2026-11-27 09:58:00 UTC"),
        ("2026-11-27T9:58Z", "2026-11-27 09:58:00 UTC"),
        ("8:05", "2026-11-28 08:05:00 UTC"),
        ("11:59:30", "2026-11-28 11:59:30 UTC"),
        ("21:58", "2026-11-27 21:58:00 UTC"),
        ("21:58+12:00", "2026-11-28 09:58:00 UTC"),
        ("2026-11-27", "2026-11-27 00:00:00 UTC"),
        ("2026-11-27 21:58", "2026-11-27 21:58:00 UTC"),
        ("2026-11-27 21:58:03 UTC", "2026-11-27 21:58:03 UTC"),
        ("2026-11-27T21:58:03.250Z", "2026-11-27 21:58:03 UTC"),
        ("2026-11-27T21:58+01:00", "2026-11-27 20:58:00 UTC"),
        ("2026-11-27 21:58 +0100", "2026-11-27 20:58:00 UTC"),
    ],
)
def test_what_people_type_is_understood(typed: str, meant: str) -> None:
    assert shown(moment(typed, NOON)) == meant


@pytest.mark.parametrize("typed", ["", "tomorrow", "-5", "2027-13-01", "25:00", "yesterday noon"])
def test_what_is_no_time_is_refused_with_what_can_be_typed(typed: str) -> None:
    with pytest.raises(CommandError, match=r"10 min ago.*UTC unless it has a zone"):
        moment(typed, NOON)


def test_the_future_is_refused_with_both_times() -> None:
    with pytest.raises(
        CommandError, match="2026-11-28 12:58:00 UTC, and it is 2026-11-28 12:00:00"
    ):
        moment("2026-11-28 12:58", NOON)
    soon = NOON + timedelta(seconds=FUTURE_MAX_S)
    assert moment(shown(soon), NOON) == soon, "the clock of another host may be ahead"


@given(st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2026, 11, 28)))
def test_what_is_shown_can_be_typed_again(at: datetime) -> None:
    at = at.replace(tzinfo=UTC, microsecond=0)
    assert moment(shown(at), NOON) == at


@given(st.text("0123456789:-+ TZagoyesterdaymin", max_size=24))
def test_any_text_is_a_past_moment_or_a_usage_error(typed: str) -> None:
    with contextlib.suppress(CommandError):
        assert moment(typed, NOON) <= NOON + timedelta(seconds=FUTURE_MAX_S)

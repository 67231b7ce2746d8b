# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much of the last day and of the last 30 days the VM was there: it outlives the broker, its
file is bounded, and time in which nobody looked is counted as nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from broker.events.availability import FILE_NAME, SAVE_EVERY_S, STRIPS, Availability

#: The begin of a step of both strips.
NOON_S = 1_800_000_000.0 - 1_800_000_000.0 % 7200


def watch(found: Availability, up: bool | None, since_s: float, until_s: float) -> None:
    """A look every 5 s; both clocks show the same."""
    now_s = since_s
    while now_s <= until_s:
        found.take(up, now_s, now_s)
        now_s += 5.0


def test_up_down_and_unknown_are_counted_apart() -> None:
    found = Availability(None)
    watch(found, True, NOON_S, NOON_S + 100)
    watch(found, None, NOON_S + 105, NOON_S + 120)
    watch(found, False, NOON_S + 125, NOON_S + 150)
    for strip in found.shown(NOON_S + 150).values():
        assert (strip.up_s[-1], strip.unknown_s[-1], strip.down_s[-1]) == (100, 20, 30)
        assert sum(strip.up_s) == 100


def test_time_in_which_nobody_looked_counts_as_nothing() -> None:
    found = Availability(None)
    watch(found, True, NOON_S, NOON_S + 50)
    watch(found, True, NOON_S + 1000, NOON_S + 1050)
    day = found.shown(NOON_S + 1050)["day"]
    assert sum(day.up_s) == 100
    assert sum(day.down_s) + sum(day.unknown_s) == 0


def test_what_is_older_than_a_strip_leaves_it() -> None:
    found = Availability(None)
    watch(found, False, NOON_S, NOON_S + 100)
    later_s = NOON_S + 86_400.0 + 300.0
    watch(found, True, later_s, later_s + 100)
    strips = found.shown(later_s + 100)
    assert (sum(strips["day"].down_s), sum(strips["month"].down_s)) == (0, 100)


def test_the_next_broker_knows_it_still(tmp_path: Path) -> None:
    before = Availability(tmp_path / FILE_NAME)
    watch(before, True, NOON_S, NOON_S + 2 * SAVE_EVERY_S)
    before.flush(10.0)
    after = Availability(tmp_path / FILE_NAME)
    at_s = NOON_S + 2 * SAVE_EVERY_S
    assert after.shown(at_s) == before.shown(at_s)
    assert sum(after.shown(at_s)["month"].up_s) == 2 * SAVE_EVERY_S


def test_its_file_is_bounded(tmp_path: Path) -> None:
    found = Availability(tmp_path / FILE_NAME)
    for day in range(100):
        for step in range(0, 86_400, 300):
            now_s = NOON_S + day * 86_400 + step
            found.take(True, now_s, now_s)
            found.take(True, now_s + 5.0, now_s + 5.0)
    found.flush(10.0)
    kept = json.loads((tmp_path / FILE_NAME).read_bytes())
    assert {name: len(steps) <= STRIPS[name][1] for name, steps in kept.items()} == {
        "day": True,
        "month": True,
    }
    assert (tmp_path / FILE_NAME).stat().st_size < 30_000


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"day": {"x": [1, 2, 3]}}', '{"day": {"1": [1]}}', "\x00" * 100]
)
def test_a_file_that_cannot_be_read_costs_the_past_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    found = Availability(tmp_path / FILE_NAME)
    watch(found, True, NOON_S, NOON_S + 10)
    assert sum(found.shown(NOON_S + 10)["day"].up_s) == 10


def test_a_disk_that_takes_nothing_is_said_and_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = Availability(tmp_path / "file" / FILE_NAME)
    watch(found, True, NOON_S, NOON_S + 10)
    found.flush(10.0)
    assert "the availability is lost with a restart" in found.problem
    assert sum(found.shown(NOON_S + 10)["day"].up_s) == 10

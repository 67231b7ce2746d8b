# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the benchmark of the storages judges what it measured."""

from __future__ import annotations

import math

import pytest

from tests.bench import storages
from tests.bench.storages import CUT, HEAD, NOISE, STALE, Line
from tests.lab.errors import LabError, MachineError


def test_a_figure_is_held_against_its_goal() -> None:
    line = Line("dir")
    line.hold(STALE, 0, 0)
    line.hold(CUT, 8.0, 8.0)
    assert not line.missed
    line.hold(CUT, 8.1, 8.0)
    assert line.missed == [f"{CUT} 8.1, goal 8"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_was_not_seen_misses_its_goal(value: float) -> None:
    line = Line("dir")
    line.hold(CUT, value, 8.0)
    assert line.missed


def test_what_was_measured_before_a_failure_stands_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def half(line: Line, *_: object) -> None:
        line.cells[STALE] = "0 of 9"
        raise LabError("the lab fell over")

    monkeypatch.setattr(storages, "_measure", half)
    assert storages.main(["--storage", "dir", "nfs"]) == 1
    told = capsys.readouterr().out
    assert told.count("0 of 9") == 2
    assert "dir: MISSED failed: the lab fell over" in told


def test_a_machine_that_can_have_none_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(line: Line, *_: object) -> None:
        raise MachineError("missing packages: ceph-mon")

    monkeypatch.setattr(storages, "_measure", none)
    assert storages.main(["--storage", "ceph"]) == 3
    assert "ceph: cannot be had here: missing packages: ceph-mon" in capsys.readouterr().out


def test_each_cell_has_its_column() -> None:
    line = Line("dir", {name: name for name in HEAD})
    assert line.row().count("|") == len(HEAD) + 2
    assert line.row().endswith(f"{NOISE} |")

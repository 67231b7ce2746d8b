# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every scenario holds, with all laws checked; and one with a mistake is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.earlier_decisions import NotToBeHad
from tests.simulation.scenario import BadScenario, Disappointed, Player, load, parse

FILES = sorted((Path(__file__).parents[1] / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    """The scenario's expectations come true, and no law is broken on the way."""
    try:
        Player(load(path)).play()
    except NotToBeHad as error:
        pytest.skip(str(error))


def test_there_are_enough_of_them() -> None:
    """A glob that finds nothing would pass every test."""
    assert len(FILES) >= 60


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hosts 2\nexpect engine healthy within 9\n", "first line must be a comment"),
        ("# a\nwait 3\nexpect engine healthy within 9\n", "first verb must be"),
        ("# a\nhosts 2\nwait 3\n", "expects nothing"),
        ("# a\nhosts 2\nexplode host1\nexpect engine healthy within 9\n", "'explode' is no verb"),
    ],
)
def test_a_text_that_is_no_scenario_is_refused(text: str, complaint: str) -> None:
    """The message says which line and what would fit."""
    with pytest.raises(BadScenario, match=complaint):
        parse("x.txt", text)


@pytest.mark.parametrize(
    "line",
    ["power off host9", "power up host1", "expect engine good", "wait", "set mood good host1"],
)
def test_a_line_that_does_not_fit_is_named(line: str) -> None:
    """With its number, before anything is played."""
    scenario = parse("x.txt", f"# a\nhosts 1\nwait 3\n{line}\nexpect engine healthy within 1\n")
    played: list[str] = []
    with pytest.raises(BadScenario, match=r"x\.txt:4: "):
        Player(scenario, played.append).play()
    assert not played


def test_an_expectation_that_does_not_hold_is_an_error() -> None:
    """A runner that is always content proves nothing."""
    scenario = parse("x.txt", "# a\nhosts 1\nexpect engine healthy within 5\n")
    with pytest.raises(Disappointed, match=r"x\.txt:3: .* not so at 5\.0 s"):
        Player(scenario).play()

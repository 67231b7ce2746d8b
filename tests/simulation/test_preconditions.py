# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each precondition of switching a host off and of freeing its id is held up by a story: with it
the story holds, without it the story breaks its law (preconditions.py)."""

from __future__ import annotations

import os

import pytest

from scoring.hosts.evidence import Evidence, may_free, may_power_off
from scoring.hosts.state import Takeover
from scoring.observation import LeaseAnswer
from scoring.rules import Rules
from tests.simulation.laws import Broken
from tests.simulation.preconditions import (
    ASKED,
    CASES,
    FREE,
    OFF,
    WITHOUT_STORY,
    Case,
    take_away,
    told,
)

ALL = (*CASES, *ASKED)


@pytest.fixture(autouse=True)
def _not_for_other_mutants() -> None:
    """`make mutation` plays the stories for what they are about; a story takes a second."""
    mutant = os.environ.get("MUTANT_UNDER_TEST", "")
    about = ("scoring.hosts.evidence.", "scoring.hosts.takeover.", "scoring.hosts.last_look.")
    if mutant.startswith("scoring.") and not mutant.startswith(about):
        pytest.skip("a mutant of something else")


@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case}{'-asked' * (case in ASKED)}")
def test_the_story_holds(case: Case) -> None:
    told(case).play()


@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case}{'-asked' * (case in ASKED)}")
def test_without_the_precondition_its_law_is_broken(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(monkeypatch, case.act, *case.names)
    if case.and_ is not None:
        case.and_(monkeypatch)
    with pytest.raises(Broken) as caught:
        told(case).play()
    assert caught.value.law == case.law
    assert case.text in caught.value.text


def test_each_precondition_has_its_story() -> None:
    """A new one comes with its own, or with the reason why it has none."""
    nothing = Evidence(
        lease=LeaseAnswer(False, 0.0),
        peer=None,
        slot_since_s=None,
        looked_since_s=None,
        fence_lease_held=False,
        global_maintenance=None,
        fence_log=None,
    )
    lists = {OFF: may_power_off, FREE: may_free}
    names = {
        (act, each.name)
        for act, conditions in lists.items()
        for each in conditions(Takeover(1, 0.0), nothing, 0.0, Rules())
    }
    # Two conditions look at the fence log: one is asked where the other cannot be.
    told_of = {(case.act, case.names[0]) for case in CASES} | WITHOUT_STORY
    assert names | {(OFF, "not-too-often")} == told_of

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A digest of a run: the same for the same run, another one for any other decision."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

import agent.beat
import scoring.decide
from scoring.decide import Decision
from scoring.decision import Action
from scoring.observation import Observation
from scoring.state import AgentState
from tests.simulation.fingerprint import WORDS, differing, of_scenario

STORY = "# a short one\nhosts 1 guest-boot 5\nexpect engine healthy within 90\n"


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "short.txt"
    path.write_text(STORY)
    return path


def test_every_kind_of_action_has_its_word() -> None:
    assert set(WORDS) == set(get_args(Action))
    assert len(set(WORDS.values())) == len(WORDS)


def test_it_is_the_same_for_the_same_run_and_another_for_a_longer_one(story: Path) -> None:
    first = of_scenario(story)
    assert list(differing([of_scenario(story)], [first])) == []
    story.write_text(STORY.replace("expect", "wait 1\nexpect"))
    assert list(differing([of_scenario(story)], [first])) != []


def test_one_decision_at_another_time_changes_it(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that a host does changes: only when it wants to be asked again."""
    first, decide = of_scenario(story), scoring.decide.decide
    decisions: list[Decision] = []

    def later(state: AgentState, observation: Observation, now_s: float) -> Decision:
        decisions.append(decide(state, observation, now_s))
        if len(decisions) == 9:
            object.__setattr__(decisions[-1], "wake_s", 0.0)
        return decisions[-1]

    monkeypatch.setattr(agent.beat, "decide", later)
    again = of_scenario(story)
    assert list(differing([again], [first])) == [
        f"scenario short: was {first[16:]}, is {again[16:]}"
    ]
    assert first.split()[-1] == again.split()[-1]

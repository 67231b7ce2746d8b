# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the lab's visitors reckon the longest time without an answer."""

from __future__ import annotations

from tests.lab.visitors import Visitors


def gap_s(answers: list[float]) -> float:
    return Visitors(0, answers=answers, began_s=10.0, stopped_s=20.0).longest_gap_s()


def test_it_lies_between_two_answers_in_whatever_order_they_came() -> None:
    assert gap_s([19.0, 10.5, 13.0, 17.0]) == 4.0


def test_a_page_that_is_away_from_the_beginning_or_to_the_end_counts() -> None:
    assert gap_s([18.5, 19.0]) == 8.5
    assert gap_s([10.5, 12.0]) == 8.0


def test_a_page_that_never_answered_was_away_all_the_time() -> None:
    assert gap_s([]) == 10.0

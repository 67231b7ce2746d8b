# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which host is best, and who comes before whom among equals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.vm.placement import Candidate, ahead, ranked

candidates = st.lists(
    st.builds(
        Candidate,
        host_id=st.integers(1, 2000),
        score=st.integers(0, 3),
        last_ran=st.integers(0, 2),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda c: c.host_id,
)


def test_the_highest_score_wins() -> None:
    best = Candidate(3, 3400, 0)
    assert ranked([Candidate(1, 3399, 9), best, Candidate(2, 100, 5)])[0] == best


def test_among_equals_the_host_that_ran_it_last_comes_first() -> None:
    assert [c.host_id for c in ranked([Candidate(1, 9, 3), Candidate(2, 9, 4)])] == [2, 1]


def test_among_equals_that_never_ran_it_the_lowest_host_id_comes_first() -> None:
    order = ranked([Candidate(10, 9, 0), Candidate(9, 9, 0), Candidate(2, 9, 0)])
    assert [c.host_id for c in order] == [2, 9, 10]


def test_ahead_names_those_who_come_first_in_their_order() -> None:
    three = [Candidate(1, 5, 0), Candidate(2, 7, 0), Candidate(3, 9, 0)]
    assert ahead(three, 3) == ()
    assert ahead(three, 2) == (3,)
    assert ahead(three, 1) == (3, 2)


def test_a_host_must_be_a_candidate_to_have_a_place() -> None:
    with pytest.raises(AssertionError, match="host 7 is not among the candidates"):
        ahead([Candidate(1, 5, 0)], 7)


@given(candidates, st.data())
def test_the_order_is_total_and_does_not_depend_on_the_order_of_the_slots(
    hosts: list[Candidate], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(hosts))
    assert ranked(shuffled) == ranked(hosts)
    places = [len(ahead(shuffled, c.host_id)) for c in ranked(hosts)]
    assert places == list(range(len(hosts)))


@given(candidates)
def test_nobody_ranks_before_a_host_with_more_points(hosts: list[Candidate]) -> None:
    scores = [c.score for c in ranked(hosts)]
    assert scores == sorted(scores, reverse=True)

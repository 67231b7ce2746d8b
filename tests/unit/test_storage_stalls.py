# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the lab judges what one host saw of what another wrote."""

from __future__ import annotations

from tests.lab.storages.stalls import STALL_S, beyond, judge


def test_a_write_is_visible_from_its_return_to_the_end_of_the_read_that_shows_it() -> None:
    found = judge([(1, 0.0, 0.25)], [(0, 0.0, 0.125), (1, 0.25, 0.75)])
    assert found.writes_s == (0.25,)
    assert found.visible_s == (0.5,)
    assert found.stale == 0


def test_one_that_was_seen_before_it_returned_took_no_time() -> None:
    assert judge([(1, 0.0, 2.0)], [(0, 0.0, 0.5), (1, 0.5, 1.0)]).visible_s == (0.0,)


def test_a_read_that_began_after_the_return_and_shows_the_old_is_stale() -> None:
    found = judge([(1, 0.0, 1.0)], [(0, 1.5, 1.75), (1, 2.0, 2.25)])
    assert found.stale == 1
    early = judge([(1, 0.0, 1.0)], [(0, 0.5, 1.75), (1, 2.0, 2.25)])
    assert early.stale == 0, "it began before: either is right"


def test_a_number_that_no_read_caught_is_seen_with_the_next() -> None:
    found = judge([(1, 0.0, 1.0), (2, 1.0, 2.0)], [(0, 0.0, 0.5), (2, 2.0, 2.5)])
    assert found.visible_s == (1.5, 0.5)


def test_what_was_not_seen_any_more_is_left_out() -> None:
    assert judge([(1, 0.0, 1.0)], []).visible_s == ()


def test_a_request_is_lost_to_the_storage_where_a_write_stood_still_during_its_patience() -> None:
    stood_still = [(1, 10.0, 10.0 + 2 * STALL_S)]
    assert beyond([4.0, 5.5, 11.0, 12.5], stood_still, 5.0) == [4.0, 12.5]


def test_a_slow_write_is_no_stall() -> None:
    assert beyond([1.0], [(1, 1.0, 1.0 + STALL_S)], 5.0) == [1.0]

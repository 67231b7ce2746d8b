# SPDX-License-Identifier: LGPL-2.1-or-later
"""The network test's windows, and what this host's and the others' mean together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.monitors.network_verdict import (
    PUBLISHED_CHARS_MAX,
    WINDOWS,
    NetworkVerdict,
    TargetResult,
    Windows,
    publish,
    published,
    verdict,
)
from scoring.hosts.score import HostSamples
from scoring.rules import Rules, Weights
from scoring.vm.score import VmSamples, score
from scoring.vm.state import StateName

A, B = "192.0.2.1", "2001:db8::1"


def after(*fractions: float, target: str = A) -> TargetResult:
    """A target's result after these windows, the last one last."""
    windows = Windows()
    result: tuple[TargetResult, ...] = ()
    for fraction in fractions:
        result = windows.take({target: (fraction, "" if fraction == 1.0 else "no answer")})
    return result[0]


def score_after(*fractions: float) -> int:
    network = verdict([after(*fractions)], []).fraction
    return score(HostSamples(network), VmSamples(StateName.ENGINE_UP), Weights()).value


def test_one_bad_window_throws_no_healthy_host_below_the_move_threshold() -> None:
    best = Weights().base_score
    for before in ((1.0,), (1.0, 1.0), (1.0, 0.0, 1.0), ()):
        assert best - score_after(*before, 0.0) < Rules().move_threshold
    assert score_after(1.0, *[0.0] * (WINDOWS - 1)) == best
    assert score_after(1.0, *[0.0] * WINDOWS) == best - 1600, "the reference's formula"


@given(st.lists(st.sampled_from([0.0, 0.4, 1.0]), min_size=1, max_size=20))
def test_a_point_is_lost_only_after_a_full_row_of_bad_windows(windows: list[float]) -> None:
    fraction = after(*windows).fraction
    last = windows[-WINDOWS:]
    if fraction is None:
        assert len(windows) < WINDOWS and 1.0 not in windows
    elif fraction < 1.0:
        assert len(last) == WINDOWS and 1.0 not in last


def test_what_was_never_fine_is_not_known_until_enough_windows_were_seen() -> None:
    for seen in range(1, WINDOWS):
        result = after(*[0.0] * seen)
        assert result.fraction is None and not result.fails
        assert verdict([result], []).fraction is None
    assert after(*[0.0] * WINDOWS).fails


def test_the_status_says_how_many_windows_were_bad_and_why() -> None:
    assert verdict([after(1.0, 1.0, 0.0)], []).text == f"{A}: 1 of 3 windows bad (no answer)"
    assert verdict([after(1.0, 1.0, 1.0)], []).text == ""


def test_the_score_counts_the_mean_over_all_targets() -> None:
    results = [after(0.0, 0.0, 0.0), after(1.0, target=B)]
    assert verdict(results, []).fraction == 0.5


DEAD, FINE = after(0.0, 0.0, 0.0), after(1.0)


@pytest.mark.parametrize(
    ("peers", "at_fault"),
    [
        ([], False),  # alone: nobody to compare with
        ([{A: False}], True),
        ([{A: False}, {A: False}], True),
        ([{A: False}, {A: True}], False),
        ([{A: False}, {}], True),  # one does not test it, or has not yet
        ([{}, {}], False),
        ([{B: False}], False),
    ],
)
def test_a_target_that_fails_for_all_who_test_it_is_at_fault_itself(
    peers: Sequence[dict[str, bool]], at_fault: bool
) -> None:
    found = verdict([DEAD], peers)
    if at_fault:
        assert found == NetworkVerdict(None, (A,), f"{A} answers no host: not counted")
    else:
        assert (found.fraction, found.at_fault) == (0.0, ())


def test_the_other_targets_count_on_when_one_is_at_fault() -> None:
    results = [DEAD, after(1.0, target=B)]
    assert verdict(results, [{A: False, B: True}]).fraction == 1.0
    results = [DEAD, after(0.0, 0.0, 0.0, target=B)]
    assert verdict(results, [{A: False, B: True}]).fraction == 0.0


def test_what_answers_here_is_not_left_out_whatever_others_say() -> None:
    assert verdict([FINE], [{A: False}]) == NetworkVerdict(1.0)


def test_hosts_whose_windows_end_at_different_times_penalise_nobody_for_a_dead_gateway() -> None:
    """A host says what its last window was, and its own score falls windows later."""
    one, two = Windows(), Windows()
    for windows in (one, two):
        windows.take({A: (1.0, "")})
    said_by_two = publish(two.take({A: (1.0, "")}))
    for number in range(5):
        results = one.take({A: (0.0, "")})
        if number:  # the other one's window ended a whole window later
            said_by_two = publish(two.take({A: (0.0, "")}))
        assert verdict(results, [published(said_by_two)]).fraction in (1.0, None)


def test_what_is_published_is_read_as_it_was_meant() -> None:
    results = [DEAD, after(1.0, target=B), after(0.4, target="[::1]:22"), after(1.0, target="ä =")]
    line = publish(results)
    assert "=" not in line
    assert published(line) == {A: False, B: True, "[::1]:22": False, "ä =": True}
    assert published(publish([])) == {}


def test_many_targets_are_cut_at_a_word() -> None:
    line = publish([after(1.0, target=f"192.0.2.{n}") for n in range(100)])
    assert len(line) <= PUBLISHED_CHARS_MAX
    assert all(target.startswith("192.0.2.") for target in published(line))


@given(st.text())
def test_any_text_of_a_peer_can_be_read(line: str) -> None:
    said = published(line)
    verdict([DEAD, FINE], [said])


def test_a_target_that_is_configured_no_more_is_forgotten() -> None:
    windows = Windows()
    for _ in range(WINDOWS):
        windows.take({A: (0.0, "")})
    windows.take({B: (1.0, "")})
    assert windows.take({A: (0.0, "")})[0].fraction is None

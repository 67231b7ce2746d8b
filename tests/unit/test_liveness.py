# SPDX-License-Identifier: LGPL-2.1-or-later
"""Liveness by timestamps that change, with no clock but this host's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scoring.hosts.liveness import Liveness, is_blind, liveness, liveness_known, look
from scoring.hosts.state import Seen
from tests.unit.builders import peer

SUSPECT_S = 3.0


def test_a_peer_seen_for_the_first_time_is_uncertain_until_it_had_time_to_beat() -> None:
    table = look({}, [peer(2)], 100.0)
    assert table == {2: Seen(500, 100.0, changed=False)}
    assert liveness(table[2], 100.0, SUSPECT_S) is Liveness.UNCERTAIN
    assert liveness(table[2], 102.999, SUSPECT_S) is Liveness.UNCERTAIN
    assert liveness(table[2], 103.0, SUSPECT_S) is Liveness.SILENT


def test_a_peer_whose_timestamp_changes_lives_until_it_stands_still_for_suspect_after() -> None:
    table = look({}, [peer(2)], 100.0)
    table = look(table, [peer(2, timestamp=501)], 101.0)
    assert table == {2: Seen(501, 101.0, changed=True)}
    assert liveness(table[2], 101.0, SUSPECT_S) is Liveness.LIVE
    assert liveness(table[2], 103.999, SUSPECT_S) is Liveness.LIVE
    assert liveness(table[2], 104.0, SUSPECT_S) is Liveness.SILENT


def test_a_timestamp_that_goes_back_is_a_change_like_any_other() -> None:
    """A host that was installed anew starts its counter over, and lives."""
    table = look({2: Seen(500, 10.0)}, [peer(2, timestamp=3)], 11.0)
    assert table[2] == Seen(3, 11.0, changed=True)


def test_a_timestamp_that_stands_still_keeps_its_old_moment() -> None:
    old = {2: Seen(500, 10.0, changed=True)}
    assert look(old, [peer(2)], 12.0) == old


def test_a_silent_peer_that_beats_again_lives() -> None:
    table = look({2: Seen(500, 10.0, changed=True)}, [peer(2, timestamp=501)], 99.0)
    assert liveness(table[2], 99.0, SUSPECT_S) is Liveness.LIVE


def test_a_peer_whose_slot_is_gone_falls_out_and_comes_back_uncertain() -> None:
    table = look({2: Seen(500, 10.0, changed=True)}, [], 11.0)
    assert table == {}
    back = look(table, [peer(2, timestamp=501)], 12.0)
    assert liveness(back[2], 12.0, SUSPECT_S) is Liveness.UNCERTAIN


def test_a_slot_read_before_the_decision_counts_from_when_it_was_read() -> None:
    table = look({}, [peer(2, read_s=98.5)], 100.0)
    assert table[2] == Seen(500, 98.5)
    table = look(table, [peer(2, timestamp=501, read_s=100.5)], 101.0)
    assert table[2] == Seen(501, 100.5, changed=True)


def test_a_slot_cannot_have_been_read_in_the_future() -> None:
    assert look({}, [peer(2, read_s=200.0)], 100.0)[2].since_s == 100.0


@given(
    steps=st.lists(
        st.tuples(st.floats(0, 10), st.dictionaries(st.integers(2, 5), st.integers(0, 3))),
        max_size=30,
    )
)
def test_a_live_peer_was_seen_to_change_within_suspect_after(
    steps: list[tuple[float, dict[int, int]]],
) -> None:
    """LIVE is never said of a peer that was not seen at two values, the last one lately."""
    table: dict[int, Seen] = {}
    now_s = 0.0
    changes: dict[int, float] = {}
    last: dict[int, int] = {}
    for pause_s, slots in steps:
        now_s += pause_s
        for host_id in set(last) - set(slots):
            del last[host_id]
            changes.pop(host_id, None)
        for host_id, timestamp in slots.items():
            if host_id in last and last[host_id] != timestamp:
                changes[host_id] = now_s
            last[host_id] = timestamp
        table = look(table, [peer(h, timestamp=t) for h, t in slots.items()], now_s)
        assert set(table) == set(slots)
        for host_id, memory in table.items():
            assert memory.since_s <= now_s
            lives = liveness(memory, now_s, SUSPECT_S) is Liveness.LIVE
            recent = host_id in changes and now_s - changes[host_id] < SUSPECT_S
            assert lives == recent


def test_a_host_that_does_not_read_calls_nobody_silent_or_live() -> None:
    beating, still = Seen(500, 99.0, changed=True), Seen(500, 40.0, changed=True)
    assert liveness_known(beating, 100.0, 100.5, SUSPECT_S) is Liveness.LIVE
    assert liveness_known(still, 100.0, 100.5, SUSPECT_S) is Liveness.SILENT
    for read_s in (None, 100.0):
        assert is_blind(read_s, 103.0, SUSPECT_S)
        assert liveness_known(beating, read_s, 103.0, SUSPECT_S) is Liveness.UNCERTAIN
        assert liveness_known(still, read_s, 103.0, SUSPECT_S) is Liveness.UNCERTAIN
    assert not is_blind(100.0, 102.9, SUSPECT_S)


def test_silence_is_what_a_read_has_shown_not_what_was_not_read() -> None:
    beating = Seen(500, 98.0, changed=True)
    assert liveness(beating, 101.5, SUSPECT_S) is Liveness.SILENT
    assert liveness_known(beating, 99.0, 101.5, SUSPECT_S) is Liveness.LIVE


def test_when_a_slot_was_written_may_become_known_better_but_never_later() -> None:
    table = {2: Seen(500, 100.0, changed=True)}
    assert look(table, [peer(2, read_s=99.6)], 101.0) == {2: Seen(500, 99.6, changed=True)}
    assert look(table, [peer(2, read_s=100.4)], 101.0) == table
    first_seen = {2: Seen(500, 100.0)}
    assert look(first_seen, [peer(2, read_s=99.6)], 101.0) == first_seen

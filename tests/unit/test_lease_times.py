# SPDX-License-Identifier: LGPL-2.1-or-later
"""sanlock's own times, and that they stand in one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scoring.lease_times import host_dead_s

ROOT = Path(__file__).parents[2]
#: The arithmetic by hand: 8 of an io_timeout, and 60 s.
BY_HAND = re.compile(r"(?<![\w.])8 \* [\w.]*(?:io_)?timeout\b.*\+ (?:60|\w*WATCHDOG)")


@pytest.mark.parametrize(("io_timeout_s", "dead_s"), [(10, 140.0), (5, 100.0), (2, 76.0)])
def test_a_host_is_dead_after_eight_io_timeouts_and_the_watchdog(
    io_timeout_s: float, dead_s: float
) -> None:
    """By the formula in sanlock's src/timeouts.h, with its watchdog_fire_timeout of 60 s."""
    assert host_dead_s(io_timeout_s) == dead_s


def test_nobody_counts_it_by_hand() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for top in ("scoring", "broker", "agent")
        for path in sorted((ROOT / top).rglob("*.py"))
        for line in path.read_text().splitlines()
        if BY_HAND.search(line.partition("#")[0]) and '"""' not in line
    ]
    assert found == []


def test_a_count_by_hand_is_found() -> None:
    assert BY_HAND.search("        return 8 * self._storage.io_timeout + WATCHDOG_FIRE_S - x")
    assert BY_HAND.search("        deadline_s = 8 * self._io_timeout + 60 + JOIN_EXTRA_S")

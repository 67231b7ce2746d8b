# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the lab finds the steps of a takeover in an agent's log."""

from __future__ import annotations

from datetime import datetime

import pytest

from tests.lab.timeline import HANG_STEPS, STEPS, first_line_s

CUT = datetime(2026, 11, 28, 10, 15, 50).timestamp()
STAYS = "2026-11-28 10:15:52,000 INFO ha-agent: EngineDown stays because "
OTHER = "2026-11-28 10:15:51,000 INFO ha-agent: EngineDown stays because power-off-once: once more"
PROVEN = "proven-off: host 2 is proven off, freeing its id (power-off-read-twice: 2 of 2)"


@pytest.mark.parametrize("steps", [STEPS, HANG_STEPS])
@pytest.mark.parametrize("before", ["", "up-elsewhere: the VM runs on host2 (id 2); "])
def test_a_host_is_proven_off_before_it_is_suspected_or_after(
    steps: tuple[tuple[str, object], ...], before: str
) -> None:
    pattern = dict(STEPS)["proven off"]
    assert ("proven off", pattern) in steps
    assert first_line_s([OTHER, STAYS + before + PROVEN], pattern, CUT) == 2.0


def test_what_was_before_the_cut_is_none_of_its_steps() -> None:
    assert first_line_s([STAYS + PROVEN], dict(STEPS)["proven off"], CUT + 10.0) is None

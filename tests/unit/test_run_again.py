# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must go on is run again after an error, and says so."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from broker.daemon.again import AGAIN_S, run_again
from tests.fakes import virtual_time


def test_a_failure_is_logged_and_tried_again_after_a_pause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun_s: list[float] = []

    async def fails_twice() -> None:
        begun_s.append(asyncio.get_running_loop().time())
        if len(begun_s) < 3:
            raise OSError("no more threads")

    virtual_time.run(run_again("rehearsals", fails_twice))
    assert [late - early for early, late in itertools.pairwise(begun_s)] == [
        pytest.approx(AGAIN_S),
        pytest.approx(AGAIN_S),
    ]
    assert caplog.text.count("rehearsals failed") == 2 and "no more threads" in caplog.text

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A boot counts from the last moment at which the VM ran nowhere until it is healthy."""

from __future__ import annotations

import pytest

from broker.status.boots import Boots

DOWN, BOOTS, WELL, UNKNOWN = (False, None), (True, False), (True, True), (None, None)


@pytest.mark.parametrize(
    ("seen", "took_s"),
    [
        ([DOWN, BOOTS, BOOTS, WELL], 3.0),
        ([DOWN, DOWN, UNKNOWN, BOOTS, WELL], 3.0),
        ([BOOTS, WELL], None),
        ([WELL, BOOTS, WELL], None),
        ([DOWN, BOOTS], None),
        ([DOWN, WELL, BOOTS, WELL], 1.0),
    ],
    ids=["a boot", "not seen for a moment", "its begin was missed", "sick", "not over", "the last"],
)
def test_what_counts(seen: list[tuple[bool | None, bool | None]], took_s: float | None) -> None:
    boots = Boots()
    for now_s, (up, healthy) in enumerate(seen):
        boots.look(2, up, healthy, float(now_s))
    assert boots.took_s.get(2) == took_s
    boots.keep((3,))
    assert boots.took_s == {}

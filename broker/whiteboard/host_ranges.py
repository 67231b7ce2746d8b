# SPDX-License-Identifier: LGPL-2.1-or-later
"""A compact text form of many host ids: 1-24,27. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from broker.wire.limits import HOST_ID_MAX

#: At most so many ranges of another host's line are read.
RANGES_MAX = 1000

_RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


def ranges(hosts: Iterable[int]) -> list[str]:
    """1, 2, 3, 5 -> 1-3, 5."""
    runs: list[list[int]] = []
    for host in sorted(hosts):
        if runs and runs[-1][-1] == host - 1:
            runs[-1] = [runs[-1][0], host]
        else:
            runs.append([host])
    return ["-".join(map(str, run)) for run in runs]


def hosts_of(text: str) -> Iterator[int]:
    """The host ids in a line of another host; foreign text: what is no id is left out."""
    for part in text.split(",", RANGES_MAX)[:RANGES_MAX]:
        if (found := _RANGE.fullmatch(part)) is None:
            continue
        first = int(found[1])
        last = int(found[2] or first)
        if 1 <= first <= last <= HOST_ID_MAX:
            yield from range(first, last + 1)

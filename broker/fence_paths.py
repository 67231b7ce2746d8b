# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who could switch whom off, as each host says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from broker import slot_lines
from broker.whiteboard import SlotReport
from broker.wire import FencePathOnWire, FencePathStatus


def fence_paths(
    here: int, own: Mapping[int, FencePathOnWire], reports: Iterable[SlotReport], wall_s: float
) -> list[FencePathStatus]:
    """By target, then by who says it. `own`: this host's, by target; `reports`: the others';
    `wall_s`: now, UTC seconds since 1970."""
    found = [slot_lines.path_status(here, host, path, wall_s) for host, path in own.items()]
    for report in reports:
        for key, value in report.extra.items() if report.extra_trusted else ():
            if not key.startswith("fence-path-"):
                continue
            host = slot_lines.count_of(key.removeprefix("fence-path-"))
            path = slot_lines.fence_path_of(value)
            if host and path is not None:
                found.append(slot_lines.path_status(report.host_id, host, path, wall_s))
    return sorted(found, key=lambda path: (path.host, path.by))

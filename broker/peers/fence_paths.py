# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which host could switch which one off, by each host's own word: the lines of a slot, and the
summary of all hosts. Pure.

A host of a large cluster reaches a hundred fence devices, and a slot has room for 3.5 KB. So
good paths are grouped, and a failure stands alone as long as there are few:

    paths=ok 1-24,27 1800000000 1800000300 0.31;bad 26 - 1800000300 5.00
    path-26=wrong password

Each group: the verdict, the hosts, when the paths were last proven ("-": never) and tried (UTC
seconds, the oldest of the group), and how many seconds a device took (the slowest of the group; in
a group all took the same whole number of seconds). Groups that do not fit into the line continue in
`paths-2` and so on. The sentences of the failures are lines of their own: they are dropped first.
Earlier versions wrote a line `fence-path-HOST` for each path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from broker.daemon.foreign import cut
from broker.whiteboard.host_ranges import hosts_of, ranges
from broker.whiteboard.slot import SlotReport
from broker.wire.limits import HOST_ID_MAX
from broker.wire.status import FencePathOnWire, FencePathStatus, StorageFenceStatus

#: So many failures stand alone; more are grouped.
APART_MAX = 8
#: How much of a failure's sentence is published.
DETAIL_CHARS_MAX = 80
#: The length of a `paths` line, and the number of ranges in a group.
_LINE_CHARS_MAX, _RANGES_MAX = 1000, 80
#: At most so many lines of groups, and groups in a line, are read of another host's slot.
_LINES_MAX, _GROUPS_MAX = 16, 64

_GROUP = re.compile(
    r"(ok|bad) ([0-9,-]{1,900}) (-|[0-9]{1,12}) ([0-9]{1,12}) ([0-9]{1,6}\.[0-9]{2})"
)
_EARLIER = re.compile(r"(ok|bad) (-|[0-9]{1,12}) ([0-9]{1,12}) ([0-9]{1,6}\.[0-9]{2}) ?(.*)")


def fence_paths(
    here: int, own: Mapping[int, FencePathOnWire], reports: Iterable[SlotReport], wall_s: float
) -> list[FencePathStatus]:
    """The paths by target, then by host. `own`: this host's, by target; `reports`: the others';
    `wall_s`: now, UTC seconds since 1970."""
    found = [_shown(here, host, path, wall_s) for host, path in own.items()]
    for report in reports:
        if report.extra_trusted:
            paths = paths_of(report.extra)
            found += [_shown(report.host_id, host, path, wall_s) for host, path in paths.items()]
    return sorted(found, key=lambda path: (path.host, path.by))


def _shown(by: int, host: int, path: FencePathOnWire, wall_s: float) -> FencePathStatus:
    proven_age_s = None if path.proven is None else max(0.0, wall_s - path.proven)
    tried_age_s = max(0.0, wall_s - path.tried)
    return FencePathStatus(by, host, path.ok, proven_age_s, tried_age_s, path.took_s, path.detail)


# --- writing --------------------------------------------------------------------------------


def storage_fence_shown(path: FencePathOnWire | None, wall_s: float) -> StorageFenceStatus | None:
    """The rehearsal of this host's storage fence for the status; None: there was none."""
    if path is None:
        return None
    proven_age_s = None if path.proven is None else max(0.0, wall_s - path.proven)
    tried_age_s = max(0.0, wall_s - path.tried)
    return StorageFenceStatus(path.ok, proven_age_s, tried_age_s, path.took_s, path.detail)


def path_lines(paths: Mapping[int, FencePathOnWire]) -> dict[str, str]:
    """The lines of this host's slot. `paths`: by host id, at most 2000 of them."""
    lines: list[str] = []
    for group in _groups(paths):
        if lines and len(lines[-1]) + 1 + len(group) <= _LINE_CHARS_MAX:
            lines[-1] += f";{group}"
        else:
            lines.append(group)
    named = {f"paths-{n}" if n > 1 else "paths": line for n, line in enumerate(lines, 1)}
    failures = {
        f"path-{host}": cut(path.detail, DETAIL_CHARS_MAX)
        for host, path in sorted(paths.items())
        if not path.ok and path.detail
    }
    return {**named, **failures}


def _groups(paths: Mapping[int, FencePathOnWire]) -> Iterator[str]:
    """The groups, failures first: those are looked for."""
    apart = sum(not path.ok for path in paths.values()) <= APART_MAX
    alike: dict[tuple[object, ...], list[int]] = {}
    for host, path in sorted(paths.items(), key=lambda item: (item[1].ok, item[0])):
        kind = (path.ok, path.proven is None, int(path.took_s))
        alike.setdefault((host,) if apart and not path.ok else kind, []).append(host)
    for hosts in alike.values():
        runs = ranges(hosts)
        members = [paths[host] for host in hosts]
        proven = [path.proven for path in members if path.proven is not None]
        values = (
            f"{f'{min(proven):.0f}' if proven else '-'} {min(p.tried for p in members):.0f}"
            f" {max(p.took_s for p in members):.2f}"
        )
        word = "ok" if members[0].ok else "bad"
        for first in range(0, len(runs), _RANGES_MAX):
            yield f"{word} {','.join(runs[first : first + _RANGES_MAX])} {values}"


# --- reading what a stranger may have written --------------------------------------------------


def paths_of(extra: Mapping[str, str]) -> dict[int, FencePathOnWire]:
    """The paths that another host published, by target; invalid parts are left out."""
    paths = _earlier_paths(extra)
    for number in range(1, _LINES_MAX + 1):
        line = extra.get(f"paths-{number}" if number > 1 else "paths", "")
        for group in line.split(";")[:_GROUPS_MAX] if line else ():
            if (found := _GROUP.fullmatch(group)) is None:
                continue
            word, hosts, proven, tried, took = found.groups()
            for host in hosts_of(hosts):
                detail = "" if word == "ok" else extra.get(f"path-{host}", "")
                paths[host] = _path(word, proven, tried, took, detail)
    return paths


def reached_of(extra: Mapping[str, str]) -> frozenset[int]:
    """The hosts whose fence devices another host has reached in its last rehearsal."""
    return frozenset(host for host, path in paths_of(extra).items() if path.ok)


def _earlier_paths(extra: Mapping[str, str]) -> dict[int, FencePathOnWire]:
    paths = {}
    for key, value in extra.items():
        name = key.removeprefix("fence-path-")
        if name == key or not (name.isascii() and name.isdigit() and len(name) <= 4):
            continue
        if 1 <= int(name) <= HOST_ID_MAX and (found := _EARLIER.fullmatch(value)) is not None:
            paths[int(name)] = _path(*found.groups())
    return paths


def _path(word: str, proven: str, tried: str, took: str, detail: str) -> FencePathOnWire:
    return FencePathOnWire(
        word == "ok", None if proven == "-" else float(proven), float(tried), float(took), detail
    )

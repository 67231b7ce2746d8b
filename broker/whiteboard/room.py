# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which lines of a host's slot come first, and which give way when there is no room. Pure.

A slot has 3.5 KB for lines. Once, 70 lines of fence devices pushed out the fact that the host was
short of memory, and the VM was moved there: what decides must never be what falls out. So each
key has its place here, facts that decide first, prose last, and what gives way is said.

Rules of this file:

1. A line that another host decides on stands in DECIDES. Together they always fit, whatever they
   say: the test fills a slot with the worst of 200 hosts.
2. What people only look at stands in SHOWN, sentences stand in PROSE. They give way from the end.
3. A key that stands nowhere here counts as shown. A key that ends in "*" means all that begin so.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.whiteboard.slot import EXTRA_ROOM_BYTES, LEFT_OUT_KEY, line_bytes

#: What other hosts' decisions rest on.
DECIDES = (
    "boot-id",
    "count",
    "system-uuid",
    "state",
    "agent",
    "last-ran",
    "healthy-once",
    "intent",
    "outside",
    "way-out",
    "uplink",
    "freeing",
    "freeing-fencer",
    "fence-ask",
    "mem-free",
    "hears",
    "api",
    "heartbeat",
    "config-digest",
    "global-left",
    "network",
)
#: What people are shown of this host.
SHOWN = (
    "host-shutdown",
    "beat",
    "previous-boot-id",
    "domain-type",
    "unknown",
    "differs",
    "memory-image",
    "paths",
    "paths-*",
    "start-s",
    "boot-s",
    "mode-left",
    "mode-*",
)
#: Sentences, and what explains the facts above.
PROSE = (
    "reason",
    "penalty-*",
    "config",
    "path-*",
)
_ORDER = {key: place for place, key in enumerate((*DECIDES, *SHOWN, "", *PROSE))}


def _place(key: str) -> int:
    """Where a line stands; the smaller, the more it matters."""
    if (place := _ORDER.get(key)) is not None:
        return place
    family, dash, _ = key.partition("-")
    return _ORDER.get(f"{family}{dash}*", _ORDER[""])


def fit(lines: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The lines that have room, the most important first, and the keys of those that have none.

    An empty value is no line: a reader takes one that is not there for an empty one. Where
    something has no room, a last line says how many keys that are.
    """
    order = sorted((key for key in lines if lines[key]), key=_place)
    used = 0
    kept: dict[str, str] = {}
    for number, key in enumerate(order):
        used += line_bytes(key, lines[key])
        if used > EXTRA_ROOM_BYTES:
            left_out = tuple(order[number:])
            kept[LEFT_OUT_KEY] = str(len(left_out))
            return kept, left_out
        kept[key] = lines[key]
    return kept, ()

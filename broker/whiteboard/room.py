# SPDX-License-Identifier: LGPL-2.1-or-later
"""Orders the lines of a host's slot, and drops the least important where there is no room. Pure.

A slot has 3.5 KB for lines. Without an order 70 lines of fence devices can push out the fact that
the host is short of memory, and the VM is moved there: a fact that decides must never be dropped.
So each key has its place here, facts that decide first, prose last, and the number of dropped lines
is published.

Rules of this file:

1. A line on which another host's decision depends stands in DECIDES. These lines always fit,
   whatever their values: the test fills a slot with the largest values of 200 hosts. Those about
   several VMs stand last there, for up to 128 VMs may be on one host: where they have no room,
   their reader sees that by the last of them (broker/whiteboard/vm_lines.py).
2. A line that is only shown to people stands in SHOWN, a sentence in PROSE. They are dropped from
   the end.
3. A key that is in no list counts as shown. A key that ends in "*" means all that begin so.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.whiteboard.extra import EXTRA_ROOM_BYTES, LEFT_OUT_KEY, line_bytes

#: Facts on which other hosts' decisions depend.
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
    "memory-short",
    "hears",
    "touches",
    "api",
    "heartbeat",
    "config-digest",
    "config-keys",
    "global-left",
    "network",
    "registry",
    "mem",
    "fit",
    "claims",
    "claims-*",
    "vms",
    "vms-*",
    "differ",
    "differ-*",
    "speaks",
    "reached",
    "reached-*",
)
#: Facts about this host that are only shown to people.
SHOWN = (
    "unprotected",
    "stuck",
    "host-shutdown",
    "beat",
    "previous-boot-id",
    "domain-type",
    "unknown",
    "differs",
    "unlike",
    "unlike-*",
    "memory-image",
    "paths",
    "paths-*",
    "start-s",
    "boot-s",
    "mode-left",
    "mode-*",
)
#: Sentences that explain the facts above.
PROSE = (
    "disks-*",
    "reason",
    "penalty-*",
    "config",
    "vm-*",
    "path-*",
    "because",
    "because-*",
)
_ORDER = {key: place for place, key in enumerate((*DECIDES, *SHOWN, "", *PROSE))}


def _place(key: str) -> int:
    """The position of a line; a smaller number is more important."""
    if (place := _ORDER.get(key)) is not None:
        return place
    family, dash, _ = key.partition("-")
    return _ORDER.get(f"{family}{dash}*", _ORDER[""])


def fit(lines: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The lines that have room, the most important first, and the keys of the dropped ones.

    An empty value is not written: a reader takes a missing line for an empty one. Where lines are
    dropped, a last line says how many keys that are.
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

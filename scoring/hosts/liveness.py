# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who lives, seen by timestamps that change.

No clock of another host is ever read: a peer's timestamp is a counter, and a peer lives
as long as this host sees it change, by this host's own clock, while this host's own
reads are fine. A peer that was not seen to change yet is UNCERTAIN until it had the time
to: it may be a slot that a host left behind years ago, or one that beats in a moment.
A host that cannot read the whiteboard knows of itself that it is blind, and of no other
that it is silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum

from scoring.hosts.state import Seen
from scoring.observation import PeerReport


class Liveness(Enum):
    """What a peer's slot says of it."""

    LIVE = "live"
    SILENT = "silent"
    UNCERTAIN = "uncertain"


def look(seen: Mapping[int, Seen], peers: Sequence[PeerReport], now_s: float) -> dict[int, Seen]:
    """Bring the table of last changes up to date; peers whose slot is gone fall out."""
    slots = []
    for peer in peers:
        read_s = now_s if peer.read_s is None else min(peer.read_s, now_s)
        slots.append((peer.host_id, peer.timestamp, read_s))
    return last_changes(seen, slots)


def last_changes(
    seen: Mapping[int, Seen], slots: Iterable[tuple[int, int, float]]
) -> dict[int, Seen]:
    """What slots alone say: host id, timestamp, and when that was read, if it is a new one."""
    table: dict[int, Seen] = {}
    for host_id, timestamp, read_s in slots:
        old = seen.get(host_id)
        if old is None:
            table[host_id] = Seen(timestamp, read_s)
        elif old.timestamp != timestamp:
            table[host_id] = Seen(timestamp, read_s, changed=True)
        elif old.changed and read_s < old.since_s:
            # When it was written is known better now.
            table[host_id] = replace(old, since_s=read_s)
        else:
            table[host_id] = old
    return table


def liveness(seen: Seen, now_s: float, suspect_after_s: float) -> Liveness:
    """Whether the peer lives, by how long its timestamp has stood still."""
    if now_s - seen.since_s >= suspect_after_s:
        return Liveness.SILENT
    return Liveness.LIVE if seen.changed else Liveness.UNCERTAIN


def is_blind(read_s: float | None, now_s: float, suspect_after_s: float) -> bool:
    """Whether this host has not read the whiteboard for so long that a peer could have fallen
    silent meanwhile. `read_s`: its last good read, None: there was none, or the last one failed
    in a way that says nothing of the peers."""
    return read_s is None or now_s - read_s >= suspect_after_s


def liveness_known(
    seen: Seen, read_s: float | None, now_s: float, suspect_after_s: float
) -> Liveness:
    """Whether the peer lives, as in `liveness`, but SILENT only where a read has shown that the
    slot stood still: a host that cannot read finds every peer UNCERTAIN."""
    if read_s is None or is_blind(read_s, now_s, suspect_after_s):
        return Liveness.UNCERTAIN
    return liveness(seen, read_s, suspect_after_s)

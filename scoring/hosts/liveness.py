# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which hosts live, by timestamps that change.

The clocks of two hosts are never compared, since they may differ by any amount. A peer's timestamp
is a counter, and a peer lives as long as this host sees it change, by this host's own clock. If a
host that cannot read the whiteboard counted its own blindness as the others' silence, it would take
over from hosts that are well.

Rules:

1. A peer is LIVE while its timestamp changes, and SILENT when that has not changed for
   suspect_after.
2. A peer that was never seen to change is UNCERTAIN until suspect_after has passed: the slot may
   have been left behind years ago, or the host may write its next beat in a moment.
3. A host that cannot read the whiteboard finds no peer silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum

from scoring.hosts.state import Seen
from scoring.observation import PeerReport


class Liveness(Enum):
    """Whether a peer lives, by its slot."""

    LIVE = "live"
    SILENT = "silent"
    UNCERTAIN = "uncertain"


def look(seen: Mapping[int, Seen], peers: Sequence[PeerReport], now_s: float) -> dict[int, Seen]:
    """The updated table of last changes; a peer whose slot is gone is removed."""
    slots = []
    for peer in peers:
        read_s = now_s if peer.read_s is None else min(peer.read_s, now_s)
        slots.append((peer.host_id, peer.timestamp, read_s))
    return last_changes(seen, slots)


def last_changes(
    seen: Mapping[int, Seen], slots: Iterable[tuple[int, int, float]]
) -> dict[int, Seen]:
    """The updated table of last changes. `slots`: host id, timestamp, and when it was read (counts
    where the timestamp is new)."""
    table: dict[int, Seen] = {}
    for host_id, timestamp, read_s in slots:
        old = seen.get(host_id)
        if old is None:
            table[host_id] = Seen(timestamp, read_s)
        elif old.timestamp != timestamp:
            table[host_id] = Seen(timestamp, read_s, changed=True)
        elif old.changed and read_s < old.since_s:
            # An earlier read of the same timestamp shows better when it was written.
            table[host_id] = replace(old, since_s=read_s)
        else:
            table[host_id] = old
    return table


def liveness(seen: Seen, now_s: float, suspect_after_s: float) -> Liveness:
    """Whether the peer lives, by how long its timestamp has not changed."""
    if now_s - seen.since_s >= suspect_after_s:
        return Liveness.SILENT
    return Liveness.LIVE if seen.changed else Liveness.UNCERTAIN


def is_blind(read_s: float | None, now_s: float, suspect_after_s: float) -> bool:
    """Whether this host has not read the whiteboard for suspect_after, in which a peer could have
    fallen silent. `read_s`: its last good read (None: there was none, or the last one failed in a
    way that says nothing about the peers)."""
    return read_s is None or now_s - read_s >= suspect_after_s


def liveness_known(
    seen: Seen, read_s: float | None, now_s: float, suspect_after_s: float
) -> Liveness:
    """Whether the peer lives, as in `liveness`, where reads may fail: SILENT only if a good read
    has shown that the timestamp did not change; UNCERTAIN while this host cannot read."""
    if read_s is None or is_blind(read_s, now_s, suspect_after_s):
        return Liveness.UNCERTAIN
    return liveness(seen, read_s, suspect_after_s)

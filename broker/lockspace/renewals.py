# SPDX-License-Identifier: LGPL-2.1-or-later
"""When each host id was last renewed on disk, as this host saw it.

sanlock's daemon looks at the others when it renews its own id, every 2 * io_timeout. That is
too seldom for a host that may be dead: its delta lease is read from the volume itself. Only a
change of it counts: the timestamp in it is from another host's clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

#: The interval of reads while no host is watched (this host's own renewal counts its budget), and
#: the one while some host is.
LOOK_S = 2.0
WATCH_S = 1.0


@dataclass(frozen=True, slots=True)
class Renewal:
    """The content of a delta lease, and when this host first saw it. `timestamp` 0: free."""

    generation: int
    timestamp: int
    changed_s: float


class Renewals:
    """The table of all host ids, updated by `run` and by `learn`.

    `watch`: host ids to read from disk. `also`: another one, which does not raise the rate;
    `strangers`: ids that have a slot and are not in use, which do not raise it either.
    `read_s`: when the last good read of a host id from disk began; `changed_s`: when it was last
    seen to change. `read(host ids)`: (generation, timestamp) of those that can be read within its
    own deadline, and of others in the same blocks.
    """

    def __init__(
        self, read: Callable[[Iterable[int]], Awaitable[Mapping[int, tuple[int, int]]]]
    ) -> None:
        self.watch: frozenset[int] = frozenset()
        self.also: frozenset[int] = frozenset()
        self.strangers: frozenset[int] = frozenset()
        self.read_s: dict[int, float] = {}
        self.changed_s: dict[int, float] = {}
        self.table: dict[int, Renewal] = {}
        self._read = read

    async def run(self) -> None:
        """Look for ever; a read that fails leaves what is known."""
        clock = asyncio.get_running_loop().time
        while True:
            began_s = clock()
            found = await self._read(self.watch | self.also | self.strangers)
            self.learn(found, clock())
            self.read_s.update(dict.fromkeys(found, began_s))
            await asyncio.sleep(WATCH_S if self.watch else LOOK_S)

    def learn(self, found: Mapping[int, tuple[int, int]], now_s: float) -> None:
        """Take in the renewals that are newer than the known ones; the source may be old."""
        for host_id, (generation, timestamp) in found.items():
            old = self.table.get(host_id)
            if old is not None and (old.generation, old.timestamp) == (generation, timestamp):
                continue
            if old is None or _order(generation, timestamp) > _order(old.generation, old.timestamp):
                self.table[host_id] = Renewal(generation, timestamp, now_s)
                if old is not None:
                    self.changed_s[host_id] = now_s

    def renewal_s(self, host_id: int) -> float | None:
        """When the present renewal was first seen; None: not seen, or the id is free."""
        found = self.table.get(host_id)
        return None if found is None or found.timestamp == 0 else found.changed_s


def _order(generation: int, timestamp: int) -> tuple[int, float]:
    """A key that grows with each write of a delta lease: its release is the last of a
    generation."""
    return generation, timestamp or float("inf")

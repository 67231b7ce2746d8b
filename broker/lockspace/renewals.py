# SPDX-License-Identifier: LGPL-2.1-or-later
"""When each host id was last renewed on disk, as this host saw it.

sanlock's daemon looks at the others when it renews its own id, every 2 * io_timeout. That is
too seldom for a host that is suspected to be dead: its delta lease is read from the volume
itself. Only its change is looked at: the timestamp in it is of another host's clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

#: Between two looks while nobody is watched (this host's own renewal counts its budget), and
#: while somebody is.
LOOK_S = 2.0
WATCH_S = 1.0


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a delta lease says, and when this host first saw that. `timestamp` 0: free."""

    generation: int
    timestamp: int
    changed_s: float


class Renewals:
    """The table of all host ids, brought up to date by `run` and by what else is `learn`ed.

    `watch`: host ids to read from disk. `also`: another one, which is no reason to look more often;
    `strangers`: ids that have a slot and are not in use, no reason either.
    `read_s`: when the last good read of a host id from disk began; `changed_s`: when it was last
    seen to change. `read(host ids)`: (generation,
    timestamp) of those that can be read within its own deadline, and of whatever else lay in the
    same blocks.
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
        """Take what is newer; who tells may have looked long ago."""
        for host_id, (generation, timestamp) in found.items():
            old = self.table.get(host_id)
            if old is not None and (old.generation, old.timestamp) == (generation, timestamp):
                continue
            if old is None or _order(generation, timestamp) > _order(old.generation, old.timestamp):
                self.table[host_id] = Renewal(generation, timestamp, now_s)
                if old is not None:
                    self.changed_s[host_id] = now_s

    def renewal_s(self, host_id: int) -> float | None:
        """Since when the present renewal is known; None: not seen, or the id is free."""
        found = self.table.get(host_id)
        return None if found is None or found.timestamp == 0 else found.changed_s


def _order(generation: int, timestamp: int) -> tuple[int, float]:
    """Grows with each write of a delta lease: within a generation its release is the last."""
    return generation, timestamp or float("inf")

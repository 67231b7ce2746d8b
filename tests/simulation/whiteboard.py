# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whiteboard volume of a simulated cluster, or a copy of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import EMPTY_SLOT


@dataclass(slots=True)
class Whiteboard:
    """One way to the slots of a volume; those that are not here are empty. All ways to the same
    one share what they hold. `identity`: its block. `stale`: what is read by this way, where that
    is not what is there."""

    identity: bytes = b""
    slots: dict[int, bytes] = field(default_factory=dict)
    before: dict[int, bytes] = field(default_factory=dict)
    stale: dict[int, bytes] | None = None

    def way(self) -> Whiteboard:
        """Another way to the same volume."""
        return Whiteboard(self.identity, self.slots, self.before)

    def lead_to(self, other: Whiteboard) -> None:
        """Let this way lead to what another one leads to, for those too who have it open."""
        self.slots, self.before = other.slots, other.before

    def is_same(self, other: Whiteboard) -> bool:
        """Whether both ways lead to one volume."""
        return self.slots is other.slots

    def copy(self) -> Whiteboard:
        """A volume of its own with all that is there now."""
        return Whiteboard(self.identity, dict(self.slots), dict(self.before))

    def set_back(self, then: Whiteboard) -> None:
        """Put an earlier state there, for all ways to it."""
        self.slots.clear()
        self.slots.update(then.slots)

    def read(self) -> dict[int, bytes]:
        """What is read by this way."""
        return self.slots if self.stale is None else self.stale

    def put(self, slot: int, data: bytes) -> None:
        """Replace a slot."""
        assert len(data) == SLOT_BYTES
        self.before[slot] = self.slots.get(slot, EMPTY_SLOT)
        self.slots[slot] = data
        if self.stale is not None:
            self.stale[slot] = data

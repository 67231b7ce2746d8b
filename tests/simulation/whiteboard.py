# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whiteboard volume of a simulated cluster, or a copy of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.whiteboard import EMPTY_SLOT, SLOT_BYTES


@dataclass(slots=True)
class Whiteboard:
    """The slots of the volume; those that are not here are empty. `identity`: its block."""

    identity: bytes = b""
    slots: dict[int, bytes] = field(default_factory=dict)
    before: dict[int, bytes] = field(default_factory=dict)

    def put(self, slot: int, data: bytes) -> None:
        """Replace a slot."""
        assert len(data) == SLOT_BYTES
        self.before[slot] = self.slots.get(slot, EMPTY_SLOT)
        self.slots[slot] = data

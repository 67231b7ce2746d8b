# SPDX-License-Identifier: LGPL-2.1-or-later
"""Chooses which slots of the whiteboard to read in a beat. Pure.

Rules of this file:

1. Slots 0..16 are read each beat: the cluster's, and those nearly every cluster uses. They
   lie side by side, so they are one read.
2. Slots in use are read each beat.
3. New hosts are found by a window of 32 slots that moves on each beat: all 2000 are covered
   within `SWEEP_BEATS` beats. A second look within a beat has none.
4. So a read is of at most `ALWAYS` + slots in use + `WINDOW` slots, never of all 2001 at
   once unless all are in use.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from broker.whiteboard.slot import EMPTY_SLOT
from broker.wire.limits import HOST_ID_MAX

#: Slots 0..16 are always read.
ALWAYS = 17
#: 32 slots are 128 KiB: one read of well under a millisecond on any suitable storage.
WINDOW = 32
#: Beats until the window has covered all slots.
SWEEP_BEATS = -(-(HOST_ID_MAX + 1 - ALWAYS) // WINDOW)

assert SWEEP_BEATS * WINDOW >= HOST_ID_MAX + 1 - ALWAYS
assert SWEEP_BEATS == 62


def slots_of_beat(known: Collection[int], sweep_from: int) -> list[int]:
    """The slots to read, ascending: the always-read ones, `known`, and the window that begins
    at `sweep_from` (17..2000; anything else begins at 17)."""
    assert all(0 <= slot <= HOST_ID_MAX for slot in known), known
    start = sweep_from if ALWAYS <= sweep_from <= HOST_ID_MAX else ALWAYS
    window = range(start, min(start + WINDOW, HOST_ID_MAX + 1))
    return sorted({*range(ALWAYS), *known, *window})


@dataclass(slots=True)
class SlotPlan:
    """Remembers the slots in use and how far the window has come.

    `next_beat` before each read, `learn` with what was read. A slot that was read as empty is
    no longer in use; one that was not read (the volume shrank) stays, so that it is missed.
    `windows_read`: how many windows were read well; the board counts them.
    """

    known: set[int] = field(default_factory=set)
    sweep_from: int = ALWAYS
    windows_read: int = 0

    @property
    def all_read(self) -> bool:
        """Whether every slot was read at least once."""
        return self.windows_read >= SWEEP_BEATS

    def next_beat(self) -> list[int]:
        """The slots to read now, ascending; the window moves on."""
        slots = slots_of_beat(self.known, self.sweep_from)
        self.sweep_from += WINDOW
        if self.sweep_from > HOST_ID_MAX:
            self.sweep_from = ALWAYS
        return slots

    def in_use(self) -> list[int]:
        """The slots of a second look within a beat, ascending: without the window."""
        return sorted({*range(ALWAYS), *self.known})

    def learn(self, slots: Mapping[int, bytes]) -> None:
        """Take in the slots of a read. Slot 0 is always read and never counted."""
        for slot, data in slots.items():
            if slot == 0:
                continue
            if data == EMPTY_SLOT:
                self.known.discard(slot)
            else:
                self.known.add(slot)

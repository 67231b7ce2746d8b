# SPDX-License-Identifier: LGPL-2.1-or-later
"""The record of what ran last, as it lies on the whiteboard and goes to the agent."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from broker.wire.limits import HOST_ID_MAX, TIMESTAMP_MAX

Count = Annotated[int, Meta(ge=0, lt=10**15)]


class WhatRan(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record. `by`: the host that wrote it, `at`: UTC seconds since 1970 by its clock.

    `disks`: by target the `<disk>` that ran in place of the definition's; `instead_of`: what the
    definition named then, "" for none. `held`: why a start would not boot what ran last, with what
    to do, "": it does. `only`: the host that can all the same, 0: none. `adopted`, `kept`: what a
    person decided, as `decision_of` names it; `decided`: who, and when in words.
    """

    generation: Count
    last_ran: Count
    by: Annotated[int, Meta(ge=0, le=HOST_ID_MAX)]
    by_name: str
    at: Annotated[float, Meta(ge=0, le=TIMESTAMP_MAX)]
    disks: dict[str, str] = {}
    instead_of: dict[str, str] = {}
    held: str = ""
    only: Annotated[int, Meta(ge=0, le=HOST_ID_MAX)] = 0
    adopted: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    decided: str = ""

    @property
    def key(self) -> tuple[int, int]:
        """The larger one is the newer."""
        return self.last_ran, self.generation

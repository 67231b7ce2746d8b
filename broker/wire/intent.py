# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a host is about to do to another host or with the VM, as the other hosts know it before it
is done: the type, its text, and the one reader of that text.

The text is a line of the slot, and a field of the status. Earlier versions read it too, so its form
stays:

    migrate 3 from 1 within 340 s     a move of the VM to host 3; earlier versions: migrate 3
    migrate away from 1 within 340 s  a move that the agent found under way, to an unknown host
    fence 3                           host 3 is switched off, or its host id freed
    switch on 3                       host 3 is switched on again
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum

_TEXT = re.compile(
    r"(?:(?P<act>fence|switch on|migrate) (?P<host>[0-9]{1,4})|migrate away)"
    r"(?P<rest> from (?P<source>[0-9]{1,4}) within (?P<left_s>[0-9]{1,6}) s)?"
)


class Act(StrEnum):
    """The word of an intent; never renamed."""

    MIGRATE = "migrate"
    FENCE = "fence"
    SWITCH_ON = "switch on"


@dataclass(frozen=True, slots=True)
class Intent:
    """`host`: the id of the host that it is done to, of a move its target; None: a move whose
    target is not known. Of a move also `source`, a host id, and `left_s`, the seconds that are
    left for it when this is written; None: not said."""

    act: Act
    host: int | None
    source: int | None = None
    left_s: float | None = None

    @property
    def words(self) -> str:
        """What is shown to people, and in the status: without source and time."""
        return f"{self.act} {'away' if self.host is None else self.host}"

    @property
    def line(self) -> str:
        """The line of the slot. The seconds are rounded up: nobody waits too short."""
        if self.source is None or self.left_s is None:
            return self.words
        return f"{self.words} from {self.source} within {math.ceil(max(0.0, self.left_s))} s"


def read(text: str) -> Intent | None:
    """The intent in a line that any host may have written; None: it is none."""
    found = _TEXT.fullmatch(text)
    if found is None:
        return None
    act = Act(found["act"] or Act.MIGRATE)
    host = None if found["host"] is None else int(found["host"])
    if found["rest"] is None:
        return Intent(act, host)
    if act is not Act.MIGRATE:
        return None
    return Intent(act, host, int(found["source"]), float(found["left_s"]))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A maintenance mode: who set it, why, and when it ends by itself. Pure.

Rules of this file:

1. A mode is written with the wall-clock second at which it was set and with its duration, so
   that it can end while no host looks.
2. A host that sees a mode for the first time takes the rest from the wall clock, never more than
   the duration, and from then on counts by its own monotonic clock: a wall clock that jumps
   later changes nothing.
3. A mode without a duration has no end. A damaged mode lasts longer, never shorter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from broker.daemon.foreign import clean, whole
from broker.wire.limits import REASON_CHARS_MAX

OWNER_CHARS_MAX = 128
COUNT_MAX = 10**12
#: Characters that a line keeps as they are; not "=", at which the reference splits a line.
_SAFE = " /:,;@+()!?"


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode that is set. `since_epoch_s`: UTC seconds since 1970, None when it was not
    written; `lasts_s`: whole seconds from then on, None without an end. `release_id`, of a local
    mode: the host's id in the lockspace is given back while the mode lasts. `restart`, of a local
    mode: a VM that cannot be migrated is stopped, for another host to start it."""

    owner: str = ""
    reason: str = ""
    since_epoch_s: int | None = None
    lasts_s: int | None = None
    release_id: bool = False
    restart: bool = False

    def left_s(self, wall_s: float) -> float:
        """What a wall clock leaves of it: 0 up to all of it; infinity without an end."""
        if self.lasts_s is None:
            return float("inf")
        if self.since_epoch_s is None:
            return float(self.lasts_s)
        return min(max(self.since_epoch_s + self.lasts_s - wall_s, 0.0), float(self.lasts_s))


def to_lines(mode: Mode) -> dict[str, str]:
    """The mode as `key=value` lines of a slot; no value holds a "=" or a newline."""
    lines = {
        "owner": quote(mode.owner[:OWNER_CHARS_MAX], _SAFE),
        "reason": quote(mode.reason[:REASON_CHARS_MAX], _SAFE),
    }
    if mode.since_epoch_s is not None:
        lines["since"] = str(mode.since_epoch_s)
    if mode.lasts_s is not None:
        lines["lasts"] = str(mode.lasts_s)
    if mode.release_id:
        lines["release-id"] = "1"
    if mode.restart:
        lines["restart"] = "1"
    return lines


def from_lines(lines: Mapping[str, str]) -> Mode:
    """The mode in the lines of a slot; any text is accepted."""
    return Mode(
        owner=_text(lines.get("owner", ""), OWNER_CHARS_MAX),
        reason=_text(lines.get("reason", ""), REASON_CHARS_MAX),
        since_epoch_s=count(lines.get("since", "")),
        lasts_s=count(lines.get("lasts", "")),
        release_id=lines.get("release-id") == "1",
        restart=lines.get("restart") == "1",
    )


def count(text: str) -> int | None:
    """A whole number 0..10**12 as it was written, None for anything else."""
    return whole(text, COUNT_MAX)


def _text(raw: str, chars_max: int) -> str:
    return clean(unquote(raw, errors="replace"), chars_max)

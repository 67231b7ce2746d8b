# SPDX-License-Identifier: LGPL-2.1-or-later
"""The maintenance modes as this host sees them: its own, kept in a file, and the cluster's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from broker.maintenance import kept as local_mode
from broker.maintenance.countdown import Countdown
from broker.whiteboard.mode import Mode, from_lines, to_lines
from broker.wire.status import Maintenance, ModeStatus


class Modes:
    """The modes. `file`: keeps the local mode over restarts. `wall`: UTC seconds since 1970.
    `boot_id`: of this boot of the host, "": not known."""

    def __init__(self, file: Path, wall: Callable[[], float], boot_id: str = "") -> None:
        self._file = file
        self._wall = wall
        self._boot_id = boot_id
        #: This host's local mode as it was set, None while there is none.
        self.local = local_mode.load(file)
        #: When it was set, by the monotonic clock; None: in an earlier boot, or not known.
        self._local_set_s = local_mode.set_in(file, boot_id)
        #: The mode that lasts while this host shuts down; it is not kept.
        self.shutdown: Mode | None = None
        self.local_countdown, self.global_countdown = Countdown(), Countdown()

    @property
    def in_force(self) -> Mode | None:
        """The local mode in force."""
        return self.local if self.shutdown is None else self.shutdown

    @property
    def is_set(self) -> bool:
        """Whether this host is in local maintenance, or shuts down."""
        return self.in_force is not None

    @property
    def may_restart(self) -> bool:
        """Whether what cannot be migrated away may be stopped here, for another host to start."""
        return self.in_force is not None and self.in_force.restart

    def new(self, owner: str, wanted: Maintenance) -> Mode:
        """The wanted mode, beginning now."""
        # Rounded up: the mode may end a little late, and never early.
        since_s = math.ceil(self._wall())
        mode = Mode(owner, wanted.reason, since_s, wanted.for_s, wanted.release_id, wanted.restart)
        return from_lines(to_lines(mode))

    def set_local(self, mode: Mode | None, now_s: float) -> None:
        """Set or end it for this host; OSError where it cannot be written, and then unchanged."""
        local_mode.save(self._file, mode, self._boot_id, now_s)
        self.local, self._local_set_s = mode, now_s
        self._look_at_local(now_s)

    def set_shutdown(self, mode: Mode | None, now_s: float) -> None:
        """Set the mode of this host's shutdown, or None when the shutdown was cancelled."""
        self.shutdown = mode
        self._look_at_local(now_s)

    def look(
        self, global_mode: Mode | None, now_s: float, began_after_s: float | None = None
    ) -> None:
        """Take in the present global mode, set after `began_after_s`, and count the time."""
        self._look_at_local(now_s)
        self.global_countdown.look(global_mode, now_s, self._wall(), began_after_s)

    def _look_at_local(self, now_s: float) -> None:
        set_s = self._local_set_s if self.shutdown is None else None
        self.local_countdown.look(self.in_force, now_s, self._wall(), set_s)

    def end_soon(self, now_s: float) -> list[tuple[str, Countdown]]:
        """The modes, by name, of which a notice is due that they end soon; each once."""
        both = {"local": self.local_countdown, "global": self.global_countdown}
        return [
            (name, countdown) for name, countdown in both.items() if countdown.warns_once(now_s)
        ]

    def lines(self, now_s: float) -> dict[str, str]:
        """The lines about this host's local mode, and how long it sees the global one last."""
        lines = {}
        if (mode := self.local_countdown.mode) is not None:
            lines = {f"mode-{key}": value for key, value in to_lines(mode).items()}
            if (left_s := self.local_countdown.left_s(now_s)) is not None:
                lines["mode-left"] = f"{left_s:.0f}"
        if (left_s := self.global_countdown.left_s(now_s)) is not None:
            lines["global-left"] = str(math.ceil(left_s))
        return lines


def mode_status(countdown: Countdown, now_s: float) -> ModeStatus | None:
    """A mode for the status; None while none is set."""
    mode = countdown.mode
    if mode is None:
        return None
    left_s, soon = countdown.left_s(now_s), countdown.ends_soon(now_s)
    return ModeStatus(mode.owner, mode.reason, mode.since_epoch_s, left_s, soon)

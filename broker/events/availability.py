# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much of the last day and of the last 30 days the VM was available, as this host saw it. It
is kept in a file, so that it survives a restart of the broker or of the host.

Rules of this file:

1. Time in which this host did not look counts as nothing: not as up, and not as down.
2. How long something took is measured by the monotonic clock; the wall clock only says in which
   step it lies.
3. `take` is called from the beat: it never waits for the disk. A thread writes the file; a disk
   that hangs costs the file, never the beat.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import msgspec

from broker.daemon.atomic_file import write_atomically
from broker.daemon.foreign_json import decoded
from broker.wire.history import AvailabilityStrip

log = logging.getLogger("ha-broker.events")

FILE_NAME = "availability.json"
#: Name -> seconds of a step, number of steps: 24 hours and 30 days.
STRIPS = {"day": (300, 288), "month": (7200, 360)}
SAVE_EVERY_S = 300.0
#: A longer time between two looks was not watched.
GAP_MAX_S = 10.0
#: More is not read from the file: this program writes less than 30 kB.
BYTES_MAX = 2**20

_Steps = dict[int, tuple[float, float, float]]


class Availability:
    """`path`: the file; None: it is lost when the broker ends."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        #: By number of the step since 1970: seconds up, down, unknown.
        self._strips: dict[str, _Steps] = {name: {} for name in STRIPS}
        self._looked_s: float | None = None
        self._saved_s: float | None = None
        self._writing: threading.Thread | None = None
        #: Why it is not kept at the moment; empty while it is.
        self.problem = ""
        if path is not None:
            self._load(path)

    def take(self, up: bool | None, wall_s: float, now_s: float) -> None:
        """Take in one look; None: whether the VM is available is not known."""
        passed_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        if 0.0 < passed_s <= GAP_MAX_S:
            kind = 2 if up is None else 0 if up else 1
            for name, (step_s, steps) in STRIPS.items():
                strip, step = self._strips[name], int(wall_s // step_s)
                sums = list(strip.get(step, (0.0, 0.0, 0.0)))
                sums[kind] += passed_s
                strip[step] = sums[0], sums[1], sums[2]
                for old in [each for each in strip if not step - steps < each <= step]:
                    del strip[old]
        if self._saved_s is None:
            self._saved_s = now_s
        elif now_s - self._saved_s >= SAVE_EVERY_S:
            self._saved_s = now_s
            self._save()

    def shown(self, wall_s: float) -> dict[str, AvailabilityStrip]:
        """The strips by name, each step oldest first, the present one last; whole seconds."""
        return {name: self._strip(name, wall_s) for name in STRIPS}

    def _strip(self, name: str, wall_s: float) -> AvailabilityStrip:
        step_s, steps = STRIPS[name]
        last, strip = int(wall_s // step_s), self._strips[name]
        found = [strip.get(n, (0.0, 0.0, 0.0)) for n in range(last - steps + 1, last + 1)]
        up, down, unknown = ([round(each[kind]) for each in found] for kind in range(3))
        return AvailabilityStrip(float(step_s), up, down, unknown)

    def flush(self, patience_s: float) -> None:
        """Write it, and wait for that, twice `patience_s` at most."""
        self._join(patience_s)
        self._save()
        self._join(patience_s)

    def _join(self, patience_s: float) -> None:
        if self._writing is not None:
            self._writing.join(patience_s)

    # --- the file ---------------------------------------------------------------------------

    def _load(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                raw = file.read(BYTES_MAX)
            kept = decoded(raw, dict[str, _Steps])
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s cannot be read, the availability begins anew: %s", path, error)
            return
        for name, (_, steps) in STRIPS.items():
            newest = sorted(kept.get(name, {}).items())[-steps:]
            self._strips[name] = dict(newest)

    def _save(self) -> None:
        if self._path is None or (self._writing is not None and self._writing.is_alive()):
            return
        rounded = {
            name: {step: tuple(round(each, 1) for each in sums) for step, sums in strip.items()}
            for name, strip in self._strips.items()
        }
        self._writing = threading.Thread(
            target=self._write,
            args=(self._path, msgspec.json.encode(rounded)),
            name="keep availability",
            daemon=True,
        )
        self._writing.start()

    def _write(self, path: Path, raw: bytes) -> None:
        try:
            write_atomically(path, raw)
        except OSError as error:
            if not self.problem:
                log.warning("%s cannot be written: %s", path, error.strerror)
            self.problem = f"{path}: {error.strerror}: the availability is lost with a restart"
        else:
            self.problem = ""

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measures how long a start and a boot of the engine take on this host, and keeps the results over
restarts. The status predicts from them how soon the VM would run again (its bound)."""

from __future__ import annotations

import logging
from pathlib import Path
from statistics import median

import msgspec

from broker.daemon.atomic_file import write_atomically
from broker.daemon.foreign_json import decoded
from broker.wire.status import MeasuredOnWire
from scoring.decide import Decision
from scoring.decision import StartVm
from scoring.vm.state import StateName
from scoring.vm_facts import ENGINE

log = logging.getLogger("ha-agent.measured")

#: How many of the last measurements count.
KEPT = 9


class _File(msgspec.Struct):
    start_s: list[float] = []
    boot_s: list[float] = []


class Measured:
    """Measures from the decisions. `start`: from the order to a running VM that holds its lease;
    `boot`: from then until the engine is healthy; medians, seconds."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ordered_s: float | None = None
        self._runs_s: float | None = None
        try:
            self._kept = decoded(file.read_bytes(), _File)
        except (OSError, msgspec.MsgspecError):
            self._kept = _File()

    @property
    def on_wire(self) -> MeasuredOnWire:
        """The medians, None while nothing was measured."""
        kept = self._kept
        return MeasuredOnWire(
            median(kept.start_s) if kept.start_s else None,
            median(kept.boot_s) if kept.boot_s else None,
        )

    def look(self, before: StateName, decision: Decision, now_s: float) -> None:
        """Take in one decision."""
        after = decision.state.engine.name
        if StartVm(ENGINE) in decision.actions:
            self._ordered_s = now_s
        if before is StateName.ENGINE_START and after is StateName.ENGINE_STARTING:
            if self._ordered_s is not None:
                self._keep(self._kept.start_s, now_s - self._ordered_s)
                self._runs_s = now_s
        elif after is StateName.ENGINE_UP:
            if before is StateName.ENGINE_STARTING and self._runs_s is not None:
                self._keep(self._kept.boot_s, now_s - self._runs_s)
            self._runs_s = None
        elif after is not StateName.ENGINE_STARTING:
            # What follows is no plain start, so it is not measured.
            self._runs_s = None
        if after is not StateName.ENGINE_START:
            self._ordered_s = None

    def _keep(self, values: list[float], value_s: float) -> None:
        values.append(round(value_s, 2))
        del values[:-KEPT]
        try:
            write_atomically(self._file, msgspec.json.encode(self._kept))
        except OSError as error:
            log.warning("%s: %s", self._file, error)

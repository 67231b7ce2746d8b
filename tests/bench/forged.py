# SPDX-License-Identifier: LGPL-2.1-or-later
"""Somebody who can write to the whiteboard and is no member: a slot a second."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Self

from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import SlotReport, encode_slot
from scoring.vm_facts import EngineStatus, Health, VmStatus

HOST, SCORE, EVERY_S = 7, 10_000, 1.0


class Forged:
    """While it is entered, host HOST, which does not exist, says that it is the best one and that
    the VM is up there. `written`: how many slots."""

    def __init__(self, whiteboard: Path) -> None:
        self._whiteboard = whiteboard
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self.written = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _write(self) -> None:
        up = EngineStatus(VmStatus.UP, Health.GOOD, "up")
        extra = {"state": "EngineUp", "agent": "ok", "boot-id": "forged", "last-ran": "900000"}
        with self._whiteboard.open("r+b", buffering=0) as volume:
            while not self._ended.wait(EVERY_S):
                self.written += 1
                volume.seek(HOST * SLOT_BYTES)
                volume.write(
                    encode_slot(SlotReport(HOST, self.written, SCORE, up, "forged", extra=extra))
                )

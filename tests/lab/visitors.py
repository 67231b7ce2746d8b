# SPDX-License-Identifier: LGPL-2.1-or-later
"""Visitors of a guest's page: so many requests a second, each on a connection of its own and
each counted, and the longest time that passed between two answers."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

from . import guest, page
from .vms import ENGINE, LabVm

PER_SECOND = 20
#: A request that has no answer by then has failed.
ANSWER_S = 5.0
_AT_ONCE = 64


@dataclass(slots=True)
class Visitors:
    """A context manager: they come from its beginning to its end. `vm`: whose page, by default
    the engine's; `disk`: of the engine's page that writes to its disk; `answers`: monotonic seconds
    of each answer, in no order; `failed`: when each of the requests was made that had none;
    `began_s`, `stopped_s`: when the first and the last of them came."""

    switch_pid: int
    per_second: float = PER_SECOND
    vm: LabVm = ENGINE
    disk: bool = False
    answers: list[float] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)
    asked: int = 0
    began_s: float = math.inf
    stopped_s: float = math.inf
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Visitors:
        self._thread = threading.Thread(target=self._come, name="visitors")
        self.began_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None
        self.stopped_s = time.monotonic()
        self._stopping.set()
        self._thread.join()

    def longest_gap_s(self) -> float:
        """For how long no answer came, from the first visitor to the last. To be asked once they
        have stopped."""
        came = sorted([self.began_s, *self.answers, self.stopped_s])
        return max(after - before for before, after in pairwise(came))

    def _come(self) -> None:
        due_s = time.monotonic()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while not self._stopping.wait(max(0.0, due_s - time.monotonic())):
                pool.submit(self._ask)
                self.asked += 1
                due_s += 1.0 / self.per_second

    def _ask(self) -> None:
        began_s = time.monotonic()
        if self._is_served():
            self.answers.append(time.monotonic())
        else:
            self.failed.append(began_s)

    def _is_served(self) -> bool:
        if self.disk:
            text = page.fetch(self.switch_pid, guest.DISK_PATH, ANSWER_S)
            return text == guest.DISK_TEXT
        if self.vm is ENGINE:
            return page.fetch(self.switch_pid, guest.HEALTH_PATH, ANSWER_S) == guest.HEALTH_TEXT
        text = page.fetch(self.switch_pid, self.vm.page, ANSWER_S, self.vm.address)
        return text is not None and self.vm.role in text

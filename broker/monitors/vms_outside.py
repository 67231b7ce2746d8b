# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the protected VMs beside the engine, while they run on other hosts, answer this host as
they answer their users. Each VM has a monitor of its own, which runs while it is to be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from broker.monitors.outside import OutsideMonitor, OutsideProbe, Place
from broker.monitors.runner import MonitorRunner
from broker.registry.record import VmRecord
from scoring.vm_facts import OutsideView

#: What a monitor is made for: the UUID of the VM, its health check, and what must be found there.
Question = tuple[str, str, str]


class _Asked:
    """One VM: its monitor, and the question that it was made for."""

    def __init__(self, question: Question, monitor: OutsideMonitor, changed: Callable[[], None]):
        self.question, self.monitor = question, monitor
        self.runner = MonitorRunner([monitor])
        self.runner.on_change = lambda name: changed()
        self.task = asyncio.create_task(self.runner.run())


class VmsOutside:
    """`probe_of`: how a VM is asked; None: only its own host can. `changed`: called when an answer
    differs from the one before."""

    def __init__(
        self,
        probe_of: Callable[[VmRecord], OutsideProbe | None],
        deadline_s: float,
        changed: Callable[[], None],
    ) -> None:
        self.probe_of, self.deadline_s = probe_of, deadline_s
        self._changed = changed
        self._asked: dict[int, _Asked] = {}

    @property
    def seen(self) -> Mapping[int, OutsideView]:
        """The results for the present places, by VM number."""
        found = {number: asked.monitor.seen for number, asked in self._asked.items()}
        return {number: view for number, view in found.items() if view is not None}

    def is_late(self, number: int, now_s: float) -> bool:
        """See OutsideMonitor."""
        return number in self._asked and self._asked[number].monitor.is_late(now_s)

    def watch(self, record: VmRecord, place: Place | None, every_s: float) -> None:
        """Ask the VM at that place from now on, None: nowhere."""
        number, question = record.number, (record.uuid, record.health, record.expect)
        asked = self._asked.get(number)
        if asked is not None and (place is None or asked.question != question):
            self.end(number)
            asked = None
        if place is None:
            return
        if asked is None:
            probe = self.probe_of(record)
            if probe is None:
                return
            monitor = OutsideMonitor(probe, self.deadline_s)
            monitor.name = f"outside of {record.name}"
            monitor.watch(place, every_s)
            self._asked[number] = _Asked(question, monitor, self._changed)
        elif asked.monitor.watch(place, every_s):
            asked.runner.wake(asked.monitor.name)

    def end(self, number: int) -> None:
        """Ask this VM no more."""
        if (asked := self._asked.pop(number, None)) is not None:
            asked.task.cancel()

    def keep(self, numbers: set[int]) -> None:
        """Ask no VM but these."""
        for number in self._asked.keys() - numbers:
            self.end(number)

    def reload(self, deadline_s: float) -> None:
        """Ask all of them anew, for the configuration has changed."""
        self.deadline_s = deadline_s
        self.keep(set())

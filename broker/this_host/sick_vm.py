# SPDX-License-Identifier: LGPL-2.1-or-later
"""What this host publishes about a sick VM that it cannot end; see scoring/hosts/fence_ask.py.

The agent asks the other hosts to switch this host off. If the agent is dead, the broker publishes
for how long, and for how long the VM's health has been bad; the other hosts decide. An agent that
was stopped in order is not dead; one that this broker has never heard may have been stopped so.
"""

from __future__ import annotations

from broker.wire.exchange import Report
from scoring.observation import FenceAsk
from scoring.vm_facts import EngineStatus, Health, VmStatus


class SickVm:
    """Gets the VM's status each beat, and remembers since when its health has been bad."""

    def __init__(self) -> None:
        self._bad_since_s: float | None = None

    def look(self, engine: EngineStatus, healthy_before: bool, now_s: float) -> None:
        """`healthy_before`: see LocalHost; a check that never succeeded proves nothing by failing.
        An unknown health ends a time of bad health."""
        is_bad = (engine.vm, engine.health) == (VmStatus.UP, Health.BAD) and healthy_before
        if not is_bad:
            self._bad_since_s = None
        elif self._bad_since_s is None:
            self._bad_since_s = now_s

    def ask(self, report: Report | None, silent_s: float | None, now_s: float) -> FenceAsk | None:
        """The request, if there is one. `report`: the agent's last; `silent_s`: for how long it has
        been silent, None: it is not, or it was stopped in order."""
        if report is None:
            return None
        if silent_s is None:
            since_s = report.unstopped_since_s
            return None if since_s is None else FenceAsk(unstopped_s=max(0.0, now_s - since_s))
        if self._bad_since_s is None:
            return None
        return FenceAsk(agent_dead_s=silent_s, bad_s=now_s - self._bad_since_s)

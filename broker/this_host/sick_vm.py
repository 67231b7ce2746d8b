# SPDX-License-Identifier: LGPL-2.1-or-later
"""What this host publishes about a sick VM that it cannot end; see scoring/hosts/fence_ask.py.

The agent asks the other hosts to switch this host off. If the agent is dead, the broker publishes
for how long, and for how long a VM's health has been bad: that of the VM that has been sick for
longest; the other hosts decide. An agent that was stopped in order is not dead; one that this
broker has never heard may have been stopped so. While a VM here fails a check that has never
passed, the broker asks for none: that VM may be well, and only an agent can move it away.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.wire.exchange import Report
from scoring.observation import FenceAsk
from scoring.vm_facts import DETAIL_PAUSED, ENGINE, EngineStatus, Health, VmHere, VmStatus


class SickVm:
    """Gets the status of each VM each beat, and remembers since when its health has been bad."""

    def __init__(self) -> None:
        #: By number.
        self._bad_since_s: dict[int, float] = {}
        #: VMs whose failing check has never passed: they may be well.
        self._unproven: set[int] = set()

    def look(self, engine: EngineStatus, healthy_before: bool, now_s: float) -> None:
        """`healthy_before`: see VmHere; a check that never succeeded proves nothing by failing. An
        unknown health ends a time of bad health."""
        self._take(ENGINE, engine, healthy_before, now_s)

    def look_at_vms(self, vms: Sequence[VmHere], now_s: float) -> None:
        """`vms`: those beside the engine, each one that the registry has and wants up."""
        for gone in self._bad_since_s.keys() - {ENGINE, *(vm.number for vm in vms)}:
            del self._bad_since_s[gone]
        self._unproven &= {ENGINE, *(vm.number for vm in vms)}
        for vm in vms:
            self._take(vm.number, vm.report, vm.healthy_before, now_s)

    def _take(self, vm: int, report: EngineStatus, healthy_before: bool, now_s: float) -> None:
        is_bad = (report.vm, report.health) == (VmStatus.UP, Health.BAD)
        if is_bad and healthy_before:
            self._bad_since_s.setdefault(vm, now_s)
        else:
            self._bad_since_s.pop(vm, None)
        if is_bad and not healthy_before and report.detail != DETAIL_PAUSED:
            self._unproven.add(vm)
        else:
            self._unproven.discard(vm)

    def ask(self, report: Report | None, silent_s: float | None, now_s: float) -> FenceAsk | None:
        """The request, if there is one. `report`: the agent's last; `silent_s`: for how long it has
        been silent, None: it is not, or it was stopped in order."""
        if report is None:
            return None
        if silent_s is None:
            since_s = report.unstopped_since_s
            if since_s is None:
                return None
            return FenceAsk(unstopped_s=max(0.0, now_s - since_s), vm=report.unstopped_vm)
        if not self._bad_since_s or self._unproven:
            return None
        since_s, vm = min((at_s, number) for number, at_s in self._bad_since_s.items())
        return FenceAsk(agent_dead_s=silent_s, bad_s=now_s - since_s, vm=vm)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Detects what has changed of the VMs beside the engine on this host: the states of their machines,
by the agent's reports, and whether they run, by the broker's own samples. No I/O.

Each host sends the notices of what happens on it. A VM that is migrated away is no end of it: the
target sends the notice that it is up there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from broker.events.notice import FactValue, Notice
from broker.this_host.causes import cause
from broker.vm.domain_facts import Difference, Differs
from broker.wire.exchange import Report, VmReportOnWire
from broker.wire.kinds import Kind
from scoring.vm.state import StateName
from scoring.vm_facts import ENGINE, Health, VmHere, VmStatus

#: libvirt's word on a VM that has left for another host.
_MIGRATED = "migrated"


class VmEvents:
    """`notify`: gets the notices. `name`: this host's. `kinds`: of the reasons that have a notice
    of their own, by code. `names`: of the VMs, by number."""

    def __init__(
        self, notify: Callable[[Notice], None], name: str, kinds: Mapping[str, Kind]
    ) -> None:
        self._notify, self._name, self._kinds = notify, name, kinds
        self.names: Mapping[int, str] = {}
        self._report: Report | None = None
        #: The state of each machine, by VM number; "": not known.
        self._states: dict[int, str] = {}
        #: By number, whether it is up here, and whether it has been healthy since it came up.
        self._up: dict[int, bool] = {}
        self._well: set[int] = set()
        self._differs: dict[int, dict[tuple[Differs, str], Difference]] = {}

    def reported(self, report: Report) -> None:
        """Take in the agent's report. A VM that the report before did not name had no machine: it
        was down, unless another agent reported that. That a VM which is not up here is unknown for
        a moment (the broker or the VM is new) is no change."""
        old, self._report = self._report, report
        for begun in report.begun:
            kind = self._kinds.get(begun.code)
            if begun.vm > ENGINE and kind and (old is None or begun not in old.begun):
                self._say(kind, begun.vm, begun.text, {"code": begun.code})
        is_same_agent = old is not None and report.beat > old.beat
        states: dict[int, str] = {}
        for vm in report.vms:
            first = str(StateName.ENGINE_DOWN) if is_same_agent else ""
            before = self._states.get(vm.number, first)
            is_up = self._up.get(vm.number, False)
            if vm.state == StateName.UNKNOWN_LOCAL_VM_STATE and not is_up:
                states[vm.number] = before
                continue
            states[vm.number] = vm.state
            if before not in ("", vm.state):
                self._changed(before, vm)
        self._states = states

    def _changed(self, before: str, vm: VmReportOnWire) -> None:
        because = cause(vm.reasons)
        facts: dict[str, FactValue] = {"from": before, "to": vm.state}
        facts["reason"], facts["code"] = because.text, because.code
        self._say(Kind.STATE_TRANSITION, vm.number, f"{before}-{vm.state}", facts)

    def differences(self, found: Mapping[int, tuple[Difference, ...]]) -> None:
        """Take in how each VM that runs here differs from its definition; one that is not in it
        does not run here, which is no news of it."""
        for number, its in found.items():
            before = self._differs.get(number, {})
            now = self._differs[number] = {(each.code, each.what): each for each in its}
            for (code, what), each in now.items():
                if (code, what) not in before:
                    facts = {"code": code.value, "where": "running", "what": what}
                    facts |= {"recorded": each.recorded, "found": each.found, "held": ""}
                    detail = f"{self._named(number)}: {each}"
                    self._say(Kind.VM_DIFFERS, number, detail, facts)
            for code, what in sorted(before.keys() - now.keys()):
                facts = {"code": code.value, "where": "running", "what": what}
                detail = f"{self._named(number)}: {what} is as recorded again"
                self._say(Kind.VM_AS_RECORDED, number, detail, facts)

    def look(self, here: Iterable[VmHere]) -> None:
        """Take in the samples of a beat. What is unknown changes nothing."""
        for vm in here:
            if vm.report.vm is VmStatus.UNKNOWN:
                continue
            name = self._named(vm.number)
            was_up, is_up = self._up.get(vm.number), vm.report.vm is VmStatus.UP
            self._up[vm.number] = is_up
            is_well = is_up and vm.report.health is Health.GOOD
            if is_well and vm.number not in self._well:
                self._well.add(vm.number)
                if was_up is not None:
                    detail = f"{name} is up and healthy on {self._name}"
                    self._say(Kind.VM_UP, vm.number, detail, {"to": self._name})
            if not is_up:
                self._well.discard(vm.number)
                if was_up and vm.report.detail != _MIGRATED:
                    why = vm.report.detail or vm.report.vm.value
                    detail = f"{name} does not run on {self._name} any more: {why}"
                    self._say(Kind.VM_DOWN, vm.number, detail, {"from": self._name, "why": why})

    def _say(self, kind: Kind, number: int, detail: str, facts: Mapping[str, FactValue]) -> None:
        about: dict[str, FactValue] = {"vm": self._named(number)}
        self._notify(Notice(kind, self._name, detail, about | dict(facts)))

    def _named(self, number: int) -> str:
        return self.names.get(number, f"VM {number}")

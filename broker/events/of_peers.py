# SPDX-License-Identifier: LGPL-2.1-or-later
"""Detects what has changed in the other hosts' slots, the fence log and the maintenance modes, and
makes events of it. No I/O.

They are events and no notices: a host notifies people of its own changes itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from broker.events.detector import fence_notice
from broker.events.notice import FactValue, Notice
from broker.events.of_slots import PeerVms
from broker.events.ring import Events, Extra
from broker.this_host.causes import BECAUSE
from broker.whiteboard import lines as slot_lines
from broker.whiteboard.fence_log import LogRecord
from broker.whiteboard.mode import Mode
from broker.whiteboard.slot import SlotReport
from broker.wire.kinds import Kind, Severity
from scoring.observation import FenceStep


class PeerEvents:
    """Finds news in the other hosts' slots, in the fence log and in the maintenance modes, and adds
    them. What it sees first is no news."""

    def __init__(self, events: Events, host_id: int, name: str) -> None:
        self._events = events
        self._host_id, self._name = host_id, name
        self._slots: dict[int, SlotReport] = {}
        self._vms = PeerVms()
        #: What the VMs beside the engine are called, by number.
        self.vm_names: Mapping[int, str] = {}
        self._global: Mode | None = None
        self._local: Mode | None = None
        self._looked = self._global_known = False
        self._fence_number: int | None = None

    def started(self) -> None:
        """Add the start of this broker."""
        text = f"the broker of {self._name} has started; until then it saw nothing"
        self._say(Extra.BROKER_STARTED, self._name, text, {})

    def look(
        self,
        reports: Mapping[int, SlotReport],
        global_known: bool,
        global_mode: Mode | None,
        local_mode: Mode | None,
        fence_log: Iterable[LogRecord] | None,
    ) -> None:
        """Compare with the state of the last beat. `global_known`: whether the cluster's slot was
        read yet; `fence_log`: newest first, None: not read yet."""
        for host, report in reports.items():
            old = self._slots.get(host)
            if old is not report:
                self._slots[host] = report
                if old is not None:
                    self._compare(old, report)
                self._compare_vms(report)
        for host in self._slots.keys() - reports.keys():
            del self._slots[host]
            self._vms.forget(host)
        if self._looked:
            about: dict[str, FactValue] = {"mode": "local", "host_id": self._host_id}
            self._mode(self._name, self._local, local_mode, about)
        self._local, self._looked = local_mode, True
        if global_known:
            if self._global_known:
                self._mode("global maintenance", self._global, global_mode, {"mode": "global"})
            self._global, self._global_known = global_mode, True
        if fence_log is not None:
            self._fences(list(fence_log))

    def _compare(self, old: SlotReport, new: SlotReport) -> None:
        about: dict[str, FactValue] = {"host_id": new.host_id}
        if new.maintenance != old.maintenance:
            mode = slot_lines.local_mode_of(new)
            by: dict[str, FactValue] = {"owner": mode.owner} if mode.owner else {}
            self._changed_mode(
                new.hostname, new.maintenance, {**about, "mode": "local", **by}, mode.reason
            )
        before, state = _state(old), _state(new)
        if before and state and state != before:
            facts = about | {"from": before, "to": state, "score": new.score}
            facts["reason"] = new.extra.get(BECAUSE, new.extra.get("reason", ""))
            detail = f"{before}-{state}"
            self._events.add(Notice(Kind.STATE_TRANSITION, new.hostname, detail, facts))

    def _compare_vms(self, report: SlotReport) -> None:
        for number, before, state, why in self._vms.look(report):
            facts: dict[str, FactValue] = {"vm": self.vm_names.get(number, f"VM {number}")}
            facts |= {"host_id": report.host_id, "from": before, "to": state, "reason": why}
            detail = f"{before}-{state}"
            self._events.add(Notice(Kind.STATE_TRANSITION, report.hostname, detail, facts))

    def _mode(
        self, subject: str, old: Mode | None, new: Mode | None, facts: Mapping[str, FactValue]
    ) -> None:
        if new == old:
            return
        by: dict[str, FactValue] = {} if new is None else {"owner": new.owner}
        reason = "" if new is None else new.reason
        self._changed_mode(subject, new is not None, {**facts, **by}, reason)

    def _changed_mode(
        self, subject: str, is_set: bool, facts: Mapping[str, FactValue], reason: str
    ) -> None:
        kind = Extra.MAINTENANCE_SET if is_set else Extra.MAINTENANCE_ENDED
        text = f"{facts['mode']} maintenance {'is set' if is_set else 'has ended'}"
        if is_set and facts.get("owner"):
            text += f" by {facts['owner']}"
        if is_set and reason:
            text += f": {reason}"
        self._say(kind, subject, text, {**facts, "reason": reason})

    def _fences(self, records: list[LogRecord]) -> None:
        """Add the records of other hosts; this host's own are notices."""
        records = [record for record in records if record.step is not FenceStep.FREEING]
        newest = max((record.number for record in records), default=0)
        known, self._fence_number = self._fence_number, newest
        for record in reversed(records):
            if known is not None and record.number > known and record.by != self._host_id:
                self._events.add(
                    fence_notice(
                        record.step,
                        record.target,
                        record.target_name,
                        record.by_name,
                        record.ordered,
                        record.text,
                        record.withdrawn,
                    )
                )

    def _say(self, kind: Extra, subject: str, text: str, facts: Mapping[str, FactValue]) -> None:
        # The notice only bounds and cleans the text: its own kind is replaced.
        notice = Notice(Kind.TEST, subject, text, facts)
        self._events.add(notice, kind.value, Severity.INFO)


def _state(report: SlotReport) -> str:
    return report.extra.get("state", "") if report.extra_trusted else ""

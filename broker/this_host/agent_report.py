# SPDX-License-Identifier: LGPL-2.1-or-later
"""The last report of this host's agent, and how it counts when the agent is silent."""

from __future__ import annotations

from collections.abc import Callable

from broker.config.in_force import InForce
from broker.peers.vm_place import LEASE_OLD_S, LeaseOwner
from broker.this_host.causes import Causes
from broker.whiteboard import lines as slot_lines
from broker.wire.exchange import Report
from scoring.hosts.storage_lost import ENDING_S
from scoring.vm_facts import ENGINE, VmStatus

#: After this many beats without a report the agent is silent, and its host has score 0.
AGENT_SILENT_BEATS = 5


class AgentReport:
    """`last`: None: none yet. `published_beat`: the `beat` of the report that this host's slot on
    the storage holds, 0: none. `announced`: the host whose id is freed without the fence lease, by
    this host's slot on the storage. `last_ran`: the largest count of starts of the VM here;
    `vms_last_ran`: the same of the VMs beside the engine, by number."""

    def __init__(self, in_force: InForce, freeing_left: Callable[[], int | None]) -> None:
        """`freeing_left`: the host whose id a process of an earlier agent is still freeing; asked
        again while there is one."""
        self._in_force = in_force
        self.last: Report | None = None
        self._reported_s = float("-inf")
        self.published_beat = 0
        self.announced: int | None = None
        self.last_ran = 0
        self.vms_last_ran: dict[int, int] = {}
        #: Why the VMs' machines have entered their states.
        self.causes = Causes()
        self._look_for_freeing = freeing_left
        self._freeing_left = freeing_left()

    def take(self, report: Report, now_s: float) -> bool:
        """Take in a report; returns whether the other hosts should read it at once: the agent is in
        another state than before, or one of its VMs, or it claims room."""
        old = self.last
        self.last, self._reported_s = report, now_s
        self.causes.take(old, report, now_s)
        if old is not None and report.beat < old.beat:
            # Another agent counts anew, so the number in the slot is not one of its own.
            self.published_beat = 0
        self.last_ran = max(self.last_ran, report.last_ran)
        for vm in report.vms:
            self.vms_last_ran[vm.number] = max(self.vms_last_ran.get(vm.number, 0), vm.last_ran)
        return old is None or _urgent(old) != _urgent(report)

    def silent_s(self, now_s: float) -> float | None:
        """For how long the agent has been silent; None while it reports or was stopped."""
        if self.last is not None and self.last.stopped:
            return None
        silent_s = now_s - self._reported_s
        return silent_s if silent_s > AGENT_SILENT_BEATS * self._in_force.timing.beat else None

    @property
    def state(self) -> str | None:
        """The agent's state by its last report; None: there is none."""
        return None if self.last is None else self.last.state

    def ending(self, now_s: float) -> frozenset[int]:
        """The VMs that the agent gave up since the storage is lost and has been ending for
        ENDING_S; none once it is silent."""
        if self.last is None or self.silent_s(now_s) is not None:
            return frozenset()
        since_s = {vm.number: vm.given_up_since_s for vm in self.last.vms}
        since_s[ENGINE] = self.last.given_up_since_s
        return frozenset(
            number
            for number, at_s in since_s.items()
            if at_s is not None and now_s - at_s >= ENDING_S
        )

    def intent_line(self, now_s: float) -> str:
        """The agent's intent, as a line of the slot; empty once the agent is silent."""
        if self.last is None or self.silent_s(now_s) is not None:
            return ""
        return slot_lines.intent_line(self.last, self._in_force.host_id, now_s)

    def watched(self, now_s: float) -> tuple[int, ...]:
        """The hosts that the agent watches closely; none once it is silent."""
        if self.last is None or self.silent_s(now_s) is not None:
            return ()
        return self.last.watched

    def own_fence_path(self) -> bool | None:
        """Whether this host's own fence device answered the last rehearsal; None: unknown."""
        paths = self.last.fence_paths if self.last is not None else {}
        own = paths.get(self._in_force.host_id)
        return None if own is None else own.ok

    def reaches(self) -> frozenset[int]:
        """The hosts whose fence devices answered this host in the last rehearsal."""
        paths = {} if self.last is None else self.last.fence_paths
        return frozenset(host for host, path in paths.items() if path.ok)

    def freeing(self) -> tuple[int | None, bool]:
        """The host id that this host frees, and whether without the fence lease. Before the first
        report: an act that an earlier agent may have begun."""
        if self.last is not None:
            return self.last.freeing, self.last.freeing_fencer
        if self._freeing_left is not None:
            self._freeing_left = self._look_for_freeing()
        return self._freeing_left, self._freeing_left is not None

    def lease_owner(self, here: VmStatus, now_s: float) -> LeaseOwner | None:
        """The owner of the engine lease, as the agent found it. `here`: the VM on this host."""
        lease = None if self.last is None else self.last.lease
        if lease is None:
            return None
        is_own = lease.owner == self._in_force.host_id
        gone = lease.gone or (is_own and here not in (VmStatus.UP, VmStatus.UNKNOWN))
        return LeaseOwner(lease.owner, gone, now_s - lease.asked_s)

    def lease_asked(self, now_s: float) -> tuple[int | None, float] | None:
        """The owner in the form of `Members.lease_owner`; None where the answer is old."""
        lease = None if self.last is None else self.last.lease
        if lease is None or now_s - lease.asked_s > LEASE_OLD_S:
            return None
        return lease.owner, lease.asked_s


def _urgent(report: Report) -> tuple[object, ...]:
    """The part of a report that the other hosts should read at once."""
    vms = {(vm.number, vm.state, vm.moving_to, vm.barred_until_s) for vm in report.vms}
    claims = {(claim.number, claim.host_id) for claim in report.claims}
    return report.state, report.stopped, vms, claims

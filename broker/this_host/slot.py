# SPDX-License-Identifier: LGPL-2.1-or-later
"""This host's slot: continued from its last content, and made anew each beat.

It is published as long as the broker lives, with or without an agent.
"""

from __future__ import annotations

import asyncio

from broker.config.in_force import InForce
from broker.monitors.network_verdict import publish
from broker.peers.fence_paths import path_lines
from broker.peers.table import Table
from broker.this_host.facts import ThisHost
from broker.vm import healthy_once
from broker.whiteboard import lines as slot_lines
from broker.whiteboard import room as slot_room
from broker.whiteboard import vm_lines
from broker.whiteboard.board import Board
from broker.whiteboard.host_ranges import ranges
from broker.whiteboard.signatures import COUNTER_LINE, COUNTER_WALL_MAX, counter_of, next_counter
from broker.whiteboard.slot import TIMESTAMP_TAKEN_MAX, SlotReport, fit_hostname
from broker.whiteboard.store import StorageTrouble
from broker.wire.limits import TIMESTAMP_MAX
from broker.wire.status import HostStatus

#: For so many beats an answer over the network is published.
HEARS_BEATS = 3


class OwnSlot:
    """`timestamp`: of the last slot that was made. `started`: the slot was read, and its numbers
    are continued. `was_ours`: it was this host's then. `previous_boot_id`: of the boot before."""

    def __init__(
        self,
        in_force: InForce,
        this_host: ThisHost,
        board: Board,
        table: Table,
    ) -> None:
        self._in_force, self._this_host = in_force, this_host
        self._board, self._heartbeats, self._machine = board, table.heartbeats, table.machine
        self.timestamp = 0
        self.started = self.was_ours = False
        self.previous_boot_id = ""
        #: The counter of the last slot that was made.
        self._counter = 0
        self._acknowledged_s: float | None = None
        #: The addresses at which this host is asked: its listener, and its port for heartbeats.
        self.advertised = in_force.config.advertised()
        self._heartbeat_at = in_force.config.heartbeat_advertised() if self._heartbeats.key else ()

    async def take_up(self) -> bool:
        """Continue from this host's slot, so that its timestamp never goes back."""
        try:
            own = await self._board.read_own()
        except StorageTrouble as error:
            self._board.read_problem = str(error)
            return False
        if own is not None:
            # A peer lives by changes alone, so counting anew costs nothing.
            self.timestamp = own.timestamp if own.timestamp <= TIMESTAMP_TAKEN_MAX else 0
            self._counter = min(counter_of(own), COUNTER_WALL_MAX)
            extra = own.extra if own.extra_trusted else {}
            named = own.hostname == fit_hostname(self._in_force.host_name)
            same_machine = extra.get("system-uuid") == self._in_force.system_uuid != ""
            self.was_ours = named and same_machine
            self._this_host.agent.last_ran = slot_lines.last_ran_of(extra)
            self._this_host.vms.take_up(extra, asyncio.get_running_loop().time())
            boot_id = extra.get("boot-id", "")
            is_same = boot_id == self._this_host.boot_id
            self.previous_boot_id = extra.get("previous-boot-id", "") if is_same else boot_id
        self.started = True
        return True

    def is_acknowledged(self) -> None:
        """The storage has acknowledged the last slot at this moment."""
        self._acknowledged_s = asyncio.get_running_loop().time()

    def written_ago_ms(self, now_s: float) -> int | None:
        """How long ago this host's last slot was acknowledged, milliseconds; None: none was."""
        if self._acknowledged_s is None:
            return None
        return max(0, int((now_s - self._acknowledged_s) * 1000.0))

    def make(self, now_s: float) -> SlotReport:
        """The next slot."""
        this_host, in_force = self._this_host, self._in_force
        # Grows with each write, whatever the clock does; starts from the time since boot as
        # the reference's does, so that a person can read it.
        self.timestamp = max(self.timestamp + 1, int(now_s))
        self._counter = next_counter(self._counter, this_host.wall())
        status = this_host.status(now_s)
        # The reference has the time of the host's copy of the configuration here.
        engine_generation = this_host.vms.engine_generation
        extra, left_out = slot_room.fit(self._lines(status, now_s))
        this_host.left_out = len(left_out)
        return SlotReport(
            host_id=in_force.host_id,
            timestamp=self.timestamp,
            score=status.score,
            engine_status=status.engine_status,
            hostname=status.hostname,
            maintenance=status.maintenance,
            stopped=status.stopped,
            conf_on_shared_storage=(
                engine_generation > 0 or in_force.config.vm.shared_definition is not None
            ),
            local_conf_timestamp=min(engine_generation, TIMESTAMP_MAX),
            extra=extra,
        )

    def _lines(self, status: HostStatus, now_s: float) -> dict[str, str]:
        this_host, report = self._this_host, self._this_host.agent.last
        value = this_host.monitors.value
        lines = {
            "state": status.state,
            "agent": status.agent,
            "boot-id": this_host.boot_id,
            COUNTER_LINE: str(self._counter),
            "previous-boot-id": self.previous_boot_id,
            "system-uuid": self._in_force.system_uuid,
            "last-ran": str(this_host.agent.last_ran),
            healthy_once.LINE: this_host.healthy_once.line,
            "memory-image": "yes" if this_host.vm.facts.memory_image else "",
            "domain-type": status.domain_type,
            "unknown": ",".join(status.unknown),
            "beat": str(report.beat) if report is not None else "",
            "reason": status.reason,
            "network": publish(value("network") or ()),
            "intent": this_host.agent.intent_line(now_s),
            "differs": ",".join(status.differs),
            vm_lines.UNPROTECTED: ",".join(ranges(status.unprotected)),
            vm_lines.STUCK: ",".join(ranges(status.stuck)),
            "host-shutdown": status.host_shutdown,
            "outside": slot_lines.outside_line(this_host.outside.seen, now_s),
            "way-out": slot_lines.way_out_line(this_host.outside.way_out_for_others(now_s)),
            "uplink": slot_lines.uplink_line(value("uplink")),
            "api": ",".join(self.advertised),
            "heartbeat": ",".join(self._heartbeat_at),
            "hears": slot_lines.hears_line(
                self._heartbeats.heard_within(HEARS_BEATS * self._in_force.timing.beat, now_s)
            ),
            "touches": slot_lines.hears_line(
                self._machine.answering(HEARS_BEATS * self._in_force.timing.beat, now_s)
            ),
            "memory-short": slot_lines.memory_short_line(status.penalties),
            "mem-free": slot_lines.mem_free_line(value("memory")),
            "fence-ask": slot_lines.fence_ask_line(this_host.fence_ask(now_s)),
            **this_host.vms.lines(now_s),
            **this_host.agent.causes.lines(now_s),
            **vm_lines.reached_lines(this_host.outside.vms_seen, now_s),
            **this_host.modes.lines(now_s),
            **slot_lines.freeing_lines(*this_host.agent.freeing()),
            **{f"penalty-{p.name}": f"{p.points} {p.why}" for p in status.penalties},
            **self._in_force.agreed_lines,
        }
        if report is not None:
            lines |= slot_lines.measured_lines(report.measured)
            lines |= path_lines(report.fence_paths)
        return lines

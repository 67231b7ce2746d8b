# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests of other programs on this host: the agent's for a record in the fence log, a person's
decision about what ran last, systemd's to drain the host."""

from __future__ import annotations

import asyncio
import logging

from broker.config.in_force import InForce
from broker.daemon.errors import HaError
from broker.daemon.news import News
from broker.events.detector import EventDetector
from broker.maintenance.host_shutdown import HostView, VmView, drain_waits
from broker.peers.table import Table
from broker.this_host.facts import ThisHost
from broker.whiteboard.fence_log import LogRecord
from broker.whiteboard.slot import fit_hostname
from broker.whiteboard.store import StorageTrouble
from broker.wire.exchange import FenceNote
from broker.wire.status import HostShutdownStatus
from broker.wire.what_ran import WhatRan
from scoring.observation import FenceStep, OnHostShutdown
from scoring.vm_facts import VmStatus

log = logging.getLogger("ha-broker")


class NotUnderWay(HaError):
    """The fence log has no open record that could be closed."""


class Asked:
    """Carries the requests out."""

    def __init__(
        self,
        in_force: InForce,
        table: Table,
        this_host: ThisHost,
        detector: EventDetector,
        news: News,
    ) -> None:
        self._in_force, self._table, self._this_host = in_force, table, this_host
        self._detector, self._news = detector, news

    async def note_fence(self, note: FenceNote) -> LogRecord | None:
        """Write to the fence log for this host's agent; None: there is no record to close.

        StorageTrouble where that fails.
        """
        now_s = asyncio.get_running_loop().time()
        try:
            written = await self._table.board.append_to_log(
                lambda number: self._record(note, number), now_s
            )
        except NotUnderWay:
            return None
        except StorageTrouble:
            self._news.announce()
            raise
        name = written.target_name
        if note.step is not FenceStep.FREEING:
            self._detector.fenced(
                note.step, note.target, name, note.ordered, note.text, note.withdrawn
            )
        self._news.announce()
        return written

    def _record(self, note: FenceNote, number: int) -> LogRecord:
        table, host_id = self._table, self._in_force.host_id
        newest = table.board.fence_log.under_way
        if note.only_closes and (
            newest is None or (newest.by, newest.target) != (host_id, note.target)
        ):
            raise NotUnderWay
        target = table.members.reports.get(note.target)
        trusted = target is not None and target.extra_trusted
        own = table.lockspace.renewals.table.get(host_id)
        return LogRecord(
            number=number,
            step=note.step,
            by=host_id,
            by_name=fit_hostname(self._in_force.host_name),
            target=note.target,
            target_name=fit_hostname(target.hostname) if target is not None else "",
            boot_id=target.extra.get("boot-id", "") if target and trusted else "",
            wall_s=self._this_host.wall(),
            ordered=note.ordered,
            text=note.text,
            by_generation=0 if own is None else own.generation,
            by_boot=self._this_host.boot_id,
            over=note.over,
            withdrawn=note.withdrawn,
        )

    async def decide_what_ran(self, adopt: bool, who: str) -> WhatRan:
        """Record that what ran last is right, or the definition; CannotDecide, StorageTrouble."""
        this_host, now_s = self._this_host, asyncio.get_running_loop().time()
        is_here = this_host.vm.status(now_s)[0].vm is VmStatus.UP
        up_on = None if is_here else self._table.up_elsewhere()
        record = await this_host.disks.decide(adopt, who, up_on, this_host.agent.last_ran)
        log.warning("what ran last is %s", record.decided)
        self._news.announce()
        return record

    def host_shuts_down(self, now_s: float) -> HostShutdownStatus:
        """Drain this host, which systemd shuts down; returns how far it is."""
        shutdown, modes = self._this_host.shutdown, self._this_host.modes
        if shutdown.say(OnHostShutdown(self._in_force.config.vm.on_host_shutdown), now_s):
            log.warning("this host is shutting down (vm.on-host-shutdown: %s)", shutdown.way)
            mode = shutdown.mode(int(self._this_host.wall())) if shutdown.drains else None
            modes.set_shutdown(mode, now_s)
            self._news.publish()
            self._news.announce()
        return shutdown.status(self._host_view(now_s), now_s, self._in_force.timing)

    def _host_view(self, now_s: float) -> HostView:
        own, engine = self._this_host.status(now_s), self._this_host.vm.status(now_s)[0]
        report = self._this_host.agent.last
        waits = drain_waits(() if report is None else report.reasons)
        reason = waits or own.reason
        return HostView(
            engine=VmView(engine.vm, engine.detail, own.state, reason, own.intent),
            others=self._this_host.vms.left(now_s),
            agent="" if own.agent == "ok" else own.agent,
            arriving=self._table.arriving(now_s),
            global_maintenance=self._table.board.global_maintenance is True,
            joined=self._table.lockspace.joined is True,
        )

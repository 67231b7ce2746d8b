# SPDX-License-Identifier: LGPL-2.1-or-later
"""Takes the agent's report in, and gives out the view that the agent decides on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace

from broker.config.in_force import InForce
from broker.daemon.news import News
from broker.events.detector import EventDetector
from broker.exchange.orders import Orders
from broker.lockspace.own_id_guard import OwnIdGuard
from broker.peers.table import Table
from broker.registry.cache import RegistryCache
from broker.this_host import disks_shown
from broker.this_host.facts import ThisHost
from broker.this_host.slot import OwnSlot
from broker.vm.in_the_way import in_the_way
from broker.whiteboard.lost import lost_since_s, unwritten_since_s
from broker.wire.exchange import Report, View
from broker.wire.hosts import LocalOnWire, PeerOnWire
from broker.wire.status import NewOrder
from scoring.observation import LocalHost, Observation, Order
from scoring.vm_facts import EngineStatus, Obstacle, Unfit, VmHere

log = logging.getLogger("ha-broker")


class Exchange:
    """`orders`: the operators' orders to this host's agent."""

    def __init__(
        self,
        in_force: InForce,
        table: Table,
        this_host: ThisHost,
        own_slot: OwnSlot,
        own_id: OwnIdGuard,
        detector: EventDetector,
        news: News,
        registry: RegistryCache,
    ) -> None:
        self._in_force, self._table, self._this_host = in_force, table, this_host
        self._own_slot, self._own_id = own_slot, own_id
        self._detector, self._news = detector, news
        self._registry = registry
        self.orders = Orders()

    def take_report(self, report: Report, now_s: float) -> None:
        """Take in the agent's report; a new state, or a new claim, is published at once, and all
        slots are read after that."""
        is_urgent = self._this_host.agent.take(report, now_s)
        self._in_force.learn_memory(report.vm_memory_mb)
        names = {host: self._table.name_of(host) for host in report.fence_paths}
        self._detector.reported(report, now_s, self._this_host.wall(), names)
        self.orders.answered(report.answers)
        if is_urgent:
            self._news.publish()

    async def newer_view(self, than: int, patience_s: float) -> View:
        """The view as soon as it is newer than version `than`, or after `patience_s`."""
        await self._news.wait(than, patience_s)
        return self.view(asyncio.get_running_loop().time())

    def place_order(self, wanted: NewOrder) -> Order:
        """Give an order to this host's agent."""
        now_s = asyncio.get_running_loop().time()
        order = self.orders.place(wanted.kind, wanted.target, now_s, wanted.vm)
        log.warning("order %d: %s VM %d %s", order.number, order.kind, order.vm, order.target or "")
        self._news.announce()
        return order

    @property
    def is_joined(self) -> bool:
        """Whether this host is known to be in the lockspace."""
        return self._own_id.is_joined is True

    def view(self, now_s: float) -> View:
        """The view for the agent's next decision."""
        table, this_host, seen = self._table, self._this_host, self.observation(now_s)
        reports, on_disk = table.members.reports, this_host.disks.on_disk
        return View(
            version=self._news.version,
            local=LocalOnWire.of(seen.local),
            peers=tuple(map(PeerOnWire.of, seen.peers)),
            storage_good_since_s=seen.storage_good_since_s,
            sweep=seen.sweep,
            global_maintenance=seen.global_maintenance,
            newer_versions=seen.newer_versions,
            lockspace_joined=seen.lockspace_joined,
            system_uuids={
                host: report.extra.get("system-uuid", "")
                for host, report in reports.items()
                if report.extra_trusted
            },
            hostnames={host: report.hostname for host, report in reports.items()},
            fence_log=seen.fence_log,
            order=self.orders.pending(now_s),
            told_beat=this_host.agent.published_beat,
            announced=seen.announced,
            what_ran=None if on_disk is None else on_disk.record,
            unsure=seen.unsure,
            log_is_written=table.board.log_is_written,
            specs=seen.specs,
            registry=seen.registry,
            damaged=dict(this_host.vms.damaged),
            own_claims=seen.own_claims,
        )

    def observation(self, now_s: float) -> Observation:
        """The observation that the agent makes of `view`, without the operator's order."""
        table, board, known = self._table, self._table.board, self._registry.cached
        return Observation(
            local=self._local(now_s),
            peers=table.peers(),
            storage_good_since_s=board.storage_good_since_s if self._own_slot.started else None,
            sweep=board.sweep,
            global_maintenance=board.global_maintenance,
            newer_versions=table.members.newer_versions,
            lockspace_joined=self._own_id.is_joined,
            fence_log=board.fence_log.recent(now_s),
            unsure=table.same_storage.judgement.unsure,
            announced=self._this_host.agent.announced,
            specs=known.specs,
            registry=known.generation,
            own_claims=self._this_host.vms.own_claims,
        )

    def _local(self, now_s: float) -> LocalHost:
        this_host, value = self._this_host, self._this_host.monitors.value
        memory = this_host.vms.memory()
        report, taken_s = this_host.vm.status(now_s)
        migration = this_host.vm.migration
        engine = VmHere(
            report,
            taken_s,
            lease_held=this_host.vm.lease_held,
            migrating_s=None if migration is None else migration.elapsed_s,
            last_ran=this_host.agent.last_ran,
            config_up_to_date=value("definition"),
            unfit=tuple(self._unfit(report, now_s)),
            domain=this_host.vm.facts,
            healthy_before=this_host.healthy_once.known,
            uplink_up=value("uplink"),
            outside=this_host.outside.seen,
        )
        return LocalHost(
            host_id=self._in_force.host_id,
            vms=(engine, *self._vms(now_s)),
            network=self._table.network(value("network") or (), now_s).fraction,
            bridge_up=value("bridge"),
            mem_free_mb=value("memory"),
            cpu_load=value("cpu_load"),
            maintenance=this_host.modes.is_set,
            storage_lost_since_s=lost_since_s(self._table.board),
            unwritten_since_s=unwritten_since_s(self._table.board),
            fence_path_ok=this_host.agent.own_fence_path(),
            lock_driver=value("lock_driver"),
            shutdown=this_host.shutdown.for_agent,
            way_out=this_host.outside.way_out(),
            total_mb=memory.total_mb,
            free_mb=memory.free_mb,
            free_huge_mb=memory.free_huge_mb,
            reaches=this_host.agent.reaches(),
            may_restart=this_host.modes.may_restart,
        )

    def _vms(self, now_s: float) -> Iterator[VmHere]:
        """The VMs beside the engine, with what this host sees of them on other hosts."""
        seen = self._this_host.outside.vms_seen
        for vm in self._this_host.vms.here(now_s):
            view = seen.get(vm.number)
            yield vm if view is None else replace(vm, outside=view)

    def _unfit(self, engine: EngineStatus, now_s: float) -> Iterator[Unfit]:
        """The obstacles that keep this host from starting the VM."""
        yield from self._table.same_storage.unfit
        proof = self._this_host.monitors.latest.get("can_start")
        if proof is not None and proof.value is False:
            yield Unfit(Obstacle.CANNOT_START, proof.problem)
        if why := self._this_host.vms.lost_leases.of_engine:
            yield Unfit(Obstacle.CANNOT_START, why)
        yield from disks_shown.unfit(self._this_host.disks)
        yield from in_the_way(self._this_host.vm.facts, engine, now_s)

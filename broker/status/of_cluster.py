# SPDX-License-Identifier: LGPL-2.1-or-later
"""The status of the whole cluster, for people, scripts and the metrics."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from broker.config.in_force import InForce
from broker.daemon.histogram import Histogram
from broker.daemon.news import News
from broker.daemon.since import age_s
from broker.events.feed import FENCE_LOG_SHOWN, EventFeed
from broker.maintenance.modes import mode_status
from broker.peers.fence_paths import fence_paths, storage_fence_shown
from broker.peers.outside_watch import reached
from broker.peers.table import Table
from broker.peers.vm_place import VmPlace
from broker.status.bound_now import BoundNow
from broker.status.certificates import certificates
from broker.status.lacking import lacking
from broker.status.monitors import shown_monitors
from broker.status.of_peer import PeerStatus
from broker.status.vms import entries, n_plus_1, short
from broker.status.vms_now import VmsNow
from broker.this_host import disks_shown
from broker.this_host.facts import ThisHost
from broker.this_host.place_seen import PlaceSeen
from broker.whiteboard import lines as slot_lines
from broker.whiteboard.fence_log import LogRecord
from broker.wire.notify import NotifyStatus
from broker.wire.status import (
    STATUS_VERSION,
    EngineSummary,
    FencePathStatus,
    HostStatus,
    Status,
    StorageStatus,
    Times,
)
from broker.wire.vms import VmEntry, VmList
from scoring.hosts.liveness import Liveness
from scoring.lease_times import BUDGET_IO_TIMEOUTS
from scoring.vm.seen import SPEAKS_SEVERAL

#: A status is made anew after this time, even if nothing has changed.
STATUS_FRESH_S = 0.2


@dataclass(frozen=True, slots=True)
class Beside:
    """The further parts of a status. `lateness`: of the beats; `notify`: of the notifications;
    `switched_off`: the record that this host was, None: it was not; `news`: grows with changes.
    `vms`: all VMs as this host sees them."""

    lateness: Histogram
    notify: Callable[[float], NotifyStatus]
    switched_off: Callable[[], LogRecord | None]
    news: News
    vms: VmsNow


class ClusterStatus:
    """Makes the status from what the broker knows already; asks nothing."""

    def __init__(
        self,
        in_force: InForce,
        table: Table,
        this_host: ThisHost,
        place: PlaceSeen,
        feed: EventFeed,
        of_peer: PeerStatus,
        bound: BoundNow,
        beside: Beside,
    ) -> None:
        self._in_force, self._table, self._this_host = in_force, table, this_host
        self._place, self._feed = place, feed
        self._of_peer, self._bound, self._beside = of_peer, bound, beside
        self._made: tuple[float, tuple[object, ...], Status, bytes] | None = None

    def as_json(self, now_s: float) -> bytes:
        """The status as JSON; within STATUS_FRESH_S the same bytes are returned again, so that many
        clients cost no more than one."""
        return self._recent(now_s)[1]

    def vms(self, now_s: float) -> VmList:
        """All VMs, as old as the JSON may be."""
        status, _ = self._recent(now_s)
        return VmList(STATUS_VERSION, status.vms, status.short, status.n_plus_1)

    def _recent(self, now_s: float) -> tuple[Status, bytes]:
        this_host = self._this_host
        made_from = (
            self._beside.news.version,
            this_host.agent.last,
            this_host.monitors.latest.get("engine"),
            this_host.modes.in_force,
            self._table.board.global_mode,
            self._in_force.problem,
            self._in_force.file_s,
            this_host.monitors.latest.get("what_runs"),
            this_host.disks.on_disk,
            this_host.disks.problem,
        )
        old = self._made
        is_same = old is not None and all(map(operator.is_, old[1], made_from))
        if old is None or not is_same or not 0 <= now_s - old[0] < STATUS_FRESH_S:
            status = self.now(now_s)
            old = self._made = (now_s, made_from, status, msgspec.json.encode(status))
        return old[2], old[3]

    def now(self, now_s: float) -> Status:
        """The cluster for people and scripts."""
        in_force, table, board = self._in_force, self._table, self._table.board
        this_host, report, lockspace = self._this_host, self._this_host.agent.last, table.lockspace
        hosts = {in_force.host_id: this_host.shown(now_s)}
        for host_id, slot in board.reports.items():
            hosts[host_id] = self._of_peer.status(slot, now_s)
        known = self._beside.vms.known(now_s)
        vms = entries(known, now_s)
        if self._beside.vms.has_several:
            self._add_room(hosts, vms)
        place = self._place.now(now_s)
        where = None if place.host is None else hosts[place.host]
        paths = self._paths()
        in_use, on_disk = this_host.disks.in_use(), this_host.disks.on_disk
        ended = self._beside.switched_off()
        state_problems = self._feed.events.problem, "" if report is None else report.state_problem
        return Status(
            version=STATUS_VERSION,
            cluster=in_force.config.cluster.name,
            host_id=in_force.host_id,
            engine=self._engine(place, where, hosts, now_s),
            global_maintenance=board.global_maintenance,
            global_mode=mode_status(this_host.modes.global_countdown, now_s),
            monitors=shown_monitors(this_host.monitors.latest, now_s),
            network=table.network(this_host.monitors.value("network") or (), now_s).text,
            config_problem=in_force.problem or ("" if report is None else report.config_problem),
            state_problem="; ".join(filter(None, state_problems)),
            lost_leases=this_host.vms.lost_leases.others,
            registry_problem=self._beside.vms.registry_problem,
            hosts=dict(sorted(hosts.items())),
            bad_slots={slot: fault.cause for slot, fault in sorted(board.bad.items())},
            storage=self._storage(now_s),
            lockspace_budget_s=this_host.lockspace_budget_s(now_s),
            lockspace_budget_max_s=BUDGET_IO_TIMEOUTS * in_force.io_timeout_s,
            may_run=this_host.may_run(now_s),
            beat=times(self._beside.lateness),
            notify=self._beside.notify(now_s),
            lockspace="joined" if lockspace.joined else lockspace.problem,
            reasons=() if report is None else report.reasons,
            fence_log=tuple(
                slot_lines.log_entry(record, signature)
                for record, signature in board.fence_log.shown(FENCE_LOG_SHOWN)
            ),
            fence_paths=tuple(paths),
            storage_fence=storage_fence_shown(
                None if report is None else report.storage_fence, this_host.wall()
            ),
            bound=None if where is None else self._bound.of(where.host_id, paths, hosts, now_s),
            vm_bounds=self._bound.of_vms(known, paths, hosts, now_s),
            migration=this_host.vm.migration,
            differences=disks_shown.differences(in_use),
            what_ran=disks_shown.record(on_disk),
            what_ran_problem=disks_shown.problem(this_host.disks),
            one_host=disks_shown.one_host(in_use),
            lacking=lacking(in_force, table, hosts),
            certificates=certificates(in_force, self._this_host.wall()),
            config_file_s=in_force.file_s,
            switched_off=None if ended is None else slot_lines.log_entry(ended),
            vms=vms,
            short=short(known),
            n_plus_1=n_plus_1(known),
        )

    def _add_room(self, hosts: dict[int, HostStatus], vms: Sequence[VmEntry]) -> None:
        """Say of each host how many VMs are up there, and what room it has."""
        count = Counter(vm.host for vm in vms if vm.up)
        memory = self._this_host.vms.memory()
        room = {self._in_force.host_id: (memory.free_mb, memory.total_mb)}
        peers = {peer.host_id: peer for peer in self._table.published()}
        room |= {host_id: (peer.free_mb, peer.total_mb) for host_id, peer in peers.items()}
        known = {host_id: peer.registry for host_id, peer in peers.items()}
        known[self._in_force.host_id] = self._this_host.vms.generation
        for host_id, host in hosts.items():
            free_mb, total_mb = room.get(host_id, (None, None))
            is_live = host.liveness == Liveness.LIVE.value
            up = count[host_id] if is_live else None
            peer = peers.get(host_id) if is_live and not host.stopped else None
            deaf = peer is not None and peer.speaks < SPEAKS_SEVERAL
            hosts[host_id] = replace(
                host,
                vms=up,
                free_mb=free_mb,
                total_mb=total_mb,
                engine_only=deaf,
                registry=known.get(host_id, 0),
            )

    def _paths(self) -> Sequence[FencePathStatus]:
        report = self._this_host.agent.last
        return fence_paths(
            self._in_force.host_id,
            {} if report is None else report.fence_paths,
            self._table.members.reports.values(),
            self._this_host.wall(),
        )

    def _engine(
        self,
        place: VmPlace,
        where: HostStatus | None,
        hosts: Mapping[int, HostStatus],
        now_s: float,
    ) -> EngineSummary:
        summary = self._feed.place_since.summary(
            place,
            None if where is None else where.hostname,
            self._feed.detector.last_up,
            now_s,
            reached(where, hosts.values(), self._in_force.timing.isolation_after),
        )
        return msgspec.structs.replace(summary, name=self._in_force.config.vm.name)

    def _storage(self, now_s: float) -> StorageStatus:
        in_force, table, board = self._in_force, self._table, self._table.board
        return StorageStatus(
            whiteboard=in_force.config.storage.whiteboard,
            named=bool(in_force.config.cluster.id and table.same_storage.ids.whiteboard),
            signed=table.heartbeats.key is not None,
            last_read_age_s=age_s(board.last_read_s, now_s),
            last_write_age_s=age_s(board.last_write_s, now_s),
            problem=board.problem,
            state=board.state,
            trouble_s=age_s(board.trouble_since_s, now_s),
            errors=board.errors,
            read_times=times(board.read_times),
            write_times=times(board.write_times),
            blind=table.is_blind(now_s),
            unheard=self._this_host.is_unheard(now_s),
        )


def times(histogram: Histogram) -> Times:
    """The times of a histogram, in the form of the status."""
    return Times(
        histogram.count,
        histogram.quantile_s(0.5),
        histogram.quantile_s(0.99),
        histogram.max_s,
    )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""`/metrics`: the broker's knowledge for Prometheus, in its text format or OpenMetrics.

Rules of this file:

1. A scrape reads memory only: it never waits for storage, libvirt, sanlock or the network.
2. Every label has a closed or bounded set of values. Foreign text (host names) is one value per
   host; hosts beyond PEERS_MAX are counted and have no series.
3. An unknown value has no sample: never 0, never a guess.
4. Each host publishes its own state and penalties. About the others it publishes only what it sees
   from outside: score, age, witnesses. So n hosts make n * n series of a few kinds only.

broker/api/families.py has the metrics themselves.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from broker.api.families import BY_NAME, PEERS_MAX
from broker.api.served import Served
from broker.daemon.histogram import Histogram
from broker.daemon.version import VERSION
from broker.events.counts import PHASES
from broker.events.notice import SUBJECT_CHARS_MAX, one_line
from broker.peers.asker import Trouble, Word
from broker.peers.question_gate import QuestionGate, Refusal
from broker.vm.domain_facts import Differs
from broker.wire.status import HostStatus, Status
from scoring.hosts.liveness import Liveness
from scoring.vm.state import StateName
from scoring.vm_facts import ENGINE, Obstacle, VmStatus, Want

MIB = 2**20
#: Two scrapes within this time get the same text: a client that scrapes in a loop costs little.
FRESH_S = 0.2
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = openmetrics.CONTENT_TYPE_LATEST

_STATES = tuple(state.value for state in StateName)
_LIVENESS = tuple(each.value for each in Liveness)
_WORDS = tuple(word.value for word in Word)
_TROUBLES = tuple(trouble.value for trouble in Trouble)
#: Outcomes of a datagram at the port for heartbeats, beside the reasons to refuse it.
_ANSWERED, _DROPPED = "answered", "dropped"
_SANLOCK_STATES = ("free", "live", "fail", "dead", "unknown")
_STORAGE_STATES = ("ok", "error", "hung")
_VERDICTS = ("ok", "bad", "unknown")
#: The names of this host's penalties (docs/status.md); a test holds them together.
PENALTY_NAMES = (
    "config",
    "network",
    "bridge",
    "load",
    "memory",
    "fence-path",
    "retries",
    "lockspace",
    "storage",
    "lock-driver",
    *(obstacle.value for obstacle in Obstacle),
    "agent",
    "local-maintenance",
    "unexpected-down",
    "reinitializing",
    "stopped",
)


class _Sheet:
    """The families of one scrape, filled in."""

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}

    def put(self, name: str, value: float | None, *labels: str) -> None:
        """Add a sample; None: there is none."""
        metric = self._metric(name)
        if value is not None:
            metric.add_metric(labels, float(value))

    def put_one_of(self, name: str, value: str, values: Iterable[str], *labels: str) -> None:
        """1 for the value, 0 for all others; an unknown value makes all of them 0."""
        metric = self._metric(name)
        for each in values:
            metric.add_metric((*labels, each), float(each == value))

    def put_histogram(self, name: str, found: Histogram, *labels: str) -> None:
        buckets, seen = [], 0
        for bound, count in zip((*found.bounds_s, "+Inf"), found.counts, strict=True):
            seen += count
            buckets.append((str(bound), float(seen)))
        self._metric(name).add_metric(labels, buckets, found.sum_s)

    def _metric(self, name: str) -> Any:
        full = f"ha_agent_{name}"
        metric = self._metrics.get(full)
        if metric is None:
            family = BY_NAME[full]
            kind: Any = family.kind
            metric = self._metrics[full] = kind(full, family.help, labels=family.labels)
        return metric

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._metrics.values())


@dataclass(slots=True)
class ListenerFigures:
    """The figures of the TCP listener."""

    connections: Callable[[], int] = lambda: 0
    refused: Callable[[], int] = lambda: 0


class Metrics(Collector):
    """The metrics of one broker; `clock`: the broker's monotonic clock."""

    def __init__(
        self,
        broker: Served,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
        figures: ListenerFigures | None = None,
    ) -> None:
        """`wall`: UTC seconds since 1970."""
        self._broker = broker
        self._clock = clock
        self._wall = wall
        self._figures = figures or ListenerFigures()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._texts: dict[str, tuple[float, bytes]] = {}

    def text(self, accept: str) -> tuple[bytes, str]:
        """The answer to a scrape and its content type; `accept`: the header of that name."""
        kind = OPENMETRICS if "application/openmetrics-text" in accept else PLAIN
        made_s, text = self._texts.get(kind, (float("-inf"), b""))
        now_s = self._clock()
        if now_s - made_s >= FRESH_S:
            write = openmetrics.generate_latest if kind == OPENMETRICS else generate_latest
            text = write(self._registry)
            self._texts[kind] = now_s, text
        return text, kind

    def describe(self) -> Iterable[Metric]:
        """Nothing: so the registry does not collect in order to learn the names."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All metrics, made from one status."""
        now_s = self._clock()
        status = self._broker.shown.now(now_s)
        sheet = _Sheet()
        sheet.put("build_info", 1, VERSION, platform.python_version())
        self._engine(sheet, status)
        _vms(sheet, status)
        self._host(sheet, status, now_s)
        self._peers(sheet, status)
        _questions(sheet, self._broker.gate)
        self._storage(sheet, status)
        _monitors(sheet, status)
        self._events(sheet, status)
        _notify(sheet, status)
        sheet.put("tasks", len(asyncio.all_tasks()))
        sheet.put("api_connections", self._figures.connections())
        sheet.put("api_connections_refused", self._figures.refused())
        return sheet

    def _engine(self, sheet: _Sheet, status: Status) -> None:
        own = status.hosts[status.host_id]
        sheet.put("engine_up", status.engine.up)
        sheet.put("engine_healthy", status.engine.healthy)
        nowhere = 0 if status.engine.up is False else None
        sheet.put("engine_host_id", nowhere if status.engine.host is None else status.engine.host)
        vm = own.engine_status.vm
        sheet.put("engine_here", None if vm is VmStatus.UNKNOWN else vm is VmStatus.UP)
        sheet.put("engine_lease_held", self._broker.this_host.vm.lease_held)
        sheet.put("vm_reached", status.engine.reached)
        sheet.put("vm_seen_from_outside", None)
        lookers = [host for host in status.hosts.values() if host.outside is not None]
        for host in lookers[:PEERS_MAX]:
            if host.outside is not None and host.outside.owner == status.engine.host:
                sheet.put("vm_seen_from_outside", host.outside.bad_s is None, str(host.host_id))
        migration = status.migration
        sheet.put(
            "migration_progress_ratio", None if migration is None else migration.percent / 100
        )
        sheet.put("takeover_bound_seconds", None)
        if (found := status.bound) is not None and not found.held:
            for part in ("detect", "prove", "lease", "boot", "total"):
                sheet.put("takeover_bound_seconds", getattr(found, f"{part}_s"), part)

    def _host(self, sheet: _Sheet, status: Status, now_s: float) -> None:
        own = status.hosts[status.host_id]
        points = {part.name: part.points for part in own.penalties}
        for name in PENALTY_NAMES:
            sheet.put("penalty_points", points.get(name, 0), name)
        sheet.put("score", own.score)
        sheet.put("switched_off", status.switched_off is not None)
        sheet.put_one_of("state", own.state, _STATES)
        sheet.put("agent_reporting", self._broker.this_host.agent.silent_s(now_s) is None)
        sheet.put("agent_stopped", own.stopped)
        differs = {each.code for each in status.differences}
        for code in Differs:
            sheet.put("vm_differs", code.value in differs, code.value)
        sheet.put("start_held_back", bool(self._broker.this_host.disks.held_back))
        sheet.put("one_host_state", len(status.one_host))
        sheet.put("config_refused", bool(status.config_problem))
        sheet.put("transitions", None)
        for (old, new), count in sorted(self._broker.counts.transitions.items()):
            sheet.put("transitions", count, old, new)
        for mode, is_set, found in (
            ("global", status.global_maintenance, status.global_mode),
            ("local", own.maintenance, own.mode),
        ):
            sheet.put("maintenance", is_set, mode)
            sheet.put("maintenance_left_seconds", None if found is None else found.left_s, mode)

    @staticmethod
    def _peers(sheet: _Sheet, status: Status) -> None:
        peers = [host for host in status.hosts.values() if not host.local]
        sheet.put("peers_left_out", max(0, len(peers) - PEERS_MAX))
        for name in _OF_PEERS:
            sheet.put(name, None)
        for host in (status.hosts[status.host_id], *peers[:PEERS_MAX]):
            labels = (str(host.host_id), one_line(host.hostname, SUBJECT_CHARS_MAX))
            sheet.put("host_score", host.score, *labels)
            if not host.local:
                _peer(sheet, host, labels)
        sheet.put("bad_slots", len(status.bad_slots))
        not_counted = sum(bool(host.not_counted) for host in status.hosts.values())
        sheet.put("slots_not_counted", not_counted)

    def _storage(self, sheet: _Sheet, status: Status) -> None:
        sheet.put("lockspace_joined", status.lockspace == "joined")
        sheet.put("lease_budget_seconds", status.lockspace_budget_s)
        sheet.put("lease_budget_max_seconds", status.lockspace_budget_max_s)
        broker, storage = self._broker, status.storage
        sheet.put_histogram("beat_lateness_seconds", broker.lateness)
        sheet.put_histogram("beat_duration_seconds", broker.durations)
        sheet.put_histogram("storage_read_seconds", broker.board.read_times)
        sheet.put_histogram("storage_write_seconds", broker.board.write_times)
        sheet.put("storage_errors", storage.errors)
        sheet.put_one_of("storage_state", storage.state, _STORAGE_STATES)
        sheet.put("storage_trouble_seconds", storage.trouble_s or 0.0)
        sheet.put("storage_read_age_seconds", storage.last_read_age_s)
        sheet.put("storage_write_age_seconds", storage.last_write_age_s)

    def _events(self, sheet: _Sheet, status: Status) -> None:
        counts = self._broker.counts
        sheet.put("failovers", counts.failovers)
        for phase in PHASES:
            sheet.put_histogram("failover_seconds", counts.phases[phase], phase)
        for outcome, count in counts.fences.items():
            sheet.put("fences", count, outcome)
        sheet.put("fence_path_ok", None)
        sheet.put("fence_path_proven_timestamp_seconds", None)
        for path in status.fence_paths:
            if path.by == status.host_id:
                at_s = None if path.proven_age_s is None else self._wall() - path.proven_age_s
                sheet.put("fence_path_ok", path.ok, str(path.host))
                sheet.put("fence_path_proven_timestamp_seconds", at_s, str(path.host))
        fence = status.storage_fence
        proven_age_s = None if fence is None else fence.proven_age_s
        at_s = None if proven_age_s is None else self._wall() - proven_age_s
        sheet.put("storage_fence_ok", None if fence is None else fence.ok)
        sheet.put("storage_fence_proven_timestamp_seconds", at_s)


def _vms(sheet: _Sheet, status: Status) -> None:
    """Each VM; and whether all have a place, and would have one after the death of a host."""
    for name in _OF_VMS:
        sheet.put(name, None)
    for vm in status.vms:
        sheet.put("vm_wanted", vm.want == Want.UP, vm.name)
        sheet.put("vm_up", vm.up, vm.name)
        sheet.put("vm_healthy", vm.healthy, vm.name)
        nowhere = 0 if vm.up is False else None
        sheet.put("vm_host_id", vm.host if vm.up else nowhere, vm.name)
        if vm.number != ENGINE:
            sheet.put("vm_unlike_definition", bool(vm.differs) if vm.up else None, vm.name)
    if len(status.vms) < 2:
        return
    sheet.put("vms_without_place", len(status.short))
    for host in list(status.hosts.values())[:PEERS_MAX]:
        if host.liveness == Liveness.LIVE.value:
            short_mb = sum(e.short_mb for e in status.n_plus_1 if e.if_dies == host.host_id)
            name = one_line(host.hostname, SUBJECT_CHARS_MAX)
            sheet.put("n_plus_1_short_bytes", short_mb * MIB, name)


_OF_VMS = (
    "vm_wanted",
    "vm_up",
    "vm_healthy",
    "vm_host_id",
    "vm_unlike_definition",
    "vms_without_place",
    "n_plus_1_short_bytes",
)
_OF_PEERS = (
    "host_score",
    "peer_liveness",
    "peer_stopped",
    "peer_config_drift",
    "peer_other_storage",
    "peer_witness_age_seconds",
    "peer_heartbeat",
    "peer_heartbeat_trouble",
    "peer_sanlock",
    "peer_bad_answers",
)


def _peer(sheet: _Sheet, host: HostStatus, labels: tuple[str, str]) -> None:
    sheet.put_one_of("peer_liveness", host.liveness, _LIVENESS, *labels)
    sheet.put("peer_stopped", host.stopped, *labels)
    sheet.put("peer_config_drift", len(host.config_drift), *labels)
    sheet.put("peer_other_storage", bool(host.other_storage), *labels)
    seen = host.witnesses
    if seen is None:
        return
    ages = {
        "whiteboard": seen.whiteboard_age_s,
        "network": seen.heartbeat_age_s,
        "sanlock": seen.renewal_age_s,
    }
    for witness, age_s in ages.items():
        sheet.put("peer_witness_age_seconds", age_s, *labels, witness)
    sheet.put_one_of("peer_heartbeat", seen.heartbeat, _WORDS, *labels)
    sheet.put_one_of("peer_heartbeat_trouble", seen.heartbeat_trouble, _TROUBLES, *labels)
    sheet.put_one_of("peer_sanlock", seen.sanlock_state, _SANLOCK_STATES, *labels)
    for cause, count in seen.bad_answers.items():
        sheet.put("peer_bad_answers", count, *labels, cause)


def _questions(sheet: _Sheet, gate: QuestionGate) -> None:
    sheet.put("heartbeat_questions", gate.answered, _ANSWERED)
    sheet.put("heartbeat_questions", gate.dropped(), _DROPPED)
    for why in Refusal:
        sheet.put("heartbeat_questions", gate.refused[why], why.value)


def _monitors(sheet: _Sheet, status: Status) -> None:
    for name in ("value", "age_seconds", "duration_seconds", "verdict"):
        sheet.put(f"monitor_{name}", None)
    sheet.put("network_target_ratio", None)
    for name, monitor in status.monitors.items():
        value = monitor.value
        if isinstance(value, dict):
            for target, ratio in value.items():
                sheet.put("network_target_ratio", ratio, target)
        elif isinstance(value, bool | int | float):
            sheet.put("monitor_value", value, name)
        sheet.put("monitor_age_seconds", monitor.age_s, name)
        sheet.put("monitor_duration_seconds", monitor.took_s, name)
        sheet.put_one_of("monitor_verdict", monitor.verdict, _VERDICTS, name)


def _notify(sheet: _Sheet, status: Status) -> None:
    notify = status.notify
    sheet.put("notices_told", notify.told)
    sheet.put("notices_dropped", notify.dropped)
    sheet.put("notices_folded", notify.folded)
    sheet.put("notify_broken", bool(notify.problem))
    for name in ("notify_messages", "notify_dropped", "notify_queued"):
        sheet.put(name, None)
    for transport, found in notify.transports.items():
        sheet.put("notify_messages", found.sent, transport, "sent")
        sheet.put("notify_messages", found.failed, transport, "failed")
        sheet.put("notify_dropped", found.dropped, transport)
        sheet.put("notify_queued", found.queued, transport)

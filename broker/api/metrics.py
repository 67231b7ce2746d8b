# SPDX-License-Identifier: LGPL-2.1-or-later
"""`/metrics`: the broker's knowledge for Prometheus, in its text format or OpenMetrics.

Rules of this file:

1. A scrape reads memory only: it never waits for storage, libvirt, sanlock or the network.
2. Every label has a closed or bounded set of values. Foreign text (host names) is one value per
   host; hosts beyond PEERS_MAX are counted and have no series.
3. An unknown value has no sample: never 0, never a guess.
4. Each host publishes its own state and penalties. About the others it publishes only what it sees
   from outside: score, age, witnesses. So n hosts make n * n series of a few kinds only.

docs/metrics.md says what each one means; a test holds the two together.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

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
from scoring.vm_facts import Obstacle, VmStatus

PEERS_MAX = 256
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


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: `name` without the `_total` of a counter."""

    name: str
    kind: type[Metric]
    labels: tuple[str, ...]
    help: str

    @property
    def shown_name(self) -> str:
        """The name in a query."""
        return f"{self.name}_total" if self.kind is CounterMetricFamily else self.name


def _family(kind: type[Metric]) -> Callable[..., Family]:
    def make(name: str, help_text: str, *labels: str) -> Family:
        return Family(f"ha_agent_{name}", kind, labels, help_text)

    return make


_gauge = _family(GaugeMetricFamily)
_counter = _family(CounterMetricFamily)
_histogram = _family(HistogramMetricFamily)

_PEER = ("host_id", "host")

FAMILIES: tuple[Family, ...] = (
    _gauge("build_info", "1; which version runs.", "version", "python"),
    # The engine.
    _gauge("engine_up", "Some host has the engine up."),
    _gauge("engine_healthy", "And its health is good."),
    _gauge("engine_host_id", "Id of the host that has it up, 0 for none."),
    _gauge("engine_here", "The engine is up on this host."),
    _gauge("engine_lease_held", "The engine's process on this host holds the engine lease."),
    _gauge("vm_reached", "Other hosts reach the VM as its users do."),
    _gauge("vm_seen_from_outside", "Each host's last question to the VM was answered.", "by"),
    _gauge("migration_progress_ratio", "How far the migration away from this host is."),
    _gauge("takeover_bound_seconds", "What a takeover would take now, by part.", "part"),
    # This host.
    _gauge("host_score", "Score of each host; of a silent one the last it published.", *_PEER),
    _gauge("score", "This host's own score."),
    _gauge("penalty_points", "What this host's score lacks, by reason.", "penalty"),
    _gauge("state", "1 for the state this host's agent is in, 0 for the others.", "state"),
    _gauge("agent_reporting", "This host's agent reports to its broker."),
    _gauge("agent_stopped", "This host's agent ended in good order."),
    _gauge("switched_off", "This host was switched off, or found without power, in its last boot."),
    _gauge("vm_differs", "What of the VM here is otherwise than its definition, by code.", "code"),
    _gauge("start_held_back", "A start here would not boot what ran last, and is held back."),
    _gauge("one_host_state", "Things of the VM on one host alone that cost data at a takeover."),
    _gauge("config_refused", "The configuration file as it is now is not in force."),
    _counter("transitions", "Changes of this host's state.", "from_state", "to_state"),
    # The others, as this host sees them.
    _gauge("peers_left_out", f"Hosts beyond {PEERS_MAX}, which have no series."),
    _gauge("peer_liveness", "1 for what this host takes each peer for.", *_PEER, "liveness"),
    _gauge("peer_stopped", "The peer's agent ended in good order.", *_PEER),
    _gauge("peer_config_drift", "Values that the peer has otherwise than this host.", *_PEER),
    _gauge("peer_other_storage", "The peer does not see the storage seen here.", *_PEER),
    _gauge(
        "peer_witness_age_seconds",
        "Since each witness last saw the peer alive.",
        *_PEER,
        "witness",
    ),
    _gauge("peer_heartbeat", "1 for what the network says of each peer.", *_PEER, "answer"),
    _gauge("peer_sanlock", "1 for what sanlock says of each peer's host id.", *_PEER, "state"),
    _gauge(
        "peer_heartbeat_trouble",
        "The network's word is missing on a peer whose slot is written, by code.",
        *_PEER,
        "code",
    ),
    _counter("peer_bad_answers", "Answers that were no sign of life.", *_PEER, "cause"),
    _gauge("bad_slots", "Whiteboard slots that cannot be read."),
    _gauge("slots_not_counted", "Slots whose word does not count: no member wrote them."),
    _counter("heartbeat_questions", "Datagrams at the port for heartbeats.", "outcome"),
    # Leases.
    _gauge("lockspace_joined", "This host holds its host id in the lockspace."),
    _gauge("lease_budget_seconds", "Until sanlock ends the engine here if storage stays away."),
    _gauge("lease_budget_max_seconds", "The whole of it."),
    # The beat and the storage.
    _histogram("beat_lateness_seconds", "How late beats begin."),
    _histogram("beat_duration_seconds", "How long beats take."),
    _histogram("storage_read_seconds", "Reads of the whiteboard."),
    _histogram("storage_write_seconds", "Writes of this host's slot."),
    _counter("storage_errors", "Reads and writes of the whiteboard that failed."),
    _gauge("storage_state", "1 for how the whiteboard's storage is.", "state"),
    _gauge("storage_trouble_seconds", "For how long it has not been ok, 0 while it is."),
    _gauge("storage_read_age_seconds", "Since the last good read."),
    _gauge("storage_write_age_seconds", "Since the last good write."),
    # Monitors.
    _gauge("monitor_value", "The latest value, in the monitor's own unit.", "monitor"),
    _gauge("monitor_age_seconds", "How old it is.", "monitor"),
    _gauge("monitor_duration_seconds", "How long the latest sample took.", "monitor"),
    _gauge("monitor_verdict", "1 for what it means.", "monitor", "verdict"),
    _gauge("network_target_ratio", "Tests that a target answered in its last window.", "target"),
    # Failovers and fencing.
    _counter("failovers", "Takeovers of the engine that this host has completed."),
    _histogram("failover_seconds", "How long they took, by phase.", "phase"),
    _counter("fences", "What became of this host's fencing.", "outcome"),
    _gauge("fence_path_ok", "This host reaches that host's fence device.", "host_id"),
    _gauge(
        "fence_path_proven_timestamp_seconds",
        "When that was last proven, seconds since 1970.",
        "host_id",
    ),
    # Maintenance.
    _gauge("maintenance", "The mode is set; local: on this host.", "mode"),
    _gauge("maintenance_left_seconds", "Until it ends by itself.", "mode"),
    # Notifications.
    _counter("notices_told", "Notices of what happened."),
    _counter("notices_dropped", "Notices dropped before they reached a channel."),
    _counter("notices_folded", "Notices held back, since the same one was sent lately."),
    _gauge("notify_broken", "Notifications are not as configured."),
    _counter("notify_messages", "Messages by channel and result.", "transport", "result"),
    _counter("notify_dropped", "Notices that a channel had no room for.", "transport"),
    _gauge("notify_queued", "Notices that wait for a channel.", "transport"),
    # The listener.
    _gauge("tasks", "Tasks of the broker's event loop."),
    _gauge("api_connections", "Open connections to the TCP listener."),
    _counter("api_connections_refused", "Connections turned away: there were too many."),
)
BY_NAME: Mapping[str, Family] = {family.name: family for family in FAMILIES}
assert len(BY_NAME) == len(FAMILIES)


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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The metrics that a broker has: name, kind, labels and help of each. docs/metrics.md says what
each one means; a test holds the two together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

PEERS_MAX = 256


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
    _gauge("engine_healthy", "The health of the engine is good."),
    _gauge("engine_host_id", "Id of the host that has the engine up, 0 for none."),
    _gauge("engine_here", "The engine is up on this host."),
    _gauge("engine_lease_held", "The engine's process on this host holds the engine lease."),
    _gauge("vm_reached", "Other hosts reach the VM as its users do."),
    _gauge("vm_seen_from_outside", "The last question of each host to the VM was answered.", "by"),
    _gauge("migration_progress_ratio", "Progress of the migration away from this host, 0 to 1."),
    _gauge("takeover_bound_seconds", "Duration of a takeover if it began now, by part.", "part"),
    # All VMs, the engine among them.
    _gauge("vm_wanted", "An administrator wants this VM to run.", "vm"),
    _gauge("vm_up", "Some host has this VM up.", "vm"),
    _gauge("vm_healthy", "The health of this VM is good.", "vm"),
    _gauge("vm_host_id", "Id of the host that has this VM up, 0 for none.", "vm"),
    _gauge("vm_unlike_definition", "This VM runs unlike its definition.", "vm"),
    _gauge("vms_without_place", "VMs that are to run and that no host has the room for."),
    _gauge(
        "n_plus_1_short_bytes",
        "Memory that VMs would be short of after the death of each host.",
        "host",
    ),
    # This host.
    _gauge("host_score", "Score of each host; of a silent one the last it published.", *_PEER),
    _gauge("score", "This host's own score."),
    _gauge("penalty_points", "Points that this host's score lacks, by reason.", "penalty"),
    _gauge("state", "1 for the state that this host's agent is in, 0 for the others.", "state"),
    _gauge("agent_reporting", "This host's agent reports to its broker."),
    _gauge("agent_stopped", "This host's agent ended in good order."),
    _gauge("switched_off", "This host was switched off, or found without power, in its last boot."),
    _gauge("vm_differs", "Facts of the VM here that differ from its definition, by code.", "code"),
    _gauge("start_held_back", "A start here would not boot what ran last, and is held back."),
    _gauge("one_host_state", "Things of the VM on one host alone that a takeover would lose."),
    _gauge("config_refused", "The configuration file as it is now is not in force."),
    _counter("transitions", "Changes of this host's state.", "from_state", "to_state"),
    # The others, as this host sees them.
    _gauge("peers_left_out", f"Hosts beyond {PEERS_MAX}, which have no series."),
    _gauge(
        "peer_liveness", "1 for the liveness that this host sees of each peer.", *_PEER, "liveness"
    ),
    _gauge("peer_stopped", "The peer's agent ended in good order.", *_PEER),
    _gauge(
        "peer_config_drift",
        "Values that differ between the peer's configuration and this host's.",
        *_PEER,
    ),
    _gauge("peer_other_storage", "The peer does not see the storage seen here.", *_PEER),
    _gauge(
        "peer_witness_age_seconds",
        "Time since each witness last saw the peer alive.",
        *_PEER,
        "witness",
    ),
    _gauge("peer_heartbeat", "1 for the answer of the network about each peer.", *_PEER, "answer"),
    _gauge(
        "peer_sanlock",
        "1 for the state that sanlock reports of each peer's host id.",
        *_PEER,
        "state",
    ),
    _gauge(
        "peer_heartbeat_trouble",
        "1 for why the network's word is missing on a peer whose slot is written, by code.",
        *_PEER,
        "code",
    ),
    _counter("peer_bad_answers", "Answers of the peer that were no sign of life.", *_PEER, "cause"),
    _gauge("bad_slots", "Whiteboard slots that cannot be read."),
    _gauge("slots_not_counted", "Slots whose word does not count: no member wrote them."),
    _counter("heartbeat_questions", "Datagrams at the port for heartbeats.", "outcome"),
    # Leases.
    _gauge("lockspace_joined", "This host holds its host id in the lockspace."),
    _gauge("lease_budget_seconds", "Time until sanlock ends the VMs here if storage stays away."),
    _gauge("lease_budget_max_seconds", "Length of the whole lease budget."),
    # The beat and the storage.
    _histogram("beat_lateness_seconds", "Lateness of the beginnings of beats."),
    _histogram("beat_duration_seconds", "Duration of beats."),
    _histogram("storage_read_seconds", "Reads of the whiteboard."),
    _histogram("storage_write_seconds", "Writes of this host's slot."),
    _counter("storage_errors", "Reads and writes of the whiteboard that failed."),
    _gauge("storage_state", "1 for the state of the whiteboard's storage.", "state"),
    _gauge("storage_trouble_seconds", "Time for which the storage has not been ok, 0 while it is."),
    _gauge("storage_read_age_seconds", "Time since the last good read."),
    _gauge("storage_write_age_seconds", "Time since the last good write."),
    # Monitors.
    _gauge("monitor_value", "Latest value of each monitor, in its own unit.", "monitor"),
    _gauge("monitor_age_seconds", "Age of the latest value.", "monitor"),
    _gauge("monitor_duration_seconds", "Duration of the latest sample.", "monitor"),
    _gauge("monitor_verdict", "1 for the verdict on the latest value.", "monitor", "verdict"),
    _gauge("network_target_ratio", "Tests that a target answered in its last window.", "target"),
    # Failovers and fencing.
    _counter("failovers", "Takeovers of the engine that this host has completed."),
    _histogram("failover_seconds", "Duration of completed takeovers, by phase.", "phase"),
    _counter("fences", "Fencing acts of this host, by outcome.", "outcome"),
    _gauge("fence_path_ok", "This host reaches that host's fence device.", "host_id"),
    _gauge(
        "fence_path_proven_timestamp_seconds",
        "Time of the last proof of that path, seconds since 1970.",
        "host_id",
    ),
    # Maintenance.
    _gauge("storage_fence_ok", "This host could cut a dead host off the storage."),
    _gauge(
        "storage_fence_proven_timestamp_seconds",
        "Time of the last proof of that, seconds since 1970.",
    ),
    _gauge("maintenance", "The maintenance mode is set; local: on this host.", "mode"),
    _gauge("maintenance_left_seconds", "Time until the mode ends by itself.", "mode"),
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
    _counter(
        "api_connections_refused",
        "Connections to the TCP listener that were refused because there were too many.",
    ),
)
BY_NAME: Mapping[str, Family] = {family.name: family for family in FAMILIES}
assert len(BY_NAME) == len(FAMILIES)

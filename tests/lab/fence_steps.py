# SPDX-License-Identifier: LGPL-2.1-or-later
"""The protocol of a fence as it is seen from outside, step by step: on the shared storage, by
the BMCs' own logs, by who runs. Nothing here asks the daemons, and none of them knows.

Where a lease stands on disk: sanlock's src/ondisk.c, leader_record_in. A resource's owner and
a host id are free when the timestamp is 0.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from broker.whiteboard.fence_log import FIRST_SLOT, RECORDS, LogRecord, decode
from scoring.observation import FenceStep

from . import ask, bmc
from .cluster import Cluster
from .layout import FENCE_LEASE_OFFSET, SLOT_BYTES, host_id_of

SECTOR_BYTES = 512
POLL_S = 0.003
#: Until the VM is healthy on another host.
HEALTHY_S = 60.0
_LEADER = struct.Struct("<4I 5Q 48s 48s Q")


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease on disk. `timestamp` 0: free; `owner` then tells who had it last."""

    owner: int
    generation: int
    timestamp: int


def lease_at(cluster: Cluster, offset: int) -> Lease:
    """What stands at an offset of the lease volume, past every fault."""
    with cluster.layout.leases.open("rb") as volume:
        volume.seek(offset)
        fields = _LEADER.unpack(volume.read(_LEADER.size))
    return Lease(owner=fields[6], generation=fields[7], timestamp=fields[11])


def host_id_lease(cluster: Cluster, host: str) -> Lease:
    """A host's id in the lockspace."""
    return lease_at(cluster, (host_id_of(host) - 1) * SECTOR_BYTES)


def fence_lease(cluster: Cluster) -> Lease:
    """The lease that a fencer holds for the whole act."""
    return lease_at(cluster, FENCE_LEASE_OFFSET)


def fence_log(cluster: Cluster) -> list[LogRecord]:
    """The fence log, oldest first."""
    with cluster.layout.whiteboard.open("rb") as volume:
        volume.seek(FIRST_SLOT * SLOT_BYTES)
        ring = volume.read(RECORDS * SLOT_BYTES)
    slots = (ring[at : at + SLOT_BYTES] for at in range(0, len(ring), SLOT_BYTES))
    return sorted(filter(None, map(decode, slots)), key=lambda record: record.number)


class Fence:
    """What has become of one host since now, when it is still well."""

    def __init__(self, cluster: Cluster, victim: str) -> None:
        self.cluster = cluster
        self.victim = victim
        self._victim_id = host_id_of(victim)
        self._seen = max((record.number for record in fence_log(cluster)), default=0)
        self._calls = {host: len(self._calls_of(host)) for host in cluster.hosts}
        self._logs = {
            host: cluster.log_path(host, "agent").stat().st_size
            for host in cluster.hosts
            if host != victim
        }

    def _calls_of(self, host: str) -> list[tuple[float, str]]:
        return bmc.calls(self.cluster.layout.host(host_id_of(host)))

    def calls(self, host: str = "") -> list[tuple[float, str]]:
        """The questions and orders that the BMC of the host (the victim's) has had since."""
        host = host or self.victim
        return self._calls_of(host)[self._calls[host] :]

    def told(self, what: str, host: str = "") -> int:
        """How often a BMC said that, or had that order."""
        return sum(call == what for _, call in self.calls(host))

    def shot(self) -> list[str]:
        """The hosts that somebody ordered off."""
        return [host for host in self.cluster.hosts if self.told("ordered:off", host)]

    def records(self) -> list[LogRecord]:
        """New records of the fence log about it."""
        return [
            record
            for record in fence_log(self.cluster)
            if record.number > self._seen and record.target == self._victim_id
        ]

    def logged(self, step: FenceStep) -> bool:
        """Whether the fence log says so of it."""
        return any(record.step is step for record in self.records())

    def freed(self) -> bool:
        """Whether its host id is free on disk."""
        return host_id_lease(self.cluster, self.victim).timestamp == 0

    def fencer(self) -> str | None:
        """Who holds the fence lease, or had it last; before anybody did, who suspects."""
        lease = fence_lease(self.cluster)
        if lease.timestamp:
            return f"host{lease.owner}"
        return next((host for host in self._logs if self.suspects(host)), None)

    def suspects(self, host: str) -> bool:
        """Whether that host's agent says that it asks who owns the lease, or the power."""
        with self.cluster.log_path(host, "agent").open("rb") as log:
            log.seek(self._logs[host])
            news = log.read()
        return b"lease-asked" in news or b"power-asked" in news

    def offs_since_order(self) -> int:
        """Readings of "off" since it was last ordered off."""
        calls = [what for _, what in self.calls()]
        if "ordered:off" not in calls:
            return 0
        last = len(calls) - calls[::-1].index("ordered:off")
        return calls[last:].count("power:0")


#: Steps that can be seen from outside, in the order of a fence of a hung host.
STEPS: dict[str, Callable[[Fence], bool]] = {
    "suspected": lambda fence: fence.fencer() is not None,
    "power asked": lambda fence: bool(fence.calls()),
    "fence lease taken": lambda fence: fence_lease(fence.cluster).timestamp != 0,
    "intent logged": lambda fence: fence.logged(FenceStep.INTENT),
    "ordered off": lambda fence: bool(fence.told("ordered:off")),
    "off": lambda fence: not fence.cluster.is_on(fence.victim),
    "off read once": lambda fence: fence.offs_since_order() >= 1,
    "off read twice": lambda fence: fence.offs_since_order() >= 2,
    "host id freed": lambda fence: fence.freed(),
    "death logged": lambda fence: fence.logged(FenceStep.DEAD),
    "VM process there": lambda fence: any(
        fence.cluster.census().engines(host) for host in fence.cluster.hosts if host != fence.victim
    ),
    "ordered on": lambda fence: bool(fence.told("ordered:on")),
    "return logged": lambda fence: fence.logged(FenceStep.BACK),
}


def wait_for(fence: Fence, step: str, within_s: float) -> None:
    """Returns a few milliseconds after the step; AssertionError when it does not come."""
    for _ in polls(within_s, f"{fence.victim}: {step}"):
        if STEPS[step](fence):
            return


def polls(within_s: float, what: str) -> Iterator[None]:
    """Turns of a quick look for something; AssertionError when they are over."""
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        yield
        time.sleep(POLL_S)
    raise AssertionError(f"not within {within_s:.0f} s: {what}")


def others(lab: Cluster, host: str) -> list[str]:
    """The hosts but this one."""
    return [name for name in lab.hosts if name != host]


def reasons(lab: Cluster, host: str) -> str:
    """Codes and texts of what it decided last."""
    return "; ".join(f"{one['code']}: {one['text']}" for one in ask.status(lab, host)["reasons"])


def somebody_says(lab: Cluster, fence: Fence, *words: str) -> bool:
    """Whether a reason on one of the other hosts has all these words."""
    told = [reasons(lab, host) for host in others(lab, fence.victim) if lab.is_on(host)]
    return any(all(word in text for word in words) for text in told)


def is_spared(lab: Cluster, fence: Fence) -> bool:
    """Nobody is ordered off, nobody's id is freed, the VM is started nowhere else."""
    started = [host for host in others(lab, fence.victim) if lab.census().engines(host)]
    return not (fence.shot() or fence.freed() or started)


def comes_back(lab: Cluster, host: str) -> None:
    """Switched on by whoever runs the VM, who tries that once a minute; in its place again."""
    ask.until(f"{host} is switched on again", 90, lambda: lab.is_on(host))
    lab.wait_booted(host)
    ask.until(f"{host} is back", 60, lambda: ask.state(lab, host) == "EngineDown")

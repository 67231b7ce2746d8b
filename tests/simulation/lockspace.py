# SPDX-License-Identifier: LGPL-2.1-or-later
"""sanlock's rules on a simulated lease volume: delta leases, resources, expiry, host-dead time.

What is modelled (sanlock's src/delta_lease.c, paxos_lease.c, lockspace.c, timeouts.h):

    joining a free id, or one whose lease has our name      2 * io_timeout
    joining an id that somebody used                        8 * io_timeout + 60 of standstill
    renewing                                                every 2 * io_timeout
    no renewal for 8 * io_timeout                           lease holders are killed
    no end to them 60 s later                               the watchdog resets the host
    an owner's renewal stands still 8 * io_timeout + 60     it is dead, its resources are free

A write of a delta lease may land late (`write`): it then puts back the whole of what it was
meant to say, whatever is there by then. The daemon goes on when it has ended: with no renewal
meanwhile, and with none at all where it took longer than io_timeout (SANLK_AIO_TIMEOUT). What is
late of a resource is refused, for its protocol reads again what it wrote.

A daemon sees the others' renewals only when it makes its own: what it tells of them may be
2 * io_timeout old. All its durations are of its host's clock.

A daemon that dies while it is in the lockspace dooms its host: the watchdog is no longer
fed when the last renewal is 8 * io_timeout old, whatever is started meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from enum import Enum

from scoring.lease_times import WATCHDOG_FIRE_S
from scoring.observation import Standing
from scoring.vm_facts import ENGINE
from tests.simulation.timeline import Timeline


def made_up_name(host: int, starts: int) -> str:
    """What sanlock calls itself where no name is configured: another at each start."""
    return f"{starts:08x}-0000-4000-8000-{host:012x}.host{host}"


def resource_of(vm: int) -> str:
    """The name of a VM's lease."""
    return "engine" if vm == ENGINE else f"vm-{vm}"


@dataclass(slots=True)
class DeltaLease:
    """A host id on disk. `daemon`: the name of the sanlock that wrote it; `timestamp` 0: free;
    `io_timeout_s`: its own, by which all others count (struct leader_record, io_timeout)."""

    daemon: str = ""
    generation: int = 0
    timestamp: int = 0
    io_timeout_s: float = 10.0


@dataclass(slots=True)
class Resource:
    """A resource on disk; `owner` 0: nobody. `last_owner`: who holds it or held it last."""

    owner: int = 0
    last_owner: int = 0
    generation: int = 0


@dataclass(slots=True)
class LeaseVolume:
    """One way to what is on a lease volume: all ways to the same one share what they hold.
    `identity`: its block. `stale`: what is read by this way, where that is not what is there."""

    identity: bytes = b""
    deltas: dict[int, DeltaLease] = field(default_factory=dict)
    resources: dict[str, Resource] = field(default_factory=lambda: defaultdict(Resource))
    stale: LeaseVolume | None = None

    def way(self) -> LeaseVolume:
        """Another way to the same volume."""
        return LeaseVolume(self.identity, self.deltas, self.resources)

    def lead_to(self, other: LeaseVolume) -> None:
        """Let this way lead to what another one leads to, for those too who have it open."""
        self.deltas, self.resources = other.deltas, other.resources

    def is_same(self, other: LeaseVolume) -> bool:
        """Whether both ways lead to one volume."""
        return self.deltas is other.deltas

    def copy(self) -> LeaseVolume:
        """A volume of its own with all that is there now."""
        return LeaseVolume(self.identity, deepcopy(self.deltas), deepcopy(self.resources))

    def set_back(self, before: LeaseVolume) -> None:
        """Put an earlier state there, for all ways to it."""
        then = before.copy()
        for old, new in ((self.deltas, then.deltas), (self.resources, then.resources)):
            old.clear()
            old.update(new)  # type: ignore[arg-type]

    def read(self) -> LeaseVolume:
        """What is read by this way. Never to be written to."""
        return self.stale or self

    def delta(self, host_id: int) -> DeltaLease:
        """The delta lease of a host id."""
        return self.deltas.setdefault(host_id, DeltaLease())

    def put(self, host_id: int, lease: DeltaLease) -> None:
        """Write a delta lease; who writes by a stale way reads his own writes."""
        self.deltas[host_id] = lease
        if self.stale is not None:
            self.stale.deltas[host_id] = replace(lease)

    def own(self, name: str, owner: int, generation: int) -> None:
        """Write who owns a resource; 0: nobody."""
        for volume in (self, self.stale):
            if volume is not None:
                resource = volume.resources[name]
                resource.owner, resource.generation = owner, generation
                resource.last_owner = owner or resource.last_owner


class Refused(Exception):
    """sanlock says no: `held_elsewhere` when another host owns the resource."""

    def __init__(self, text: str, held_elsewhere: bool = False) -> None:
        super().__init__(text)
        self.held_elsewhere = held_elsewhere


class Membership(Enum):
    """How a daemon stands in the lockspace. FAILED: expired, and its holders do not end."""

    OUT = "out"
    JOINING = "joining"
    IN = "in"
    FAILED = "failed"
    LEAVING = "leaving"


@dataclass(slots=True)
class Sighting:
    """Another host id as this daemon saw it at its last renewal; moments are true times."""

    generation: int
    timestamp: int
    first_s: float
    last_s: float
    changed_s: float | None
    io_timeout_s: float


@dataclass(frozen=True, slots=True)
class HostInfo:
    """An answer of get_hosts."""

    host_id: int
    generation: int
    timestamp: int
    standing: Standing
    io_timeout_s: float


class Daemon:
    """sanlock on one host, from its start to its end.

    `name`: its our_host_name; one that it made up is another at each start. `process`: what no
    other start of it has, on any boot.
    `reach`: "" when the lease volume can be reached, else how not ("hang", "error").
    `write(write, over)`: have a delta lease written; `over` is called when that has ended.
    `is_late`: whether a write that is begun now lands late; `is_read_only`: not at all.
    `clock_s`: the host's clock.
    `kill_holders(why)`: end all processes that hold a lease; False when they cannot be ended.
    `doom`: let the watchdog reset the host. `refused`: why the last try to join failed; `busy`:
    because another host uses this id.
    """

    def __init__(
        self,
        timeline: Timeline,
        volume: LeaseVolume,
        name: str,
        host_id: int,
        io_timeout_s: float,
        rate: float,
        reach: Callable[[], str],
        write: Callable[[Callable[[], None], Callable[[], None]], None],
        is_late: Callable[[], bool],
        is_read_only: Callable[[], bool],
        clock_s: Callable[[], float],
        kill_holders: Callable[[str], bool],
        doom: Callable[[str], None],
    ) -> None:
        self.name = name
        self.process = ""
        self.host_id = host_id
        self.membership = Membership.OUT
        self.generation = 0
        self.running = True
        self.refused = ""
        self.busy = False
        self.last_renewal_s = 0.0
        self.join_began_s = 0.0
        self._timeline = timeline
        self._volume = volume
        self._io_timeout_s = io_timeout_s
        self._rate = rate
        self._io_s = io_timeout_s / rate
        self._dead_s = (8 * io_timeout_s + WATCHDOG_FIRE_S) / rate
        self._reach = reach
        self._write = write
        self._is_late = is_late
        self._is_read_only = is_read_only
        self._clock_s = clock_s
        self._kill_holders = kill_holders
        self._doom = doom
        self._seen: dict[int, Sighting] = {}
        self._timestamp = 0
        self._expiring = self._writing = False
        self._to_release: dict[str, None] = {}

    # --- the lockspace --------------------------------------------------------------------

    def join(self) -> None:
        """Begin to join the lockspace; `membership` tells how it goes."""
        assert self.running and self.membership is Membership.OUT
        if self._reach() or self._is_read_only():
            self.refused = "the lease volume cannot be reached"
            return
        if self._writing:
            self.refused = "an earlier write to the lease volume has not ended"
            return
        self.membership, self.refused, self.busy = Membership.JOINING, "", False
        self.join_began_s = self._timeline.now_s
        delta = self._volume.read().delta(self.host_id)
        if delta.timestamp == 0 or delta.daemon == self.name:
            self._write_first()
        else:
            until_s = self._timeline.now_s + self._dead_after_s(delta.io_timeout_s)
            self._stand_by(delta.generation, delta.timestamp, until_s)

    def shares_volume(self, other: Daemon) -> bool:
        """Whether another daemon works on the same volume."""
        return self._volume.is_same(other._volume)

    def leave_unused(self) -> None:
        """Give the id back, unless a resource is held under it (rem_lockspace with `unused`)."""
        assert self.running and self.membership is Membership.IN
        mine = (self.host_id, self.generation)
        if any((r.owner, r.generation) == mine for r in self._volume.read().resources.values()):
            return
        if not self._reach():
            self.membership = Membership.LEAVING
            self._put(0, self._left)

    def _left(self) -> None:
        if self.running and self.membership is Membership.LEAVING:
            self.membership = Membership.OUT

    def _put(self, timestamp: int, over: Callable[[], None]) -> None:
        """Write this daemon's delta lease."""
        lease = DeltaLease(self.name, self.generation, timestamp, self._io_timeout_s)
        self._writing = True

        def ended() -> None:
            self._writing = False
            over()

        self._write(lambda: self._volume.put(self.host_id, lease), ended)

    def _stand_by(self, generation: int, timestamp: int, until_s: float) -> None:
        """Watch an id that somebody used until it stood still for long enough."""
        if not self._is_joining():
            return
        delta = self._volume.read().delta(self.host_id)
        if self._reach():
            self._not_joined("the lease volume cannot be reached")
        elif delta.timestamp == 0:
            self._write_first()
        elif (delta.generation, delta.timestamp) != (generation, timestamp):
            self._not_joined(f"host id {self.host_id} is in use by another host")
            self.busy = True
        elif self._timeline.now_s >= until_s:
            self._write_first()
        else:
            next_s = min(until_s, self._timeline.now_s + 2 * self._io_s)
            self._timeline.at(next_s, self._stand_by, generation, timestamp, until_s)

    def _write_first(self) -> None:
        delta = self._volume.read().delta(self.host_id)
        generation = self.generation = delta.generation + 1
        timestamp = self._timestamp = self._stamp()

        def written() -> None:
            self._timeline.after(2 * self._io_s, self._joined, generation, timestamp)

        self._put(timestamp, written)

    def _joined(self, generation: int, timestamp: int) -> None:
        if not self._is_joining():
            return
        delta = self._volume.read().delta(self.host_id)
        mine = (delta.daemon, delta.generation, delta.timestamp)
        if self._reach():
            self._not_joined("the lease volume cannot be reached")
        elif mine != (self.name, generation, timestamp):
            self._not_joined(f"host id {self.host_id} was taken by another host meanwhile")
        else:
            self.membership, self._expiring = Membership.IN, False
            self.last_renewal_s = self._timeline.now_s
            self._renew(generation)

    def _is_joining(self) -> bool:
        return self.running and self.membership is Membership.JOINING

    def _not_joined(self, why: str) -> None:
        self.membership, self.refused = Membership.OUT, why

    def _stamp(self) -> int:
        return max(self._timestamp + 1, int(self._clock_s()))

    def _renew(self, generation: int) -> None:
        """One renewal, and a look at all others."""
        if not self.running or self.membership is not Membership.IN:
            return
        if self.generation != generation:
            return
        delta = self._volume.read().delta(self.host_id)
        mine = (self.name, self.generation, self._timestamp)
        is_its = (delta.daemon, delta.generation, delta.timestamp) == mine
        if self._reach() or self._is_read_only() or not is_its:
            self._renewal_failed(generation)
            return
        if self._is_late():
            self._expire_in_time(generation)
        self._timestamp = self._stamp()
        began_s = self._timeline.now_s
        self._put(self._timestamp, lambda: self._renewed(generation, began_s))

    def _renewed(self, generation: int, began_s: float) -> None:
        if not self.running or self.membership is not Membership.IN:
            return
        if self.generation != generation:
            return
        if self._timeline.now_s - began_s > self._io_s:
            # The write landed after sanlock had given it up: no renewal for this daemon.
            self._renewal_failed(generation)
            return
        self.last_renewal_s = self._timeline.now_s
        self._expiring = False
        self._look()
        for resource in list(self._to_release):
            self._release_on_disk(resource)
        self._timeline.after(2 * self._io_s, self._renew, generation)

    def _renewal_failed(self, generation: int) -> None:
        self._expire_in_time(generation)
        self._timeline.after(max(0.5, self._io_s / 4), self._renew, generation)

    def _expire_in_time(self, generation: int) -> None:
        if not self._expiring:
            self._expiring = True
            self._timeline.at(self.last_renewal_s + 8 * self._io_s, self._expired, generation)

    def _expired(self, generation: int) -> None:
        """8 * io_timeout without a renewal: whoever holds a lease must end now."""
        if not self.running or self.membership is not Membership.IN or not self._expiring:
            return
        if self.generation != generation:
            return
        if self._timeline.now_s < self.last_renewal_s + 8 * self._io_s:
            # The host id was renewed since, or the host's clock stood still meanwhile.
            self._timeline.at(self.last_renewal_s + 8 * self._io_s, self._expired, generation)
            return
        self.membership = Membership.FAILED
        self._to_release.clear()
        if self._kill_holders("sanlock: its host id was not renewed"):
            self.membership, self.refused = Membership.OUT, "its host id was not renewed"
        else:
            until_s = self.last_renewal_s + self._dead_s
            self._timeline.at(until_s, self._doom, "its processes could not be ended")

    def _look(self) -> None:
        now_s = self._timeline.now_s
        deltas = self._volume.read().deltas
        for host_id in sorted(deltas):
            delta = deltas[host_id]
            old = self._seen.get(host_id)
            if old is None:
                self._seen[host_id] = Sighting(
                    delta.generation, delta.timestamp, now_s, now_s, None, delta.io_timeout_s
                )
                continue
            if (old.generation, old.timestamp) != (delta.generation, delta.timestamp):
                old.generation, old.timestamp = delta.generation, delta.timestamp
                old.changed_s, old.io_timeout_s = now_s, delta.io_timeout_s
            old.last_s = now_s

    def leapt(self, by_s: float) -> None:
        """The timeline leapt: every renewal is seen that much later."""
        self.last_renewal_s += by_s
        for seen in self._seen.values():
            seen.first_s += by_s
            seen.last_s += by_s
            if seen.changed_s is not None:
                seen.changed_s += by_s

    def clock_jumps(self, by_s: float) -> None:
        """The host's clock jumps forward: all that was seen is that much longer ago for it."""
        self.leapt(-by_s)
        if self.running and self.membership is Membership.IN:
            self._expiring = True
            self._expired(self.generation)
            self._renew_at_once()

    def _renew_at_once(self) -> None:
        """By its clock the next renewal is overdue; the one that is due in its turn comes too."""
        is_bad = self._reach() or self._is_read_only() or self._is_late() or self.is_overwritten
        if self._writing or is_bad or self.membership is not Membership.IN:
            return
        self._timestamp = self._stamp()
        self._put(self._timestamp, self._renewed_once)

    def _renewed_once(self) -> None:
        if self.running and self.membership is Membership.IN:
            self.last_renewal_s, self._expiring = self._timeline.now_s, False
            self._look()

    @property
    def is_overwritten(self) -> bool:
        """Whether somebody else changed what it wrote last of its id; it cannot renew then."""
        if self._writing or self.membership not in (Membership.IN, Membership.FAILED):
            return False
        delta = self._volume.delta(self.host_id)
        mine = (self.name, self.generation, self._timestamp)
        return (delta.daemon, delta.generation, delta.timestamp) != mine

    def stop_running(self) -> None:
        """The daemon dies (crash, or its host's power is gone)."""
        self.running = False
        self.membership = Membership.OUT

    def doom_after_crash(self) -> None:
        """What the watchdog does after the daemon died while it was in the lockspace."""
        self._timeline.at(self.last_renewal_s + self._dead_s, self._doom, "sanlock died")

    # --- questions ------------------------------------------------------------------------

    def host(self, host_id: int) -> HostInfo | None:
        """get_hosts for one id, as of this daemon's last look; Refused outside the lockspace."""
        if not self.running:
            raise Refused("sanlock does not answer")
        if self.membership is not Membership.IN:
            raise Refused("no such lockspace")
        seen = self._seen.get(host_id)
        if seen is None:
            return None
        standing = self._standing(seen)
        return HostInfo(host_id, seen.generation, seen.timestamp, standing, seen.io_timeout_s)

    def _dead_after_s(self, io_timeout_s: float) -> float:
        """How long by this host's clock a host id of that io_timeout must stand still to be dead:
        the owner's counts, not the reader's (get_host_flag and host_live in sanlock's source)."""
        return (8 * io_timeout_s + WATCHDOG_FIRE_S) / self._rate

    def _standing(self, seen: Sighting) -> Standing:
        if seen.timestamp == 0:
            return Standing.FREE
        now_s, dead_s = self._timeline.now_s, self._dead_after_s(seen.io_timeout_s)
        if seen.changed_s is None:
            return Standing.DEAD if now_s - seen.first_s > dead_s else Standing.UNKNOWN
        age_s = now_s - seen.changed_s
        if age_s < 8 * seen.io_timeout_s / self._rate:
            return Standing.LIVE
        return Standing.FAIL if age_s < dead_s else Standing.DEAD

    # --- resources ------------------------------------------------------------------------

    def acquire(self, name: str) -> None:
        """Take a resource for a process of this host; Refused says why not."""
        if not self.running:
            raise Refused("sanlock does not answer")
        if self.membership is not Membership.IN:
            raise Refused("the lockspace is not joined")
        if self._reach() or self._is_late() or self._is_read_only():
            raise Refused("the lease volume cannot be reached")
        resource = self._volume.read().resources[name]
        if not self._may_take(resource):
            raise Refused(f"host {resource.owner} owns it", held_elsewhere=True)
        self._volume.own(name, self.host_id, self.generation)
        self._to_release.pop(name, None)

    def _may_take(self, resource: Resource) -> bool:
        if resource.owner in (0, self.host_id):
            return True
        delta = self._volume.read().delta(resource.owner)
        if delta.timestamp == 0 or delta.generation > resource.generation:
            return True
        seen = self._seen.get(resource.owner)
        if seen is None or seen.timestamp != delta.timestamp:
            return False
        return self._standing(seen) is Standing.DEAD

    def release(self, name: str) -> None:
        """The holder has ended; what cannot be written now is written with a later renewal."""
        if self.running and self.membership is Membership.IN:
            self._release_on_disk(name)

    def _release_on_disk(self, name: str) -> None:
        resource = self._volume.read().resources[name]
        if (resource.owner, resource.generation) != (self.host_id, self.generation):
            self._to_release.pop(name, None)
        elif self._reach() or self._is_late() or self._is_read_only():
            self._to_release[name] = None
        else:
            self._volume.own(name, 0, 0)
            self._to_release.pop(name, None)

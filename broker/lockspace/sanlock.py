# SPDX-License-Identifier: LGPL-2.1-or-later
"""This host's id in the sanlock lockspace: joined once, kept for as long as the host lives.

The broker joins and never leaves by itself: the lease of the engine VM's process depends on the
id, and a stopped broker must not stop the VM. On request (`stay_out`) it leaves, in a
way that sanlock refuses while any process holds a lease under the id.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import struct
from collections.abc import Callable, Iterable, Mapping

import sanlock

from broker.daemon.host_clock import of_monotonic
from broker.daemon.worker import Hung, Worker
from broker.lockspace.delta_leases import (
    FENCE_RESOURCE,
    NOT_A_LOCKSPACE,
    SANLK_HOSTID_BUSY,
    layout_at,
    read_delta_leases,
    read_named_leases,
)
from broker.lockspace.hosts import HostRenewal, Witness, look
from broker.lockspace.lost_leases import AGAIN_S, LEASES_EVERY_S, lost_in
from broker.lockspace.open_leases import OpenLeases
from broker.lockspace.own_id import FenceOwner
from broker.lockspace.port import DISK_DEADLINE_S, HELD_LOOK_S, RELEASED, RETRY_S, LockspaceError
from broker.lockspace.rejoin import OwnLease, Rejoin
from broker.lockspace.renewals import Renewals
from broker.lockspace.sanlock_process import sanlock_process
from broker.whiteboard.identity import Expected, VolumeKind, check, check_at
from broker.whiteboard.volume import Volume, VolumeError, VolumeFault
from scoring.lease_times import host_dead_s

log = logging.getLogger("ha-broker.lockspace")

#: Time for one read of the owner of the fence lease.
FENCE_DEADLINE_S = 10.0
#: sanlock watches an id that may still be in use for up to 8 * io_timeout + 60 s, and
#: needs 21 s at io_timeout 10 for a free one; a minute is added for slow storage.
JOIN_EXTRA_S = 120.0
#: sanlock ends its renewal thread and writes the id as free: two operations on the storage.
REMOVE_DEADLINE_S = 60.0

#: Errors of sanlock's socket when no daemon listens.
_NO_ANSWER = (errno.ENOENT, errno.ECONNREFUSED, errno.EPIPE, errno.ECONNRESET)
#: sanlock_admin.h, SANLK_HOST_*.
_STATES = {
    sanlock.HOST_FREE: "free",
    sanlock.HOST_LIVE: "live",
    sanlock.HOST_FAIL: "fail",
    sanlock.HOST_DEAD: "dead",
}


class SanlockLockspace:
    """Lockspace port: sanlock. `joined`: None until sanlock has answered."""

    def __init__(
        self,
        name: str,
        host_id: int,
        path: str,
        io_timeout: int,
        rejoin: Rejoin,
        wanted: Expected | None = None,
    ) -> None:
        """`rejoin`: when sanlock may be asked; `wanted`: the identity of the lease volume."""
        self._name, self._host_id, self._path = name, host_id, path
        self._rejoin = rejoin
        self._wanted = wanted or Expected(VolumeKind.LEASES)
        self._io_timeout = io_timeout
        self._worker = Worker("sanlock")
        self._open = OpenLeases(path, self._wanted)
        self._disk = Worker("renewals")
        self._lease_volume: Volume | None = None
        self.joined: bool | None = None
        self.problem = "not joined yet"
        self.witnesses: dict[int, Witness] = {}
        self.renewals = Renewals(self._renewals_on_disk)
        self.renewed_s: float | None = None
        self.no_join = self.stay_out = self.watch_fence = False
        self.hold = ""
        self.fence_owner: FenceOwner | None = None
        self.wanted_leases: Callable[[], Mapping[str, int]] = dict
        self.lost_leases: Mapping[str, str] = {}
        self._all_leases, self._leases_worker = OpenLeases(path, self._wanted), Worker("leases")
        #: What the last look at the leases found lost.
        self._missed: Mapping[str, str] = {}
        #: Whether the last join that was begun was the first of this boot.
        self._is_first = False

    async def run(self) -> None:
        leases = asyncio.create_task(self._watch_leases(), name="watching the leases")
        try:
            await self._keep()
        except asyncio.CancelledError:
            await self._abandon()
            raise
        finally:
            leases.cancel()

    async def _keep(self) -> None:
        while True:
            try:
                await self._look()
                await self._look_around()
            except Hung as error:
                self.problem = str(error)
            except VolumeError as error:
                # Met on the way into the lockspace, after sanlock had said that the id is not in.
                self.joined, self.problem = False, str(error)
            except sanlock.SanlockException as error:
                self.joined, self.problem = False, _text(error)
                if error.errno == SANLK_HOSTID_BUSY:
                    raise LockspaceError(
                        f"host id {self._host_id} is in use by another host in lockspace "
                        f"{self._name!r} ({self._path}); give this host its own host.id"
                    ) from None
            if self.watch_fence:
                await self._look_at_fence()
            # A join that waits for a read of the storage continues soon after it.
            await asyncio.sleep(HELD_LOOK_S if self.hold and not self.watch_fence else RETRY_S)

    async def _look(self) -> None:
        """Look at the id once; join where it is not joined."""
        where = (self._name.encode(), self._host_id, self._path)
        deadline_s = host_dead_s(self._io_timeout) + JOIN_EXTRA_S
        mark = self._rejoin.mark
        try:
            # Asked for before it says that the id is in: one that was started in between has none.
            had_it = mark.process if self.joined else await self._process()
            is_ours = await self._worker.call("inq_lockspace", 5.0, sanlock.inq_lockspace, *where)
            if self.stay_out:
                await self._leave(is_ours)
                return
            if is_ours:
                if not self.joined:
                    log.info("host id %d is joined in lockspace %s", self._host_id, self._name)
                    mark.set(had_it)
                self.joined, self.problem = True, ""
                return
            if is_ours is None:
                mark.set(had_it)
                self.joined, self.problem = False, "joining"
                return
            if self.hold or self.no_join:
                self.joined, self.problem = False, self.hold or RELEASED
                return
            self.joined, self.problem = False, "joining"
            await self._worker.call("get_lockspaces", 5.0, self._check_own_id)
            await self._worker.call("read_lockspace", 30.0, self._check_volume)
            lease = await self._worker.call("reading the own lease", 30.0, self._own_lease)
            # Asked for after it has said that the id is not in: who answers now did so then too, if
            # it is the one that had the id.
            process = await self._process()
            if why := self._rejoin.look(lease, asyncio.get_running_loop().time(), process):
                self.problem = why
                return
            log.info("joining lockspace %s with host id %d", self._name, self._host_id)
            self._is_first = not mark.is_set
            mark.set(process)
            await self._worker.call("add_lockspace", deadline_s, self._add)
            self.joined, self.problem = True, ""
            log.info("joined lockspace %s with host id %d", self._name, self._host_id)
        except sanlock.SanlockException as error:
            # Another program on this host was faster: the next look will show it.
            if error.errno not in (errno.EEXIST, errno.EINPROGRESS):
                raise

    async def _process(self) -> str:
        return await self._worker.call("finding its process", 5.0, sanlock_process)

    async def _leave(self, is_ours: bool | None) -> None:
        """Give the id back; not while a lease depends on it."""
        why = self.hold or RELEASED
        if is_ours is None:
            self.joined, self.problem = False, "joining, to be left at once"
            return
        if is_ours:
            try:
                await self._worker.call("rem_lockspace", REMOVE_DEADLINE_S, self._remove)
            except sanlock.SanlockException as error:
                if error.errno != errno.EBUSY:
                    raise
                self.joined, self.problem = True, ""
                return
            self._rejoin.mark.clear()
            log.info("host id %d is given back: %s", self._host_id, why)
        self.joined, self.problem, self.renewed_s = False, why, None

    def _remove(self) -> None:
        # unused: refused (EBUSY) while a process holds a lease in it; so no VM is ever ended.
        sanlock.rem_lockspace(self._name.encode(), self._host_id, self._path, unused=True)

    async def _look_at_fence(self) -> None:
        """The owner of the fence lease on disk; the host need not be in the lockspace for it."""
        try:
            self.fence_owner = await self._worker.call(
                "reading the fence lease", FENCE_DEADLINE_S, self._read_fence
            )
        except (Hung, VolumeError, sanlock.SanlockException) as error:
            self.fence_owner = None
            log.warning("who owns the fence lease is not known: %s", error)

    def _read_fence(self) -> FenceOwner:
        """Through a descriptor that is open: this is read all the time, also while a dead host
        keeps the volume from being opened."""
        place = self._open.layout().fence_at
        found = self._open.owner_of(self._name, FENCE_RESOURCE, place)
        return FenceOwner(found.owner, found.generation) if found.held else FenceOwner(0, 0)

    async def _watch_leases(self) -> None:
        """Look again and again whether each lease that must be there is
        (broker/lockspace/lost_leases.py); by itself, since a read that hangs must not delay what
        sanlock says."""
        while True:
            # Others read the volume all the time, and say when that fails.
            with contextlib.suppress(Hung, VolumeError):
                await self._look_at_leases()
            await asyncio.sleep(AGAIN_S if self._missed or not self.joined else LEASES_EVERY_S)

    async def _look_at_leases(self) -> None:
        wanted = self.wanted_leases()
        if not self.joined or not wanted:
            return
        found = await self._leases_worker.call(
            "reading the leases", FENCE_DEADLINE_S, self._read_wanted, wanted
        )
        lost = {name: what for name, what in found.items() if self._missed.get(name) == what}
        for name in lost.keys() - self.lost_leases.keys():
            log.error("%s: lease %s is lost: there is %s", self._path, name, lost[name])
        self.lost_leases, self._missed = lost, found

    def _read_wanted(self, wanted: Mapping[str, int]) -> dict[str, str]:
        """The leases that are not there; through a descriptor that is open, as the fence lease."""
        leases = self._all_leases
        align = leases.layout().align
        return lost_in(wanted, self._name, lambda unit: leases.record(unit * align))

    async def _look_around(self) -> None:
        """sanlock's knowledge of all hosts."""
        if not self.joined:
            self.witnesses = {}
            return
        hosts = await self._worker.call("get_hosts", 5.0, sanlock.get_hosts, self._name.encode())
        now_s = asyncio.get_running_loop().time()
        self.witnesses = look(self.witnesses, map(_renewal, hosts), now_s)
        known = {host: (w.generation, w.timestamp) for host, w in self.witnesses.items()}
        self.renewals.learn(known, now_s)

    async def _renewals_on_disk(self, host_ids: Iterable[int]) -> Mapping[int, tuple[int, int]]:
        """The leases of these hosts and this one, and of all in the same blocks; unreadable ones
        are missing."""
        wanted = {self._host_id, *host_ids}
        try:
            found = await self._disk.call(
                "reading host ids", DISK_DEADLINE_S, self._read_leases, wanted
            )
        except Hung:
            return {}
        _, timestamp = found.get(self._host_id, (0, 0))
        if timestamp:
            # The renewing host's CLOCK_MONOTONIC in seconds, and the renewing host is this one.
            self.renewed_s = of_monotonic(timestamp)
        return found

    def _read_leases(self, host_ids: Iterable[int]) -> dict[int, tuple[int, int]]:
        """The delta leases on disk; in the thread, empty where they cannot be read."""
        try:
            if self._lease_volume is None:
                self._lease_volume = Volume(self._path)
                check(self._lease_volume, self._wanted)
            return read_delta_leases(self._lease_volume, host_ids)
        except (VolumeError, KeyError, struct.error):
            if self._lease_volume is not None:
                self._lease_volume.close()
                self._lease_volume = None
            return {}

    async def _abandon(self) -> None:
        """End a join that is still under way: sanlock would continue it for minutes.

        A joined lockspace is never left here: the VM's lease depends on it.
        """
        if self.joined is not False:
            return
        try:
            # The other worker's thread waits for the join, so this needs its own.
            await Worker("sanlock abandon").call("rem_lockspace", 10.0, self._end_join)
        except (Hung, sanlock.SanlockException) as error:
            log.warning("the join of the lockspace could not be ended: %s", error)

    def _end_join(self) -> None:
        name = self._name.encode()
        for found in sanlock.get_lockspaces():
            ours = (found["lockspace"], found["host_id"]) == (name, self._host_id)
            if ours and found["flags"] & sanlock.LSFLAG_ADD:
                # unused: refused (EBUSY) if any process held a lease in it after all.
                sanlock.rem_lockspace(name, self._host_id, self._path, unused=True)
                self._not_in_after_all()

    def _check_own_id(self) -> None:
        """Raise LockspaceError when this host's sanlock is in the lockspace as another id."""
        for found in sanlock.get_lockspaces():
            other = found["host_id"] != self._host_id and not found["flags"] & sanlock.LSFLAG_ADD
            if found["lockspace"] == self._name.encode() and other:
                raise LockspaceError(
                    f"sanlock on this host is in lockspace {self._name!r} as host id "
                    f"{found['host_id']}, but host.id is {self._host_id}"
                )

    def _check_volume(self) -> None:
        """Raise LockspaceError when the lease volume is not this lockspace's; in the thread."""
        try:
            check_at(self._path, self._wanted)
        except VolumeError as error:
            if error.fault is not VolumeFault.OTHER_VOLUME:
                raise
            raise LockspaceError(f"storage.leases: {error}") from None
        try:
            found = sanlock.read_lockspace(self._path, **layout_at(self._path).words)
        except sanlock.SanlockException as error:
            if error.errno not in NOT_A_LOCKSPACE:
                raise
            raise LockspaceError(
                f"{self._path}: holds no sanlock lockspace ({_text(error)}); make one with: "
                f"sanlock direct init -s {self._name}:0:{self._path}:0"
            ) from None
        name = found["lockspace"].decode(errors="replace")
        if name != self._name:
            raise LockspaceError(
                f"{self._path}: holds the lockspace {name!r}, storage.lockspace is {self._name!r}"
            )

    def _own_lease(self) -> OwnLease | None:
        """This host's delta lease; None where it cannot be read; in the thread."""
        try:
            with Volume(self._path, read_only=True) as volume:
                found = read_named_leases(volume, [self._host_id])
        except (VolumeError, KeyError, struct.error):
            return None
        return found.get(self._host_id, OwnLease("", 0, 0))

    def _add(self) -> None:
        try:
            sanlock.add_lockspace(
                self._name.encode(),
                self._host_id,
                self._path,
                iotimeout=self._io_timeout,
                wait=True,
            )
        except sanlock.SanlockException as error:
            if error.errno not in (*_NO_ANSWER, errno.EEXIST, errno.EINPROGRESS):
                # sanlock itself says that it is not in: nothing can hold a lease under the id.
                self._not_in_after_all()
            raise

    def _not_in_after_all(self) -> None:
        """Take the mark back, if the failed join was this boot's first."""
        if self._is_first:
            self._rejoin.mark.clear()


def _renewal(host: Mapping[str, int]) -> HostRenewal:
    state = _STATES.get(host["flags"], "unknown")
    return HostRenewal(host["host_id"], host["generation"], host["timestamp"], state)


def _text(error: sanlock.SanlockException) -> str:
    code = error.errno
    if code in _NO_ANSWER:
        return "sanlock does not answer: is it running?"
    if code == errno.EAGAIN:
        # sanlock_admin.h, add_lockspace: "the lockspace is being removed".
        return (
            "sanlock has lost this host's id, and is still leaving the lockspace; this host joins"
            " again after that"
        )
    return f"sanlock error {code}: {error.args[-1]}"

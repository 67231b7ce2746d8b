# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent's side of sanlock: the owners of the VMs' leases, the fence lease, and the freeing
of a dead host's id.

Layout of the lease volume: the lockspace at offset 0, `engine` one alignment unit
further, `fence` two, those of the other VMs from the 16th unit on. sanlock's daemon answers through
its library; only the two `sanlock direct` calls have no library call and are a short process each,
at a takeover. Who owns the leases of many VMs is read from the volume itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sanlock

from agent.leases.freeing import free_host_id, was_freed
from agent.leases.sanlock_direct import FreeingFile, FreeingOnFile, SanlockDirect
from agent.leases.vm_records import VmRecords, not_in_registry
from agent.ports import ACQUIRE_DEADLINE_S, ASK_DEADLINE_S, Still
from broker.config.sections import Config
from broker.daemon.foreign import clean, sentence
from broker.daemon.worker import Hung, Worker
from broker.lockspace.delta_leases import FENCE_RESOURCE, read_delta_leases
from broker.lockspace.lease_records import LeaseRecord, read_lease_records
from broker.lockspace.open_leases import OpenLeases
from broker.registry.record import number_of, unit_of
from broker.whiteboard.identity import VolumeKind, check_at, expected
from broker.whiteboard.volume import VolumeError
from scoring.decision import FreeHostId
from scoring.lease_times import host_dead_s
from scoring.observation import FenceLeaseAnswer, HostIdFreed, LeaseAnswer, Standing

log = logging.getLogger("ha-agent.leases")

#: How often a lease volume that could not be opened is tried again, before anybody asks.
OPEN_EVERY_S = 30.0


_STANDING = {
    sanlock.HOST_FREE: Standing.FREE,
    sanlock.HOST_LIVE: Standing.LIVE,
    sanlock.HOST_FAIL: Standing.FAIL,
    sanlock.HOST_DEAD: Standing.DEAD,
}


@dataclass(frozen=True, slots=True)
class _Found:
    """What one look found. `renewals`: (generation, timestamp) of owners on disk; `hosts`: what
    sanlock says of each host id."""

    records: dict[int, LeaseRecord | None]
    renewals: dict[int, tuple[int, int]]
    hosts: dict[int, dict[str, int]]


class SanlockLeases:
    """The real Leases."""

    def __init__(
        self,
        config: Config,
        engine_offset: int,
        direct: SanlockDirect | None = None,
        records: VmRecords | None = None,
    ) -> None:
        """`records`: the VMs of the registry, whose leases' names come from there."""
        self._vms = VmRecords(config) if records is None else records
        self._storage = config.storage
        self._wanted = expected(config, VolumeKind.LEASES)
        self._open = OpenLeases(config.storage.leases, self._wanted)
        self._vms_open = OpenLeases(config.storage.leases, self._wanted)
        self._fence_open = OpenLeases(config.storage.leases, self._wanted)
        self._host_id = config.host.id
        self._engine_offset = engine_offset
        self._worker = Worker("sanlock")
        self._vms_worker = Worker("the VMs' leases")
        # A worker of its own: sanlock may delay an acquire until it calls the last holder dead, and
        # the owner of the engine lease must be known meanwhile.
        self._fence_worker = Worker("fence lease")
        self._fence_lock = threading.Lock()
        self._fence_try: object | None = None
        self._fence_fd: int | None = None
        self.fence_held = False
        self._renewals: dict[int, tuple[int, int, float]] = {}
        self._direct = SanlockDirect() if direct is None else direct
        self._file = FreeingFile(Path(config.daemon.state_dir) / "freeing.json")

    @property
    def _lockspace(self) -> bytes:
        return self._storage.lockspace.encode()

    async def ask_engine(self) -> LeaseAnswer:
        return await self._ask_lease(self._storage.resource, self._engine_offset)

    async def ask_fence(self) -> LeaseAnswer:
        return await self._ask_lease(FENCE_RESOURCE, None)

    async def ask_vms(self, vms: Sequence[int]) -> tuple[LeaseAnswer, ...]:
        asked_s = asyncio.get_running_loop().time()
        what = "reading the copy of the registry"
        try:
            cached = await self._vms_worker.call(what, ASK_DEADLINE_S, self._vms.now)
        except Hung as error:
            return tuple(LeaseAnswer(False, asked_s, detail=str(error), vm=vm) for vm in vms)
        named = {vm: cached.records[vm].resource for vm in vms if vm in cached.records}
        found = await self.owners({unit_of(vm): name for vm, name in named.items()})
        return tuple(
            found[unit_of(vm)]
            if vm in named
            else LeaseAnswer(False, asked_s, detail=not_in_registry(vm), vm=vm)
            for vm in vms
        )

    async def owners(self, leases: Mapping[int, str]) -> dict[int, LeaseAnswer]:
        """The owners of leases in one look, by their unit. `leases`: unit -> the name that the
        lease there must have."""
        asked_s = asyncio.get_running_loop().time()
        try:
            found = await self._vms_worker.call(
                f"reading {len(leases)} leases", ASK_DEADLINE_S, self._read_owners, tuple(leases)
            )
        except (Hung, VolumeError, sanlock.SanlockException, KeyError, struct.error) as error:
            return {
                unit: LeaseAnswer(False, asked_s, detail=_text(error), vm=number_of(unit))
                for unit in leases
            }
        return {
            unit: self._owner(found, unit, self._storage.lockspace, name, asked_s)
            for unit, name in leases.items()
        }

    def _read_owners(self, units: tuple[int, ...]) -> _Found:
        volume = self._vms_open.now()
        try:
            records = read_lease_records(volume, units)
            owners = {one.owner for one in records.values() if one is not None and one.held}
            renewals = read_delta_leases(volume, owners) if owners else {}
        except VolumeError:
            self._vms_open.close()
            raise
        hosts = sanlock.get_hosts(self._lockspace) if owners else []
        return _Found(records, renewals, {host["host_id"]: host for host in hosts})

    def _owner(
        self, found: _Found, unit: int, lockspace: str, name: str, asked_s: float
    ) -> LeaseAnswer:
        record, vm = found.records[unit], number_of(unit)
        if record is None or (record.lockspace, record.resource) != (lockspace, name):
            what = "no lease that can be read" if record is None else f"lease {record.resource}"
            text = f"{self._storage.leases}: unit {unit} holds {what}, not {name}"
            return LeaseAnswer(False, asked_s, detail=clean(text), vm=vm)
        if not record.held:
            return LeaseAnswer(True, asked_s, vm=vm)
        host, renewal = found.hosts.get(record.owner), found.renewals.get(record.owner)
        if host is None or renewal is None:
            return LeaseAnswer(
                True, asked_s, record.owner, record.generation, detail="no standing known", vm=vm
            )
        standing = _STANDING.get(host["flags"], Standing.UNKNOWN)
        return LeaseAnswer(
            known=True,
            asked_s=asked_s,
            owner=record.owner,
            owner_generation=record.generation,
            current_generation=renewal[0],
            owner_timestamp=renewal[1],
            standing=Standing.FREE if renewal[1] == 0 else standing,
            dead_in_s=self._dead_in_s(host, asked_s),
            vm=vm,
            owner_io_timeout_s=_io_timeout_of(host),
        )

    async def _ask_lease(self, resource: str, offset: int | None) -> LeaseAnswer:
        """The owner of a lease. `offset` None: where the fence lease is."""
        asked_s = asyncio.get_running_loop().time()
        try:
            owners, hosts = await self._worker.call(
                f"reading the lease {resource}", ASK_DEADLINE_S, self._ask, resource, offset
            )
        except (Hung, VolumeError, sanlock.SanlockException) as error:
            return LeaseAnswer(False, asked_s, detail=_text(error))
        if not owners:
            return LeaseAnswer(True, asked_s)
        owner = owners[0]
        host = hosts[0] if hosts else None
        if host is None:
            return LeaseAnswer(
                True, asked_s, owner["host_id"], owner["generation"], detail="no standing known"
            )
        standing = _STANDING.get(host["flags"], Standing.UNKNOWN)
        now_on_disk = host["generation"], host["timestamp"]
        if owner["host_id"] != self._host_id:
            # get_hosts returns what sanlock's daemon saw at its own last renewal, up to
            # 2 * io_timeout ago; a freeing compares with the disk, and so must this.
            now_on_disk = await self.read_delta(owner["host_id"]) or now_on_disk
        if now_on_disk[1] == 0:
            standing = Standing.FREE
        return LeaseAnswer(
            known=True,
            asked_s=asked_s,
            owner=owner["host_id"],
            owner_generation=owner["generation"],
            current_generation=now_on_disk[0],
            owner_timestamp=now_on_disk[1],
            standing=standing,
            dead_in_s=self._dead_in_s(host, asked_s),
            owner_io_timeout_s=_io_timeout_of(host),
        )

    def _ask(
        self, resource: str, offset: int | None
    ) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
        at = self._open.layout().fence_at if offset is None else offset
        found = self._open.owner_of(self._storage.lockspace, resource, at)
        held = {"host_id": found.owner, "generation": found.generation}
        owners = [held] if found.held else []
        hosts = sanlock.get_hosts(self._lockspace, owners[0]["host_id"]) if owners else []
        return owners, hosts

    def _dead_in_s(self, host: dict[str, int], now_s: float) -> float:
        """The longest time until sanlock calls the host dead, counted from when this host first
        saw its present renewal."""
        key = (host["generation"], host["timestamp"])
        old = self._renewals.get(host["host_id"])
        if old is None or old[:2] != key:
            old = (*key, now_s)
            self._renewals[host["host_id"]] = old
        io_timeout_s = _io_timeout_of(host) or self._storage.io_timeout
        return host_dead_s(io_timeout_s) - (now_s - old[2])

    # --- the fence lease ----------------------------------------------------------------

    async def take_fence(self) -> FenceLeaseAnswer:
        loop = asyncio.get_running_loop()
        attempt = object()
        with self._fence_lock:
            self._fence_try = attempt
        try:
            await self._fence_worker.call(
                "taking the fence lease", ACQUIRE_DEADLINE_S, self._take_fence, attempt
            )
        except (Hung, VolumeError, sanlock.SanlockException) as error:
            with self._fence_lock:
                if self._fence_fd is None:
                    # A lease that is granted later is given back at once: nobody knows of it.
                    self._fence_try = None
                    return FenceLeaseAnswer(False, loop.time(), _text(error))
        self.fence_held = True
        return FenceLeaseAnswer(True, loop.time())

    def _take_fence(self, attempt: object) -> None:
        self._drop_fence()
        disks = [(self._storage.leases, self._fence_open.layout().fence_at)]
        descriptor = sanlock.register()
        try:
            sanlock.acquire(self._lockspace, FENCE_RESOURCE.encode(), disks, slkfd=descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        with self._fence_lock:
            if self._fence_try is attempt:
                self._fence_fd = descriptor
                return
        os.close(descriptor)
        log.warning("the fence lease came after its time and was given back")

    async def drop_fence(self) -> None:
        # From here on nothing is done under the lease: the moment of its release is not known.
        self.fence_held = False
        try:
            await self._fence_worker.call(
                "dropping the fence lease", ACQUIRE_DEADLINE_S, self._drop_fence
            )
        except (Hung, sanlock.SanlockException) as error:
            log.warning("the fence lease could not be given back: %s", _text(error))
            with self._fence_lock:
                self.fence_held = self._fence_fd is not None

    def _drop_fence(self) -> None:
        with self._fence_lock:
            descriptor, self._fence_fd = self._fence_fd, None
        if descriptor is not None:
            # Closing the connection unregisters the process: sanlock releases what it held.
            os.close(descriptor)

    # --- the dangerous act --------------------------------------------------------------

    async def free_host_id(self, act: FreeHostId, still: Still) -> HostIdFreed:
        return await free_host_id(
            act, self._host_id, self._storage.io_timeout, lambda: self.fence_held, self, still
        )

    async def release_id(self, act: FreeHostId, still: Still) -> str:
        """DeltaLeases: mark a host id as free on disk; returns why that failed, or ""."""
        on_file = FreeingOnFile(act.host_id, act.generation, act.ordered, act.evidence, act.fencer)
        descriptors = []
        with self._fence_lock:
            if self._fence_fd is None and not act.fencer:
                return "the fence lease is not held"
            # The process inherits the descriptor: however the agent ends, sanlock keeps the fence
            # lease as long as a write of that process is under way.
            if self._fence_fd is not None:
                descriptors.append(os.dup(self._fence_fd))
        try:
            descriptors.append(self._file.begin(on_file))
        except OSError as error:
            text = f"the freeing could not be written to {self._file.path}: {error}"
            if isinstance(error, BlockingIOError):
                text = "an earlier one has not ended"
            elif not act.fencer:
                # The fence lease and the fence log record the freeing all the same.
                log.error("%s", text)
                text = ""
            if text:
                for descriptor in descriptors:
                    os.close(descriptor)
                return text
        try:
            # The process opens the path anew: nothing is written to another volume there.
            try:
                await self._worker.call(
                    "reading the identity",
                    ASK_DEADLINE_S,
                    check_at,
                    self._storage.leases,
                    self._wanted,
                )
            except (Hung, VolumeError) as error:
                return str(error)
            # A local disk that hangs may have delayed the file.
            if why := still():
                return why
            # The proof is at most io_timeout old; a process that has not begun its write another
            # io_timeout later is killed. A write that has begun is waited for.
            code, text = await self._direct.write(
                "release_id",
                "-s",
                self._delta(act.host_id),
                deadline_s=self._storage.io_timeout,
                descriptors=descriptors,
            )
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return "" if code == 0 else f"sanlock direct release_id: {sentence(text)}"

    async def freeing_of_before(self) -> FreeHostId | None:
        found = self._file.found()
        if found is None:
            return None
        return FreeHostId(
            found.host_id,
            found.generation,
            0,
            0.0,
            ordered=found.ordered,
            evidence=found.evidence,
            fencer=found.fencer,
        )

    async def end_of_before(self, act: FreeHostId) -> HostIdFreed:
        await self._file.has_ended()
        return was_freed(act, await self.read_delta(act.host_id))

    def freeing_is_recorded(self) -> None:
        self._file.end()

    async def read_delta(self, host_id: int) -> tuple[int, int] | None:
        """DeltaLeases: (generation, timestamp) of a host id on disk; None where it cannot be read,
        or where another volume lies there: nothing is freed that was not read right before."""
        what = f"reading the lease of host id {host_id}"
        try:
            return await self._worker.call(what, ASK_DEADLINE_S, self._open.delta, host_id)
        except (Hung, VolumeError) as error:
            log.warning("%s", error)
            return None

    async def opened_ahead(self) -> None:
        """Keep the lease volume open for what a takeover asks, until it is cancelled."""
        while True:
            for worker, volume in (
                (self._worker, self._open),
                (self._vms_worker, self._vms_open),
                (self._fence_worker, self._fence_open),
            ):
                with contextlib.suppress(Hung, VolumeError):  # who asks says it
                    await worker.call("opening the lease volume", ASK_DEADLINE_S, volume.now)
            await asyncio.sleep(OPEN_EVERY_S)

    def _delta(self, host_id: int) -> str:
        return f"{self._storage.lockspace}:{host_id}:{self._storage.leases}:0"


def _io_timeout_of(host: dict[str, int]) -> float:
    """The io_timeout of a host's sanlock, by which all others count; 0: it does not say."""
    return float(host.get("io_timeout", 0))


def _text(error: Exception) -> str:
    if isinstance(error, sanlock.SanlockException):
        return f"sanlock: {error.args[-1]} ({error.errno})"
    return sentence(error)

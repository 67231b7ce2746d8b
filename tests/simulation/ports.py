# SPDX-License-Identifier: LGPL-2.1-or-later
"""The product's ports on a simulated host. One adapter per port, held to the real one's contract.

A killed process changes nothing any more: all its tasks are cancelled, and a cancelled task
does not come back from its await. What libvirt or the kernel does for it goes on (`at` of the
timeline), as in life.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from agent.leases.freeing import free_host_id, was_freed
from agent.ports import (
    ACQUIRE_DEADLINE_S,
    ASK_DEADLINE_S,
    CANCEL_DEADLINE_S,
    MIGRATE_EXTRA_S,
    PATH_DEADLINE_S,
    READ_DEADLINE_S,
    START_DEADLINE_S,
    STOP_DEADLINE_S,
    Still,
)
from broker.api.socket import PATIENCE_S
from broker.broker import Broker
from broker.client.ask import BrokerDown
from broker.client.quick import ASK_TIMEOUT_S
from broker.config.addresses import in_uri
from broker.config.sections import HealthSection
from broker.daemon.worker import Hung
from broker.lockspace.hosts import HostRenewal, Witness, look
from broker.lockspace.own_id import FenceOwner
from broker.lockspace.port import DISK_DEADLINE_S, HELD_LOOK_S, RELEASED, LockspaceError
from broker.lockspace.port import RETRY_S as LOCKSPACE_RETRY_S
from broker.lockspace.rejoin import OwnLease, Rejoin, name_of
from broker.lockspace.renewals import Renewals
from broker.monitors.network import ANY_TIMEOUT_S
from broker.monitors.network_verdict import TargetResult, Windows
from broker.monitors.runner import LIBVIRT_DEADLINE_S, Sampled, Unknown
from broker.whiteboard.layout import IDENTITY_SLOT
from broker.whiteboard.slot import EMPTY_SLOT
from broker.whiteboard.store import StorageTrouble
from broker.whiteboard.volume import STORAGE_DEADLINE_S
from broker.wire.exchange import FenceNote, Report, View
from broker.wire.limits import HOST_ID_MAX
from broker.wire.status import MigrationStatus
from broker.wire.what_ran import WhatRan
from scoring.decision import FreeHostId
from scoring.lease_times import WATCHDOG_FIRE_S
from scoring.observation import (
    DomainDisarmed,
    FenceLeaseAnswer,
    FenceStep,
    HostIdFreed,
    LeaseAnswer,
    MigrationCancelled,
    MigrationPath,
    Standing,
    StartResult,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)
from scoring.rules import Rules, timeout_key
from scoring.vm_facts import (
    DETAIL_MIGRATION_SOURCE,
    DETAIL_PAUSED,
    ENGINE,
    DomainHere,
    EngineStatus,
    Health,
    Leftover,
    Pause,
    VmStatus,
)
from tests.simulation.disks import BASE, SHARED, started_image
from tests.simulation.earlier import Metadata, heartbeat_of_version, of_version
from tests.simulation.host import RETRY_S, Host, Qemu
from tests.simulation.lockspace import (
    Daemon,
    DeltaLease,
    LeaseVolume,
    Membership,
    Refused,
    resource_of,
)
from tests.simulation.timeline import PROCESS

if TYPE_CHECKING:
    from tests.simulation.world import World

#: How long a start waits for this host's broker to have read a newer registry
#: (agent/vm/protected.py, which is not imported: it needs libvirt).
REGISTRY_PATIENCE_S = 5.0
MIGRATE_DEADLINE_S = Rules().migration_timeout_s
#: A question to a machine that does not answer: longer than the asker waits, seconds.
REACH_S = 1.5
PAGE_TIMEOUT_S = HealthSection().timeout
BAD_AFTER = HealthSection().failures
#: Delta leases of 512 bytes that are read at once.
LEASES_PER_BLOCK = 8
#: What a packet takes between two hosts.
WIRE_S = 0.0002

#: What the real adapter tells libvirt at each start.
FORCE_BOOT = True
_NOT_HERE = "vm not running on this host"
#: libvirt's own words (src/rpc/virnetsocket.c, src/qemu/qemu_driver.c, src/conf/domain_conf.c).
_NO_SOCKET = "Failed to connect socket to '/var/run/libvirt/libvirt-sock': Connection refused"
_CUT_OFF = "libvirt: End of file while reading data: Input/output error"
_INVALID = "Requested operation is not valid: "
_RUNS_ALREADY = f"libvirt: {_INVALID}domain is already running"
IS_ACTIVE = f"{_INVALID}domain 'HostedEngine' is already active"
NO_JOB = f"{_INVALID}no job is active on the domain"
NOT_RUNNING = f"{_INVALID}domain is not running"
CANCELLED = "libvirt: operation aborted: migration out: canceled by client"


_MIGRATION_URI = "qemu+tls://{host}/system"
_takes = asyncio.sleep
#: What libvirt says of a migration that it refuses for the target's CPU.
UNSAFE_DISKS = "libvirt: Unsafe migration: Migration without shared storage is unsafe"
OTHER_CPU = "the VM's CPU cannot be had there: unsupported configuration"


def _kind_of(slot: int) -> str:
    """Which of host.WRITES a write there is."""
    if slot == 0:
        return "cluster"
    if slot <= HOST_ID_MAX:
        return "slots"
    return "log" if slot < IDENTITY_SLOT else "ran"


class SimStore:
    """SlotStore of one broker process, on the volume that the path led to when it was started.
    A write that hung is done when the storage is back."""

    def __init__(self, host: Host, latency_s: float) -> None:
        self._host = host
        self._board = host.whiteboard
        self._latency_s = latency_s
        self._hangs_since_s: float | None = None
        self._hung_call = ""
        self._held = False

    async def write(self, slot: int, data: bytes) -> None:
        kind = _kind_of(slot)
        if self._fault() == "read-only":
            raise StorageTrouble(f"writing slot {slot}: {self._host.storage.says('whiteboard')}")
        if self._host.late_s(kind):
            await self._write_late(kind, slot, data)
            return
        await self._reach(f"writing slot {slot}", lambda: self._put(slot, data))
        self._put(slot, data)

    async def _write_late(self, kind: str, slot: int, data: bytes) -> None:
        await self._reach(f"writing slot {slot}", None)
        self._held, self._hung_call = True, f"writing slot {slot}"
        self._hangs_since_s = asyncio.get_running_loop().time()
        self._host.write_late(kind, lambda: self._put(slot, data), self._landed)
        late_s = self._host.late_s(kind)
        await _takes(min(late_s, STORAGE_DEADLINE_S))
        if late_s >= STORAGE_DEADLINE_S:
            raise self._hung(STORAGE_DEADLINE_S)

    def _fault(self) -> str:
        return self._host.storage.of("whiteboard")[0]

    def _landed(self) -> None:
        self._held, self._hangs_since_s = False, None

    def at_rest(self) -> bool:
        hangs = self._hangs_since_s is not None and self._fault() == "hang"
        return not self._held and not hangs

    def _put(self, slot: int, data: bytes) -> None:
        storage = self._host.storage
        data = of_version(slot, data, self._host.metadata)
        if storage.torn_writes > 0:
            # Sectors are whole, the write is not: the tail is still the old one.
            storage.torn_writes -= 1
            data = data[:512] + self._board.slots.get(slot, EMPTY_SLOT)[512:]
        elif slot == self._host.host_id and not storage.stray_writes and self._host.is_on_shared:
            self._host.watch.wrote(self._host)
        if storage.stray_writes:
            slot = storage.stray_writes.pop(0)
        self._board.put(slot, data)

    async def read(self, slots: Sequence[int]) -> Mapping[int, bytes]:
        if self._fault() == "unreadable":
            raise StorageTrouble(f"reading slots: {self._host.storage.says('whiteboard')}")
        await self._reach("reading slots", None)
        found = self._board.read()
        if self._host.storage.stale_reads > 0:
            self._host.storage.stale_reads -= 1
            found = {**found, **self._board.before}
        answer = dict.fromkeys(slots, EMPTY_SLOT)
        for slot, data in found.items():
            if slot in answer:
                answer[slot] = of_version(slot, data, self._host.metadata)
        return answer

    async def _reach(self, what: str, late: Any) -> None:
        storage = self._host.storage
        loop = asyncio.get_running_loop()
        if self._hangs_since_s is not None:
            if self._held or self._fault() == "hang":
                raise self._hung(loop.time() - self._hangs_since_s)
            self._hangs_since_s = None
        if self._fault() == "error":
            raise StorageTrouble(f"{what}: {storage.says('whiteboard')}")
        wait_s = self._latency_s + storage.of("whiteboard")[1]
        if self._fault() == "hang" or wait_s > STORAGE_DEADLINE_S:
            self._hangs_since_s, self._hung_call = loop.time(), what
            if late is not None:
                self._host.timeline.after(0.25, self._late, late, self._host.boots)
            await _takes(STORAGE_DEADLINE_S)
            raise self._hung(STORAGE_DEADLINE_S)
        if wait_s > 0:
            await _takes(wait_s)

    def _hung(self, age_s: float) -> StorageTrouble:
        """The real store's error about the call that its thread is in."""
        return StorageTrouble(str(Hung("whiteboard", self._hung_call, age_s)), hung=True)

    def _late(self, write: Any, boot: int) -> None:
        """The kernel still has the write: it is done as soon as the storage answers."""
        if self._host.boots != boot or not self._host.up:
            return
        if self._fault() == "hang":
            self._host.timeline.after(0.25, self._late, write, boot)
        elif self._fault() not in ("error", "read-only"):
            write()


class SimJoinedMark:
    """JoinedMark on the host's own disk."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.is_set = host.joined_on_boot == host.boots
        self.process = host.joined_by if self.is_set else ""

    def set(self, process: str) -> None:
        self.is_set, self.process = True, process
        self._host.joined_on_boot, self._host.joined_by = self._host.boots, process

    def clear(self) -> None:
        self.is_set, self.process = False, ""
        self._host.joined_on_boot, self._host.joined_by = 0, ""


class SimLockspace:
    """Lockspace port: looks every two seconds and joins when not joined."""

    def __init__(self, host: Host) -> None:
        self._host = host
        name = host.sanlock_name or name_of(host.name, host.system_uuid)
        self._rejoin = Rejoin(frozenset({name}), host.io_timeout_s, SimJoinedMark(host))
        self._leases = host.leases
        self.joined: bool | None = None
        self.problem = "not joined yet"
        self.witnesses: dict[int, Witness] = {}
        self.renewals = Renewals(self._on_disk)
        self.renewed_s: float | None = None
        self.no_join = self.stay_out = self.watch_fence = False
        self.hold = ""
        self.fence_owner: FenceOwner | None = None
        self.wanted_leases: Callable[[], Mapping[str, int]] = dict
        self.lost_leases: Mapping[str, str] = {}

    async def run(self) -> None:
        while True:
            self._look()
            if self.watch_fence:
                self._look_at_fence()
            is_short = self.hold and not self.watch_fence
            await _takes(HELD_LOOK_S if is_short else LOCKSPACE_RETRY_S)

    def _look_at_fence(self) -> None:
        fence = self._host.leases.read().resources["fence"]
        known = not self._host.reach() and self._host.sanlock is not None
        self.fence_owner = FenceOwner(fence.owner, fence.generation) if known else None

    def _look(self) -> None:
        if self._host.sanlock_stopped:
            # As the real adapter: a call that does not end says nothing new.
            self.joined, self.problem = None, "sanlock does not answer"
            return
        try:
            daemon = self._host.sanlock_answers()
        except Refused as error:
            self.joined, self.problem = False, str(error)
            return
        if daemon.busy:
            daemon.busy = False
            raise LockspaceError(daemon.refused)
        if self.stay_out:
            self._leave(daemon)
        else:
            self.joined = daemon.membership is Membership.IN
            self.problem = "" if self.joined else daemon.refused or "joining"
            if daemon.membership is not Membership.OUT:
                self._rejoin.mark.set(daemon.process)
            elif self.hold or self.no_join:
                self.problem = self.hold or RELEASED
            else:
                self._join(daemon)
        self._look_around(daemon)

    def _leave(self, daemon: Daemon) -> None:
        """Give the host id back, or later where a lease hangs on it, as SanlockLockspace does."""
        if daemon.membership is Membership.JOINING:
            self.joined, self.problem = False, "joining, to be left at once"
            return
        if daemon.membership is Membership.IN:
            daemon.leave_unused()
        self.joined = daemon.membership is Membership.IN
        self.problem = "" if self.joined else self.hold or RELEASED
        if not self.joined:
            if daemon.membership in (Membership.LEAVING, Membership.OUT):
                self._rejoin.mark.clear()
            self.renewed_s = None

    def _join(self, daemon: Daemon) -> None:
        """Read the own delta lease, then ask sanlock, as SanlockLockspace does."""
        lease = None
        if not self._host.reach():
            found = self._leases.read().delta(self._host.host_id)
            lease = OwnLease(found.daemon, found.generation, found.timestamp)
        now_s = asyncio.get_running_loop().time()
        if why := self._rejoin.look(lease, now_s, daemon.process):
            self.problem = why
            return
        was_set = self._rejoin.mark.is_set
        self._rejoin.mark.set(daemon.process)
        daemon.join()
        if daemon.membership is Membership.OUT and not was_set:
            self._rejoin.mark.clear()

    def _look_around(self, daemon: Daemon) -> None:
        if not self.joined:
            self.witnesses = {}
            return
        now_s = asyncio.get_running_loop().time()
        renewals = []
        for host_id in sorted(self._leases.read().deltas):
            found = daemon.host(host_id)
            if found is not None:
                state = found.standing.value
                renewals.append(HostRenewal(host_id, found.generation, found.timestamp, state))
        self.witnesses = look(self.witnesses, renewals, now_s)
        known = {host: (w.generation, w.timestamp) for host, w in self.witnesses.items()}
        self.renewals.learn(known, now_s)
        ago_s = self._host.timeline.now_s - daemon.last_renewal_s
        self.renewed_s = now_s - ago_s * self._host.rate

    async def _on_disk(self, host_ids: Iterable[int]) -> Mapping[int, tuple[int, int]]:
        reach = self._host.reach()
        if reach:
            if reach == "hang":
                await _takes(DISK_DEADLINE_S)
            return {}
        blocks = {(host_id - 1) // LEASES_PER_BLOCK for host_id in (self._host.host_id, *host_ids)}
        return {
            host_id: (delta.generation, delta.timestamp)
            for host_id, delta in self._leases.read().deltas.items()
            if (host_id - 1) // LEASES_PER_BLOCK in blocks
        }


class SimHeartbeats:
    """Transport of the questions: packets between the hosts, and the broker that answers.

    A lost packet is sent again only after a second or more, which is too late for a question.
    """

    def __init__(self, world: World, host: Host) -> None:
        self._world = world
        self._host = host

    async def ask_port(self, address: str, question: bytes, take: Callable[[bytes], bool]) -> None:
        target = self._world.by_address.get(address)
        if target is None:
            raise OSError(f"{address}: no such name")
        source = self._host.heartbeat_address.partition(":")[0]
        answer = await self._there_and_back(
            target,
            self._world.delay_s(self._host, target),
            lambda broker: broker.sign_of_life.answer(question, source, target.clock_s()),
        )
        if target.number not in self._world.brokers or target.metadata is not Metadata.THIS:
            # Nothing listens there; of an earlier version neither.
            raise ConnectionRefusedError(f"{address}: connection refused")
        if answer is None or not take(answer):
            await asyncio.get_running_loop().create_future()
        self._world.laws.fence.answered(self._host, target)

    async def ask_listener(self, address: str, nonce: str) -> bytes:
        target = self._world.by_address.get(address)
        if target is None:
            raise OSError(f"{address}: no such name")
        answer = await self._there_and_back(
            target,
            # Two packets there for the connection and the request, two back.
            2.0 * self._world.delay_s(self._host, target),
            lambda broker: broker.sign_of_life.at_listener(nonce, target.clock_s()),
        )
        if answer is None:
            raise ConnectionRefusedError(f"{address}: connection refused")
        self._world.laws.fence.answered(self._host, target)
        return heartbeat_of_version(answer, target.metadata)

    async def _there_and_back(
        self, target: Host, way_s: float, answer: Callable[[Broker], bytes | None]
    ) -> bytes | None:
        """What its broker answers; None: nothing, or there is no broker. `way_s`: one way."""
        if not self._arrives(target):
            await asyncio.get_running_loop().create_future()
        if way_s > 0:
            await _takes(way_s)
        while target.frozen:
            await _takes(max(0.001, target.frozen_until_s - self._host.timeline.now_s))
        while target.is_stopped("broker"):
            await _takes(RETRY_S)
        broker = self._world.brokers.get(target.number)
        found = None if broker is None else answer(broker)
        if not self._arrives(target):
            await asyncio.get_running_loop().create_future()
        await _takes(way_s + WIRE_S)
        return found

    def _arrives(self, target: Host) -> bool:
        return self._world.reaches(self._host, target, chance=self._world.network_chance)


class SimReach:
    """The kernels of the other machines, and the guest's: they answer whatever their daemons do,
    as long as anything runs on them."""

    def __init__(self, world: World, host: Host) -> None:
        self._world = world
        self._host = host

    async def answers(self, address: str) -> bool | None:
        world, host = self._world, self._host
        target = world.by_address.get(address)
        if target is None:
            target = world.owner()
            there = target is not None and self._guest_answers(target)
        else:
            there = world.reaches(host, target, chance=world.kernel_chance)
        if target is None or not there or target.loop is None or target.frozen:
            await _takes(REACH_S)
            return False
        await _takes(2.0 * world.delay_s(host, target) + WIRE_S)
        return True

    def _guest_answers(self, owner: Host) -> bool:
        world, qemu = self._world, owner.qemu
        return (
            qemu is not None
            and qemu.running
            and not qemu.is_hung
            and world.timeline.now_s >= qemu.healthy_from_s  # a guest that boots answers nobody
            and not world.guest_closed_to
            and self._host.is_way_open
            and owner.is_way_open
            and world.reaches(self._host, owner, chance=world.kernel_chance)
        )


class SimEngineMonitor(Sampled):
    """What the broker's monitor of a VM does, on a simulated libvirt and guest."""

    name = "engine"
    unit = ""
    interval_s = 1.0
    deadline_s = 10.0

    def __init__(self, host: Host, vm: int = ENGINE) -> None:
        self._host = host
        self._vm = vm
        self._failures = 0
        self._was_up = False
        self.lease_held: bool | None = None
        self.migration: MigrationStatus | None = None
        self.facts = DomainHere()

    async def sample(self) -> EngineStatus:
        host = self._host
        if host.libvirt_hangs:
            await _takes(LIBVIRT_DEADLINE_S)
            return self._unknown("libvirt: asking for the VM has not answered")
        if not host.libvirt_up:
            return self._unknown("libvirt: connection refused")
        qemu = host.qemus.get(self._vm)
        facts = DomainHere(memory_image=False, autostart=False)
        if self._vm == ENGINE:
            is_saved = host.memory_image is not None
            facts = DomainHere(memory_image=is_saved, autostart=host.autostart)
        if qemu is None or qemu.received or qemu.crashed:
            self._failures, self.lease_held, self._was_up = 0, None, False
            self.migration = None
            if qemu is not None and (qemu.crashed or qemu.orphan):
                self.lease_held = qemu.has_lease
                leftover = Leftover.CRASHED if qemu.crashed else Leftover.NOT_RECEIVED
                facts = replace(facts, leftover=leftover, leftover_since_s=qemu.left_since_s)
            self.facts = facts
            if qemu is not None and qemu.crashed:
                return EngineStatus(
                    VmStatus.DOWN_UNEXPECTED, Health.BAD, "panicked", "the guest panicked"
                )
            if qemu is not None:
                return EngineStatus(
                    VmStatus.DOWN, Health.BAD, "not running yet", "the VM is being received"
                )
            vm, detail = host.last_ends.get(self._vm, (VmStatus.DOWN, "unknown"))
            return EngineStatus(vm, Health.BAD, detail, _NOT_HERE)
        self._was_up = True
        running = host.sanlock is not None and host.sanlock.running
        self.lease_held = qemu.has_lease if running else None
        detail, self.migration = "up", None
        if qemu.leaving:
            detail = DETAIL_MIGRATION_SOURCE
            elapsed_s = host.timeline.now_s - qemu.leaving_since_s
            self.migration = MigrationStatus(0, 0, 0, elapsed_s, None)
        elif not qemu.running:
            detail = DETAIL_PAUSED
            lease = host.leases.read().resources[resource_of(self._vm)]
            moved_on = lease.last_owner != host.host_id
            facts = replace(
                facts,
                pause=(qemu.pause or Pause.USER) if qemu.has_run else Pause.NEVER_RAN,
                outdated=moved_on if qemu.has_run and self.lease_held is False else None,
            )
        health, reason = await self._health()
        self.facts = facts
        return EngineStatus(VmStatus.UP, health, detail, reason)

    def _unknown(self, why: str) -> EngineStatus:
        self._failures, self.lease_held, self.facts = 0, None, DomainHere()
        return EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN, "unknown", why)

    async def _health(self) -> tuple[Health, str | None]:
        host = self._host
        if host.is_healthy(self._vm) and not host.own_check_fails:
            self._failures = 0
            return Health.GOOD, None
        qemu = host.qemus.get(self._vm)
        booted = qemu is not None and host.timeline.now_s >= qemu.healthy_from_s
        if booted:
            await _takes(PAGE_TIMEOUT_S)
        self._failures += 1
        health = Health.BAD if self._failures >= BAD_AFTER else Health.UNKNOWN
        return health, "the health page does not answer"


class SimNetwork(Sampled):
    """The network test of one target, the gateway."""

    name = "network"
    unit = "fraction"
    interval_s = 10.0
    deadline_s = 5.0

    def __init__(self, host: Host) -> None:
        self._host = host
        self._windows = Windows()

    async def sample(self) -> tuple[TargetResult, ...]:
        return self._windows.take({"gateway": (self._host.gateway_answers, "")})


class SimOutsideProbe:
    """OutsideProbe: a question to the guest over the network that its users come by."""

    def __init__(self, world: World, host: Host, vm: int = ENGINE) -> None:
        self._world = world
        self._host = host
        self._vm = vm

    async def problem(self) -> str | None:
        owner = self._world.owner(self._vm)
        if owner is None or not self._world.hears_guest(self._host, owner):
            await _takes(PAGE_TIMEOUT_S)
            return "the health page does not answer"
        way_s = 2.0 * self._world.delay_s(self._host, owner)
        if not owner.is_healthy(self._vm) or way_s >= PAGE_TIMEOUT_S:
            await _takes(PAGE_TIMEOUT_S)
            return "the health page does not answer"
        await _takes(way_s + WIRE_S)
        return None


class SimTargets:
    """The question to the network test's one target, the gateway."""

    def __init__(self, world: World, host: Host) -> None:
        self._world = world
        self._host = host

    async def any_answers(self) -> bool:
        answered = self._world.outside_chance.random() < self._host.gateway_answers
        await _takes(WIRE_S if answered else ANY_TIMEOUT_S)
        return answered


class SimSample(Sampled):
    """Any other monitor: reads one value of the simulated host."""

    unit = ""
    deadline_s = 5.0

    def __init__(self, name: str, interval_s: float, host: Host, attribute: str) -> None:
        self.name = name
        self.interval_s = interval_s
        self._host = host
        self._attribute = attribute

    async def sample(self) -> Any:
        return getattr(self._host, self._attribute)


class SimCanStart:
    """The proof that the VM could be started here; it finds what shows beforehand, no more."""

    name = "can_start"
    unit = ""
    deadline_s = 30.0

    def __init__(self, host: Host) -> None:
        self._host = host
        self.interval_s = 5.0

    async def sample(self) -> bool:
        if self._host.libvirt_hangs:
            await _takes(8.0)
        if self._host.libvirt_hangs or not self._host.libvirt_up:
            raise Unknown("libvirt does not answer")
        self.interval_s = 5.0 if self._host.is_told else 60.0
        return not self._host.is_told

    def judge(self, value: bool) -> str:
        return "" if value else "br-vlan20 of the VM's interface is not on this host"


class SimLink:
    """BrokerLink: a direct call into the broker of the same host, cut when that dies.

    `on_wire`: each report and view goes through JSON as over the real socket.
    """

    def __init__(self, world: World, host: Host, on_wire: bool) -> None:
        self._world = world
        self._host = host
        self._on_wire = on_wire
        self._waiting: dict[asyncio.Task[Any], None] = {}
        self._cut: dict[asyncio.Task[Any], None] = {}

    async def exchange(self, report: Report, newer_than: int | None = None) -> View:
        broker = self._world.brokers.get(self._host.number)
        loop = asyncio.get_running_loop()
        if broker is None:
            await _takes(0.001)
            raise BrokerDown("no answer: connection refused")
        if self._on_wire:
            report = msgspec.json.decode(msgspec.json.encode(report), type=Report)
        await self._answers(broker, loop.time() + ASK_TIMEOUT_S)
        self._world.reported(self._host, report)
        broker.take_report(report, loop.time())
        if newer_than is None:
            view = broker.view(loop.time())
        else:
            task = asyncio.current_task()
            assert task is not None
            self._waiting[task] = None
            try:
                view = await broker.exchange.newer_view(newer_than, PATIENCE_S)
            except asyncio.CancelledError:
                process = PROCESS.get()
                if task not in self._cut or (process is not None and not process.alive):
                    raise
                task.uncancel()
                raise BrokerDown("no answer: connection reset") from None
            finally:
                self._waiting.pop(task, None)
                self._cut.pop(task, None)
        await self._answers(broker, loop.time() + ASK_TIMEOUT_S)
        if self._on_wire:
            view = msgspec.json.decode(msgspec.json.encode(view), type=View)
        return view

    async def _answers(self, broker: Broker, until_s: float) -> None:
        """Wait while the broker's process is stopped; BrokerDown where that takes too long."""
        loop = asyncio.get_running_loop()
        while self._host.is_stopped("broker"):
            if loop.time() >= until_s:
                raise BrokerDown("no answer: timed out")
            await _takes(RETRY_S)
        if self._world.brokers.get(self._host.number) is not broker:
            raise BrokerDown("no answer: connection reset")

    def cut(self) -> None:
        """The broker died: whoever waits for it is told."""
        for task in list(self._waiting):
            self._cut[task] = None
            task.cancel()


class SimLeases:
    """Leases port, and agent.freeing's DeltaLeases, on the simulated sanlock."""

    def __init__(self, world: World, host: Host) -> None:
        self._world = world
        self._host = host
        self._renewals: dict[int, tuple[int, int, float]] = {}

    @property
    def fence_held(self) -> bool:
        """Whether this agent holds the fence lease."""
        return self._host.fence_held

    @fence_held.setter
    def fence_held(self, value: bool) -> None:
        self._host.fence_held = value

    async def ask_engine(self) -> LeaseAnswer:
        return await self.ask_vm(ENGINE)

    async def ask_vm(self, vm: int) -> LeaseAnswer:
        """The owner of a VM's lease, and the state of that host in sanlock."""
        return replace(await self._ask(resource_of(vm)), vm=vm)

    async def ask_vms(self, vms: Sequence[int]) -> tuple[LeaseAnswer, ...]:
        return tuple([await self.ask_vm(vm) for vm in vms])

    async def ask_fence(self) -> LeaseAnswer:
        return await self._ask("fence")

    async def _ask(self, name: str) -> LeaseAnswer:
        asked_s = asyncio.get_running_loop().time()
        reach = self._host.reach_of_sanlock()
        await _takes(ASK_DEADLINE_S if reach == "hang" else 0.02)
        if reach:
            return LeaseAnswer(False, asked_s, detail="sanlock: the volume cannot be read")
        resource = self._host.leases.read().resources[name]
        if resource.owner == 0:
            return LeaseAnswer(True, asked_s)
        owner, generation = resource.owner, resource.generation
        try:
            found = self._host.sanlock_answers().host(owner)
        except Refused as error:
            return LeaseAnswer(False, asked_s, detail=f"sanlock: {error}")
        if found is None:
            return LeaseAnswer(True, asked_s, owner, generation, detail="no standing known")
        key = (found.generation, found.timestamp)
        old = self._renewals.get(owner)
        if old is None or old[:2] != key:
            old = self._renewals[owner] = (*key, asked_s)
        # As the real adapter: what sanlock's daemon saw is old, the disk is not.
        disk = self._host.leases.read().delta(owner)
        return LeaseAnswer(
            known=True,
            asked_s=asked_s,
            owner=owner,
            owner_generation=generation,
            current_generation=disk.generation,
            owner_timestamp=disk.timestamp,
            standing=Standing.FREE if disk.timestamp == 0 else found.standing,
            dead_in_s=8 * found.io_timeout_s + WATCHDOG_FIRE_S - (asked_s - old[2]),
            owner_io_timeout_s=found.io_timeout_s,
        )

    async def take_fence(self) -> FenceLeaseAnswer:
        loop = asyncio.get_running_loop()
        # sanlock reads and writes the volume several times, one after the other.
        takes_s = 0.1 + 3 * self._host.leases_slow_s()
        is_hung = self._host.reach_of_sanlock() == "hang"
        await _takes(ACQUIRE_DEADLINE_S if is_hung else min(takes_s, ACQUIRE_DEADLINE_S))
        if self._host.release_hangs:
            detail = "sanlock: another process of this host holds it"
            return FenceLeaseAnswer(False, loop.time(), detail)
        try:
            self._host.sanlock_answers().acquire("fence")
        except Refused as error:
            return FenceLeaseAnswer(False, loop.time(), f"sanlock: {error}")
        self.fence_held, self._host.fence_since_s = True, self._host.timeline.now_s
        self._world.tell(self._host.name, "took the fence lease")
        return FenceLeaseAnswer(True, loop.time())

    async def drop_fence(self) -> None:
        was_held, self.fence_held = self.fence_held, False
        if was_held and self._host.sanlock is not None:
            self._host.sanlock.release("fence")
        await _takes(0.05)

    async def read_delta(self, host_id: int) -> tuple[int, int] | None:
        reach = self._host.reach()
        await _takes(READ_DEADLINE_S if reach == "hang" else 0.03)
        if reach:
            return None
        delta = self._host.leases.read().delta(host_id)
        return delta.generation, delta.timestamp

    async def freeing_of_before(self) -> FreeHostId | None:
        return self._host.freeing_on_file

    async def end_of_before(self, act: FreeHostId) -> HostIdFreed:
        while self._host.release_hangs:
            await _takes(RETRY_S)
        return was_freed(act, await self.read_delta(act.host_id))

    def freeing_is_recorded(self) -> None:
        self._host.freeing_on_file = None

    async def free_host_id(self, act: FreeHostId, still: Still) -> HostIdFreed:
        self._world.began(self._host, act)
        return await free_host_id(
            act,
            self._host.host_id,
            self._host.io_timeout_s,
            lambda: self.fence_held,
            _Direct(self, self._world, self._host, act),
            still,
        )


@dataclass(slots=True)
class _Direct:
    """`sanlock direct`: works on the volume itself, whatever sanlock's daemon does."""

    leases: SimLeases
    world: World
    host: Host
    act: FreeHostId

    async def read_delta(self, host_id: int) -> tuple[int, int] | None:
        return await self.leases.read_delta(host_id)

    async def release_id(self, act: FreeHostId, still: Still) -> str:
        if why := still():
            return why
        host = self.host
        host.freeing_on_file = act
        if host.reach() == "error":
            await _takes(READ_DEADLINE_S)
            return f"sanlock direct release_id: {host.storage.says('leases')}"
        if host.storage.of("leases")[0] == "read-only":
            return f"sanlock direct release_id: {host.storage.says('leases')}"
        if host.reach():
            # Killed before it has read: it writes nothing, and ends when the storage is back.
            host.release_hangs = True
            host.timeline.after(RETRY_S, self._ends_with_the_storage, host.boots)
            while host.release_hangs:
                await _takes(RETRY_S)
            return "sanlock direct release_id: killed"
        self.world.freeing(host, act)
        if host.late_s("release"):
            # What the process has read is written over whatever is there by then.
            read = replace(host.leases.read().delta(act.host_id), timestamp=0)
            host.release_hangs = True
            volume = host.leases
            host.write_late("release", lambda: self._lands(act, volume, read), host.release_ended)
            while host.release_hangs:
                await _takes(RETRY_S)
            return "sanlock direct release_id: killed"
        lease = host.leases.read().delta(act.host_id)
        host.leases.put(act.host_id, replace(lease, timestamp=0))
        await _takes(0.03)
        return ""

    def _lands(self, act: FreeHostId, volume: LeaseVolume, read: DeltaLease) -> None:
        self.world.freed(self.host, act)
        volume.put(act.host_id, read)

    def _ends_with_the_storage(self, boot: int) -> None:
        if self.host.boots != boot or not self.host.up:
            return
        if self.host.reach() == "hang":
            self.host.timeline.after(RETRY_S, self._ends_with_the_storage, boot)
        else:
            self.host.release_ended()


class SimFenceLog:
    """FenceLog port: by way of the host's broker, as in life."""

    def __init__(self, world: World, host: Host) -> None:
        self._world = world
        self._host = host

    async def note(self, note: FenceNote) -> str:
        broker = self._world.brokers.get(self._host.number)
        if broker is None:
            await _takes(0.001)
            return "no answer: connection refused"
        if note.step is FenceStep.INTENT:
            self._world.laws.fence.intends(note.target)
        try:
            await broker.asked.note_fence(note)
        except StorageTrouble as error:
            return str(error)
        what = "over" if note.over else "withdrawn" if note.withdrawn else note.step.value
        self._world.tell(self._host.name, f"notes {what} of host {note.target}")
        return ""


def no_name(target: int, hostname: str) -> str:
    """Why a target is refused, as by the real adapter: a host's name must be a name or an address;
    "": it is not refused."""
    if in_uri(hostname):
        return ""
    return f"host {target} calls itself {hostname!r}, which is no host name or address"


def no_libvirt(hostname: str) -> str:
    """The real adapter's sentence about a target whose libvirt is away."""
    uri = _MIGRATION_URI.format(host=in_uri(hostname))
    return f"libvirt on {hostname} does not answer at {uri}: unable to connect to server"


class SimHypervisor:
    """Hypervisor port for one VM: libvirt with sanlock's lock driver on a simulated host."""

    def __init__(self, world: World, host: Host, leases: SimLeases, vm: int = ENGINE) -> None:
        self._world = world
        self._host = host
        self._leases = leases
        self._vm = vm
        # As the real adapter: a migration that this agent began, and why it is being ended.
        self._moving = False
        self._cancelled = ""

    async def start(self, what_ran: WhatRan | None = None, registry: int = 0) -> VmStartEnded:
        laws = self._world.laws.vms
        if self._vm != ENGINE:
            laws.start_begins(self._host, self._vm)
        try:
            ended = await self._start(what_ran, registry)
        finally:
            laws.start_ends(self._host, self._vm)
        if ended.result is StartResult.FAILED:
            laws.start_failed(self._host, self._vm)
        if ended.result is not StartResult.STARTED:
            self._world.vms.trouble_s[self._host.number, self._vm] = self._host.timeline.now_s
        return ended

    async def _start(self, what_ran: WhatRan | None, registry: int) -> VmStartEnded:
        host = self._host
        self._world.began(host, "start", self._vm)
        if why := await self._libvirt("starting the VM", START_DEADLINE_S):
            # The real adapter names libvirt for its errors; a call that hangs names it already.
            why = f"libvirt: {why}" if why is _NO_SOCKET else why
            return VmStartEnded(StartResult.FAILED, why)
        await _takes(0.2)
        if self._vm != ENGINE and (why := await self._registry_lacks(registry)):
            return VmStartEnded(StartResult.FAILED, why)
        disk = host.disk_of(self._vm)[0] if self._vm in host.own_disks else ""
        if disk == "error":
            return VmStartEnded(StartResult.FAILED, "libvirt: its disk: Input/output error")
        if disk == "hang" or (host.number, self._vm) in self._world.vms.start_hangs:
            await _takes(START_DEADLINE_S)
            hung = Hung("libvirt", "starting the VM", START_DEADLINE_S)
            return VmStartEnded(StartResult.FAILED, str(hung))
        if self._vm in host.qemus:
            return VmStartEnded(StartResult.FAILED, _RUNS_ALREADY)
        if why := self._world.start_fails(host, self._vm):
            return VmStartEnded(StartResult.FAILED, f"libvirt: {why}")
        image = self._world.vms.images.get(self._vm, BASE)
        if self._vm == ENGINE:
            host.autostart = False
            image = started_image(what_ran)
        if not image.startswith((SHARED, f"/{host.name}/")):
            return VmStartEnded(StartResult.FAILED, f"libvirt: cannot open {image}")
        host.create_qemu(force_boot=FORCE_BOOT, disk=image, vm=self._vm)
        await _takes(0.15)
        if self._vm not in host.qemus:
            return VmStartEnded(StartResult.FAILED, "QEMU ended while starting")
        if not host.libvirt_up:
            return VmStartEnded(StartResult.FAILED, _CUT_OFF)
        try:
            boot_s = self._world.vms.boots_s(host, self._vm)
            host.resume_qemu(host.timeline.now_s + boot_s, self._vm)
        except Refused as error:
            why = f"not started: {error}"
            host.end_qemu(why, VmStatus.DOWN, "failed to start", vm=self._vm)
            return await self._refused(str(error))
        self._world.tell(host.name, f"started {self._world.called(self._vm)}")
        return VmStartEnded(StartResult.STARTED)

    async def _registry_lacks(self, generation: int) -> str:
        """Why this host's copy of the registry does not do for a start; empty: it does."""
        broker = self._world.brokers.get(self._host.number)
        until_s = asyncio.get_running_loop().time() + REGISTRY_PATIENCE_S
        while broker is not None:
            known = broker.registry.cached
            if known.generation >= generation:
                record = known.vms.get(self._vm)
                forbidden = "" if record is None else record.why_not_on(self._host.host_id)
                return known.damaged.get(self._vm, "") or forbidden
            if asyncio.get_running_loop().time() > until_s:
                break
            await _takes(RETRY_S)
        return "no older definition is started"

    async def _refused(self, why: str) -> VmStartEnded:
        """The lock driver gave no lease: another host's, or its own trouble."""
        answer = await self._leases.ask_vm(self._vm)
        if answer.keeps_out(self._host.host_id):
            return VmStartEnded(StartResult.LEASE_HELD, f"host {answer.owner} owns it")
        return VmStartEnded(StartResult.FAILED, why)

    async def _libvirt(self, what: str, deadline_s: float, worker: str = "libvirt") -> str:
        """Why libvirt does not do it; empty: it will."""
        if self._host.libvirt_hangs:
            await _takes(deadline_s)
            return str(Hung(worker, what, deadline_s))
        return "" if self._host.libvirt_up else _NO_SOCKET

    async def shut_down(self) -> VmStopEnded:
        host = self._host
        self._world.began(host, "shut down", self._vm)
        if why := await self._libvirt("asking the guest to shut down", STOP_DEADLINE_S):
            return VmStopEnded(False, why)
        await _takes(0.05)
        qemu = host.qemus.get(self._vm)
        obeys = qemu is not None and not (qemu.is_hung or qemu.ignores_shutdown)
        if qemu is not None and qemu.running and obeys:
            host.timeline.after(8.0, self._guest_ends, qemu)
        return VmStopEnded(True)

    def _guest_ends(self, qemu: Qemu) -> None:
        host = self._host
        if host.qemus.get(self._vm) is not qemu or not qemu.running or qemu.is_hung or host.frozen:
            return
        if qemu.stopped_until_s > host.timeline.now_s:
            host.timeline.after(RETRY_S, self._guest_ends, qemu)
        else:
            host.end_qemu("the guest shut down", VmStatus.DOWN, "shut down", vm=self._vm)

    async def power_off(self) -> VmStopEnded:
        host = self._host
        self._world.began(host, "power off", self._vm)
        if why := await self._libvirt("ending the VM", STOP_DEADLINE_S):
            return VmStopEnded(False, why)
        await _takes(0.3)
        if self._vm in host.qemus:
            if host.is_unkillable(self._vm):
                return VmStopEnded(False, "the process does not end")
            host.end_qemu("ended by the agent", VmStatus.DOWN, "powered off", vm=self._vm)
        return VmStopEnded(True)

    async def disarm(self, image: bool) -> DomainDisarmed:
        if why := await self._libvirt("disarming the domain", STOP_DEADLINE_S):
            return DomainDisarmed(False, why)
        if self._vm != ENGINE:
            return DomainDisarmed(True)
        self._host.autostart = False
        if image and self._host.memory_image is not None:
            self._host.memory_image = None
            self._world.tell(self._host.name, "discarded a memory image")
        return DomainDisarmed(True)

    async def cancel_migration(self, why: str) -> MigrationCancelled:
        if self._moving:
            self._cancelled = f"cancelled by {why}"
        problem = await self._cancel()
        if problem:
            self._cancelled = ""
        return MigrationCancelled(not problem, problem)

    async def _cancel(self) -> str:
        """Why the migration that is under way cannot be cancelled; empty: it soon is."""
        worker = "libvirt beside a migration"
        if why := await self._libvirt("cancelling", CANCEL_DEADLINE_S, worker):
            return why
        qemu = self._host.qemus.get(self._vm)
        if qemu is None or not qemu.leaving:
            return NOT_RUNNING if qemu is None else NO_JOB
        self._world.cancel_move(self._host, self._vm)
        return ""

    async def ask_path(self, target: int, hostname: str) -> MigrationPath:
        asked_s = asyncio.get_running_loop().time()
        if why := no_name(target, hostname):
            return MigrationPath(target, False, asked_s, why)
        found = self._world.named(hostname)
        if found is None or not self._world.migration_reaches(self._host, found):
            await _takes(PATH_DEADLINE_S)
            return MigrationPath(target, False, asked_s, no_libvirt(hostname))
        await _takes(0.1)
        if found.refuses_moves:
            return MigrationPath(target, False, asked_s, OTHER_CPU)
        ok = found.libvirt_up and not found.libvirt_hangs
        return MigrationPath(target, ok, asked_s, "" if ok else no_libvirt(hostname))

    async def migrate(
        self, target: int, hostname: str, timeout_s: float | None = None
    ) -> VmMigrationEnded:
        within_s = MIGRATE_DEADLINE_S if timeout_s is None else timeout_s
        self._world.began(self._host, "migrate", self._vm)
        loop = asyncio.get_running_loop()
        if why := no_name(target, hostname):
            return VmMigrationEnded(target, False, why, lasting=True)
        if why := await self._libvirt("migrating the VM", within_s):
            return VmMigrationEnded(target, False, why)
        await _takes(0.1)
        if self._host.migrates_nothing:
            self._host.move_failed = True
            return VmMigrationEnded(target, False, UNSAFE_DISKS, lasting=True, everywhere=True)
        there = self._world.named(hostname)
        if there is not None and there.refuses_moves:
            self._host.move_failed = True
            return VmMigrationEnded(target, False, OTHER_CPU, lasting=True)
        move = self._world.migrate(self._host, hostname, self._vm)
        self._moving, self._cancelled = True, ""
        try:
            until_s = loop.time() + within_s
            while move.result is None and loop.time() < until_s:
                await _takes(0.2)
            if move.result is None:
                key = f"{within_s:g} s ({timeout_key(timeout_s is not None)})"
                self._cancelled = f"cancelled, for it took more than {key}"
                await self._cancel()
            until_s += MIGRATE_EXTRA_S
            while move.result is None and loop.time() < until_s:
                await _takes(0.2)
            if move.result == "":
                return VmMigrationEnded(target, True)
            hung = Hung("libvirt", "migrating the VM", within_s + MIGRATE_EXTRA_S)
            return VmMigrationEnded(target, False, self._cancelled or move.result or str(hung))
        finally:
            self._moving, self._cancelled = False, ""

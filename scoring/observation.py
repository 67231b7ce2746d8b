# SPDX-License-Identifier: LGPL-2.1-or-later
"""The input of `decide`: one frozen picture of the world, taken once a beat.

If the decision asked the outside world itself, two of its questions would be answered at two
moments, and it could act on a situation that never existed. With everything in one value, a beat
can also be recorded and replayed.

Rules of this file:

1. Nothing here does anything. Foreign strings and dictionaries become these types once, at the
   edge (broker/wire/status.py, broker/whiteboard/slot.py).
2. Unknown is a value of its own: `None` or `UNKNOWN`, never `False` and never 0.
3. All times are seconds of this host's monotonic clock, as floats, and end in `_s`. A peer's
   timestamp is a counter, not a time: it is only compared with its own earlier value.
4. The result of an action is an `Outcome` in a later observation, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from scoring.storage_word import StorageWord
from scoring.vm_facts import (
    ENGINE,
    Claim,
    OutsideView,
    PeerVm,
    VmHere,
    VmSpec,
)


class OnHostShutdown(StrEnum):
    """What becomes of the VM when its host shuts down (vm.on-host-shutdown)."""

    MIGRATE = "migrate"
    SHUTDOWN = "shutdown"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class HostShutdown:
    """This host is being shut down, since `since_s`. `way`: MIGRATE or SHUTDOWN; with LEAVE the
    agent is not informed of the shutdown."""

    since_s: float
    way: OnHostShutdown = OnHostShutdown.MIGRATE


@dataclass(frozen=True, slots=True)
class LocalHost:
    """This host's samples, as the broker's monitors took them.

    `vms`: the protected VMs on this host, VM 1 first. `network`: fraction of network tests passed,
    0..1. `mem_free_mb`: MiB a new VM could get. `cpu_load`: mean load per CPU over the load window
    without the engine VM's own share; None until the first full window. `fence_path_ok`: the last
    rehearsal of this host's own fence device succeeded (None: there is no device, or no rehearsal
    yet). `lock_driver`: libvirt here is set to use the sanlock lock driver (None: its file cannot
    be read). `shutdown`: this host is shutting down; `maintenance` is set meanwhile. `way_out`:
    some target of the network test answers at this moment (None: there is no target, or none was
    asked, since they are asked only in doubt). `total_mb`: the host's memory in MiB; `free_mb`: the
    part that is not committed to any domain; `free_huge_mb`: the free huge pages (None: not known).
    `reaches`: hosts whose fence devices this host has reached lately. `may_restart`: a VM that
    cannot be migrated away from this host, which is in `maintenance`, may be stopped so that
    another host starts it. `storage_lost_since_s`: since when no read and no write of the
    whiteboard has succeeded (None: they succeed); `unwritten_since_s`: since when no write of this
    host's own slot has succeeded (None: the last one did).
    """

    host_id: int
    vms: tuple[VmHere, ...]
    network: float | None = None
    bridge_up: bool | None = None
    mem_free_mb: float | None = None
    cpu_load: float | None = None
    maintenance: bool = False
    fence_path_ok: bool | None = None
    lock_driver: bool | None = None
    shutdown: HostShutdown | None = None
    way_out: bool | None = None
    total_mb: float | None = None
    free_mb: float | None = None
    free_huge_mb: float | None = None
    reaches: frozenset[int] = frozenset()
    may_restart: bool = False
    storage_lost_since_s: float | None = None
    unwritten_since_s: float | None = None

    def __post_init__(self) -> None:
        assert self.vms[0].number == ENGINE, "VM 1 is sampled on every host, and comes first"

    @property
    def engine(self) -> VmHere:
        """VM 1 on this host."""
        return self.vms[0]


@dataclass(frozen=True, slots=True)
class FenceAsk:
    """A host's own statement that its VM is sick and cannot be ended there; see
    scoring/hosts/fence_ask.py. Seconds, as they were when the host wrote them.

    `unstopped_s`: how long the agent has not been able to end the VM; with it the agent asks for
    its host to be switched off (None: it does not ask). The broker adds, in case the agent is dead:
    `agent_dead_s`: how long the agent has not reported (None: it reports, or never has); `bad_s`:
    how long the VM's health has been bad without a break (None: it is not bad). `vm`: the number of
    that VM.
    """

    unstopped_s: float | None = None
    agent_dead_s: float | None = None
    bad_s: float | None = None
    vm: int = ENGINE


@dataclass(frozen=True, slots=True)
class PeerReport:
    """Another host's slot on the whiteboard, decoded.

    `vms`: each VM's report by number; VM 1 is always in it. `boot_id`: empty where the peer does
    not publish it (the reference). `read_s`: when this host first read this timestamp; None: now.

    The other witnesses of the peer's life. `heartbeat_s`: when the last question was asked that the
    peer answered over the network (None: it has answered none). `unanswered_since_s`: when the
    first question was asked that has had no answer, nor any later one (None: the last question was
    answered, or none was asked). `renewal_s`: when this host first saw the renewal
    `renewal_timestamp` of the peer's host id on disk (None: not seen). `overdue_since_s`: since
    when a sign of life is overdue, an answer over the network or a change of the slot (None: none
    is overdue, or this host does not watch the peer closely). `machine_silent_since_s`: since when
    neither the peer's kernel nor the engine there has answered this host, though both had before
    (None: one of them answers, or it is not known). `machine_heard_s`: when the last question was
    asked that the peer's kernel or the engine there answered, or that its kernel refused (None: no
    such question). `storage_word`: what the peer says of the storage (None: neither host has lost
    it, or the peer did not answer).

    `hears`: the hosts that have answered this peer over the network in the last seconds, as it
    says. `touches`: the hosts whose kernel, or the engine there, has answered it.

    `mem_free_mb`: MiB a new VM could get there (None: not published). `way_out`: see LocalHost.
    `fence_ask`: None: the peer does not ask.

    `speaks`: 1: the peer knows of VM 1 alone; 2: it knows of several VMs, and a VM that `vms` does
    not list is down there. `claims`: the VMs that it is about to bring to a host. `registry`: the
    generation of the registry that it knows (0: none). `total_mb`, `free_mb`, `free_huge_mb`,
    `reaches`: see LocalHost. `host_score`: its score before the penalties of a particular VM (None:
    not published). `reached`: how it reaches VMs that run on other hosts, by number.
    """

    host_id: int
    timestamp: int
    score: int
    vms: Mapping[int, PeerVm]
    hostname: str = ""
    maintenance: bool = False
    stopped: bool = False
    boot_id: str = ""
    read_s: float | None = None
    heartbeat_s: float | None = None
    unanswered_since_s: float | None = None
    renewal_s: float | None = None
    renewal_timestamp: int = 0
    mem_free_mb: float | None = None
    hears: frozenset[int] = frozenset()
    way_out: bool | None = None
    fence_ask: FenceAsk | None = None
    claims: tuple[Claim, ...] = ()
    speaks: int = 1
    registry: int = 0
    total_mb: float | None = None
    free_mb: float | None = None
    free_huge_mb: float | None = None
    host_score: int | None = None
    reaches: frozenset[int] = frozenset()
    reached: Mapping[int, OutsideView] = field(default_factory=dict)
    overdue_since_s: float | None = None
    machine_silent_since_s: float | None = None
    machine_heard_s: float | None = None
    storage_word: StorageWord | None = None
    touches: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        assert ENGINE in self.vms, "every host publishes a report of VM 1"

    @property
    def engine(self) -> PeerVm:
        """VM 1 as this host publishes it."""
        return self.vms[ENGINE]


class Standing(StrEnum):
    """How a host id stands in the lockspace (sanlock_admin.h, SANLK_HOST_*)."""

    FREE = "free"
    LIVE = "live"
    FAIL = "fail"
    DEAD = "dead"
    UNKNOWN = "unknown"


class Power(StrEnum):
    """Chassis power as a fence device reads it."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"


class StartResult(StrEnum):
    """How a start of a VM ended."""

    STARTED = "started"
    LEASE_HELD = "lease_held"
    IMAGE_LOCKED = "image_locked"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class VmStartEnded:
    """StartVm is over. LEASE_HELD: another host was faster: the lock driver itself refused the
    start, and the lease's owner is not gone. IMAGE_LOCKED: another process has QEMU's lock on an
    image of the VM. Neither of the two counts as a failed start. `detail`: why a start failed, in
    libvirt's words."""

    result: StartResult
    detail: str = ""
    vm: int = 1


@dataclass(frozen=True, slots=True)
class VmStopEnded:
    """ShutDownVm is over (the guest was asked), or PowerOffVm is (the VM's process is gone)."""

    ok: bool
    detail: str = ""
    vm: int = 1


@dataclass(frozen=True, slots=True)
class DomainDisarmed:
    """DisarmDomain is over. `ok`: everything that it had to remove is removed."""

    ok: bool
    detail: str = ""
    vm: int = 1


@dataclass(frozen=True, slots=True)
class VmMigrationEnded:
    """MigrateVm is over. `ok`: the VM runs on the target. `lasting`: the cause of the failure does
    not go away by itself, for example a CPU feature that the target lacks. `everywhere`: the
    migration would fail for this cause on any target, for example because libvirt does not migrate
    a VM whose disk lies on such a file system."""

    target: int
    ok: bool
    detail: str = ""
    lasting: bool = False
    vm: int = 1
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """Who owns a lease on disk, and the state of that owner's host id.

    `known` False: the question was not answered, and the other fields mean nothing. `owner` None:
    nobody owns it. `owner_generation`: the generation of its host id with which the owner took the
    lease. `current_generation`: the generation of that host id now (0: not known); a larger one
    means that the process that took the lease is gone. `owner_timestamp`: the owner's last renewal.
    `dead_in_s`: the longest time until sanlock calls the owner dead (None: not known).
    `owner_io_timeout_s`: that of the owner's sanlock, by which it renews (0: not known).
    """

    known: bool
    asked_s: float
    owner: int | None = None
    owner_generation: int = 0
    current_generation: int = 0
    owner_timestamp: int = 0
    standing: Standing = Standing.UNKNOWN
    dead_in_s: float | None = None
    detail: str = ""
    vm: int = 1
    owner_io_timeout_s: float = 0.0

    @property
    def owner_is_gone(self) -> bool:
        """Whether the owner's host id is dead, free, or of another generation now: the process that
        took the lease is gone then."""
        return (
            self.standing in (Standing.DEAD, Standing.FREE)
            or self.current_generation > self.owner_generation
        )

    def keeps_out(self, host_id: int) -> bool:
        """Whether another host than `host_id` owns the lease and is not gone, so that sanlock
        gives the lease to nobody else. False where the question was not answered."""
        return self.known and self.owner not in (None, host_id) and not self.owner_is_gone


@dataclass(frozen=True, slots=True)
class PowerAnswer:
    """The power of `host_id` as its fence device reads it: asked at `read_s`, answered by
    `answered_s` (None: at once). The device read it at some moment between the two.

    `identity_proven`: the device's system GUID is the one the host published.
    """

    host_id: int
    power: Power
    read_s: float
    identity_proven: bool = False
    detail: str = ""
    answered_s: float | None = None

    @property
    def over_s(self) -> float:
        """The latest moment at which the device can have read the power."""
        return self.read_s if self.answered_s is None else self.answered_s


@dataclass(frozen=True, slots=True)
class FenceLeaseAnswer:
    """TakeFenceLease is over. `held`: since `since_s`. `detail`: why it is not held."""

    held: bool
    since_s: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class FenceOwnerAnswer:
    """AskFenceOwner is over: who owns the fence lease."""

    answer: LeaseAnswer


@dataclass(frozen=True, slots=True)
class HostIdFreed:
    """FreeHostId is over. `begun`: False: the fence log could not be written, and nothing was
    done."""

    host_id: int
    ok: bool
    detail: str = ""
    begun: bool = True


@dataclass(frozen=True, slots=True)
class PowerOffEnded:
    """PowerOffHost is over. `ok`: a device accepted the order, which proves nothing by itself.
    `withdrawn`: no order was given, for its preconditions no longer held."""

    host_id: int
    ok: bool
    detail: str = ""
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class PowerOnEnded:
    """PowerOnHost is over. `ok`: a device accepted the order."""

    host_id: int
    ok: bool
    detail: str = ""


class FenceStep(StrEnum):
    """What a record of the fence log says.

    INTENT: the host is about to be switched off. FREEING: its host id is being freed. DEAD: it
    was read off twice and its host id was freed. FAILED: it was not switched off after all.
    BACK: it was switched on again.
    """

    INTENT = "intent"
    FREEING = "freeing"
    DEAD = "dead"
    FAILED = "failed"
    BACK = "back"


@dataclass(frozen=True, slots=True)
class FenceRecord:
    """A record of the cluster's fence log, in the log's order by `number`.

    `at_s`: when, by this host's clock. `ordered`: a host of this cluster switched the target off;
    it was not merely found off. `boot_id`: the boot of the target that ended. `withdrawn`: in a
    FAILED record: no order was given.
    """

    number: int
    step: FenceStep
    by: int
    target: int
    at_s: float
    ordered: bool = False
    boot_id: str = ""
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class MigrationPath:
    """AskMigrationPath is over. `ok`: libvirt on `target`, asked at `asked_s`, answered at the
    address to which a migration would connect."""

    target: int
    ok: bool
    asked_s: float
    detail: str = ""
    vm: int = 1


@dataclass(frozen=True, slots=True)
class MigrationCancelled:
    """CancelMigration is over; the outcome of the migration itself comes separately."""

    ok: bool
    detail: str = ""
    vm: int = 1


Outcome = (
    VmStartEnded
    | VmStopEnded
    | VmMigrationEnded
    | LeaseAnswer
    | PowerAnswer
    | FenceLeaseAnswer
    | FenceOwnerAnswer
    | HostIdFreed
    | PowerOffEnded
    | PowerOnEnded
    | MigrationCancelled
    | DomainDisarmed
    | MigrationPath
)


class OrderKind(StrEnum):
    """What an operator may order."""

    MIGRATE = "migrate"
    CANCEL = "cancel"
    START = "start"
    SHUTDOWN = "shutdown"
    POWER_OFF = "poweroff"


@dataclass(frozen=True, slots=True)
class Order:
    """An operator's order to this host. `number` grows from order to order. `target`: the host to
    migrate to (None: the best one)."""

    number: int
    kind: OrderKind
    target: int | None = None
    vm: int = 1


@dataclass(frozen=True, slots=True)
class Observation:
    """The picture of one beat.

    `storage_good_since_s`: since when every read of the whiteboard by this host has succeeded in
    time (None: they fail). `sweep`: the number of the last read; it grows with each good one.
    `global_maintenance`: None: never read. `newer_versions`: hosts whose slots are of a newer
    version than this one can read. `lockspace_joined`: sanlock holds this host's id.
    `fence_devices`: peers for which a fence device is configured. `fence_lease_held`: this agent
    holds the fence lease now. `stopping`: the agent was asked to end. `fence_log`: the records that
    still matter, oldest first (None: the log cannot be read). `order`: an operator's order, until
    it is answered. `unsure`: hosts that may or may not write to the storage that this host reads;
    it is not known yet. `announced`: the host whose id this host is about to free without the fence
    lease, as its slot on the storage says (None: no host). `specs`: the protected VMs of the
    registry, whose generation is `registry` (0: there is no registry). `own_claims`: the claims of
    this host that the storage had acknowledged before the read `sweep` began.
    """

    local: LocalHost
    peers: tuple[PeerReport, ...] = ()
    storage_good_since_s: float | None = None
    sweep: int = 0
    global_maintenance: bool | None = None
    newer_versions: tuple[int, ...] = ()
    lockspace_joined: bool | None = None
    fence_devices: frozenset[int] = frozenset()
    fence_lease_held: bool = False
    migration_possible: bool = False
    fence_log: tuple[FenceRecord, ...] | None = None
    order: Order | None = None
    outcomes: tuple[Outcome, ...] = field(default=())
    stopping: bool = False
    unsure: tuple[int, ...] = ()
    announced: int | None = None
    specs: tuple[VmSpec, ...] = ()
    registry: int = 0
    own_claims: tuple[Claim, ...] = ()

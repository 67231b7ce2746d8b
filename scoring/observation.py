# SPDX-License-Identifier: LGPL-2.1-or-later
"""The input of `decide`: one frozen picture of the world, taken once a beat.

A decision that asked the world itself would see two moments in one beat. Rules of this file:

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
    agent knows nothing of it."""

    since_s: float
    way: OnHostShutdown = OnHostShutdown.MIGRATE


@dataclass(frozen=True, slots=True)
class LocalHost:
    """This host's samples, as the broker's monitors took them.

    `vms`: the protected VMs on this host, VM 1 first. `network`: fraction of network tests passed,
    0..1. `mem_free_mb`: MiB a new VM could get. `cpu_load`: mean load per CPU over the load window
    without the engine VM's own share; None until the first full window. `fence_path_ok`: the last
    rehearsal of this host's own fence device (None: it has none, or none was yet). `lock_driver`:
    libvirt here is set to use the sanlock lock driver (None: its file cannot be read). `shutdown`:
    this host is going down, and is in `maintenance` meanwhile. `way_out`: some target of the
    network test answers at this moment (None: not asked, which it is only in doubt, or nothing to
    ask). `total_mb`, `free_mb`, `free_huge_mb`: its memory, what of it is not committed to any
    domain, and what of its huge pages is free, in MiB (None: not known). `reaches`: hosts whose
    fence devices this host has reached lately. `may_restart`: what cannot leave this host, which
    is in `maintenance`, by a migration may be stopped, for another host to start it.
    `storage_lost_since_s`: since when nothing that it read or wrote on the whiteboard has come back
    (None: something does).
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

    def __post_init__(self) -> None:
        assert self.vms[0].number == ENGINE, "VM 1 is sampled on every host, and comes first"

    @property
    def engine(self) -> VmHere:
        """VM 1 on this host."""
        return self.vms[0]


@dataclass(frozen=True, slots=True)
class FenceAsk:
    """A host's own word that its VM is sick and that nobody on it can end it; see
    scoring/hosts/fence_ask.py. Seconds, as they were when it wrote them.

    `unstopped_s`: for so long its agent has not been able to end the VM, and asks to be switched
    off (None: it does not ask). By its broker, where the agent is dead: `agent_dead_s`: so long it
    has not reported (None: it lives, or was never heard); `bad_s`: so long the VM's health has been
    bad without a break (None: it is not).
    """

    unstopped_s: float | None = None
    agent_dead_s: float | None = None
    bad_s: float | None = None


@dataclass(frozen=True, slots=True)
class PeerReport:
    """Another host's slot on the whiteboard, decoded.

    `vms`: what it says of each VM, by number; VM 1 is always in it. `boot_id`: empty where the peer
    does not publish it (the reference). `read_s`: when this host first read this timestamp; None:
    now.

    The other witnesses of its life. `heartbeat_s`: when the last question over the network
    that it answered was asked (None: none was). `unanswered_since_s`: when the first of the
    questions was asked that have gone unanswered since (None: the last one was answered, or
    none was asked). `renewal_s`: when this host first saw the renewal `renewal_timestamp` of
    its host id on disk (None: not seen). `overdue_since_s`: since when a sign of life is overdue
    that this host expects early, an answer over the network or a change of its slot (None: none is,
    or it is not watched closely). `machine_silent_since_s`: since when neither its kernel nor the
    engine there has answered this host, both having done so before (None: one does, or it is not
    known). `machine_heard_s`: when the last question was asked that its kernel or the engine there
    answered, or its kernel refused (None: none was). `storage_word`: None where neither it nor this
    host has lost the storage, or it did not answer.

    `hears`: the hosts that, by its word, have answered it over the network in the last seconds;
    `touches`: those whose machine, or the engine there, has.

    `mem_free_mb`: MiB a new VM could get there (None: it does not say). `way_out`: see LocalHost.
    `fence_ask`: None: it says nothing of the kind.

    `speaks`: 1: it knows of VM 1 alone; 2: of several, and those that `vms` does not list are down
    there. `claims`: what it is about to bring to a host. `registry`: the generation of the VMs'
    registry that it knows (0: none). `total_mb`, `free_mb`, `free_huge_mb`, `reaches`: see
    LocalHost. `host_score`: what it has left of the base score, whichever VM it would run (None:
    not said). `reached`: how it reaches VMs that run on other hosts, by number.
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
        assert ENGINE in self.vms, "of VM 1 every host says something"

    @property
    def engine(self) -> PeerVm:
        """VM 1, by this host's word."""
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
    """StartVm is over. LEASE_HELD: another host was faster, which costs nothing: only where
    the lock driver itself refused, and the lease's owner is not gone. IMAGE_LOCKED: somebody else
    has QEMU's lock on an image of the VM, which costs nothing either. `detail`: of a failed one
    what libvirt says, in its own words."""

    result: StartResult
    detail: str = ""
    vm: int = 1


@dataclass(frozen=True, slots=True)
class VmStopEnded:
    """ShutDownVm (the request was passed on) or PowerOffVm (it is gone) is over."""

    ok: bool
    detail: str = ""
    vm: int = 1


@dataclass(frozen=True, slots=True)
class DomainDisarmed:
    """DisarmDomain is over. `ok`: nothing of what it was to take away is left."""

    ok: bool
    detail: str = ""
    vm: int = 1


@dataclass(frozen=True, slots=True)
class VmMigrationEnded:
    """MigrateVm is over. `ok`: the VM runs at the target. `lasting`: it failed for a cause that
    does not go away by itself, such as a CPU that the target has not. `everywhere`: and that is the
    same whatever the target, such as a disk on a file system that libvirt migrates nothing on."""

    target: int
    ok: bool
    detail: str = ""
    lasting: bool = False
    vm: int = 1
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """Who owns the engine lease on disk, and how that owner's host id stands.

    `known` False: the question was not answered, the rest means nothing. `owner` None:
    nobody. `owner_generation`: the generation of its host id with which the owner took the
    lease; `current_generation`: its generation now (0: not known); a larger one means that
    whatever took the lease is gone. `owner_timestamp`: its last renewal. `dead_in_s`: at
    most that long until sanlock calls the owner dead (None: not known).
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

    @property
    def owner_is_gone(self) -> bool:
        """What took the lease is gone: its host id is dead, free, or another generation now."""
        return (
            self.standing in (Standing.DEAD, Standing.FREE)
            or self.current_generation > self.owner_generation
        )

    def keeps_out(self, host_id: int) -> bool:
        """Another host than `host_id` owns the lease and is not gone: sanlock gives it to nobody.

        False where the question was not answered.
        """
        return self.known and self.owner not in (None, host_id) and not self.owner_is_gone


@dataclass(frozen=True, slots=True)
class PowerAnswer:
    """What the fence device of `host_id` says of its power: asked at `read_s`, answered by
    `answered_s` (None: at once). It looked somewhen between the two.

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
        """When it had surely looked."""
        return self.read_s if self.answered_s is None else self.answered_s


@dataclass(frozen=True, slots=True)
class FenceLeaseAnswer:
    """TakeFenceLease is over: `held` from `since_s` on, or why not."""

    held: bool
    since_s: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class FenceOwnerAnswer:
    """AskFenceOwner is over: who owns the fence lease."""

    answer: LeaseAnswer


@dataclass(frozen=True, slots=True)
class HostIdFreed:
    """FreeHostId is over."""

    host_id: int
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PowerOffEnded:
    """PowerOffHost is over. `ok`: a device took the order, which proves nothing by itself.
    `withdrawn`: no order was given, since it must not be given any more."""

    host_id: int
    ok: bool
    detail: str = ""
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class PowerOnEnded:
    """PowerOnHost is over. `ok`: a device took the order."""

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

    `at_s`: when, by this host's clock. `ordered`: the host was switched off by us, not found
    off. `boot_id`: of the host's boot that ended. `withdrawn`: of a FAILED, no order was given.
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
    """AskMigrationPath is over: whether libvirt on `target` answered at the address that a
    migration would go to; asked at `asked_s`."""

    target: int
    ok: bool
    asked_s: float
    detail: str = ""
    vm: int = 1


@dataclass(frozen=True, slots=True)
class MigrationCancelled:
    """CancelMigration is over; the migration's own outcome comes besides."""

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
    """An operator's order to this host. `number` grows from order to order; `target`: the host
    to migrate to, None: the best."""

    number: int
    kind: OrderKind
    target: int | None = None
    vm: int = 1


@dataclass(frozen=True, slots=True)
class Observation:
    """One beat's picture.

    `storage_good_since_s`: since when every read of the whiteboard by this host succeeded
    in time; None while they fail. `sweep`: number of the last read, grows with each good
    one. `global_maintenance` None: never read. `newer_versions`: hosts whose slots this
    version cannot read because they are newer. `lockspace_joined`: this host's id is held.
    `fence_devices`: peers a fence device is
    configured for. `fence_lease_held`: this agent holds the fence lease now. `stopping`:
    the agent was asked to end. `fence_log`: what of the fence log still matters, oldest first;
    None where it cannot be read. `order`: an operator's, until it is answered. `unsure`: hosts of
    which it is not known yet whether they write to the storage that is read here. `announced`: the
    host whose id this host is about to free without the fence lease, as its slot on the storage
    says (None: none). `specs`: the protected VMs by the registry, whose generation is `registry`
    (0: there is none). `own_claims`: this host's own claims that the storage had
    acknowledged before the reading `sweep` began.
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

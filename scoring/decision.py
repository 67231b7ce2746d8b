# SPDX-License-Identifier: LGPL-2.1-or-later
"""The output of `decide`: the actions to carry out, and the reasons for them.

An action is data; the agent carries it out later. If the decision acted itself, it could not be
tested, replayed from a journal or run in a forecast. It would also have to guess from a return code
what the action has changed in the outside world.

Rules of this file:

1. An action on a VM, and its outcome, have the VM's number in `vm`.
2. The docstring of an action names its outcome, which a later observation brings. Until then the
   result is unknown.
3. A reason has a stable code, for programs and docs/reasons.md, and a sentence for people.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class StartVm:
    """Start the VM here, under its lease. Outcome: VmStartEnded."""

    vm: int = 1


@dataclass(frozen=True, slots=True)
class ShutDownVm:
    """Ask the guest to shut down. Outcome: VmStopEnded once the request is passed on."""

    vm: int = 1


@dataclass(frozen=True, slots=True)
class PowerOffVm:
    """End the VM's process here. Outcome: VmStopEnded once it is gone."""

    vm: int = 1


@dataclass(frozen=True, slots=True)
class MigrateVm:
    """Live-migrate the VM to `target`. `timeout_s`: one that takes longer is cancelled; None:
    `libvirt.migration-timeout` counts. Outcome: VmMigrationEnded."""

    target: int
    vm: int = 1
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class CancelMigration:
    """Cancel the migration that is under way. `why`: who or what ordered it. Outcome:
    MigrationCancelled."""

    why: str = "an operator's order"
    vm: int = 1


@dataclass(frozen=True, slots=True)
class DisarmDomain:
    """Remove what could start the VM here without the agent: libvirt's autostart, and with `image`
    also a memory image that a start by hand would resume. Outcome: DomainDisarmed."""

    image: bool
    vm: int = 1


@dataclass(frozen=True, slots=True)
class AskMigrationPath:
    """Ask libvirt on `target` whether it answers where a migration would connect. Outcome:
    MigrationPath."""

    target: int
    vm: int = 1


@dataclass(frozen=True, slots=True)
class AskLease:
    """Read who owns the VM's lease. Outcome: LeaseAnswer."""

    vm: int = 1


@dataclass(frozen=True, slots=True)
class AskPower:
    """Read the chassis power of `host_id` from its fence device. Outcome: PowerAnswer."""

    host_id: int


@dataclass(frozen=True, slots=True)
class TakeFenceLease:
    """Take the fence lease for this agent. Outcome: FenceLeaseAnswer."""


@dataclass(frozen=True, slots=True)
class AskFenceOwner:
    """Read who owns the fence lease. Outcome: FenceOwnerAnswer."""


@dataclass(frozen=True, slots=True)
class DropFenceLease:
    """Give the fence lease back. No outcome; `fence_lease_held` shows it."""


@dataclass(frozen=True, slots=True)
class FreeHostId:
    """Release the dead host's id in the lockspace: the one dangerous action of this product.

    The agent carries it out only while all of this is still true: the last "off" was read at
    `off_read_s`, less than io_timeout ago; the fence lease is held; the host id on disk still has
    this generation and timestamp. `ordered`: a host of this cluster switched the host off.
    `evidence`: the preconditions with their values, for the log. `fencer`: the dead host owns the
    fence lease, so nobody can hold it; instead this host's slot says that the id is being freed.
    Outcome: HostIdFreed.
    """

    host_id: int
    generation: int
    timestamp: int
    off_read_s: float
    ordered: bool = False
    evidence: str = ""
    fencer: bool = False


@dataclass(frozen=True, slots=True)
class PowerOffHost:
    """Switch a host off, hard. The fence log has the intent before the order is given.

    The agent carries it out only while the fence lease is held, the host's slot still shows `slot`,
    and its host id on disk still has this generation and timestamp. `asked`: the host lives and
    asks for it itself; then its slot must still ask, and its host id still have this generation.
    `evidence`: the preconditions with their values, for the log. Outcome: PowerOffEnded.
    """

    host_id: int
    attempt: int
    slot: int
    generation: int
    timestamp: int
    evidence: str
    asked: bool = False


@dataclass(frozen=True, slots=True)
class NoteFenceFailed:
    """Write to the fence log that a host could not be switched off. No outcome."""

    host_id: int
    why: str


@dataclass(frozen=True, slots=True)
class PowerOnHost:
    """Switch on a host that was switched off. Outcome: PowerOnEnded."""

    host_id: int


#: Actions on one VM, or questions about it, that libvirt answers.
HypervisorAction = (
    StartVm
    | ShutDownVm
    | PowerOffVm
    | MigrateVm
    | CancelMigration
    | DisarmDomain
    | AskMigrationPath
)
#: All actions on one VM, and questions about it.
VmAction = HypervisorAction | AskLease
Action = (
    VmAction
    | AskPower
    | TakeFenceLease
    | AskFenceOwner
    | DropFenceLease
    | FreeHostId
    | PowerOffHost
    | NoteFenceFailed
    | PowerOnHost
)


class Code(StrEnum):
    """The stable names of reasons, for scripts; docs/reasons.md explains each."""

    STOPPING = "stopping"
    GLOBAL_MAINTENANCE = "global-maintenance"
    GLOBAL_MAINTENANCE_UNKNOWN = "global-maintenance-unknown"
    GLOBAL_MAINTENANCE_OVER = "global-maintenance-over"
    LOCAL_MAINTENANCE = "local-maintenance"
    LOCAL_MAINTENANCE_OVER = "local-maintenance-over"
    HOST_SHUTDOWN = "host-shutdown"
    DRAIN_WAITING = "drain-waiting"
    DRAIN_QUEUED = "drain-queued"
    DRAIN_STOP = "drain-stop"
    DRAIN_STUCK = "drain-stuck"
    DRAIN_RESTART = "drain-restart"
    NEWER_METADATA = "newer-metadata"
    LOCAL_VM_UNKNOWN = "local-vm-unknown"
    LOCAL_VM_KNOWN = "local-vm-known"
    AWAITING_SAMPLE = "awaiting-sample"
    LOCKSPACE_NOT_JOINED = "lockspace-not-joined"
    STORAGE_UNREADABLE = "storage-unreadable"
    NOT_ENOUGH_DATA = "not-enough-data"
    OTHER_STORAGE = "other-storage"
    CANNOT_START = "cannot-start"
    LEFTOVER_VM = "leftover-vm"
    HELD_BACK = "held-back"
    CUT_OFF = "cut-off"
    VM_FOUND_HERE = "vm-found-here"
    VM_NOT_HERE = "vm-not-here"
    UP_ELSEWHERE = "up-elsewhere"
    BUSY_ELSEWHERE = "busy-elsewhere"
    BETTER_HOST = "better-host"
    EQUAL_HOST_FIRST = "equal-host-first"
    RETRIES_EXHAUSTED = "retries-exhausted"
    LEASE_ASKED = "lease-asked"
    LEASE_UNKNOWN = "lease-unknown"
    LEASE_FREE = "lease-free"
    LEASE_OWNER_GONE = "lease-owner-gone"
    LEASE_OWNER_LIVE = "lease-owner-live"
    LEASE_WAIT = "lease-wait"
    TAKEOVER_TURN = "takeover-turn"
    TAKEOVER_PAUSED = "takeover-paused"
    POWER_ASKED = "power-asked"
    POWER_ON = "power-on"
    POWER_UNKNOWN = "power-unknown"
    POWER_OFF_ONCE = "power-off-once"
    OWNER_ANSWERS = "owner-answers"
    OWNER_RENEWS = "owner-renews"
    FENCE_WAITING = "fence-waiting"
    FENCE_FORBIDDEN = "fence-forbidden"
    FENCE_HELD_BACK = "fence-held-back"
    FENCE_ASKED = "fence-asked"
    STORAGE_LOST = "storage-lost"
    OWNER_ASKS = "owner-asks"
    POWER_OFF_ORDERED = "power-off-ordered"
    POWER_ON_ORDERED = "power-on-ordered"
    FENCE_LEASE_ASKED = "fence-lease-asked"
    FENCE_LEASE_ELSEWHERE = "fence-lease-elsewhere"
    PROVEN_OFF = "proven-off"
    HOST_ID_FREED = "host-id-freed"
    STARTING = "starting"
    STARTED = "started"
    START_FAILED = "start-failed"
    START_LOST_RACE = "start-lost-race"
    IMAGE_LOCKED = "image-locked"
    ENGINE_HEALTHY = "engine-healthy"
    ENGINE_BOOTING = "engine-booting"
    ENGINE_BAD_HEALTH = "engine-bad-health"
    ENGINE_HEALTH_UNKNOWN = "engine-health-unknown"
    SICK_BUT_REACHED = "sick-but-reached"
    STARTING_TIMEOUT = "starting-timeout"
    BAD_HEALTH_TIMEOUT = "bad-health-timeout"
    VM_DIED = "vm-died"
    VM_GONE = "vm-gone"
    VM_TWICE = "vm-twice"
    VM_UNPROTECTED = "vm-unprotected"
    VM_TWICE_CLAIMED = "vm-twice-claimed"
    MOVE_DWELL = "move-dwell"
    MOVE_STARTED = "move-started"
    MOVE_IMPOSSIBLE = "move-impossible"
    ISOLATION_WAITING = "isolation-waiting"
    ISOLATION_HELD_BACK = "isolation-held-back"
    ISOLATED = "isolated"
    ISOLATION_OVER = "isolation-over"
    HEALTHY_AGAIN = "healthy-again"
    MIGRATING = "migrating"
    MIGRATED = "migrated"
    MIGRATION_FAILED = "migration-failed"
    MIGRATION_OVERDUE = "migration-overdue"
    STOP_REQUESTED = "stop-requested"
    STOP_WAITING = "stop-waiting"
    STOP_FAILED = "stop-failed"
    STOP_TIMEOUT = "stop-timeout"
    VM_PAUSED = "vm-paused"
    VM_PAUSED_BRIEFLY = "vm-paused-briefly"
    VM_OUTDATED = "vm-outdated"
    MEMORY_IMAGE = "memory-image"
    AUTOSTART = "autostart"
    NEVER_HEALTHY = "never-healthy"
    VM_STOPPED = "vm-stopped"
    LEASE_LOST_RACE = "lease-lost-race"
    WANTED_DOWN = "wanted-down"
    NO_PLACE = "no-place"
    PLACED_ELSEWHERE = "placed-elsewhere"
    ROOM_CLAIMED = "room-claimed"
    ROOM_WAITING = "room-waiting"
    AFTER_WAITING = "after-waiting"
    TOGETHER_WAITING = "together-waiting"
    APART_WAITING = "apart-waiting"
    STARTS_WAITING = "starts-waiting"
    AWAY_WAITING = "away-waiting"
    AWAY_TIMEOUT = "away-timeout"
    UNEXPECTED_DOWN_WAITING = "unexpected-down-waiting"
    UNEXPECTED_DOWN_OVER = "unexpected-down-over"
    LAST_HOST = "last-host"


@dataclass(frozen=True, slots=True)
class Reason:
    """A stable code, and the sentence that a person reads. `vm`: the number of the VM that the
    reason concerns; 0: it concerns a host."""

    code: Code
    text: str
    vm: int = 1

    def __post_init__(self) -> None:
        assert isinstance(self.code, Code), self.code
        assert isinstance(self.text, str) and self.text, self.code

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The facts about one protected VM: its record in the registry, its samples on this host, and the
report of it by another host.

An observation (scoring/observation.py) is made of these facts. The rules of that file hold here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

#: The number of the engine, whose state names and slot are the reference's.
ENGINE = 1


class VmStatus(StrEnum):
    """The state of a VM on the host that reports it (the reference's words)."""

    UP = "up"
    DOWN = "down"
    DOWN_UNEXPECTED = "down_unexpected"
    DOWN_MISSING = "down_missing"
    UNKNOWN = "unknown"


class Health(StrEnum):
    """The result of a VM's health check."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"


#: `EngineStatus.detail` of a VM that is being sent to another host.
DETAIL_MIGRATION_SOURCE = "migration source"
#: `EngineStatus.detail` of a VM whose CPUs stand still.
DETAIL_PAUSED = "paused"
#: `EngineStatus.detail` of a VM that lost the lease to another host while it started.
DETAIL_ALREADY_LOCKED = "already_locked"


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A VM as one host sees it on itself. `reason`: why it is not good."""

    vm: VmStatus
    health: Health
    detail: str = ""
    reason: str | None = None


#: Unknown is not down.
MAY_BE_UP = frozenset({VmStatus.UP, VmStatus.UNKNOWN})


def is_well(report: EngineStatus) -> bool:
    """Whether a VM is, or may be, up and is not known to be sick; unknown is neither down nor
    sick."""
    return report.vm in MAY_BE_UP and report.health is not Health.BAD


class Pause(StrEnum):
    """Why the CPUs of a VM that is up stand still.

    NEVER_RAN: the start was interrupted: the process exists, but the guest has not executed one
    instruction. USER: a person paused it. SNAPSHOT, DUMP, SAVE: libvirt paused it for such a
    request. GUEST: the guest suspended itself. IO_ERROR: its disk failed. WATCHDOG: its watchdog
    fired. POST_COPY: a migration in post-copy broke off. OTHER: libvirt does not say.
    """

    NEVER_RAN = "never-ran"
    USER = "user"
    SNAPSHOT = "snapshot"
    DUMP = "dump"
    SAVE = "save"
    GUEST = "guest"
    IO_ERROR = "io-error"
    WATCHDOG = "watchdog"
    POST_COPY = "post-copy"
    OTHER = "other"


#: Pauses that a person has asked for: no time limit ends such a VM.
PAUSED_ON_PURPOSE = frozenset({Pause.USER, Pause.SNAPSHOT, Pause.DUMP, Pause.SAVE})


class Leftover(StrEnum):
    """Why a process of the VM exists here that does not run the guest.

    CRASHED: the guest has crashed, and by the definition libvirt keeps the process
    (`on_crash`). NOT_RECEIVED: the process waits for a guest, but no migration sends one.
    """

    CRASHED = "crashed"
    NOT_RECEIVED = "not-received"


@dataclass(frozen=True, slots=True)
class DomainHere:
    """Further facts about the VM's domain here, from libvirt and sanlock.

    `pause`: why its CPUs stand still (None: they do not, or it is not known). `outdated`: another
    host has held the lease since this process lost it, so the guest's memory here is older than its
    disks (None: not known). `leftover`: see Leftover (None: no such process, or not known);
    `leftover_since_s`: since when. `memory_image`: a memory image (managed save) exists here, which
    a start by hand would resume. `autostart`: libvirt starts the VM by itself when this host boots.
    """

    pause: Pause | None = None
    outdated: bool | None = None
    leftover: Leftover | None = None
    leftover_since_s: float = 0.0
    memory_image: bool | None = None
    autostart: bool | None = None


class Obstacle(StrEnum):
    """A fact that makes a host unfit to start the VM; the value is the name of its penalty.

    OTHER_STORAGE: this host does not see the storage that the other hosts see. CANNOT_START:
    libvirt here could not start the VM as it is defined. LEFTOVER: a dead process of the VM
    prevents a start here. HELD_BACK: a start here would boot something else than what ran last.
    CUT_OFF: nobody outside would reach the VM here, while another host has a good network, or a
    bridge of the VM with a working uplink.
    """

    OTHER_STORAGE = "other-storage"
    CANNOT_START = "cannot-start"
    LEFTOVER = "leftover-vm"
    HELD_BACK = "held-back"
    CUT_OFF = "cut-off"


@dataclass(frozen=True, slots=True)
class Unfit:
    """One obstacle, and a sentence for people: what it is, and what to do about it."""

    obstacle: Obstacle
    text: str


@dataclass(frozen=True, slots=True)
class OutsideView:
    """How a host reaches a VM that runs on another host, when it asks over the network as the VM's
    users do.

    `owner`, `stay`: the host on which the VM runs, and the `last_ran` which that host published;
    the view is valid for that host and stay alone. `good_s`: when the last question was asked that
    the VM answered well (None: it has answered none well). `bad_since_s`: when the first question
    was asked since which the VM has answered none well (None: the last one was answered well, or
    none was asked yet).
    """

    owner: int
    stay: int
    good_s: float | None = None
    bad_since_s: float | None = None


#: The size of an ordinary page in KiB; huge pages are counted separately.
ORDINARY_PAGES_KB = 4


class Want(StrEnum):
    """Whether an administrator wants the VM to run."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class VmSpec:
    """One protected VM as the registry has it.

    `number`: 1 to 128; 1 is the engine. `memory_mb`: the memory that it takes from a host, in MiB,
    in pages of `pages_kb` KiB. `priority`: 0 to 100; the higher one is served first. `after`: the
    VMs that must be healthy before it starts. `apart`: the VMs with which it must not share a host.
    `together`: the VMs with which it must share its host. `only`: the hosts that may run it (empty:
    every host). `prefer`: hosts in the order in which they are preferred. `failback`: it goes back
    to a preferred host that returns. `overcommit`: it may start on a host with too little memory.
    `starting_s`, `bad_health_s`, `stop_grace_s`, `migration_timeout_s`: its own limits instead of
    the cluster's (None: the cluster's): how long it may take to become healthy after a start, how
    long it may be unhealthy, how long its guest may take to shut down, and how long a live
    migration may take.
    """

    number: int
    name: str
    memory_mb: int
    pages_kb: int = ORDINARY_PAGES_KB
    priority: int = 50
    after: tuple[int, ...] = ()
    apart: tuple[int, ...] = ()
    together: tuple[int, ...] = ()
    only: tuple[int, ...] = ()
    prefer: tuple[int, ...] = ()
    failback: bool = False
    want: Want = Want.UP
    overcommit: bool = False
    starting_s: float | None = None
    bad_health_s: float | None = None
    stop_grace_s: float | None = None
    migration_timeout_s: float | None = None

    @property
    def huge(self) -> bool:
        """Whether its memory comes from the pool of huge pages."""
        return self.pages_kb != ORDINARY_PAGES_KB


#: What a sentence calls the only VM.
THE_VM = "the VM"


def called(number: int, specs: Iterable[VmSpec]) -> str:
    """The name of a VM in a sentence; THE_VM where `specs` say that it is the only one."""
    if number == ENGINE:
        return "the engine" if any(spec.number != ENGINE for spec in specs) else THE_VM
    return next((spec.name for spec in specs if spec.number == number), f"VM {number}")


@dataclass(frozen=True, slots=True)
class VmHere:
    """A protected VM on this host, as the broker's monitors sampled it.

    `report`: its state and health; `taken_s`: when they were sampled. `lease_held`: its process
    here holds its lease (None: not known). `migrating_s`: how long, at the time of the sample, a
    migration away from here had been under way (None: there is none, or it is not known).
    `last_ran`: see PeerVm. `healthy_before`: the present health check has passed at least once on
    some host since the VM was set up. `uplink_up`: a bridge of its network cards is up and has
    carrier on an uplink (None: it has no bridge, or it is not known). `outside`: how this host
    reaches the VM on another host (None: there is nothing to ask). `migration_possible`: the
    storage of its disks allows a live migration.
    """

    report: EngineStatus
    taken_s: float
    lease_held: bool | None = None
    migrating_s: float | None = None
    last_ran: int = 0
    config_up_to_date: bool | None = None
    unfit: tuple[Unfit, ...] = ()
    domain: DomainHere = field(default_factory=DomainHere)
    healthy_before: bool = True
    uplink_up: bool | None = None
    outside: OutsideView | None = None
    number: int = ENGINE
    migration_possible: bool = True


class PeerVm(NamedTuple):
    """A VM as another host reports it. A NamedTuple, since one is made for each host in each beat
    and a dataclass costs more.

    `state`: the state of that host's state machine for the VM. `last_ran`: a number that grows by
    one in the whole cluster each time the VM comes up somewhere; 0: never. `target`: the host to
    which it is being migrated, until `moving_until_s` at the latest. `barred_until_s`: a start
    failed there, and the next one is not tried before. All times by this host's clock.
    """

    report: EngineStatus
    state: str = ""
    last_ran: int = 0
    moving_until_s: float | None = None
    memory_short: bool = False
    uplink_up: bool | None = None
    outside: OutsideView | None = None
    target: int | None = None
    barred_until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A host's claim on memory: it is about to bring the VM `number` to `host_id`. `by`: the host
    that published the claim. `until_s`: when the claim ends by itself, in seconds of the monotonic
    clock of the host that reads it."""

    number: int
    host_id: int
    by: int
    until_s: float

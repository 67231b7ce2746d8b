# SPDX-License-Identifier: LGPL-2.1-or-later
"""The facts about protected VMs, one by one: what is wanted of a VM, how it is here, and what
another host says of it.

An observation (scoring/observation.py) is made of them. The rules of its file hold here as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

#: The number of the engine, whose state names and slot are the reference's.
ENGINE = 1


class VmStatus(StrEnum):
    """What a host says of the engine VM on itself (the reference's words)."""

    UP = "up"
    DOWN = "down"
    DOWN_UNEXPECTED = "down_unexpected"
    DOWN_MISSING = "down_missing"
    UNKNOWN = "unknown"


class Health(StrEnum):
    """What the engine's health page says."""

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
    """The engine VM as one host sees it on itself; `reason` says why when it is not good."""

    vm: VmStatus
    health: Health
    detail: str = ""
    reason: str | None = None


def is_well(report: EngineStatus) -> bool:
    """Whether a VM is, or may be, up and is not known to be sick; unknown is neither down nor
    sick."""
    return report.vm in (VmStatus.UP, VmStatus.UNKNOWN) and report.health is not Health.BAD


class Pause(StrEnum):
    """Why the CPUs of a VM that is up stand still.

    NEVER_RAN: its process was made and not one instruction of the guest was executed: a start
    that was cut short. USER, SNAPSHOT, DUMP, SAVE: somebody paused it, or libvirt did for what
    somebody asked for. GUEST: the guest suspended itself. IO_ERROR, WATCHDOG, POST_COPY: its disk
    failed, its watchdog fired, a migration in post-copy broke off. OTHER: libvirt does not say.
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


#: Somebody's own wish: no time limit ends such a VM.
PAUSED_ON_PURPOSE = frozenset({Pause.USER, Pause.SNAPSHOT, Pause.DUMP, Pause.SAVE})


class Leftover(StrEnum):
    """Why a process of the VM is here that does not run it.

    CRASHED: its guest is dead, and libvirt has to keep the process (`on_crash`). NOT_RECEIVED:
    it waits for a guest that no migration is sending.
    """

    CRASHED = "crashed"
    NOT_RECEIVED = "not-received"


@dataclass(frozen=True, slots=True)
class DomainHere:
    """What libvirt and sanlock say of the VM's domain here, beside whether it is up.

    `pause`: why it stands still (None: it does not, or nobody knows). `outdated`: another host
    has held the lease since this process lost it, so that the guest's memory here is older than
    its disks (None: not known). `leftover`: see Leftover (None: none, or not known);
    `leftover_since_s`: since when. `memory_image`: a memory image (managed save) lies here, which
    a start by hand would resume. `autostart`: libvirt starts the VM by itself when this host boots.
    """

    pause: Pause | None = None
    outdated: bool | None = None
    leftover: Leftover | None = None
    leftover_since_s: float = 0.0
    memory_image: bool | None = None
    autostart: bool | None = None


class Obstacle(StrEnum):
    """A fact that keeps a host from starting the VM, whoever's turn it is; the value is the name
    of its penalty.

    OTHER_STORAGE: this host does not see the storage that the others see. CANNOT_START: libvirt
    here could not start the VM as it is defined. LEFTOVER: a dead process of the VM is in the way
    here. HELD_BACK: what ran last is not what a start here would boot. CUT_OFF: nobody outside
    would reach the VM here, and another host has a good network, or a bridge that leads out
    while the VM's bridge here does not.
    """

    OTHER_STORAGE = "other-storage"
    CANNOT_START = "cannot-start"
    LEFTOVER = "leftover-vm"
    HELD_BACK = "held-back"
    CUT_OFF = "cut-off"


@dataclass(frozen=True, slots=True)
class Unfit:
    """One obstacle, and the sentence that says what it is and what to do."""

    obstacle: Obstacle
    text: str


@dataclass(frozen=True, slots=True)
class OutsideView:
    """What a host sees of a VM that runs on another one, asked over the network as its users do.

    `owner`, `stay`: the host that it runs on, and the `last_ran` which that host published: what
    was seen counts for that place alone. `good_s`: when the last question was asked that the VM
    answered well (None: none was). `bad_since_s`: when the first of those was asked that it has
    not answered well since (None: the last one was answered well, or none was asked yet).
    """

    owner: int
    stay: int
    good_s: float | None = None
    bad_since_s: float | None = None


#: The size of an ordinary page in KiB; memory of any other page size is counted apart.
ORDINARY_PAGES_KB = 4


class Want(StrEnum):
    """Whether an administrator wants the VM to run."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class VmSpec:
    """One protected VM as the registry has it.

    `number`: 1 to 128, and 1 is the engine. `memory_mb`: what it takes of a host, in MiB, of pages
    of `pages_kb` KiB. `priority`: 0 to 100, the higher one is served first. `after`: numbers of VMs
    that must be healthy before it starts. `apart`, `together`: numbers of VMs with which it never,
    or only, shares a host. `only`: the ids of the hosts that may run it (empty: every host).
    `prefer`: ids of hosts in the order in which it likes them. `failback`: it goes back to a
    preferred host that returns. `overcommit`: it starts also where its memory does not fit.
    `starting_s`, `bad_health_s`, `stop_grace_s`: its own patience where it is another than the
    cluster's (None: that one): from a start to a healthy VM, with a VM that is unhealthy, and with
    a guest that shuts down.
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

    @property
    def huge(self) -> bool:
        """Whether its memory comes from the pool of huge pages."""
        return self.pages_kb != ORDINARY_PAGES_KB


@dataclass(frozen=True, slots=True)
class VmHere:
    """A protected VM on this host, as the broker's monitors sampled it.

    `report`: whether it is up, and how it is; `taken_s`: when that was sampled. `lease_held`: its
    process here holds its lease (None: not looked up). `migrating_s`: how long, when it was
    sampled, a migration away from here had been under way (None: none is, or it is not known).
    `last_ran`: see PeerVm. `healthy_before`: it was seen healthy on some host, by the same check,
    since it was set up. `uplink_up`: a bridge that its network cards are on is up and has carrier
    on an uplink (None: it has none, or nobody knows). `outside`: what this host sees of it on
    another one (None: nothing to look at). `migration_possible`: where its disks lie it can be
    live-migrated.
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
    """A VM by the word of another host; made for each host and beat, so of the kind that costs
    least.

    `state`: the state of that host's machine for it. `last_ran`: grows by one over the whole
    cluster each time the VM comes up somewhere; 0: never. `target`: the host that it is being
    migrated to, until `moving_until_s` at most. `barred_until_s`: it failed to start there, and is
    not tried again before. All times by this host's clock.
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
    """A host is about to bring the VM `number` to `host_id`; `until_s`: it ends by itself then
    (seconds of the monotonic clock of who reads it), `by`: the host in whose slot it stands."""

    number: int
    host_id: int
    by: int
    until_s: float

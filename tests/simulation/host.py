# SPDX-License-Identifier: LGPL-2.1-or-later
"""A simulated host: power, BMC, storage path, network, daemons, QEMU and its guest.

Rules of this file:

1. Only the world and the adapters (ports.py) change a host; the product never sees one.
2. QEMU runs on when agent, broker or libvirtd die. It ends with its power, by its own crash,
   by its guest, by libvirt's order, or by sanlock when the host id was not renewed.
3. Each change of what runs is told to `watch` at the moment it happens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from broker.config.sections import HEARTBEAT_PORT
from broker.lockspace.rejoin import name_of
from broker.whiteboard.identity import Identity, VolumeKind, encode
from scoring.decision import FreeHostId
from scoring.observation import OnHostShutdown
from scoring.vm_facts import ENGINE, Pause, VmStatus
from tests.simulation.disks import BASE
from tests.simulation.earlier import Metadata
from tests.simulation.grammar import NotNow
from tests.simulation.lockspace import (
    Daemon,
    LeaseVolume,
    Membership,
    Refused,
    made_up_name,
    resource_of,
)
from tests.simulation.timeline import HostLoop, Process, Timeline
from tests.simulation.whiteboard import Whiteboard

#: The free memory of a host where nothing is said of it.
MEMORY_MB = 16_384.0
#: Free memory is published in whole steps of so many MiB.
BUDGET_STEP_MB = 64
#: A call that takes longer is one that did not answer (broker/whiteboard/volume.py).
SLOW_IS_READ_S = 1.9
#: What libvirt says of a start where the bridge of the VM's interface is not on the host.
NO_BRIDGE = "Cannot get interface MTU on 'br-vlan20': No such device"

#: wdmd(8) feeds the watchdog every ten seconds, which fires 60 s after the last feeding.
WATCHDOG_FROZEN_S = 55.0
#: A guest whose disk does not answer for so long serves no page any more.
GUEST_PATIENCE_S = 8.0
#: Ids of the simulated cluster and of another one.
CLUSTER, OTHER_CLUSTER = (f"{number}0000000-0000-4000-8000-000000000000" for number in "12")
#: The wall clock's time when a simulation begins.
WALL_EPOCH_S = 1_800_000_000.0


def identity_of(kind: VolumeKind, cluster: str) -> bytes:
    """The block of a volume of that cluster."""
    return encode(Identity(kind, cluster, volume_id(kind, cluster), 0))


def volume_id(kind: VolumeKind, cluster: str) -> str:
    """What that cluster calls its volume."""
    return cluster[:-1] + ("1" if kind is VolumeKind.WHITEBOARD else "2")


@dataclass(slots=True)
class Qemu:
    """A QEMU process of VM `vm`. `running`: its CPUs run, which needs `has_lease`. `memory`: names
    the guest's memory, from its boot on. `pause`: why it stands still once it ran. `crashed`: its
    guest is dead; `orphan`: it waits for a guest that nobody sends any more; `left_since_s`: since
    when.
    """

    running: bool = False
    has_lease: bool = False
    healthy_from_s: float = float("inf")
    is_hung: bool = False
    leaving: bool = False
    leaving_since_s: float = 0.0
    cancelled: bool = False
    received: bool = False
    #: SIGSTOP: until then its process does nothing.
    stopped_until_s: float = 0.0
    #: Somebody started it past the lock driver, so that no lease protects it.
    by_hand: bool = False
    memory: str = ""
    has_run: bool = False
    pause: Pause | None = None
    #: The VM's disk is a file that was replaced: from then on the VM gets ESTALE, for good.
    disk_lost_s: float = float("inf")
    crashed: bool = False
    orphan: bool = False
    left_since_s: float = 0.0
    ignores_shutdown: bool = False
    #: The image that its disk is written to, and the block job under way.
    image: str = BASE
    job: str = ""
    vm: int = ENGINE


@dataclass(slots=True)
class Bmc:
    """A host's BMC. `fault`: "", "silent", "hangs" (its driver does not come back either),
    "refuses", "slow", "says-on", "says-off", "foreign" (another machine answers there, and reads
    as this host does), "foreign-off" (one that is off), "nameless-off" (it cannot tell whose
    machine it is, and reads off), "off-early" (after the order it reads off a little before it
    is), "off-fails" (the order is answered with an error), "off-ignored" (it is taken, and nothing
    happens), "on-fails", "on-ignored", "every-other" (one question of two has no answer), "caches"
    (it tells the power of CACHED_S ago), "own-power" (it is dead while its host is off).
    `fault_for`: how it answers some of the hosts, by their number. `off_takes_s`: from the order
    until the power is gone."""

    guid: str
    fault: str = ""
    fault_for: dict[int, str] = field(default_factory=dict)
    asked: int = 0
    early_off: bool = False
    off_takes_s: float = 1.0


class Watch(Protocol):
    """Who is told what happens to a host."""

    def tell(self, who: str, what: str) -> None:
        """A line for the trace."""

    def vm_changed(self, host: Host, vm: int = ENGINE) -> None:
        """What runs of that VM on the host has changed."""

    def vm_ended(self, host: Host, why: str, vm: int = ENGINE) -> None:
        """Note that the host's QEMU of that VM has ended."""

    def booted(self, host: Host) -> None:
        """The operating system is up, the daemons may be started."""

    def daemon_ended(self, host: Host, name: str) -> None:
        """A daemon was killed."""

    def wrote(self, host: Host) -> None:
        """What its broker wrote to its own slot has landed on the cluster's volume."""


#: What a call says that meets a fault of the storage.
STORAGE_SAYS = {
    "error": "Input/output error",
    "replaced": "Stale file handle",
    "read-only": "Read-only file system",
    "full": "No space left on device",
    "unreadable": "Stale file handle",
}
#: Faults that are, but for what is said and what is left behind, another one.
_AS = {"replaced": "error", "full": "read-only"}
#: How old the power is that a BMC tells which caches.
CACHED_S = 15.0
#: The parts of the shared storage, which may fail apart.
PARTS = ("whiteboard", "leases", "disk")
#: What of a host's writes may be late: to its slot, to the cluster's slot, to the fence log, to
#: the record of what ran last, by sanlock's daemon to the lease volume, and the freeing of another
#: host's id.
WRITES = ("slots", "cluster", "log", "ran", "leases", "release")
#: A kernel looks so often whether it can go on with a write.
RETRY_S = 0.25


@dataclass(slots=True)
class Storage:
    """A host's way to the shared storage. `fault`: "", "hang", "error", "slow", "read-only",
    "unreadable" (the whiteboard takes writes, and its reads fail; of the rest nothing works),
    "full" (no write is done, and QEMU pauses a guest that writes) or "replaced" (what is open
    stays stale, even when the storage is fine again; what is opened anew is not); `parts`: fault
    and delay of those PARTS that are worse than the rest.

    `late_s`: which of its writes (WRITES) land so many seconds late. Its kernel holds them, and
    loses them with its power; `outlives`: the storage itself holds them, and writes them in any
    case.
    """

    fault: str = ""
    parts: dict[str, tuple[str, float]] = field(default_factory=dict)
    late_s: dict[str, float] = field(default_factory=dict)
    outlives: bool = False
    since_s: float = 0.0
    delay_s: float = 0.0
    stale_reads: int = 0
    torn_writes: int = 0
    stray_writes: list[int] = field(default_factory=list)

    def of(self, part: str) -> tuple[str, float]:
        """Fault and delay of one of PARTS; of a fault that is like another one, that one."""
        fault, delay_s = self.parts.get(part, (self.fault, self.delay_s))
        is_broken = fault == "unreadable" and part != "whiteboard"
        return "error" if is_broken else _AS.get(fault, fault), delay_s

    def is_full(self, part: str) -> bool:
        """Whether that part has no room."""
        return self.parts.get(part, (self.fault, 0.0))[0] == "full"

    def says(self, part: str) -> str:
        """What a call to that part says."""
        return STORAGE_SAYS[self.parts.get(part, (self.fault, 0.0))[0]]


class Host:
    """One machine. Times are true times."""

    def __init__(
        self,
        timeline: Timeline,
        leases: LeaseVolume,
        whiteboard: Whiteboard,
        watch: Watch,
        number: int,
        *,
        io_timeout_s: float,
        rate: float,
        clock_s: float,
        boot_s: float,
        guest_boot_s: float,
        system_uuid: str,
    ) -> None:
        self.timeline = timeline
        #: Where its paths lead to. What runs goes on with the volume that it has opened.
        self._shared = leases, whiteboard
        self.leases, self.whiteboard = leases.way(), whiteboard.way()
        self.watch = watch
        self.number = number
        #: As configured; two hosts with one id are a fault to be simulated.
        self.host_id = number
        self.name = f"host{number}"
        self.io_timeout_s = io_timeout_s
        self.rate = rate
        self.first_clock_s = clock_s
        self.boot_s = boot_s
        self.guest_boot_s = guest_boot_s
        self.system_uuid = system_uuid
        #: The fixed name of its sanlock; "": it makes up another at each start.
        self.sanlock_name = name_of(f"machine-id of {self.name}", system_uuid)
        self._sanlock_starts = 0
        #: The boot that was, or may have been, in the lockspace; on its own disk. 0: none.
        self.joined_on_boot, self.joined_by = 0, ""
        #: The cluster key that it has, by name, and whether it has the fence devices configured.
        self.key = "cluster"
        self.has_fence = True
        #: QEMU pauses the guest where its disk answers with an error (werror=stop).
        self.pauses_on_disk_error = False
        #: When its monotonic clock last jumped.
        self.clock_jumped_s = 0.0
        self.bmc = Bmc(system_uuid)
        self.power = False
        self.off_since_s = 0.0
        self.on_since_s = 0.0
        self.sick_until_s = 0.0
        #: Whether its storage was ever changed under it: set back, or another half of a split one.
        self.was_led_astray = False
        self.boots = 0
        self.up = False
        self.loop: HostLoop | None = None
        self.ended_loops: list[HostLoop] = []
        self.processes: dict[str, Process] = {}
        self.sanlock: Daemon | None = None
        self.libvirt_up = False
        self.libvirt_hangs = False
        #: The QEMU processes on it, by the number of their VM.
        self.qemus: dict[int, Qemu] = {}
        #: The memory that libvirt saved here (managed save), and would resume.
        self.memory_image: str | None = None
        self.autostart = False
        #: A migration to here that breaks off leaves its process behind.
        self.keeps_orphans = False
        #: The host's libvirt refuses the VM's migration, for its CPU is another one.
        self.refuses_moves = False
        #: The host's libvirt migrates the VM to no host, for the disks lie where it migrates none.
        self.migrates_nothing = False
        self._guests = self._libvirt_stops = 0
        #: How the last QEMU of each VM ended here.
        self.last_ends: dict[int, tuple[VmStatus, str]] = {}
        self.fence_held = False
        self.fence_since_s = 0.0
        #: A freeing of another host's id whose process has not ended; it holds the fence lease.
        self.release_hangs = False
        #: Writes that this boot's kernel has begun and that have not landed.
        self._held_writes = 0
        #: What the agent's file says of the last one, until its end was told; on its own disk.
        self.freeing_on_file: FreeHostId | None = None
        self.storage = Storage()
        #: The sanlock that has a lease volume open which was replaced.
        self._stale_sanlock: Daemon | None = None
        self.network_up = True
        self.bmc_network_up = True
        self.packet_loss = 0.0
        self.packet_delay_s = 0.0
        self.broker_since_s = 0.0
        self.agent_since_s = 0.0
        self.frozen_until_s = 0.0
        #: How long this boot slept, by its own clock.
        self._asleep_s = 0.0
        self.gateway_answers = 1.0
        #: Whether the VM's bridge is up; the host's own network does not go by it.
        self.bridge_up = True
        #: Whether that bridge has carrier, and whether the VM's users come that way.
        self.uplink_up = self.guest_network_up = True
        self.load = 0.1
        self.memory_mb = MEMORY_MB
        #: What is wrong with the registry as it reads it: "", "damaged" or "old"; of which VMs
        #: alone the record is damaged; and when it last read it, None: never since its broker runs.
        self.registry = ""
        self.damaged_vms: frozenset[int] = frozenset()
        self.knows_registry_s: float | None = None
        #: Where memory is a quantity: all of it, and what the running VMs may not have.
        self.total_mb: float | None = None
        self.reserve_mb = 0.0
        #: What each VM takes of it, by number.
        self.takes_mb: dict[int, float] = {}
        #: The VMs whose disk is not where the others' are.
        self.own_disks: set[int] = set()
        #: When its memory was last changed from outside, and a VM was started by hand.
        self.memory_changed_s = self.by_hand_s = float("-inf")
        self.config_up_to_date = True
        self.lock_driver = True
        #: Why libvirt cannot start the VM here; empty where it can.
        self.starts_fail = ""
        #: Why libvirt does not take the definition; empty while it does.
        self.refused = ""
        #: The refusal shows beforehand: what the VM needs is not on this host.
        self.is_told = False
        #: The version of the metadata that its broker writes and reads.
        self.metadata = Metadata.THIS
        #: The agent decides as the earlier version does: from its next start on; and now.
        self.wants_earlier = self.decides_earlier = False
        #: How long a migration away from here takes.
        self.migration_s = 5.0
        self.qemu_unkillable = False
        #: The VMs whose processes alone do not end.
        self.unkillable_vms: set[int] = set()
        #: This host's own health check fails, however well the VM is.
        self.own_check_fails = False
        #: Durations of its own configuration (keys of TimingSection), seconds.
        self.timing: dict[str, float] = {}
        #: The watchdog does not fire, whatever happens.
        self.watchdog_off = False
        #: SIGSTOP of its sanlock, and of its daemons: until then.
        self.sanlock_stopped_until_s = 0.0
        self.stopped_until_s = 0.0
        self.local_maintenance_since_s: float | None = None
        #: Local maintenance stops what cannot be migrated.
        self.may_restart = False
        #: What its wall clock is ahead of the right time.
        self.wall_offset_s = 0.0
        #: When its broker was last started under a wall clock that was wrong, or its monotonic
        #: clock was: a mode that ends by itself may end early or late there.
        self.wrong_start_s = float("-inf")
        self.boot_is_set = 0
        self.doomed = False
        self.agent_wanted = self.daemons_wanted = True
        self.on_host_shutdown = OnHostShutdown.MIGRATE
        #: Since when it is being shut down in order; None: it is not.
        self.going_down_since_s: float | None = None
        #: A migration away from it has failed since.
        self.move_failed = False

    # --- power ----------------------------------------------------------------------------

    def power_on(self) -> None:
        """Switch it on; nothing where it is on."""
        if self.power:
            return
        self.power = True
        self.on_since_s = self.timeline.now_s
        self.watch.tell(self.name, "power on")
        self._boot()

    def _boot(self) -> None:
        self.boot_is_set += 1
        self.timeline.after(self.boot_s, self._booted, self.boot_is_set)

    def _booted(self, boot: int) -> None:
        if not self.power or boot != self.boot_is_set:
            return
        self.boots += 1
        # The first clock is anything; a boot resets it (CLOCK_MONOTONIC counts from boot).
        clock_s = self.first_clock_s if self.boots == 1 else self.boot_s
        self.loop = HostLoop(self.timeline, clock_s, self.rate)  # type: ignore[abstract]
        self._asleep_s = 0.0
        self.up = True
        self.last_ends.clear()
        self.doomed = self.move_failed = False
        self.libvirt_up, self.libvirt_hangs = True, False
        self._libvirt_stops += 1
        self.sanlock_stopped_until_s = 0.0
        self.watch.tell(self.name, f"booted, boot {self.boots}")
        self.start_sanlock()
        self.watch.booted(self)

    def power_off(self, why: str) -> None:
        """Cut the power: all that ran is gone."""
        if not self.power:
            return
        self._all_gone(f"power off: {why}")
        self.power = False
        self.off_since_s = self.timeline.now_s

    def reset(self, why: str) -> None:
        """Restart the host; its power stays on."""
        if not self.power:
            return
        self._all_gone(f"reset: {why}")
        self._boot()

    def _all_gone(self, why: str) -> None:
        self.watch.tell(self.name, why)
        self.up, self.going_down_since_s = False, None
        self.boot_is_set += 1
        for number in list(self.qemus):
            self.end_qemu(why, VmStatus.DOWN, "unknown", release=False, vm=number)
        self.fence_held = self.release_hangs = False
        self._held_writes = 0
        for name in list(self.processes):
            self.crash(name)
        self.libvirt_up = False
        if self.sanlock is not None:
            self.sanlock.stop_running()
            self.sanlock = None
        loop = self.loop
        if loop is not None:
            # The killed tasks must still come to their end, and what a freeze has put off.
            last_s = max(self.timeline.now_s, loop.frozen_until_s)
            loop.frozen_until_s = 0.0
            self.timeline.at(last_s, setattr, loop, "ended", True)
            self.ended_loops.append(loop)
            self.loop = None

    def was_on(self, ago_s: float) -> bool:
        """Whether it had power so long ago, as far as its last two changes tell."""
        then_s = self.timeline.now_s - ago_s
        last_s, before_s = self.off_since_s, self.on_since_s
        if self.power:
            last_s, before_s = before_s, last_s
        if then_s >= last_s:
            return self.power
        return self.power is not (then_s >= before_s)

    def freeze(self, for_s: float) -> None:
        """Nothing on it runs for so long; the watchdog resets it when that is too long."""
        if self.loop is None or not self.up:
            return
        until_s = max(self.loop.frozen_until_s, self.timeline.now_s + for_s)
        self.loop.frozen_until_s = self.frozen_until_s = until_s
        self.watch.tell(self.name, f"frozen for {for_s:.0f} s")
        if for_s > WATCHDOG_FROZEN_S:
            self.timeline.after(WATCHDOG_FROZEN_S, self._watchdog, self.boots)

    def suspend(self, for_s: float) -> None:
        """Have the host sleep for so long: nothing runs; its watchdog and CLOCK_MONOTONIC, by which
        sanlock counts, stand still. The product's clock goes on (broker/daemon/host_clock.py)."""
        if self.loop is None or not self.up or self.frozen:
            return
        self.loop.frozen_until_s = self.frozen_until_s = self.timeline.now_s + for_s
        self._asleep_s += for_s * self.rate
        if self.sanlock is not None:
            self.sanlock.leapt(for_s)
        self.watch.tell(self.name, f"suspended for {for_s:g} s")

    def jump_clock(self, by_s: float) -> None:
        """Have the host's monotonic clock jump forward."""
        if self.loop is None or not self.up:
            return
        self.watch.tell(self.name, f"its monotonic clock jumps by {by_s:g} s")
        self.clock_jumped_s = self.wrong_start_s = self.timeline.now_s
        self.loop.jump(by_s)
        if self.sanlock is not None:
            self.sanlock.clock_jumps(by_s)

    def _watchdog(self, boot: int) -> None:
        if self.boots == boot and self.frozen and not self.watchdog_off:
            self.reset("watchdog: the host was frozen")

    @property
    def daemons_since_s(self) -> float:
        """Since when both daemons run."""
        now_s = self.timeline.now_s
        is_stopped = any(process.is_stopped for process in self.processes.values())
        stopped_until_s = now_s if is_stopped else min(self.stopped_until_s, now_s)
        return max(self.broker_since_s, self.agent_since_s, stopped_until_s)

    @property
    def storage_bad_until_s(self) -> float:
        """When its storage was last in trouble; now while it is."""
        storage = self.storage
        is_bad = storage.fault or storage.parts or storage.late_s or self._held_writes
        # Only where the storage itself was changed under it: a freed id is no trouble of storage.
        is_overwritten = (
            self.was_led_astray and self.sanlock is not None and self.sanlock.is_overwritten
        )
        is_bad = is_bad or self.is_misled or is_overwritten or self.is_sanlock_stale
        return self.timeline.now_s if is_bad else self.storage.since_s

    @property
    def reads_whiteboard(self) -> bool:
        """Whether it can read the whiteboard; slow is not unread."""
        fault, delay_s = self.storage.of("whiteboard")
        is_slow = fault == "slow" and delay_s >= SLOW_IS_READ_S
        return fault not in ("hang", "error", "unreadable") and not is_slow

    @property
    def storage_unread_until_s(self) -> float:
        """When it last could not read the storage; slow is not unread, and late is a write."""
        is_read = self.reads_whiteboard and not self.is_misled
        return self.storage.since_s if is_read else self.timeline.now_s

    def written_since_s(self, latency_s: float) -> float | None:
        """Since when its writes to the whiteboard land in time; None: they do not."""
        storage = self.storage
        fault, delay_s = storage.of("whiteboard")
        slow = fault == "slow" and delay_s + latency_s < SLOW_IS_READ_S
        if (fault and not slow) or storage.late_s:
            return None
        return storage.since_s

    def renews_since_s(self) -> float | None:
        """Since when anybody can see that its sanlock renews; may lie ahead. None: it does not."""
        daemon = self.sanlock
        if daemon is None or not daemon.running or daemon.membership is not Membership.IN:
            return None
        if self.reach_of_sanlock() or self.storage.late_s or self._is_read_only():
            return None
        if self._writes_too_late() or daemon.is_overwritten:
            return None
        seen_after_s = 2.5 * self.io_timeout_s + self.leases_slow_s()
        if self.timeline.now_s - daemon.last_renewal_s > seen_after_s:
            return None
        since_s = max(daemon.join_began_s, self.storage.since_s, self.frozen_until_s)
        return since_s + seen_after_s

    @property
    def is_on_shared(self) -> bool:
        """Whether its paths lead to the cluster's volumes."""
        leases, whiteboard = self._shared
        return self.leases.is_same(leases) and self.whiteboard.is_same(whiteboard)

    @property
    def is_misled(self) -> bool:
        """Whether what it reads is not what is on the cluster's volumes."""
        is_stale = self.leases.stale is not None or self.whiteboard.stale is not None
        return is_stale or not self.is_on_shared

    def reads_of(self, writer: Host) -> bool:
        """Whether what another host writes to the whiteboard is what this one reads."""
        is_stale = self.whiteboard.stale is not None
        return not is_stale and self.whiteboard.is_same(writer.whiteboard)

    @property
    def free_memory_mb(self) -> float:
        """Memory a new VM could get."""
        if self.total_mb is None:
            return self.memory_mb
        left_mb = min(self.memory_mb, self.total_mb - self.reserve_mb - self.committed_mb)
        return max(0.0, left_mb // BUDGET_STEP_MB * BUDGET_STEP_MB)

    @property
    def committed_mb(self) -> float:
        """What the VMs that are here take."""
        return sum(self.takes_mb.get(number, 0.0) for number in self.qemus)

    @property
    def address(self) -> str:
        """Where its broker listens."""
        return f"{self.name}:8765"

    @property
    def heartbeat_address(self) -> str:
        """Where its broker answers heartbeats."""
        return f"{self.name}:{HEARTBEAT_PORT}"

    @property
    def frozen(self) -> bool:
        """Whether nothing on it runs at this moment."""
        return self.loop is not None and self.loop.frozen_until_s > self.timeline.now_s

    def clock_s(self) -> float:
        """What its own clock shows: CLOCK_BOOTTIME, by which the product counts."""
        return 0.0 if self.loop is None else self.loop.time()

    def monotonic_s(self) -> float:
        """What its CLOCK_MONOTONIC shows, by which sanlock counts."""
        return self.clock_s() - self._asleep_s

    def wall_s(self) -> float:
        """What its wall clock shows, UTC seconds since 1970."""
        return WALL_EPOCH_S + self.timeline.now_s + self.wall_offset_s

    # --- storage --------------------------------------------------------------------------

    def is_stopped(self, name: str) -> bool:
        """Whether that daemon's process is stopped (SIGSTOP)."""
        process = self.processes.get(name)
        return process is not None and process.is_stopped

    def stop_process(self, name: str, for_s: float) -> None:
        """SIGSTOP of one process alone, and SIGCONT that much later; 0: SIGCONT."""
        until_s = self.timeline.now_s + for_s
        if name in ("broker", "agent"):
            process = self.processes.get(name)
            if process is None:
                raise NotNow(f"no {name} runs on {self.name}")
            self.stopped_until_s = max(self.stopped_until_s, until_s)
            process.stop(for_s)
        elif name == "sanlock":
            if self.sanlock is None or not self.sanlock.running:
                raise NotNow(f"no sanlock runs on {self.name}")
            self.sanlock_stopped_until_s = until_s
            self.storage.since_s = max(self.storage.since_s, min(until_s, self.timeline.now_s))
        elif name == "libvirtd":
            self.libvirt_hangs = True
            self._libvirt_stops += 1
            if for_s < float("inf"):
                self.timeline.after(for_s, self._libvirtd_goes_on, self._libvirt_stops)
        elif name == "qemu":
            self.stop_qemu(until_s)
            return
        else:
            raise ValueError(f"{name}; known: broker, agent, sanlock, libvirtd, qemu")
        self.watch.tell(self.name, f"{name} is stopped for {for_s:g} s")

    def stop_qemu(self, until_s: float, vm: int = ENGINE) -> None:
        """SIGSTOP of the QEMU of a VM, and SIGCONT then."""
        qemu = self.qemus.get(vm)
        if qemu is None:
            raise NotNow(f"no QEMU runs on {self.name}")
        qemu.stopped_until_s = self.sick_until_s = until_s
        self.watch.tell(self.name, f"qemu is stopped for {until_s - self.timeline.now_s:g} s")

    def _libvirtd_goes_on(self, stop: int) -> None:
        if stop == self._libvirt_stops:
            self.libvirt_hangs = False

    def break_storage(self, fault: str, delay_s: float = 0.0, parts: tuple[str, ...] = ()) -> None:
        """From now on its storage, or some PARTS of it, hangs, fails, is slow or takes no writes;
        "" mends it."""
        if not fault and (self.leases.stale is not None or self.whiteboard.stale is not None):
            self.go_stale(())
        if self.pauses_on_disk_error or fault == "full":
            self.timeline.after(1.0, self._disk_may_fail)
        if fault == "replaced":
            self._goes_stale(parts or PARTS)
        if parts:
            self.storage.since_s = self.sick_until_s = self.timeline.now_s
            for part in parts:
                if fault == self.storage.fault:
                    self.storage.parts.pop(part, None)
                else:
                    self.storage.parts[part] = fault, delay_s
            self.watch.tell(self.name, f"storage {fault or 'fine'}: {', '.join(parts)}")
            return
        if self.storage.parts:
            self.storage.since_s = self.sick_until_s = self.timeline.now_s
            self.storage.parts.clear()
        if fault != self.storage.fault:
            self.storage.since_s = self.sick_until_s = self.timeline.now_s
        self.storage.fault, self.storage.delay_s = fault, delay_s
        self.watch.tell(self.name, f"storage {fault or 'fine'}")

    def _goes_stale(self, parts: tuple[str, ...]) -> None:
        """What is open there answers with ESTALE for good."""
        for vm, qemu in self.qemus.items():
            if self._disk_part(vm) in parts:
                qemu.disk_lost_s = min(qemu.disk_lost_s, self.timeline.now_s)
        if "leases" in parts and self.sanlock is not None:
            self._stale_sanlock = self.sanlock

    @property
    def is_sanlock_stale(self) -> bool:
        """Whether its sanlock still has a lease volume open that was replaced."""
        daemon = self._stale_sanlock
        if daemon is None or daemon is not self.sanlock or daemon.membership is Membership.OUT:
            self._stale_sanlock = None
        return self._stale_sanlock is not None

    def mount(self, what: str) -> None:
        """Let its paths lead elsewhere, for what is started from now on. `what`: `shared` (the
        cluster's volumes), `copy` (private copies of both as they are now), `copied-leases` (of
        the lease volume alone), `empty` (volumes that somebody made for another cluster)."""
        leases, whiteboard = self._shared
        self.leases, self.whiteboard = leases.way(), whiteboard.way()
        match what:
            case "copy":
                self.leases, self.whiteboard = leases.copy(), whiteboard.copy()
            case "copied-leases":
                self.leases = leases.copy()
            case "empty":
                self.leases = LeaseVolume(identity_of(VolumeKind.LEASES, OTHER_CLUSTER))
                self.whiteboard = Whiteboard(identity_of(VolumeKind.WHITEBOARD, OTHER_CLUSTER))
            case _:
                assert what == "shared", what
        self.watch.tell(self.name, f"its paths lead to: {what}")

    def go_over(self, leases: LeaseVolume, whiteboard: Whiteboard) -> None:
        """Let its paths lead there, for what runs on it too."""
        self.leases.lead_to(leases)
        self.whiteboard.lead_to(whiteboard)
        self.storage.since_s = self.sick_until_s = self.timeline.now_s
        self.was_led_astray = True

    def go_stale(self, parts: tuple[str, ...] = ("whiteboard", "leases")) -> None:
        """What it reads of these volumes is what is there now, but for its own writes; nothing
        named: it reads what is there again."""
        if self.leases.stale is not None or self.whiteboard.stale is not None or parts:
            self.storage.since_s = self.sick_until_s = self.timeline.now_s
        self.leases.stale = self.leases.copy() if "leases" in parts else None
        self.whiteboard.stale = dict(self.whiteboard.slots) if "whiteboard" in parts else None
        self.watch.tell(self.name, f"reads stale: {', '.join(parts) or 'nothing'}")

    def make_late(
        self, late_s: float, writes: tuple[str, ...] = WRITES, outlives: bool = False
    ) -> None:
        """From now on these writes land so late; 0: in time again, but for what is held."""
        if bool(late_s) != bool(self.storage.late_s):
            self.storage.since_s = self.sick_until_s = self.timeline.now_s
        self.storage.late_s = dict.fromkeys(writes, late_s) if late_s else {}
        self.storage.outlives = outlives
        self.watch.tell(self.name, f"writes {', '.join(writes)} land {late_s:g} s late")

    def late_s(self, kind: str) -> float:
        """How late a write of that kind (WRITES) lands that is begun now."""
        return self.storage.late_s.get(kind, 0.0)

    def write_late(
        self, kind: str, write: Callable[[], None], over: Callable[[], None] = lambda: None
    ) -> None:
        """Begin a write that lands late. `over`: it has ended, for this host's kernel."""
        self._held_writes += 1
        self.timeline.after(
            self.late_s(kind), self._lands, kind, write, over, self.boots, self.storage.outlives
        )

    def _write_lease(self, write: Callable[[], None], over: Callable[[], None]) -> None:
        """Have sanlock's daemon write a delta lease."""
        if self.late_s("leases"):
            self.write_late("leases", write, over)
            return
        delay_s = self.leases_slow_s()
        if delay_s > 0:
            self._held_writes += 1
            self.timeline.after(delay_s, self._lands, "leases", write, over, self.boots, False)
            return
        write()
        over()

    def leases_slow_s(self) -> float:
        """What sanlock waits for the lease volume, where that part is slow."""
        fault, delay_s = self.storage.parts.get("leases", ("", 0.0))
        return delay_s if fault == "slow" else 0.0

    def _writes_too_late(self) -> bool:
        """Whether what sanlock begins to write now does not end within its io_timeout."""
        return bool(self.late_s("leases")) or self.leases_slow_s() >= self.io_timeout_s

    def _is_read_only(self) -> bool:
        return self.storage.of("leases")[0] == "read-only"

    def _lands(
        self,
        kind: str,
        write: Callable[[], None],
        over: Callable[[], None],
        boot: int,
        outlives: bool,
    ) -> None:
        part = "leases" if kind in ("leases", "release") else "whiteboard"
        fault, _ = self.storage.of(part)
        is_gone = self.boots != boot or not self.up
        if outlives:
            write()
        elif not is_gone and (self.frozen or fault == "hang"):
            self.timeline.after(RETRY_S, self._lands, kind, write, over, boot, outlives)
            return
        elif not is_gone and fault not in ("error", "read-only"):
            write()
        if not is_gone:
            self._held_writes -= 1
            if not self._held_writes and not self.storage.late_s:
                self.storage.since_s = self.timeline.now_s
            over()

    def frees_without_lease(self) -> int | None:
        """The host whose id a process here still frees without the fence lease."""
        act = self.freeing_on_file
        return act.host_id if act is not None and act.fencer and self.release_hangs else None

    def reach(self) -> str:
        """How it reaches the lease volume; "" when it does."""
        if self.frozen:
            return "hang"
        fault, _ = self.storage.of("leases")
        return fault if fault in ("hang", "error") else ""

    @property
    def sanlock_stopped(self) -> bool:
        """Whether sanlock's process is stopped (SIGSTOP): it neither answers nor renews."""
        return self.sanlock_stopped_until_s > self.timeline.now_s

    def reach_of_sanlock(self) -> str:
        """How the storage answers the host's sanlock daemon, which may be stopped."""
        if self.sanlock_stopped:
            return "hang"
        return self.reach() or ("error" if self.is_sanlock_stale else "")

    # --- sanlock --------------------------------------------------------------------------

    def start_sanlock(self) -> None:
        """The daemon is started, in no lockspace yet. Where an earlier one of this boot died in it
        the watchdog fires all the same."""
        if not self.up or (self.sanlock is not None and self.sanlock.running):
            return
        boot = self.boots
        self._sanlock_starts += 1

        def doom(why: str) -> None:
            if self.boots == boot and self.up and not self.watchdog_off:
                self.reset(f"watchdog: {why}")

        self.sanlock = Daemon(
            self.timeline,
            self.leases,
            self.sanlock_name or made_up_name(self.number, self._sanlock_starts),
            self.host_id,
            self.io_timeout_s,
            self.rate,
            self.reach_of_sanlock,
            self._write_lease,
            self._writes_too_late,
            self._is_read_only,
            self.monotonic_s,
            self._kill_holders,
            doom,
        )
        self.sanlock.process = f"sanlock {self._sanlock_starts}"

    def crash_sanlock(self) -> None:
        """The daemon dies. Who was in the lockspace is reset by the watchdog in the end."""
        daemon = self.sanlock
        if daemon is None or not daemon.running:
            return
        self.watch.tell(self.name, "sanlock died")
        if daemon.generation and daemon.membership.value in ("in", "failed"):
            daemon.doom_after_crash()
            self.doomed = True
        self.timeline.after(1.0, self.start_sanlock)
        daemon.stop_running()

    def _kill_holders(self, why: str) -> bool:
        if self.frozen or self.sanlock_stopped:
            return False
        if self.fence_held:
            self.fence_held = False
            self.crash("agent")
        if self.release_hangs:
            self.watch.tell(self.name, "the freeing of a host id does not end")
            return False
        holders = [number for number, qemu in self.qemus.items() if qemu.has_lease]
        for vm in holders:
            if not self.is_unkillable(vm):
                self.end_qemu(why, VmStatus.DOWN_UNEXPECTED, "its process died", False, vm)
        if any(self.is_unkillable(vm) for vm in holders):
            self.watch.tell(self.name, "QEMU does not end")
            return False
        return True

    def is_unkillable(self, vm: int) -> bool:
        """Whether nothing but the loss of power ends the VM's process here."""
        return self.qemu_unkillable or vm in self.unkillable_vms

    def sanlock_answers(self) -> Daemon:
        """The running daemon; Refused where there is none."""
        if self.sanlock is None or not self.sanlock.running:
            raise Refused("sanlock does not answer: is it running?")
        if self.sanlock_stopped:
            raise Refused("sanlock does not answer")
        return self.sanlock

    def let_go_of_fence(self) -> None:
        """The agent is gone: its fence lease is free, unless a process of it still holds it."""
        was_held, self.fence_held = self.fence_held, False
        if was_held and not self.release_hangs and self.sanlock is not None:
            self.sanlock.release("fence")

    def release_ended(self) -> None:
        """The process that freed a host id has ended."""
        self.release_hangs = False
        if not self.fence_held and self.sanlock is not None:
            self.sanlock.release("fence")

    # --- the VMs --------------------------------------------------------------------------

    @property
    def qemu(self) -> Qemu | None:
        """The QEMU of the engine."""
        return self.qemus.get(ENGINE)

    def create_qemu(
        self,
        received: bool = False,
        force_boot: bool = True,
        disk: str = BASE,
        vm: int = ENGINE,
    ) -> Qemu:
        """A QEMU process that does not run yet. Unless it is told to boot, libvirt has it resume a
        memory image that lies here. `disk`: the image that its disk is in."""
        assert vm not in self.qemus and self.up
        self._guests += 1
        memory = f"{self.name}.{self.boots}.{self._guests}"
        if not received and vm == ENGINE:
            image, self.memory_image = self.memory_image, None
            memory = memory if force_boot or image is None else image
        qemu = self.qemus[vm] = Qemu(received=received, memory=memory, image=disk, vm=vm)
        self.watch.vm_changed(self, vm)
        return qemu

    def save_qemu(self) -> None:
        """libvirt writes the guest's memory away and ends the process (virsh managedsave)."""
        assert self.qemu is not None
        self.memory_image = self.qemu.memory
        self.end_qemu("saved by libvirt", VmStatus.DOWN, "saved")

    def _disk_may_fail(self) -> None:
        """QEMU pauses a guest whose disk answers with an error."""
        if self.frozen:
            return
        for vm, qemu in list(self.qemus.items()):
            is_lost = qemu.disk_lost_s <= self.timeline.now_s
            fails = is_lost or self.disk_of(vm)[0] in ("error", "read-only")
            # QEMU never reports a full storage to its guest (werror=enospc).
            pauses = self.pauses_on_disk_error or self.storage.is_full(self._disk_part(vm))
            if not (qemu.running and fails and pauses):
                continue
            if qemu.leaving:
                self.timeline.after(1.0, self._disk_may_fail)
                continue
            qemu.pause = Pause.IO_ERROR
            self.watch.tell(self.name, "QEMU pauses the guest: an I/O error of its disk")
            self.pause_qemu(vm)

    def disk_of(self, vm: int) -> tuple[str, float]:
        """Fault and delay of the storage that a VM's disk is on."""
        return self.storage.of(self._disk_part(vm))

    def _disk_part(self, vm: int) -> str:
        return f"disk of {vm}" if vm in self.own_disks else "disk"

    def leave_qemu(self, crashed: bool, vm: int = ENGINE) -> None:
        """Leave a QEMU whose guest is dead or was never received; libvirt keeps the process."""
        qemu = self.qemus[vm]
        qemu.crashed, qemu.orphan = crashed, not crashed
        qemu.left_since_s = self.clock_s()
        self.pause_qemu(vm)

    def resume_qemu(self, healthy_from_s: float, vm: int = ENGINE) -> None:
        """Take the lease and let the CPUs run; Refused where the lease is not had."""
        qemu = self.qemus[vm]
        self.sanlock_answers().acquire(resource_of(vm))
        qemu.running = qemu.has_lease = True
        qemu.received, qemu.pause, qemu.has_run = False, None, True
        qemu.healthy_from_s = healthy_from_s
        if self.pauses_on_disk_error or self.storage.is_full(self._disk_part(vm)):
            self.timeline.after(1.0, self._disk_may_fail)
        self.watch.vm_changed(self, vm)

    def pause_qemu(self, vm: int = ENGINE) -> None:
        """Stop its CPUs; libvirt's lock driver gives the lease back."""
        qemu = self.qemus[vm]
        qemu.running = False
        if qemu.has_lease:
            qemu.has_lease = False
            if self.sanlock is not None:
                self.sanlock.release(resource_of(vm))
        self.watch.vm_changed(self, vm)

    def end_qemu(
        self, why: str, status: VmStatus, detail: str, release: bool = True, vm: int = ENGINE
    ) -> None:
        """The process is gone; `release`: its sanlock gives its lease back."""
        qemu = self.qemus.pop(vm, None)
        if qemu is None:
            return
        self.last_ends[vm] = (status, detail)
        if release and qemu.has_lease and self.sanlock is not None:
            self.sanlock.release(resource_of(vm))
        self.watch.vm_ended(self, why, vm)
        self.watch.vm_changed(self, vm)

    def runs(self, vm: int) -> bool:
        """Whether its QEMU of that VM executes the guest."""
        qemu = self.qemus.get(vm)
        return qemu is not None and qemu.running

    def is_healthy(self, vm: int) -> bool:
        """Whether the guest of that VM serves its page."""
        qemu = self.qemus.get(vm)
        if qemu is None or not qemu.running or qemu.is_hung or self.frozen:
            return False
        now_s = self.timeline.now_s
        if qemu.stopped_until_s > now_s or now_s - qemu.disk_lost_s >= GUEST_PATIENCE_S:
            return False
        if self.disk_of(vm)[0] in ("hang", "error", "read-only"):
            return now_s - self.storage.since_s < GUEST_PATIENCE_S
        return now_s >= qemu.healthy_from_s

    @property
    def runs_vm(self) -> bool:
        """Whether its QEMU executes the engine's guest."""
        return self.runs(ENGINE)

    @property
    def vm_healthy(self) -> bool:
        """Whether the engine's guest serves its page."""
        return self.is_healthy(ENGINE)

    @property
    def is_way_open(self) -> bool:
        """Whether a VM on this host would be on the network that its users come by."""
        return self.power and self.network_up and self.guest_network_up and self.bridge_up

    @property
    def is_reached_in_time(self) -> bool:
        """Whether all packets to it and from it arrive at once, as far as it goes by this host."""
        is_fine = not (self.packet_loss or self.packet_delay_s)
        return is_fine and self.network_up and self.power

    @property
    def bridge_leads_out(self) -> bool:
        """Whether the VM's bridge is up and has carrier."""
        return self.uplink_up and self.bridge_up

    def unplug(self, out: bool) -> None:
        """Pull the host's cable out, or plug it in again: no network, and no carrier."""
        self.network_up = self.uplink_up = not out
        self.gateway_answers = 0.0 if out else 1.0
        self.watch.tell(self.name, f"cable {'out' if out else 'in'}")

    def crash(self, name: str) -> None:
        """Kill a daemon (SIGKILL); who watches starts it again."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        if name == "agent":
            self.let_go_of_fence()
        process.kill()
        self.watch.tell(self.name, f"{name} is killed")
        self.watch.daemon_ended(self, name)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""One protected VM on this host: its state in libvirt, and whether its process holds its lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import libvirt
import sanlock

from broker.config.sections import Config
from broker.daemon.foreign import sentence
from broker.daemon.kernel_boot import boot_id
from broker.daemon.worker import Hung, Worker
from broker.lockspace.hosts import budget_s
from broker.lockspace.lease_past import LeasePast
from broker.lockspace.process_leases import process_leases
from broker.monitors.domain_look import NEVER_RAN, PAUSES, SUSPENDED, DomainLook
from broker.monitors.health import HealthMonitor
from broker.monitors.runner import LIBVIRT_DEADLINE_S, Unknown
from broker.vm.libvirt_words import libvirt_sentence
from broker.wire.status import MigrationStatus
from scoring.vm_facts import (
    DETAIL_MIGRATION_SOURCE,
    DETAIL_PAUSED,
    DomainHere,
    EngineStatus,
    Health,
    Pause,
    VmStatus,
)

#: A panic, a watchdog or a missing renewal counts as the cause of an end that follows within so
#: long.
CAUSE_FRESH_S = 30.0
#: Details of an end that may have such a cause; other details name a cause themselves.
_NO_CAUSE = frozenset({"its process died", "shut down", "off"})

_NOT_HERE = "vm not running on this host"
_NOT_RECEIVED = f"{_NOT_HERE}: a migration to it did not end well"
_CRASHED = "the guest crashed, and its process is still here (on_crash)"
_PANICKED = "the guest's kernel panicked, and its process is still here (on_crash)"

#: libvirt's reasons why a domain is off (libvirt-domain.h, virDomainShutoffReason).
_SHUTOFF: dict[int, tuple[VmStatus, str]] = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: (VmStatus.DOWN, "shut down"),
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: (VmStatus.DOWN, "powered off"),
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: (VmStatus.DOWN_UNEXPECTED, "its process died"),
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: (VmStatus.DOWN, "migrated"),
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: (VmStatus.DOWN, "saved"),
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: (VmStatus.DOWN, "failed to start"),
}
#: Errors of jobStats that mean "no migration away from here": from a driver without jobs, and for a
#: VM that is being received ("available only on the source host").
_NO_JOB = frozenset({libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED})

#: States that are bad beside being down: the VM was not meant to be down.
_BAD = frozenset({VmStatus.DOWN_UNEXPECTED, VmStatus.DOWN_MISSING})


class DomainMonitor:
    """EngineStatus of this host; Unknown where libvirt does not answer.

    `pid`, `lease_held`, `facts` and `cpu_s` belong to the last sample. The health in it is the
    latest result of the health monitor: a page that hangs delays nothing here. `is_known`: whether
    libvirt knows the VM at all, by a look at all of them; None: ask it.
    """

    name = "engine"
    unit = ""
    deadline_s = 10.0

    def __init__(
        self,
        config: Config,
        health: HealthMonitor,
        interval_s: float = 1.0,
        uuid: str = "",
        process_file: str = "engine-process",
    ) -> None:
        """`uuid`: by which libvirt is asked for the VM; "": by the name in the configuration.
        `process_file`: see LeasePast, in the state folder."""
        state_dir = Path(config.daemon.state_dir)
        self.interval_s = interval_s
        self._uuid = uuid
        self.is_known: bool | None = None
        self._config = config
        self._name = config.vm.name
        self.health = health
        self._libvirt = Worker("libvirt")
        self._sanlock = Worker("sanlock inquire")
        self._lease_volume = Worker("engine lease")
        self._look = DomainLook()
        self._past = LeasePast(
            state_dir / process_file,
            boot_id(),
            config.storage.leases,
            config.storage.resource,
            config.host.id,
        )
        self._connection: libvirt.virConnect | None = None
        self._was_up = False
        self._ended_by = ""
        self._was_received = False
        self.pid: int | None = None
        self.lease_held: bool | None = None
        self.facts = self._new_facts = DomainHere()
        self.migration: MigrationStatus | None = None
        self._cpu: tuple[int | None, float] | None = None
        #: The cause of the VM's end in libvirt's events, and when it came.
        self._cause: tuple[str, float] | None = None
        #: When this host's id was last renewed: see Lockspace. Set by the broker.
        self.renewed_s: Callable[[], float | None] = lambda: None
        #: The last answer, and when it was given; whether the VM held its lease.
        self._renewed: tuple[float, float] | None = None
        self._held_s: float | None = None

    def caused(self, cause: str) -> None:
        """Note why the VM ends, or is about to (broker/monitors/domain_events.py)."""
        self._cause = cause, asyncio.get_running_loop().time()

    def judge(self, value: EngineStatus) -> str:
        """What is wrong with the VM here; a VM that is simply not here is no problem."""
        if value.vm in _BAD or value.detail == DETAIL_PAUSED:
            return value.reason or value.detail
        return ""

    def cpu_s(self) -> tuple[int | None, float] | None:
        """The VM's process id and its CPU seconds so far; None while it does not run here.

        Unknown where it ran here and libvirt does not answer any more.
        """
        if self._cpu is None and self._was_up:
            raise Unknown("the VM's own share is not known")
        return self._cpu

    async def sample(self) -> EngineStatus:
        vm, detail, reason = await self._vm()
        if vm is not VmStatus.UP:
            self.pid, self.lease_held, self._cpu, self.migration = None, None, None, None
            self.health.ask(False)
            self.facts = self._new_facts
            if self.facts.leftover is not None:
                self.pid = self._read_pid()
                self.lease_held = await self._holds_lease(self.pid)
            if vm is VmStatus.DOWN_UNEXPECTED and self._was_received:
                # Nothing of it ran here, whatever happens to it at the source.
                return EngineStatus(VmStatus.DOWN, Health.BAD, "not received", _NOT_RECEIVED)
            if vm is not VmStatus.UNKNOWN:
                self._name_cause()
                self._was_up, self._held_s = False, None
                if self._ended_by and detail in _NO_CAUSE:
                    detail, reason = self._ended_by, f"{_NOT_HERE}: {self._ended_by}"
                return EngineStatus(vm, Health.BAD, detail, reason)
            raise Unknown(reason or detail)
        self._was_up, self._was_received, self._ended_by = True, False, ""
        self.pid = self._read_pid()
        self.lease_held = await self._holds_lease(self.pid)
        if self.lease_held:
            self._held_s = asyncio.get_running_loop().time()
        self._look_at_renewal()
        facts = self._new_facts
        if detail == DETAIL_PAUSED and self.lease_held is False and self.pid is not None:
            facts = replace(facts, outdated=await self._is_outdated(self.pid))
        self.facts = facts
        self.health.ask(True)
        health, problem = self.health.verdict
        return EngineStatus(vm, health, detail, "; ".join(filter(None, (reason, problem))) or None)

    def _name_cause(self) -> None:
        """Add the cause to the end of a VM that was up until now: libvirt's events gave it, or it
        is sanlock."""
        if not self._was_up:
            return
        cause, caused_s = self._cause or ("", 0.0)
        is_fresh = asyncio.get_running_loop().time() - caused_s < CAUSE_FRESH_S
        self._ended_by = cause if is_fresh and cause else self._sanlock_ended_it()

    def _look_at_renewal(self) -> float:
        """Note when the host's id was last renewed; returns now."""
        now_s = asyncio.get_running_loop().time()
        if (renewed_s := self.renewed_s()) is not None:
            self._renewed = renewed_s, now_s
        return now_s

    def _sanlock_ended_it(self) -> str:
        """The sentence that sanlock ended the VM, which held its lease while nobody renewed this
        host's id; "": sanlock did not, or that is not known."""
        now_s = self._look_at_renewal()
        # sanlock takes the leases away moments before the process has ended.
        if self._renewed is None or self._held_s is None or now_s - self._held_s >= CAUSE_FRESH_S:
            return ""
        renewed_s, asked_s = self._renewed
        io_timeout_s = self._config.storage.io_timeout
        if now_s - asked_s >= CAUSE_FRESH_S or budget_s(renewed_s, io_timeout_s, now_s):
            return ""
        return f"sanlock ended it: this host's id was not renewed for {now_s - renewed_s:.0f} s"

    async def _vm(self) -> tuple[VmStatus, str, str | None]:
        """Up, down or unknown, with libvirt's detail; sets `_new_facts`."""
        self._new_facts = DomainHere()
        found = None
        try:
            if self.is_known is not False:
                what = "asking for the VM"
                found = await self._libvirt.call(what, LIBVIRT_DEADLINE_S, self._state)
        except Hung as error:
            return VmStatus.UNKNOWN, "unknown", sentence(error)
        except libvirt.libvirtError as error:
            return VmStatus.UNKNOWN, "unknown", libvirt_sentence(error)
        if found is None:
            if self._was_up:
                return VmStatus.DOWN_MISSING, "vanished", "libvirt no longer knows the VM"
            return VmStatus.DOWN, "unknown", _NOT_HERE
        state, reason, self.migration, cpu_s, facts = found
        if facts.leftover is not None:
            is_same = facts.leftover is self.facts.leftover
            now_s = asyncio.get_running_loop().time()
            since_s = self.facts.leftover_since_s if is_same else now_s
            facts = replace(facts, leftover_since_s=since_s)
        self._new_facts = facts
        leaving = self.migration is not None
        self._cpu = (self.pid, cpu_s)
        if (state, reason) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION):
            self._was_received = not leaving
        elif state != libvirt.VIR_DOMAIN_SHUTOFF:
            self._was_received = False
        vm, detail, why = translate(state, reason, leaving)
        return vm, detail, NEVER_RAN if facts.pause is Pause.NEVER_RAN else why

    def _state(self) -> tuple[int, int, MigrationStatus | None, float, DomainHere] | None:
        """Runs in the thread: (state, reason, the migration away from here, CPU seconds so far,
        the domain's other facts); None without a domain."""
        try:
            if self._connection is None:
                self._connection = libvirt.open(self._config.libvirt.uri)
            domain = self._find(self._connection)
            state, reason = domain.state()
            leaving, cpu_s = None, 0.0
            if state in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED):
                leaving = _migration(domain)
                cpu_s = domain.info()[4] / 1e9  # virDomainInfo.cpuTime, nanoseconds
            facts = self._look.look(domain, state, reason, leaving is not None, self._read_pid())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            raise
        return state, reason, leaving, cpu_s, facts

    def _find(self, connection: libvirt.virConnect) -> libvirt.virDomain:
        if not self._uuid:
            return connection.lookupByName(self._config.vm.name)
        domain = connection.lookupByUUIDString(self._uuid)
        self._name = domain.name()
        return domain

    def _read_pid(self) -> int | None:
        path = Path(self._config.libvirt.pid_dir) / f"{self._name}.pid"
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            return None

    async def _holds_lease(self, pid: int | None) -> bool | None:
        if pid is None:
            return None
        try:
            return await self._sanlock.call("inquire", LIBVIRT_DEADLINE_S, self._inquire, pid)
        except (Hung, sanlock.SanlockException):
            return None

    def _inquire(self, pid: int) -> bool:
        """Ask whether the process holds the lease; runs in the thread."""
        wanted = (self._config.storage.lockspace, self._config.storage.resource)
        held = wanted in (process_leases(pid) or ())
        if held:
            self._past.holds(pid)
        return held

    async def _is_outdated(self, pid: int) -> bool | None:
        what = "reading the engine lease"
        try:
            return await self._lease_volume.call(
                what, LIBVIRT_DEADLINE_S, self._past.is_outdated, pid
            )
        except Hung:
            return None


def _migration(domain: libvirt.virDomain) -> MigrationStatus | None:
    """The outgoing migration that is under way (job statistics, libvirt-domain.h)."""
    try:
        stats = domain.jobStats()
    except libvirt.libvirtError as error:
        if error.get_error_code() in _NO_JOB:
            return None
        raise
    operation = stats.get(libvirt.VIR_DOMAIN_JOB_OPERATION)
    if operation != libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT:
        return None
    total = int(stats.get(libvirt.VIR_DOMAIN_JOB_DATA_TOTAL, 0))
    remaining = int(stats.get(libvirt.VIR_DOMAIN_JOB_DATA_REMAINING, 0))
    return MigrationStatus(
        percent=0 if total <= 0 else 100 * max(0, total - remaining) // total,
        total=total,
        remaining=remaining,
        elapsed_s=stats.get(libvirt.VIR_DOMAIN_JOB_TIME_ELAPSED, 0) / 1000,
        downtime_ms=stats.get(libvirt.VIR_DOMAIN_JOB_DOWNTIME),
    )


def translate(state: int, reason: int, leaving: bool) -> tuple[VmStatus, str, str | None]:
    """Libvirt's state and reason as the VM's status, a word, and a sentence where it is not well.

    `leaving`: it is being migrated away.
    """
    if leaving:
        return VmStatus.UP, DETAIL_MIGRATION_SOURCE, None
    match state:
        case libvirt.VIR_DOMAIN_RUNNING | libvirt.VIR_DOMAIN_BLOCKED:
            return VmStatus.UP, "up", None
        case libvirt.VIR_DOMAIN_SHUTDOWN:
            return VmStatus.UP, "powering down", None
        case libvirt.VIR_DOMAIN_PMSUSPENDED:
            return VmStatus.UP, DETAIL_PAUSED, SUSPENDED
        case libvirt.VIR_DOMAIN_PAUSED if reason in PAUSES:
            return VmStatus.UP, DETAIL_PAUSED, PAUSES[reason][1]
        case libvirt.VIR_DOMAIN_PAUSED if reason == libvirt.VIR_DOMAIN_PAUSED_CRASHED:
            return VmStatus.DOWN_UNEXPECTED, "crashed", _CRASHED
        case libvirt.VIR_DOMAIN_PAUSED:
            # Starting, or the receiving end of a migration: no instruction of the guest ran.
            return VmStatus.DOWN, "not running yet", "the VM is being started or received"
        case libvirt.VIR_DOMAIN_CRASHED if reason == libvirt.VIR_DOMAIN_CRASHED_PANICKED:
            return VmStatus.DOWN_UNEXPECTED, "panicked", _PANICKED
        case libvirt.VIR_DOMAIN_CRASHED:
            return VmStatus.DOWN_UNEXPECTED, "crashed", _CRASHED
        case libvirt.VIR_DOMAIN_SHUTOFF:
            vm, detail = _SHUTOFF.get(reason, (VmStatus.DOWN, "off"))
            return vm, detail, f"{_NOT_HERE}: {detail}"
        case _:
            return VmStatus.UNKNOWN, "unknown", f"libvirt state {state}, reason {reason}"

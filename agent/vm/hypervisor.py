# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM through libvirt: started only under its lease, and checked to hold the lease.

A start goes in steps, so that no instruction of the guest runs unprotected:

    define -> discard a memory image -> create paused -> sanlock knows the process?
           -> resume (takes the lease) -> the process holds the lease? -> started

libvirt's sanlock lock driver registers the process before QEMU runs and acquires the
lease when the CPUs are started. A process that sanlock does not know means that libvirt
runs without the lock driver: it is ended at once.

Each VM has threads of its own: a call that hangs for one VM delays no other. Only starts share
something: sanlock has 8 threads for all requests, and a start may occupy one of them until sanlock
calls another host dead. So at most STARTS_AT_ONCE VMs of the registry start at once on a host, and
the engine's start and the fence lease always find a free thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import libvirt
import sanlock

from agent.leases.sanlock import SanlockLeases
from agent.ports import (
    CANCEL_DEADLINE_S,
    MIGRATE_EXTRA_S,
    PATH_DEADLINE_S,
    START_DEADLINE_S,
    STOP_DEADLINE_S,
    TARGET_DEADLINE_S,
)
from agent.vm.disarm import discard_memory_image, turn_off_autostart
from agent.vm.errors import DefinitionError, TooMany, Unprotected
from agent.vm.image_lock import in_words, is_refused
from agent.vm.migration_check import Refusal, ask_target, is_lasting
from agent.vm.protected import ProtectedVm
from broker.config.addresses import in_uri, is_over_tls
from broker.config.sections import Config
from broker.daemon.foreign import sentence
from broker.daemon.worker import Hung, Worker
from broker.lockspace.process_leases import process_leases
from broker.vm.domain_text import composed
from broker.vm.errors import BadDomain
from broker.vm.qemu_conf import LOCK_MANAGER_LINE
from broker.wire.what_ran import WhatRan
from scoring.observation import (
    DomainDisarmed,
    MigrationCancelled,
    MigrationPath,
    StartResult,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)
from scoring.rules import timeout_key

log = logging.getLogger("ha-agent.hypervisor")

DOWNTIME_AFTER_S = 0.2
_PID_WAIT_S = 2.0
#: How many VMs of the registry start at once, and how long another start waits for its turn: the
#: decision begins no more, so it waits only for one whose time is over and that has not ended.
STARTS_AT_ONCE, START_TURN_S = 4, 20.0
#: What keeps libvirt from being asked, or from doing what it was asked for.
_FAILURES = (libvirt.libvirtError, DefinitionError, Hung)


class LibvirtHypervisor:
    """Hypervisor port: libvirt. `turns`: of the starts that share a host; None: it needs none."""

    def __init__(
        self,
        config: Config,
        vm: ProtectedVm,
        leases: SanlockLeases,
        turns: threading.BoundedSemaphore | None = None,
    ) -> None:
        self._config = config
        self._vm = vm
        self._leases = leases
        self._turns = turns
        self._worker = Worker("libvirt")
        # Both are used while a migration keeps the first worker busy.
        self._beside = Worker("libvirt beside a migration")
        self._target = Worker("libvirt of the target")
        # Whether a migration that this agent began is under way, and why it is being ended; empty
        # while it is not.
        self._moving = False
        self._cancelled = ""

    def reconfigure(self, config: Config) -> None:
        """Use another configuration; a migration under way keeps the one it began with."""
        self._config = self._vm.config = config

    async def check(self) -> None:
        """Define the VM, unless somebody changed libvirt's own definition; libvirtError or Hung
        where libvirt does not accept it, DefinitionError where this host must not start it."""
        await self._worker.call("defining the VM", STOP_DEADLINE_S, self._define_first)

    async def start(self, what_ran: WhatRan | None = None, registry: int = 0) -> VmStartEnded:
        try:
            await self._worker.call(
                "starting the VM", START_DEADLINE_S, self._start_in_turn, what_ran, registry
            )
        except libvirt.libvirtError as error:
            return await self._start_failed(error)
        except (
            *(Unprotected, TooMany, DefinitionError, BadDomain, Hung, OSError),
            sanlock.SanlockException,
        ) as error:
            return VmStartEnded(StartResult.FAILED, sentence(error))
        return VmStartEnded(StartResult.STARTED)

    async def _start_failed(self, error: libvirt.libvirtError) -> VmStartEnded:
        """Whether another host was faster, or libvirt's sentence about what is wrong here.

        Only an error of the lock driver can mean a lost race: any other error came before the
        lease was tried, whoever owns it. sanlock says who owns the lease, not libvirt's message.
        """
        if is_refused(str(error)):
            return VmStartEnded(StartResult.IMAGE_LOCKED, sentence(in_words(str(error))))
        failed = VmStartEnded(StartResult.FAILED, f"libvirt: {sentence(error)}")
        if error.get_error_domain() != libvirt.VIR_FROM_LOCKING:
            return failed
        answer = await self._vm.owner(self._leases)
        if answer.keeps_out(self._config.host.id):
            return VmStartEnded(StartResult.LEASE_HELD, f"host {answer.owner} owns it")
        if not answer.known and error.get_error_code() == libvirt.VIR_ERR_RESOURCE_BUSY:
            return VmStartEnded(
                StartResult.LEASE_HELD, f"who owns it is not known: {sentence(error)}"
            )
        return failed

    async def shut_down(self) -> VmStopEnded:
        return await self._stop("asking the guest to shut down", lambda domain: domain.shutdown())

    async def power_off(self) -> VmStopEnded:
        return await self._stop("ending the VM", lambda domain: domain.destroy())

    async def disarm(self, image: bool) -> DomainDisarmed:
        def in_thread() -> None:
            connection = self._connect()
            try:
                domain = self._vm.find(connection)
                turn_off_autostart(domain)
                if image:
                    discard_memory_image(domain)
            finally:
                connection.close()

        try:
            await self._worker.call("disarming the domain", STOP_DEADLINE_S, in_thread)
        except _FAILURES as error:
            log.warning(
                "a memory image or libvirt's autostart could not be taken away: %s", sentence(error)
            )
            return DomainDisarmed(False, sentence(error))
        return DomainDisarmed(True)

    async def ask_path(self, target: int, hostname: str) -> MigrationPath:
        asked_s = asyncio.get_running_loop().time()
        refusal = await self._ask_target(target, hostname, PATH_DEADLINE_S)
        return MigrationPath(target, not refusal.text, asked_s, refusal.text)

    async def _ask_target(self, target: int, hostname: str, deadline_s: float) -> Refusal:
        """Why the VM cannot be migrated to a host; empty: its libvirt answers, and no reason to
        refuse the VM is known."""
        name = in_uri(hostname)
        if not name:
            # The name comes from the whiteboard: no part of it may change the URI's meaning.
            text = f"host {target} calls itself {hostname!r}, which is no host name or address"
            return Refusal(text, lasting=True)
        uri = self._config.libvirt.migration_uri.format(host=name)
        try:
            return await self._target.call("asking the target", deadline_s, self._ask_there, uri)
        except _FAILURES as error:
            return Refusal(f"libvirt on {hostname} does not answer at {uri}: {sentence(error)}")

    async def migrate(
        self, target: int, hostname: str, timeout_s: float | None = None
    ) -> VmMigrationEnded:
        given = self._config.libvirt
        within_s = given.migration_timeout if timeout_s is None else timeout_s
        why_late = f"cancelled, for it took more than {within_s:g} s"
        why_late += f" ({timeout_key(timeout_s is not None)})"
        refusal = await self._ask_target(target, hostname, TARGET_DEADLINE_S)
        if refusal.text:
            return VmMigrationEnded(target, False, refusal.text, refusal.lasting)
        uri = given.migration_uri.format(host=in_uri(hostname))
        data_uri = given.migration_data_uri.format(host=in_uri(hostname))
        deadline_s = within_s + MIGRATE_EXTRA_S
        self._moving = True
        moving = asyncio.ensure_future(
            self._worker.call(
                "migrating the VM", deadline_s, self._migrate, hostname, uri, data_uri
            )
        )
        try:
            await self._watch_over(moving, within_s, why_late)
            await moving
        except (Hung, DefinitionError) as error:
            return VmMigrationEnded(target, False, self._cancelled or sentence(error))
        except libvirt.libvirtError as error:
            if self._cancelled:
                return VmMigrationEnded(target, False, self._cancelled)
            # libvirt here judges the disks, whatever the target.
            is_of_disks = error.get_error_code() == libvirt.VIR_ERR_MIGRATE_UNSAFE
            which = "; which disk, and why: ha-agent doctor --storage" if is_of_disks else ""
            text = f"libvirt: {sentence(error)}{which}"
            return VmMigrationEnded(target, False, text, is_lasting(error), everywhere=is_of_disks)
        finally:
            self._moving, self._cancelled = False, ""
            moving.cancel()
        return VmMigrationEnded(target, True)

    async def _watch_over(
        self, moving: asyncio.Future[None], within_s: float, why_late: str
    ) -> None:
        """Switch to post-copy when it is time for it, and cancel the migration when it is late."""
        given, loop = self._config.libvirt, asyncio.get_running_loop()
        end_s = loop.time() + within_s
        if given.migration_downtime:
            # Only a migration that is under way has a downtime.
            done, _ = await asyncio.wait([moving], timeout=DOWNTIME_AFTER_S)
            if not done:
                await self._beside_migration(
                    "setting the downtime",
                    lambda domain: domain.migrateSetMaxDowntime(given.migration_downtime),
                )
        if given.migration_post_copy_after:
            after_s = min(given.migration_post_copy_after, within_s)
            done, _ = await asyncio.wait([moving], timeout=after_s)
            if done:
                return
            await self._beside_migration("post-copy", lambda domain: domain.migrateStartPostCopy())
        done, _ = await asyncio.wait([moving], timeout=max(0.0, end_s - loop.time()))
        if not done:
            self._cancelled = why_late
            log.warning("the migration is %s", self._cancelled)
            await self._beside_migration("cancelling", lambda domain: domain.abortJob())

    async def cancel_migration(self, why: str) -> MigrationCancelled:
        # A migration that this agent did not begin has no outcome: the text would stay for the
        # next.
        if self._moving:
            self._cancelled = f"cancelled by {why}"
        problem = await self._beside_migration("cancelling", lambda domain: domain.abortJob())
        if problem:
            self._cancelled = ""
        return MigrationCancelled(not problem, problem)

    async def _beside_migration(self, what: str, act: Callable[[libvirt.virDomain], object]) -> str:
        """Apply `act` to the migration that is under way; returns why that failed, or ""."""

        def in_thread() -> None:
            connection = self._connect()
            try:
                act(self._vm.find(connection))
            finally:
                connection.close()

        try:
            await self._beside.call(what, CANCEL_DEADLINE_S, in_thread)
        except _FAILURES as error:
            log.warning("%s: %s", what, sentence(error))
            return sentence(error)
        return ""

    # --- in the thread -----------------------------------------------------------------

    def _connect(self) -> libvirt.virConnect:
        return libvirt.open(self._config.libvirt.uri)

    def _define_first(self) -> None:
        connection = self._connect()
        try:
            definition = self._vm.wanted(0)
            defined = self._vm.defined(definition)
            found = defined.changes(connection, definition.xml)
            if found:
                log.warning(
                    "libvirt's own definition of %s is not the cluster's, and stays until the next"
                    " start, which takes the cluster's (ha-agent vm adopt takes libvirt's): %s",
                    definition.name,
                    "; ".join(map(str, found)),
                )
                return
            defined.define(connection, definition.xml)
        finally:
            connection.close()

    def _start_in_turn(self, what_ran: WhatRan | None, registry: int) -> None:
        """The start. Its turn ends when the start has really ended, even if its caller has given up
        waiting."""
        if self._turns is None:
            self._start(what_ran, registry)
            return
        if not self._turns.acquire(timeout=START_TURN_S):
            raise TooMany(f"{STARTS_AT_ONCE} VMs are being started on this host and do not end")
        try:
            self._start(what_ran, registry)
        finally:
            self._turns.release()

    def _start(self, what_ran: WhatRan | None, registry: int) -> None:
        definition = self._vm.wanted(registry)
        connection = self._connect()
        try:
            xml = _with_what_ran(definition.xml, what_ran)
            defined = self._vm.defined(definition)
            for change in defined.changes(connection, xml):
                log.warning("libvirt's own definition is put back to the cluster's: %s", change)
            domain = defined.define(connection, xml)
            discard_memory_image(domain)
            turn_off_autostart(domain)
            # An image that is made at this very moment is not resumed either.
            domain.createWithFlags(
                libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_FORCE_BOOT
            )
            try:
                pid = self._pid(definition.name)
                if process_leases(pid) is None:
                    raise Unprotected(
                        "sanlock does not know the VM's process: libvirt runs without the "
                        f"sanlock lock driver; set {LOCK_MANAGER_LINE} in "
                        f"{self._config.libvirt.qemu_conf} and restart libvirt"
                    )
                domain.resume()
                wanted = (self._config.storage.lockspace, self._vm.resource)
                if wanted not in (process_leases(pid) or ()):
                    raise Unprotected(f"the VM's process {pid} does not hold lease {wanted[1]}")
            except BaseException:
                with contextlib.suppress(libvirt.libvirtError):
                    domain.destroy()
                raise
        finally:
            connection.close()

    def _pid(self, name: str) -> int:
        """The QEMU process's id from libvirt's pid file, which is there soon after create."""
        path = Path(self._config.libvirt.pid_dir) / f"{name}.pid"
        until_s = time.monotonic() + _PID_WAIT_S
        while True:
            try:
                return int(path.read_text())
            except (OSError, ValueError):
                if time.monotonic() > until_s:
                    raise Unprotected(
                        f"{path}: no process id, the lease cannot be checked"
                    ) from None
                time.sleep(0.02)

    async def _stop(self, what: str, act: Callable[[libvirt.virDomain], object]) -> VmStopEnded:
        def in_thread() -> None:
            connection = self._connect()
            try:
                domain = self._vm.find(connection)
                if domain.isActive():
                    act(domain)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
            finally:
                connection.close()

        try:
            await self._worker.call(what, STOP_DEADLINE_S, in_thread)
        except _FAILURES as error:
            return VmStopEnded(False, sentence(error))
        return VmStopEnded(True)

    def _ask_there(self, uri: str) -> Refusal:
        try:
            connection = self._connect()
        except libvirt.libvirtError as error:
            return Refusal(f"libvirt here does not answer: {error}")
        try:
            try:
                domain = self._vm.find(connection)
                xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE)
            except (libvirt.libvirtError, DefinitionError):
                xml = ""  # the migration itself reports what is wrong
            return ask_target(uri, connection, xml)
        finally:
            connection.close()

    def _migrate(self, hostname: str, uri: str, data_uri: str) -> None:
        connection = self._connect()
        try:
            domain = self._vm.find(connection)
            given = self._config.libvirt
            parameters: dict[str, str | int] = {}
            if data_uri:
                parameters[libvirt.VIR_MIGRATE_PARAM_URI] = data_uri
            if given.migration_bandwidth:
                parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = given.migration_bandwidth
            flags = (
                libvirt.VIR_MIGRATE_PEER2PEER
                | libvirt.VIR_MIGRATE_LIVE
                | libvirt.VIR_MIGRATE_PERSIST_DEST
                | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
            )
            if given.migration_tls or is_over_tls(given.migration_uri):
                flags |= libvirt.VIR_MIGRATE_TLS
                parameters[libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION] = hostname
            if given.migration_auto_converge:
                flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
            if given.migration_post_copy_after:
                flags |= libvirt.VIR_MIGRATE_POSTCOPY
            domain.migrateToURI3(uri, parameters, flags)
        finally:
            connection.close()


def _with_what_ran(xml: str, what_ran: WhatRan | None) -> str:
    """The definition with the disks that ran last."""
    if what_ran is None or not what_ran.disks:
        return xml
    log.warning(
        "the VM is started with what ran last (record %d of %s): %s",
        what_ran.generation,
        what_ran.by_name,
        ", ".join(sorted(what_ran.disks)),
    )
    return composed(xml, what_ran.disks)

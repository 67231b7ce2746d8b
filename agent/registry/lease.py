# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lease `registry`: a command holds it while it changes the registry, on whichever host.

Without it, two commands that choose a number for a new VM at the same moment would choose the same
one. sanlock gives the lease to one of them; it ends with the process, however the process ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator

import sanlock

from agent.storage.made import volume_errors
from agent.storage.watched import read_slots
from agent.terminal.errors import CommandError
from agent.terminal.progress import progress
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.lockspace.delta_leases import read_delta_lease
from broker.lockspace.lease_records import LeaseRecord, read_lease_records
from broker.registry.record import REGISTRY_RESOURCE, REGISTRY_UNIT
from broker.whiteboard.lease_sectors import ALIGN_OF_SECTOR, sector_of_leases
from broker.whiteboard.volume import Volume

#: How long a command waits for another one.
PATIENCE_S = 10.0
RETRY_S = 0.5
#: sanlock answers so (Linux errno): this host is not in the lockspace; and: another process here
#: has the lease, takes it or gives it back. A lease of another host is an error of sanlock's own.
_NOT_JOINED, _HELD_HERE = errno.ENOSPC, (errno.EEXIST, errno.EBUSY, errno.EAGAIN)


class Leases:
    """The lease volume of a command that holds the lease `registry`."""

    def __init__(self, config: Config) -> None:
        self._path, self._lockspace = config.storage.leases, config.storage.lockspace
        with volume_errors(), Volume(self._path, read_only=True) as volume:
            self.sector = sector_of_leases(volume)
            self._size = volume.size_bytes
        self.align = ALIGN_OF_SECTOR[self.sector]

    @property
    def units(self) -> int:
        """How many leases the volume has room for, the lockspace counted as one."""
        return self._size // self.align

    def at(self, unit: int) -> LeaseRecord | None:
        """The lease there; None: there is none that can be read."""
        with volume_errors(), Volume(self._path, read_only=True) as volume:
            return read_lease_records(volume, [unit])[unit]

    def holder(self, unit: int) -> int | None:
        """The host id that holds the lease, or may hold it; None: nobody does. A host that died
        never gave its lease back: it holds none any more once its id is free, of another
        generation, or dead by sanlock's own word."""
        with volume_errors(), Volume(self._path, read_only=True) as volume:
            lease = read_lease_records(volume, [unit])[unit]
            if lease is None or not lease.held:
                return None
            now = read_delta_lease(volume, lease.owner)
        if now is not None and (now[0] > lease.generation or now[1] == 0):
            return None
        return None if self._is_dead(lease.owner) else lease.owner

    def _is_dead(self, host_id: int) -> bool:
        """Whether sanlock here calls that host dead; False where it does not answer."""
        try:
            hosts = sanlock.get_hosts(self._lockspace.encode(), host_id)
        except sanlock.SanlockException:
            return False
        return any(host["flags"] == sanlock.HOST_DEAD for host in hosts)


@contextlib.contextmanager
def held(config: Config) -> Iterator[Leases]:
    """Hold the lease; CommandError where another one has it for longer than PATIENCE_S, or where
    this host cannot take it."""
    leases, path = Leases(config), config.storage.leases
    found = leases.at(REGISTRY_UNIT)
    if found is None or found.resource != REGISTRY_RESOURCE:
        raise CommandError(
            ExitCode.LOCKSPACE,
            f"{path}: has no lease {REGISTRY_RESOURCE}: ha-agent storage grow --vms N makes it",
        )
    where = [(path, REGISTRY_UNIT * leases.align)]
    descriptor = _taken(config, where, leases)
    try:
        yield leases
    finally:
        # Closing the connection unregisters the process: sanlock releases what it held.
        os.close(descriptor)


def _taken(config: Config, where: list[tuple[str, int]], leases: Leases) -> int:
    until_s = time.monotonic() + PATIENCE_S
    while True:
        failed = _tried(config, where, until_s)
        if isinstance(failed, int):
            return failed
        if failed is not None and failed.errno == _NOT_JOINED:
            raise CommandError(
                ExitCode.LOCKSPACE,
                f"this host is not in lockspace {config.storage.lockspace}: start ha-broker, or"
                " type this on another host",
            )
        if failed is not None and failed.errno > 0 and failed.errno not in _HELD_HERE:
            raise CommandError(
                ExitCode.LOCKSPACE,
                f"{where[0][0]}: sanlock: {failed.args[-1]} ({failed.errno}); check that sanlock"
                " runs (systemctl start sanlock)",
            )
        if time.monotonic() >= until_s:
            raise _late(config, leases, failed)
        progress("waiting for another command that changes the registry")
        time.sleep(RETRY_S)


def _tried(
    config: Config, where: list[tuple[str, int]], until_s: float
) -> int | sanlock.SanlockException | None:
    """The connection that holds the lease, or why it does not; None: sanlock has not answered.

    sanlock may sit on the call until it calls the last holder dead, so it has a thread.
    """
    answers: list[int | sanlock.SanlockException] = []
    is_late = threading.Event()

    def take() -> None:
        descriptor = -1
        try:
            descriptor = sanlock.register()
            lockspace = config.storage.lockspace.encode()
            sanlock.acquire(lockspace, REGISTRY_RESOURCE.encode(), where, slkfd=descriptor)
        except sanlock.SanlockException as error:
            if descriptor >= 0:
                os.close(descriptor)
            answers.append(error)
            return
        if is_late.is_set():
            os.close(descriptor)
        else:
            answers.append(descriptor)

    thread = threading.Thread(target=take, name="registry lease", daemon=True)
    thread.start()
    thread.join(max(RETRY_S, until_s - time.monotonic()))
    is_late.set()
    return answers[0] if answers else None


def _late(config: Config, leases: Leases, failed: sanlock.SanlockException | None) -> CommandError:
    found = leases.at(REGISTRY_UNIT)
    if found is not None and found.held:
        text = f"the registry is being changed by a command on {_name(config, found)}"
        return CommandError(ExitCode.REFUSED, f"{text}; nothing was done, try again")
    said = "no answer" if failed is None else f"{failed.args[-1]} ({failed.errno})"
    return CommandError(
        ExitCode.LOCKSPACE,
        f"{config.storage.leases}: the lease {REGISTRY_RESOURCE} is not to be had: sanlock: {said}",
    )


def _name(config: Config, found: LeaseRecord) -> str:
    with contextlib.suppress(CommandError):
        report = read_slots(config.storage.whiteboard).reports.get(found.owner)
        if report is not None and report.hostname:
            return f"{report.hostname} (host {found.owner})"
    return f"host {found.owner}"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Storage fencing: removes the locks and clients that the storage still keeps for a dead host.

A storage notices late that a client is dead: CephFS after 60 s by default, Gluster after 42. Until
then the client's locks and capabilities block the VM's new start, and on CephFS every program that
opens a file. A command of the storage removes them. A live host would lose its disks by that
command; therefore:

1. Clients and locks are first found, then the host is proven off, and only then they are removed:
   so they belong to the dead boot of that host, even if the host is on again by now.
2. Storage fencing makes a takeover quicker, and is never a condition of one: a failure is logged,
   and the storage's own time has to pass.
3. A check only finds them and removes nothing.
4. A lock that does not name its host is cleared under the lease of the VM whose image it is: while
   that lease is held, no QEMU can live that holds the lock.

Drivers are blocking; they get a thread and a deadline.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

from agent.fence.reservations import ScsiReservations
from agent.fence.storage_program import StorageFenceError, installed, run
from broker.config.sections import Config
from broker.config.storage_fence import StorageFenceSection
from broker.daemon.foreign import sentence
from broker.daemon.worker import Hung, Worker

log = logging.getLogger("ha-agent.storage-fence")

#: Names that many hosts have; a client with such a name is never taken for a certain host.
_NOBODY = frozenset({"", "localhost", "localhost.localdomain"})


class StorageDriver(Protocol):
    """One kind of storage."""

    def find(
        self, host: int, name: str, deadline_s: float, others: Collection[str] = ()
    ) -> tuple[str, ...]:
        """What the storage holds for that host. Changes nothing. StorageFenceError. `others`: the
        names of the other hosts, whose own is never found."""

    def cut(self, host: int, name: str, found: Sequence[str], deadline_s: float) -> None:
        """Take away what `find` has found. StorageFenceError."""


class ImageLeases(Protocol):
    """Which leases the VMs have that write to an image of a volume of Gluster."""

    def of(self, host: int, image: str) -> tuple[str, ...]:
        """The leases, as sanlock's command takes them, of the VMs with that image: that host had
        each of them last, and never gave it back. StorageFenceError where it is not so."""


class StorageFence:
    """The configured driver, or none."""

    def __init__(self, kind: str, driver: StorageDriver | None, timeout_s: float) -> None:
        self._kind = kind
        self._driver = driver
        self._timeout_s = timeout_s
        self._worker = Worker("storage fence")

    @property
    def is_configured(self) -> bool:
        """Whether there is anything to do at all."""
        return self._driver is not None

    @property
    def keeps_leases(self) -> bool:
        """Whether the clients of a dead host may keep others from the lease volume."""
        return self.is_configured and not isinstance(self._driver, (GlusterLocks, ScsiReservations))

    async def check(self, host: int, name: str, within_s: float = math.inf) -> str:
        """Why that host's clients and locks could not be removed now; "": they could. The storage
        is asked for `within_s` at most."""
        if self._driver is None:
            return ""
        try:
            await self._find(self._driver, host, name, min(within_s, self._timeout_s))
        except (StorageFenceError, Hung) as error:
            return f"{self._kind}: {sentence(error)}"
        return ""

    async def cut(
        self,
        host: int,
        name: str,
        prove: Callable[[], Awaitable[str]],
        others: Collection[str] = (),
    ) -> bool:
        """Cut what the storage holds for a dead host. `prove`: proves now that the host is off and
        may be cut, or says why that is not proven. `others`: the names of the other hosts. Returns
        whether it was cut."""
        if self._driver is None:
            return False
        try:
            found = await self._find(self._driver, host, name, self._timeout_s, others)
            if not found:
                log.info("%s holds nothing for host %d (%s)", self._kind, host, name)
                return False
            if problem := await prove():
                log.warning("%s: nothing of host %d is cut: %s", self._kind, host, problem)
                return False
            await self._worker.call(
                f"cutting host {host}",
                self._timeout_s,
                self._driver.cut,
                host,
                name,
                found,
                time.monotonic() + self._timeout_s,
            )
        except (StorageFenceError, Hung) as error:
            log.error(
                "%s: what it holds for host %d is not cut, its own time is waited for: %s",
                self._kind,
                host,
                sentence(error),
            )
            return False
        log.warning("%s: cut for host %d, proven off: %s", self._kind, host, ", ".join(found))
        return True

    async def _find(
        self,
        driver: StorageDriver,
        host: int,
        name: str,
        within_s: float,
        others: Collection[str] = (),
    ) -> tuple[str, ...]:
        deadline_s = time.monotonic() + within_s
        return await self._worker.call(
            f"asking about host {host}", within_s, driver.find, host, name, deadline_s, others
        )


#: Where none is configured.
NO_STORAGE_FENCE = StorageFence("", None, 0.0)


def storage_fence(config: Config, leases: ImageLeases | None = None) -> StorageFence:
    """The storage fence of a configuration. `leases`: None where it is only asked, and cuts
    nothing."""
    given = config.storage_fence
    driver = _driver(given, leases, config.cluster.id, config.host.id)
    return StorageFence(given.type, driver, given.timeout)


def _driver(
    given: StorageFenceSection, leases: ImageLeases | None, cluster_id: str, own: int
) -> StorageDriver | None:
    match given.type:
        case "ceph":
            return CephClients(given.file_system, given.options)
        case "gluster":
            return GlusterLocks(given.volume, given.images, given.options, leases)
        case "scsi":
            return ScsiReservations(given.devices, cluster_id, own)
        case "command":
            return StorageCommand(given.argv)
        case _:
            return None


class CephClients:
    """CephFS: evicts the sessions of the host's clients, by the host name that each client gave the
    MDS. An eviction names one session of one boot, and blocklists that alone."""

    def __init__(self, file_system: str, options: Sequence[str]) -> None:
        self._mds = ["ceph", *options, "tell", f"mds.{file_system}:0"]
        self._argv = [*self._mds, "client"]

    def setting(self, name: str, deadline_s: float) -> float:
        """A setting of the MDS that is a number. StorageFenceError."""
        text = run([*self._mds, "config", "get", name], deadline_s)
        try:
            return float(json.loads(text)[name])
        except (ValueError, RecursionError, KeyError, TypeError):
            raise StorageFenceError(f"{name} cannot be read: {text[-200:]!r}") from None

    def find(
        self, host: int, name: str, deadline_s: float, others: Collection[str] = ()
    ) -> tuple[str, ...]:
        if name in _NOBODY:
            raise StorageFenceError(f"host {host} has no name of its own: {name!r}")
        text = run([*self._argv, "ls", "--format=json"], deadline_s)
        try:
            sessions = json.loads(text)
            return tuple(
                str(int(each["id"]))
                for each in sessions
                if is_of(str(each["client_metadata"].get("hostname", "")), name, others)
            )
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise StorageFenceError(f"the list of clients cannot be read: {error}") from None

    def cut(self, host: int, name: str, found: Sequence[str], deadline_s: float) -> None:
        for session in found:
            run([*self._argv, "evict", f"id={session}"], deadline_s)


class GlusterLocks:
    """Gluster: clears the locks on the VMs' images, which only QEMU takes. A lock does not name its
    host. So each image is cleared by a command that sanlock runs under the lease of its VM: the
    command is not run where any host has that lease, and no QEMU is started while it runs."""

    def __init__(
        self,
        volume: str,
        images: Sequence[str],
        options: Sequence[str],
        leases: ImageLeases | None,
    ) -> None:
        self._argv = ["gluster", "--mode=script", *options, "volume"]
        self._volume = volume
        self._images = tuple(images)
        self._leases = leases

    def find(
        self, host: int, name: str, deadline_s: float, others: Collection[str] = ()
    ) -> tuple[str, ...]:
        run([*self._argv, "status", self._volume], deadline_s)
        found = []
        for image in self._images:
            try:
                self._of(host, image)
            except StorageFenceError as error:
                log.info("%s is left alone for host %d: %s", image, host, error)
            else:
                found.append(image)
        return tuple(found)

    def cut(self, host: int, name: str, found: Sequence[str], deadline_s: float) -> None:
        for image in found:
            under = [word for lease in self._of(host, image) for word in ("-r", lease)]
            clear = ["clear-locks", self._volume, image, "kind", "granted", "posix"]
            words = [installed(self._argv[0]), *self._argv[1:], *clear]
            run(["sanlock", "client", "command", *under, "-c", *words], deadline_s, leave=True)

    def _of(self, host: int, image: str) -> tuple[str, ...]:
        return () if self._leases is None else self._leases.of(host, image)


class StorageCommand:
    """A program of the site: exit code 0 is "can be done" for check, and "done" for cut."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = tuple(argv)

    def find(
        self, host: int, name: str, deadline_s: float, others: Collection[str] = ()
    ) -> tuple[str, ...]:
        self._run("check", host, name, deadline_s)
        return (name,)

    def cut(self, host: int, name: str, found: Sequence[str], deadline_s: float) -> None:
        self._run("cut", host, name, deadline_s)

    def _run(self, action: str, host: int, name: str, deadline_s: float) -> None:
        places = {"{action}": action, "{name}": name, "{host}": str(host)}
        argv = []
        for word in self._argv:
            for place, value in places.items():
                word = word.replace(place, value)
            argv.append(word)
        run(argv, deadline_s)


def is_of(client: str, name: str, others: Collection[str]) -> bool:
    """Whether the name that a client gives is that host's and no other's: a short name may be that
    of two hosts in two domains, and the live one keeps its client."""
    return same_host(client, name) and not any(same_host(client, other) for other in others)


def same_host(client: str, name: str) -> bool:
    """Whether the name that a client gives is that host's: equal, or one is the other's short
    form. Two full names must be equal."""
    if client == name:
        return True
    short, full = sorted((client, name), key=len)
    return "." not in short and short not in _NOBODY and full.partition(".")[0] == short


async def off_twice(
    read: Callable[[], Awaitable[str]], still: Callable[[], str], pause_s: float
) -> str:
    """Why a host is not proven off by two readings `pause_s` apart; "": it is. `read`: why one
    does not say off. `still`: why it must not be cut any more."""
    if problem := await read():
        return problem
    await asyncio.sleep(pause_s)
    return await read() or still()

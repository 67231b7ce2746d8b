# SPDX-License-Identifier: LGPL-2.1-or-later
"""Storage fencing: takes from a dead host what the storage still holds for it.

A storage misses a dead client late: CephFS after 60 s by default, Gluster after 42. Until then the
client's locks and capabilities stand in the way of the VM's new start, and on CephFS of everybody
who opens a file. The storage's own command ends that. A host that lives would lose its disks by it,
therefore:

1. Nothing is cut without a proof that the host is off, made after what is cut was found: what was
   there before the proof belongs to the dead boot of that host, even if it is on again by now.
2. It makes a takeover quicker, and is never a condition of one: what fails is logged, and the
   storage's own time is waited for.
3. A check finds, and cuts nothing.

Drivers are blocking; they get a thread and a deadline.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

from agent.fence.driver import FenceError
from broker.config.sections import Config
from broker.config.storage_fence import StorageFenceSection
from broker.daemon.foreign import sentence
from broker.daemon.worker import Hung, Worker

log = logging.getLogger("ha-agent.storage-fence")

#: Names that many hosts have: no client is taken for a host by such a one.
_NOBODY = frozenset({"", "localhost", "localhost.localdomain"})
_FOLDERS = ("/usr/sbin", "/sbin", "/usr/local/sbin")


class StorageFenceError(FenceError):
    """The storage refused, or its command failed: a sentence that may be shown."""


class StorageDriver(Protocol):
    """One kind of storage."""

    def find(self, host: int, name: str, deadline_s: float) -> tuple[str, ...]:
        """What the storage holds for that host. Changes nothing. StorageFenceError."""

    def cut(self, host: int, name: str, found: Sequence[str], deadline_s: float) -> None:
        """Take away what `find` has found. StorageFenceError."""


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

    async def check(self, host: int, name: str) -> str:
        """Why what the storage holds for that host could not be cut now; "": it could."""
        if self._driver is None:
            return ""
        try:
            await self._find(self._driver, host, name)
        except (StorageFenceError, Hung) as error:
            return f"{self._kind}: {sentence(error)}"
        return ""

    async def cut(self, host: int, name: str, prove: Callable[[], Awaitable[str]]) -> bool:
        """Cut what the storage holds for a dead host. `prove`: proves now that the host is off and
        may be cut, or says why that is not proven. Returns whether it was cut."""
        if self._driver is None:
            return False
        try:
            found = await self._find(self._driver, host, name)
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

    async def _find(self, driver: StorageDriver, host: int, name: str) -> tuple[str, ...]:
        deadline_s = time.monotonic() + self._timeout_s
        return await self._worker.call(
            f"asking about host {host}", self._timeout_s, driver.find, host, name, deadline_s
        )


#: Where none is configured.
NO_STORAGE_FENCE = StorageFence("", None, 0.0)


def storage_fence(config: Config) -> StorageFence:
    """The storage fence of a configuration."""
    given = config.storage_fence
    return StorageFence(given.type, _driver(given), given.timeout)


def _driver(given: StorageFenceSection) -> StorageDriver | None:
    match given.type:
        case "ceph":
            return CephClients(given.file_system, given.options)
        case "gluster":
            return GlusterLocks(given.volume, given.images, given.options)
        case "command":
            return StorageCommand(given.argv)
        case _:
            return None


class CephClients:
    """CephFS: evicts the sessions of the host's clients, by the host name that each client gave the
    MDS. An eviction names one session of one boot, and blocklists that alone."""

    def __init__(self, file_system: str, options: Sequence[str]) -> None:
        self._argv = ["ceph", *options, "tell", f"mds.{file_system}:0", "client"]

    def find(self, host: int, name: str, deadline_s: float) -> tuple[str, ...]:
        if name in _NOBODY:
            raise StorageFenceError(f"host {host} has no name of its own: {name!r}")
        text = run([*self._argv, "ls", "--format=json"], deadline_s)
        try:
            sessions = json.loads(text)
            return tuple(
                str(int(each["id"]))
                for each in sessions
                if same_host(str(each["client_metadata"].get("hostname", "")), name)
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageFenceError(f"the list of clients cannot be read: {error}") from None

    def cut(self, host: int, name: str, found: Sequence[str], deadline_s: float) -> None:
        for session in found:
            run([*self._argv, "evict", f"id={session}"], deadline_s)


class GlusterLocks:
    """Gluster: clears the locks on the VMs' images, which nobody but QEMU takes. They carry no
    host, so this is for images of VMs whose host is dead."""

    def __init__(self, volume: str, images: Sequence[str], options: Sequence[str]) -> None:
        self._argv = ["gluster", "--mode=script", *options, "volume"]
        self._volume = volume
        self._images = tuple(images)

    def find(self, host: int, name: str, deadline_s: float) -> tuple[str, ...]:
        run([*self._argv, "status", self._volume], deadline_s)
        return self._images

    def cut(self, host: int, name: str, found: Sequence[str], deadline_s: float) -> None:
        for image in found:
            words = ["clear-locks", self._volume, image, "kind", "granted", "posix"]
            run([*self._argv, *words], deadline_s)


class StorageCommand:
    """A program of the site: exit code 0 is "can be done" for check, and "done" for cut."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = tuple(argv)

    def find(self, host: int, name: str, deadline_s: float) -> tuple[str, ...]:
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


def same_host(client: str, name: str) -> bool:
    """Whether the name that a client gives is that host's: equal, or one is the other's short
    form. Two full names must be equal."""
    if client == name:
        return True
    short, full = sorted((client, name), key=len)
    return "." not in short and short not in _NOBODY and full.partition(".")[0] == short


def run(argv: Sequence[str], deadline_s: float) -> str:
    """What a command printed; StorageFenceError where it failed or did not end by `deadline_s`. It
    is a process group of its own, killed as a whole."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_FOLDERS])
    program = shutil.which(argv[0], path=path)
    if program is None:
        raise StorageFenceError(f"{argv[0]} is not installed")
    with (
        subprocess.Popen(  # noqa: S603  (a program named by root's own configuration)
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PATH": path, "LC_ALL": "C"},
            start_new_session=True,
        ) as process
    ):
        try:
            out, err = process.communicate(timeout=max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise StorageFenceError(f"{argv[0]} did not end in time") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        said = sentence((err or out).decode(errors="replace"))
        raise StorageFenceError(f"{argv[0]} ended with {process.returncode}: {said}")
    return out.decode(errors="replace")


async def off_twice(
    read: Callable[[], Awaitable[str]], still: Callable[[], str], pause_s: float
) -> str:
    """Why a host is not proven off by two readings `pause_s` apart; "": it is. `read`: why one
    does not say off. `still`: why it must not be cut any more."""
    if problem := await read():
        return problem
    await asyncio.sleep(pause_s)
    return await read() or still()

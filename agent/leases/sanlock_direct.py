# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs `sanlock direct`: a short process that accesses the lease volume without sanlock's daemon.

Rules of this file:

1. A process is over when it has really ended, not when it was killed: a write that is inside the
   kernel ends with the storage's answer, and SIGKILL does not take it back. sanlock writes by
   asynchronous I/O, and a process with such I/O under way does not end before it (the kernel's
   exit_aio waits): so after its end no write of it can land.
2. A read that does not end is killed and given up. While it has not ended no other read is
   begun: they would pile up.
3. An act that must not begin twice, even after a restart of the agent, is recorded in a locked
   file. The process inherits the lock; when the process ends, the kernel releases it.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from agent.ports import READ_DEADLINE_S
from broker.daemon.foreign_json import decoded

log = logging.getLogger("ha-agent.leases")

#: The interval at which the end of an earlier agent's freeing is looked for.
LOOK_S = 1.0


class Process(Protocol):
    """A child process: the used part of asyncio's."""

    @property
    def returncode(self) -> int | None: ...

    def kill(self) -> None: ...

    async def communicate(self) -> tuple[bytes, bytes | None]: ...


Spawn = Callable[[Sequence[str], Sequence[int]], Awaitable[Process]]


async def spawn(arguments: Sequence[str], descriptors: Sequence[int]) -> Process:
    """Start `sanlock direct …`; the process inherits these descriptors."""
    return await asyncio.create_subprocess_exec(
        "sanlock",
        "direct",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        pass_fds=descriptors,
    )


class SanlockDirect:
    """Runs `sanlock direct`."""

    def __init__(self, begin: Spawn = spawn) -> None:
        self._begin = begin
        #: Processes that were given up and have not ended.
        self._left: set[asyncio.Future[tuple[bytes, bytes | None]]] = set()

    async def read(self, *arguments: str) -> tuple[int, str]:
        """The exit code and output; -1 where it did not end in time, or an earlier one has not."""
        if self._left:
            return -1, "an earlier one has not ended"
        process = await self._begin(arguments, ())
        ending = asyncio.ensure_future(process.communicate())
        await asyncio.wait((ending,), timeout=READ_DEADLINE_S)
        if not ending.done():
            process.kill()
            self._left.add(ending)
            ending.add_done_callback(self._left.discard)
            return -1, f"no end within {READ_DEADLINE_S:g} s"
        return _result(process, ending.result()[0])

    async def write(
        self, *arguments: str, deadline_s: float, descriptors: Sequence[int]
    ) -> tuple[int, str]:
        """Run a process that writes: returns when it has really ended, however long that takes.

        It is killed after `deadline_s`, so that a write that is not begun by then never is.
        """
        process = await self._begin(arguments, descriptors)
        ending = asyncio.ensure_future(process.communicate())
        await asyncio.wait((ending,), timeout=deadline_s)
        if ending.done():
            return _result(process, ending.result()[0])
        process.kill()
        log.error(
            "sanlock direct %s: no end within %g s; killed, and waited for: what the kernel holds "
            "of it may still land",
            arguments[0],
            deadline_s,
        )
        await ending
        log.warning("sanlock direct %s has ended", arguments[0])
        return -1, f"no end within {deadline_s:g} s, killed"


def _result(process: Process, output: bytes) -> tuple[int, str]:
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace").strip()


class FreeingOnFile(msgspec.Struct, frozen=True):
    """A freeing of a host id that was begun, for the record of its end. Fields as in FreeHostId."""

    host_id: int
    generation: int
    ordered: bool = False
    evidence: str = ""
    fencer: bool = False


class FreeingFile:
    """The state of a freeing, from before its begin until its end was recorded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, freeing: FreeingOnFile) -> int:
        """Write the freeing to the file; returns a locked descriptor for the process to inherit.

        BlockingIOError where an earlier one has not ended, OSError where it cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, msgspec.json.encode(freeing), 0)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def end(self) -> None:
        """Remove the freeing: its end was recorded."""
        self.path.unlink(missing_ok=True)

    def found(self) -> FreeingOnFile | None:
        """A freeing that an earlier agent began and whose end was not recorded."""
        try:
            return decoded(self.path.read_bytes(), FreeingOnFile)
        except (OSError, msgspec.MsgspecError):
            return None

    async def has_ended(self) -> None:
        """Wait until the process of an earlier agent has ended."""
        while True:
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                await asyncio.sleep(LOOK_S)
            finally:
                os.close(descriptor)

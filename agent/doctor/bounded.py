# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks that may hang, each made by a process of its own that is not waited for.

A read of a storage that does not answer cannot be ended: its process stays in the kernel until the
storage is back, whatever signal it gets. So the check is made by a child. Where it is silent for
too long it is killed and left behind, and the command goes on.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from agent.storage.watched import os_error
from agent.terminal.errors import CommandError
from agent.terminal.hanging import hangs_on
from broker.daemon.errors import HaError, why
from broker.daemon.exit_codes import ExitCode

T = TypeVar("T")
_LENGTH = struct.Struct("<I")
_ITEM, _ERROR, _BUG = range(3)


#: How often it is looked for a child that hangs in a file; how long that lasts then, and how long
#: at least where the command has to end.
_LOOK_S, HANGS_S, HANGS_LEAST_S = 0.5, 6.0, 3.0


class CheckHangs(CommandError):
    """The check gave no result in time. `in_file`: it hangs in a call on a file, of the path
    `place`, "" where that is not known. str(): one line for the finding."""

    def __init__(self, name: str, seconds: float, in_file: bool, place: str) -> None:
        self.in_file = in_file
        on = f", it hangs on {place}" if place else ""
        super().__init__(ExitCode.STORAGE, f"{name} has not answered for {seconds:.0f} s{on}")


class Check(Generic[T]):
    """What `look` finds, looked for by a child process from now on."""

    def __init__(self, name: str, look: Callable[[], Iterable[T]]) -> None:
        self._name = name
        self._began_s = time.monotonic()
        #: The call on a file that the child is in, and since when.
        self._hangs = ("", self._began_s)
        self._hang_until_s = math.inf
        self._reads, writes = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            _child(writes, look)
        os.close(writes)

    def found(self, until_s: float, hang_until_s: float = math.inf) -> Iterator[T]:
        """What `look` yields. CheckHangs where the child has not ended by `until_s` (monotonic),
        or hangs in a call on a file for HANGS_S; in one that began before `hang_until_s`, until
        then at the latest, but for HANGS_LEAST_S. CommandError with the sentence of its HaError or
        OSError."""
        self._hang_until_s = hang_until_s
        try:
            while (head := self._read(_LENGTH.size, until_s)) != b"":
                data = self._read(_LENGTH.unpack(head)[0], until_s)
                kind, value = pickle.loads(data)  # noqa: S301  (this program's own child wrote it)
                if kind == _ERROR:
                    raise CommandError(ExitCode.STORAGE, value)
                if kind == _BUG:
                    raise RuntimeError(value)
                yield value
        finally:
            os.close(self._reads)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            # One that hangs in the kernel is init's, once this command has ended.
            os.waitpid(self._child, os.WNOHANG)

    def _read(self, size: int, until_s: float) -> bytes:
        """`size` bytes from the child; b"" where it has ended."""
        data = b""
        while len(data) < size:
            left_s = max(0.0, until_s - time.monotonic())
            if not select.select([self._reads], [], [], min(left_s, _LOOK_S))[0]:
                self._look(until_s)
                continue
            more = os.read(self._reads, size - len(data))
            if not more:
                return b""
            data += more
        return data

    def _look(self, until_s: float) -> None:
        """CheckHangs where the child is silent for too long, or hangs."""
        now_s = time.monotonic()
        call, place = hangs_on(self._child)
        if call != self._hangs[0]:
            self._hangs = (call, now_s)
        if call and now_s >= self._over_s(self._hangs[1]):
            raise CheckHangs(self._name, now_s - self._hangs[1], True, place)
        if now_s >= until_s:
            raise CheckHangs(self._name, now_s - self._began_s, bool(call), place)

    def _over_s(self, since_s: float) -> float:
        """When a call on a file that began at `since_s` counts as hanging."""
        over_s = since_s + HANGS_S
        if since_s < self._hang_until_s:
            over_s = min(over_s, max(since_s + HANGS_LEAST_S, self._hang_until_s))
        return over_s


def _child(writes: int, look: Callable[[], Iterable[object]]) -> None:
    """Runs in the child, and ends it: nobody who reads the command's output waits for it."""
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        try:
            for item in look():
                _send(writes, _ITEM, item)
        except HaError as error:
            _send(writes, _ERROR, str(error))
        except OSError as error:
            said = why(error)
            if isinstance(error.filename, str):
                said = str(os_error(error.filename, "using it", error))
            _send(writes, _ERROR, said)
        except Exception:
            _send(writes, _BUG, traceback.format_exc())
    finally:
        os._exit(0)


def _send(descriptor: int, kind: int, value: object) -> None:
    data = pickle.dumps((kind, value))
    data = _LENGTH.pack(len(data)) + data
    while data:
        data = data[os.write(descriptor, data) :]

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
from pathlib import Path
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
#: A check that waited so large a part of its time for a processor was not able to answer.
WAITED_SHARE_MAX = 0.25


class CheckHangs(CommandError):
    """The check gave no result in time. `in_file`: it hangs in a call on a file, of the path
    `place`, "" where that is not known. `cut_short`: it had not the time to answer, so that
    nothing is known by its silence. str(): one line for the finding."""

    def __init__(
        self, name: str, seconds: float, in_file: bool, place: str, cut_short: bool = False
    ) -> None:
        self.in_file, self.cut_short = in_file, cut_short
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
            short = not call and is_cut_short(until_s - self._began_s, _waited_s(self._child))
            raise CheckHangs(self._name, now_s - self._began_s, bool(call), place, short)

    def _over_s(self, since_s: float) -> float:
        """When a call on a file that began at `since_s` counts as hanging."""
        over_s = since_s + HANGS_S
        if since_s < self._hang_until_s:
            over_s = min(over_s, max(since_s + HANGS_LEAST_S, self._hang_until_s))
        return over_s


def is_cut_short(given_s: float, waited_s: float) -> bool:
    """Whether a check that was given `given_s`, and waited for a processor for `waited_s`, had too
    little time to answer: then its silence proves no fault (law 7)."""
    return given_s < HANGS_LEAST_S or waited_s > WAITED_SHARE_MAX * given_s


def _waited_s(child: int) -> float:
    """How long a process has been ready to run and had no processor; 0 where the kernel does not
    say. The second number of /proc/PID/schedstat, in ns (kernel: Documentation/scheduler)."""
    try:
        return int(Path(f"/proc/{child}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


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

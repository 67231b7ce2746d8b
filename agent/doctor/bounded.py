# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks that may hang, each made by a process of its own that is not waited for.

A read of a storage that does not answer cannot be ended: its process stays in the kernel until the
storage is back, whatever signal it gets. So the check is made by a child. Where it is silent for
too long it is killed and left behind, and the command goes on.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from agent.terminal.errors import CommandError
from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode

T = TypeVar("T")
_LENGTH = struct.Struct("<I")
_ITEM, _ERROR, _BUG = range(3)


class CheckHangs(CommandError):
    """The check gave no result in time. str(): one line for the finding."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(ExitCode.STORAGE, f"{name} has not answered for {seconds:.0f} s")


def bounded(name: str, seconds: float, look: Callable[[], Iterable[T]]) -> Iterator[T]:
    """What `look` yields in a child process. CheckHangs where that takes longer than `seconds` in
    all; CommandError with the sentence of its HaError or OSError."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        _child(writes, look)
    os.close(writes)
    ends_s = time.monotonic() + seconds
    try:
        while (head := _read(reads, _LENGTH.size, ends_s, name, seconds)) != b"":
            data = _read(reads, _LENGTH.unpack(head)[0], ends_s, name, seconds)
            kind, value = pickle.loads(data)  # noqa: S301  (this program's own child wrote it)
            if kind == _ERROR:
                raise CommandError(ExitCode.STORAGE, value)
            if kind == _BUG:
                raise RuntimeError(value)
            yield value
    finally:
        os.close(reads)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        # One that hangs in the kernel is init's, once this command has ended.
        os.waitpid(child, os.WNOHANG)


def _read(descriptor: int, size: int, ends_s: float, name: str, seconds: float) -> bytes:
    """So many bytes; b"" where the child has ended."""
    data = b""
    while len(data) < size:
        left_s = max(0.0, ends_s - time.monotonic())
        if not select.select([descriptor], [], [], left_s)[0]:
            raise CheckHangs(name, seconds)
        more = os.read(descriptor, size - len(data))
        if not more:
            return b""
        data += more
    return data


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
        except (HaError, OSError) as error:
            _send(writes, _ERROR, str(error))
        except Exception:
            _send(writes, _BUG, traceback.format_exc())
    finally:
        os._exit(0)


def _send(descriptor: int, kind: int, value: object) -> None:
    data = pickle.dumps((kind, value))
    data = _LENGTH.pack(len(data)) + data
    while data:
        data = data[os.write(descriptor, data) :]

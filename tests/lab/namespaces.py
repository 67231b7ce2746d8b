# SPDX-License-Identifier: LGPL-2.1-or-later
"""Unnamed namespaces: making a process that is the first in its own, and reaching in.

Python has ``os.unshare`` and ``os.setns`` only from 3.12 on, so libc is called here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
HOST_NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWPID | CLONE_NEWNET

MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

_INTERRUPTS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Move this process (for PID namespaces: its children to be) into new namespaces."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0) -> None:
    """mount(2)."""
    encoded = None if kind is None else kind.encode()
    result = _libc.mount(
        source.encode(), target.encode(), encoded, ctypes.c_ulong(flags), ctypes.c_char_p(None)
    )
    _check(result, target)


def make_mounts_private() -> None:
    """Nothing mounted from here on shows outside this mount namespace, nor the reverse."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def spawn_first(
    argv: Sequence[str],
    *,
    log: Path,
    cwd: Path,
    environment: dict[str, str],
    before_start: Callable[[int], None],
) -> int:
    """Start ``argv`` as the first process of its own namespaces; its pid here.

    The process waits until ``before_start(pid)`` has returned, and dies unstarted if
    that raised or if this process died: so no process ever runs that was not recorded
    first. It belongs to the nearest init from birth, not to this process.
    """
    pid_read, pid_write = os.pipe()
    go_read, go_write = os.pipe()
    # A Ctrl-C between the fork and the new session would make the child unwind through
    # the caller's own handlers, a second time.
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    between = os.fork()
    if between == 0:
        try:
            os.setsid()
            for number in _INTERRUPTS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            unshare(HOST_NAMESPACES)
            if (first := os.fork()) == 0:
                os.close(go_write)
                _become(argv, go_read, log, cwd, environment)
            os.write(pid_write, b"%d" % first)
            os._exit(0)
        except OSError as error:
            os.write(pid_write, f"!{error}".encode())
        finally:
            os._exit(1)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        os.close(pid_write)
        os.close(go_read)
        answer = os.read(pid_read, 256).decode()
        os.waitpid(between, 0)
        if not answer.isdigit():
            raise OSError(f"new namespaces: {answer.removeprefix('!') or 'no answer'}")
        pid = int(answer)
        before_start(pid)
        os.write(go_write, b"g")
        return pid
    finally:
        os.close(pid_read)
        os.close(go_write)


def _become(
    argv: Sequence[str], go: int, log: Path, cwd: Path, environment: dict[str, str]
) -> None:
    try:
        if os.read(go, 1) == b"g":
            # Nothing of the caller's terminal or pipes is kept: a shell pipeline that
            # ran ``up`` must be able to end.
            null = os.open(os.devnull, os.O_RDONLY)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(null, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(cwd)
            os.execve(argv[0], list(argv), environment)
    finally:
        os._exit(127)


def connect_within(pid: int, address: tuple[str, int], seconds_max: float) -> socket.socket:
    """A TCP connection made inside the network namespace of the process ``pid``.

    A namespace is a property of a thread; so a short-lived thread enters it, and the
    socket stays there for good.
    """
    outcome: list[socket.socket | OSError] = []

    def enter_and_connect() -> None:
        try:
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
            try:
                _check(_libc.setns(ctypes.c_int(namespace), ctypes.c_int(CLONE_NEWNET)), "setns")
            finally:
                os.close(namespace)
            outcome.append(socket.create_connection(address, timeout=seconds_max))
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=enter_and_connect, name="lab-netns")
    thread.start()
    thread.join()
    result = outcome[0]
    if isinstance(result, OSError):
        raise result
    return result

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A command that hangs in a file of a storage that does not answer is left behind.

Such a wait cannot be ended from inside: no deadline of a thread helps, for the process does not end
before its threads, and on a block device not even SIGKILL does. So the command runs in a child, and
the process that the shell waits for looks how it is. It touches no file but those of /proc.

Rules of this file:

1. Left behind is a process that the kernel keeps for HANGS_S in one and the same call on a file.
   Whoever waits for a person, a broker or a migration is in no such call.
2. The error names the file where the kernel shows it, and says that what was begun may still be
   done.
3. A signal to the command reaches the child once: from a terminal both get it. The child ends with
   the parent, however that ends.
4. Where the output is a pipe it goes through the parent: who reads it waits for no hanging process.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from agent.terminal.errors import CommandError
from broker.daemon.exit_codes import ExitCode

#: sanlock itself gives a write up after io-timeout, 10 s by default.
HANGS_S = 8.0
LOOK_S = 0.5
#: How long the rest of the output is waited for.
REST_S = 1.0
#: SIGALRM says that it is time to look.
_SIGNALS = frozenset({signal.SIGALRM, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
#: Where the kernel waits for the process of a FUSE file system, until a signal comes.
_FUSE_WAIT = "request_wait_answer"
_PATH_BYTES_MAX = 4096


def run_in_child() -> int | None:
    """Go on in a child process, where this returns None. In the parent it returns the exit code of
    the child, or ends as the child ended; CommandHangs where that hangs."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    alive, held = os.pipe()
    pipes = _through_the_parent()
    child = os.fork()
    if child == 0:
        os.close(held)
        # The kernel sends it when the last writer of the pipe, the parent, has gone.
        fcntl.fcntl(alive, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(alive, fcntl.F_SETSIG, signal.SIGTERM)
        fcntl.fcntl(alive, fcntl.F_SETFL, fcntl.fcntl(alive, fcntl.F_GETFL) | os.O_ASYNC)
        for reads, writes, targets in pipes:
            os.close(reads)
            for target in targets:
                os.dup2(writes, target)
            os.close(writes)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
    os.close(alive)
    pumps = [_pump(reads, writes, targets[0]) for reads, writes, targets in pipes]
    # Not sigtimedwait: where the process was stopped (Ctrl-Z) beyond its time, that of Python 3.11
    # answers with a signal that nobody sent.
    signal.setitimer(signal.ITIMER_REAL, LOOK_S, LOOK_S)
    try:
        code = _wait(child)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for pump in pumps:
        pump.join(REST_S)
    if code >= 0:
        return code
    with suppress(OSError):  # SIGKILL has no other action
        signal.signal(-code, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
    os.kill(os.getpid(), -code)
    return 128 - code


class CommandHangs(CommandError):
    """The command was left behind. str(): one line for people."""

    def __init__(self, sentence: str) -> None:
        super().__init__(ExitCode.STORAGE, sentence)


def end(code: int) -> NoReturn:
    """End the parent at once: all that there was to say the child has said."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(child: int) -> int:
    """The exit code of the child; negative: the signal that ended it."""
    stuck: dict[tuple[int, str], float] = {}
    looked_s, watched_s = time.monotonic(), 0.0
    while True:
        got = signal.sigwaitinfo(_SIGNALS)
        is_for_us = got.si_signo in (signal.SIGALRM, signal.SIGCHLD)
        # Above 0: of the kernel, for a terminal, where all processes of the group get it.
        if not is_for_us and got.si_code <= 0:
            os.kill(child, got.si_signo)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if got.si_signo != signal.SIGALRM:
            continue
        # The time in which this process was stopped itself does not count.
        now_s = time.monotonic()
        watched_s += min(now_s - looked_s, 2 * LOOK_S)
        looked_s = now_s
        # Seen in the same call at each look since then.
        stuck = {call: stuck.get(call, watched_s) for call in _calls_on_files(child)}
        oldest = min(stuck, key=lambda call: stuck[call], default=None)
        if oldest is not None and watched_s - stuck[oldest] >= HANGS_S:
            _leave(child, *oldest, watched_s - stuck[oldest])


def hangs_on(child: int) -> tuple[str, str]:
    """The call on a file that a child, or what it started, is in at this moment, and that file's
    path, "" where the kernel does not show it; two empty texts: it is in none."""
    for pid, call in _calls_on_files(child):
        return call, _file_of(pid, call)
    return "", ""


def _leave(child: int, process: int, call: str, since_s: float) -> NoReturn:
    path = _file_of(process, call)
    on = f" on {path}" if path else ""
    for pid in [*_family(child)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    raise CommandHangs(
        f"it has hung{on} for {since_s:.0f} s and is left behind: the storage or its mount does "
        "not answer (docs/storage.md; ha-agent doctor). What it had begun may still be done once "
        "it does"
    )


def _calls_on_files(child: int) -> Iterator[tuple[int, str]]:
    """Each process of the command that waits in a call on a file, and that call."""
    for pid in _family(child):
        for call in _waits(pid):
            yield pid, call


def _family(child: int) -> Iterator[int]:
    """The child and what it started, but for those that it made a session for: it looks after them
    itself (agent/storage/bounded.py)."""
    yield child
    with suppress(OSError):
        for thread in Path(f"/proc/{child}/task").iterdir():
            for word in _read(f"{thread}/children").split():
                with suppress(OSError):
                    if os.getsid(int(word)) == os.getsid(child):
                        yield from _family(int(word))


def _waits(pid: int) -> list[str]:
    """The calls in which threads of a process wait for a storage, as the kernel shows them."""
    found = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            state = _read(f"{thread}/stat").rpartition(")")[2].split()[:1]
            if state == ["D"] or (state == ["S"] and _read(f"{thread}/wchan") == _FUSE_WAIT):
                found.append(f"{thread.name} {_read(f'{thread}/syscall').strip()}")
    return found


def _file_of(pid: int, call: str) -> str:
    """The path of the file in a call; "" where the kernel does not show it. `call`: thread, number,
    then the arguments in hexadecimal: a path or an open file is the first or the second."""
    for word in call.split()[2:4]:
        value = int(word, 16)
        with suppress(OSError):
            path = str(Path(f"/proc/{pid}/fd/{value}").readlink())
            if path.startswith("/"):
                return path
        text = _memory(pid, value).partition(b"\0")[0]
        if text.startswith(b"/"):
            return text.decode(errors="replace")
    return ""


def _memory(pid: int, at: int) -> bytes:
    """Some bytes of another process; b"" where they are not to be had."""
    try:
        descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(descriptor, _PATH_BYTES_MAX, at)
    except (OSError, OverflowError):
        return b""
    finally:
        os.close(descriptor)


def _read(path: str) -> str:
    """A file of /proc; "" where it is gone, or not for us."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _through_the_parent() -> list[tuple[int, int, list[int]]]:
    """For each of standard output and error that is a pipe: a new pipe (read end, write end), and
    what it stands for. Both go through one where they are one: no line overtakes another."""
    found: dict[tuple[int, int], list[int]] = {}
    for target in (1, 2):
        with suppress(OSError):
            is_ = os.fstat(target)
            if stat.S_ISFIFO(is_.st_mode) or stat.S_ISSOCK(is_.st_mode):
                found.setdefault((is_.st_dev, is_.st_ino), []).append(target)
    return [(*os.pipe(), targets) for targets in found.values()]


def _pump(reads: int, writes: int, target: int) -> threading.Thread:
    """Copies what the child writes; returns the thread, which ends with the child."""
    os.close(writes)

    def copy() -> None:
        try:
            while data := os.read(reads, 65536):
                while data:
                    data = data[os.write(target, data) :]
        except OSError:
            pass  # the reader has gone; the child finds that out by the pipe that is closed now
        finally:
            os.close(reads)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread

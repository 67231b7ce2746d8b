# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes, read from /proc; each named by pid and start time.

A pid alone is no name: the kernel gives it to someone else later. With the start
time (field 22 of /proc/PID/stat, clock ticks since boot, the same in every PID
namespace) it is one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessName:
    """One process that is or was: pid as this process sees it, and start time in ticks."""

    pid: int
    start_ticks: int

    def alive(self) -> bool:
        """Still running. A zombie is not: it holds nothing any more."""
        fields = _stat(self.pid)
        return fields is not None and fields[1] == self.start_ticks and fields[0] not in "ZX"

    def kill(self, seconds_max: float) -> bool:
        """SIGKILL it and wait; whether it is gone. Another process with its pid is left alone.

        The first process of a PID namespace is gone only after all the others in there.
        """
        deadline = time.monotonic() + seconds_max
        while self.alive():
            try:
                # The descriptor names the very process, so that the check above and the
                # signal cannot speak of two different ones.
                descriptor = os.pidfd_open(self.pid)
                try:
                    if self.alive():
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                finally:
                    os.close(descriptor)
            except ProcessLookupError:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True


@dataclass(frozen=True, slots=True)
class FirstProcess:
    """The first process of a PID namespace, as written in a record file.

    ``pid`` is the number in the namespace of whoever made it; ``start_ticks`` and
    ``namespace`` (the inode of its PID namespace) are the same seen from anywhere.
    """

    pid: int
    start_ticks: int
    namespace: int

    def to_text(self) -> str:
        """The record's one line; bmc.py's shell script reads it too."""
        return f"{self.pid} {self.start_ticks} {self.namespace}\n"

    @staticmethod
    def from_file(path: Path) -> FirstProcess | None:
        """The record, or None if there is none (or none whole)."""
        try:
            pid, start_ticks, namespace = map(int, path.read_text().split())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return FirstProcess(pid, start_ticks, namespace)

    @staticmethod
    def of(pid: int) -> FirstProcess:
        """The record of a process that runs, by its pid here."""
        return FirstProcess(pid, start_ticks(pid), pid_namespace(pid))

    def here(self) -> ProcessName | None:
        """The process by its pid in *this* process's view; None if it is gone."""
        for pid in pids():
            try:
                if pid_namespace(pid) == self.namespace and inner_pid(pid) == 1:
                    name = ProcessName(pid, self.start_ticks)
                    return name if name.alive() else None
            except OSError:
                continue
        return None


def _fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on; None once the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name, in parentheses, may hold anything, also parentheses.
    return text[text.rindex(")") + 2 :].split()


def _stat(pid: int) -> tuple[str, int] | None:
    fields = _fields(pid)
    return None if fields is None else (fields[0], int(fields[19]))


def start_ticks(pid: int) -> int:
    """The start time of a process that runs."""
    fields = _stat(pid)
    if fields is None:
        raise ProcessLookupError(pid)
    return fields[1]


def pids() -> Iterator[int]:
    """All pids seen from here."""
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield int(entry.name)


def pid_namespace(pid: int) -> int:
    """The inode of the process's PID namespace; OSError once it is gone."""
    return int(os.readlink(f"/proc/{pid}/ns/pid").removeprefix("pid:[").removesuffix("]"))


def inner_pid(pid: int) -> int:
    """The pid that the process has in its own, innermost namespace."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    raise ProcessLookupError(pid)


def command_line(pid: int) -> list[str]:
    """argv; empty for a zombie, a kernel thread or a process that is gone."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [part.decode(errors="replace") for part in raw.split(b"\0")[:-1]]


def is_kernel_thread(pid: int) -> bool:
    """Whether it is a thread of the kernel's own, which has no command line ever."""
    fields = _fields(pid)
    # Field 9 are the flags; PF_KTHREAD, include/linux/sched.h.
    return fields is not None and int(fields[6]) & 0x00200000 != 0


def is_engine(argv: list[str], vm_name: str) -> bool:
    """Whether this is a QEMU process of that VM (libvirt writes ``-name guest=NAME,...``)."""
    if not argv or "qemu" not in argv[0]:
        return False
    return any(part.split(",")[0] == f"guest={vm_name}" for part in argv[1:])


def of_namespace(namespace: int) -> list[int]:
    """The pids, seen from here, of the processes directly in a PID namespace."""
    found = []
    for pid in pids():
        try:
            if pid_namespace(pid) == namespace:
                found.append(pid)
        except OSError:
            continue
    return found


def stop_all(namespace: int, *, brought_in: bool = True, passes_max: int = 50) -> None:
    """SIGSTOP to every process of a PID namespace, its first one included, until all stand.

    One that hangs in the kernel stands still as it is; it stops when it comes back. Without
    `brought_in` a command from outside goes on: nsenter stops itself when its command stops, and
    then never takes its end, so that the namespace does not end either.
    """
    for _ in range(passes_max):
        inside = set(of_namespace(namespace))
        moving = [p for p in inside if _moves(p) and (brought_in or _is_own(p, inside))]
        if not moving:
            return
        for pid in moving:
            _signal(pid, signal.SIGSTOP)
        time.sleep(0.01)


def continue_all(namespace: int) -> None:
    """SIGCONT to every process of a PID namespace."""
    for pid in of_namespace(namespace):
        _signal(pid, signal.SIGCONT)


def _moves(pid: int) -> bool:
    fields = _stat(pid)
    return fields is not None and fields[0] not in "TtZXD"


def _is_own(pid: int, inside: set[int]) -> bool:
    """Whether a process was started by another one of its namespace, or is the first there."""
    fields = _fields(pid)
    if fields is None:
        return False
    try:
        return int(fields[1]) in inside or inner_pid(pid) == 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the first process of a namespace does: keep programs running, reap, take orders.

Single-threaded: one selector over the order socket and SIGCHLD. Orders are one JSON
object per connection, ``{"order": NAME, ...}`` -> ``{"ok": ...}`` or ``{"error": TEXT}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import LabError, UsageError

RESTART_DELAY_S = 1.0
ORDER_BYTES_MAX = 65536
ORDER_SECONDS_MAX = 30.0

Order = Callable[[dict[str, Any]], Any]


@dataclass(slots=True)
class Program:
    """One supervised program, as a systemd unit with Restart=always and RestartSec=1."""

    name: str
    argv: list[str]
    log: Path
    environment: dict[str, str]
    cwd: Path
    restart: bool = True
    held: bool = False
    process: subprocess.Popen[bytes] | None = None
    due: float | None = None
    restarts: int = 0
    last_exit: int | None = None
    on_exit: Callable[[int], None] | None = None


@dataclass(slots=True)
class Supervisor:
    """Keeps its programs running until the process is killed."""

    control: Path
    programs: dict[str, Program] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    alarms: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.orders["status"] = lambda _: {
            name: {
                "pid": program.process.pid if program.process else None,
                "held": program.held,
                "restarts": program.restarts,
                "last_exit": program.last_exit,
            }
            for name, program in self.programs.items()
        }
        self.orders["hold"] = lambda order: self.hold(self._named(order))
        self.orders["release"] = lambda order: self.release(self._named(order))

    def add(self, program: Program) -> None:
        """Start it now, unless it is held."""
        self.programs[program.name] = program
        if not program.held:
            program.due = time.monotonic()

    def hold(self, program: Program) -> None:
        """Stop it as systemd would (SIGTERM, later SIGKILL) and do not restart it."""
        program.held = True
        program.due = None
        if (process := program.process) is not None:
            _signal(process, signal.SIGTERM)
            deadline = time.monotonic() + 10.0

            def insist() -> None:
                if program.process is process:
                    _signal(process, signal.SIGKILL)

            self.alarms.append((deadline, insist))

    def end(self, program: Program) -> None:
        """Kill what runs of it; it is started again unless it is held."""
        if program.process is not None:
            _signal(program.process, signal.SIGKILL)

    def release(self, program: Program) -> None:
        """Let a held program run again, at once."""
        program.held = False
        if program.process is None:
            program.due = time.monotonic()

    def run(self) -> None:
        """Never returns."""
        selector = selectors.DefaultSelector()
        self.control.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Bound under another name and renamed: who finds the socket can connect to it.
        arriving = self.control.with_suffix(".new")
        arriving.unlink(missing_ok=True)
        listener.bind(str(arriving))
        arriving.chmod(0o600)
        listener.listen(64)
        arriving.rename(self.control)
        selector.register(listener, selectors.EVENT_READ)
        wake_read, wake_write = socket.socketpair()
        for end in (wake_read, wake_write):
            end.setblocking(False)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        selector.register(wake_read, selectors.EVENT_READ)
        while True:
            self._reap()
            self._start_due()
            for key, _ in selector.select(self._seconds_to_next()):
                if key.fileobj is listener:
                    self._serve(listener)
                else:
                    wake_read.recv(4096)
            self._ring_alarms()

    def _named(self, order: dict[str, Any]) -> Program:
        name = order.get("program")
        if name not in self.programs:
            raise UsageError(f"{name}: not one of {', '.join(self.programs)}")
        return self.programs[name]

    def _seconds_to_next(self) -> float | None:
        times = [p.due for p in self.programs.values() if p.due is not None]
        times += [at for at, _ in self.alarms]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _ring_alarms(self) -> None:
        now = time.monotonic()
        ringing = [alarm for at, alarm in self.alarms if at <= now]
        self.alarms = [(at, alarm) for at, alarm in self.alarms if at > now]
        for alarm in ringing:
            alarm()

    def _start_due(self) -> None:
        now = time.monotonic()
        for program in self.programs.values():
            if program.due is not None and program.due <= now:
                program.due = None
                self.start(program)

    def start(self, program: Program) -> None:
        """Start it now."""
        with program.log.open("ab") as log:
            try:
                program.process = subprocess.Popen(
                    program.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=program.environment,
                    cwd=program.cwd,
                    start_new_session=True,
                    # SIGCHLD's wake-up pipe and the order socket are this process's own.
                    close_fds=True,
                )
            except OSError as error:
                log.write(f"lab: cannot start {program.name}: {error}\n".encode())
                self._plan_restart(program)

    def _plan_restart(self, program: Program) -> None:
        if program.restart and not program.held:
            program.restarts += 1
            program.due = time.monotonic() + RESTART_DELAY_S

    def _reap(self) -> None:
        # An init also inherits orphans, which were not started here (QEMU is one).
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for program in self.programs.values():
                if program.process is not None and program.process.pid == pid:
                    self._ended(program, os.waitstatus_to_exitcode(status))

    def _ended(self, program: Program, code: int) -> None:
        assert program.process is not None
        # Popen must not wait for a pid that is reaped already.
        program.process.returncode = code
        program.process = None
        program.last_exit = code
        say(f"{program.name} ended with {code}")
        self._plan_restart(program)
        if program.on_exit is not None:
            program.on_exit(code)

    def _serve(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(ORDER_SECONDS_MAX)
            try:
                answer = self._answer(_receive(connection))
                connection.sendall(json.dumps(answer).encode())
            except OSError as error:
                say(f"order: {error}")

    def _answer(self, raw: bytes) -> dict[str, Any]:
        try:
            order = json.loads(raw)
            return {"ok": self.orders[order["order"]](order)}
        except KeyError as error:
            return {"error": f"no such order: {error}"}
        except (ValueError, OSError, LabError, subprocess.SubprocessError) as error:
            return {"error": str(error)}


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    # Not by Popen: it would reap one that has just died, and nobody would hear of that.
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


def _receive(connection: socket.socket) -> bytes:
    received = b""
    while len(received) < ORDER_BYTES_MAX:
        chunk = connection.recv(ORDER_BYTES_MAX)
        if not chunk:
            break
        received += chunk
    return received


def order(control: Path, name: str, seconds_max: float = ORDER_SECONDS_MAX, **details: Any) -> Any:
    """Give an order to a supervisor and return its answer; LabError if it refused or is gone."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds_max)
            connection.connect(str(control))
            connection.sendall(json.dumps({"order": name, **details}).encode())
            connection.shutdown(socket.SHUT_WR)
            answer = json.loads(_receive(connection))
    except (OSError, ValueError) as error:
        raise LabError(f"{control}: {error}; see: status") from error
    if "error" in answer:
        raise LabError(f"{control.parent.name}: {answer['error']}")
    return answer["ok"]


def say(text: str) -> None:
    """A line for the log of this first process."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

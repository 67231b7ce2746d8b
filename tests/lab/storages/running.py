# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the storage's daemons are run: started one by one while it is made, then supervised."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..environment import clean
from ..errors import LabError
from ..layout import CHECKOUT, Layout
from ..settings import Settings
from ..supervisor import Program, Supervisor

COMMAND_SECONDS_MAX = 60.0
POLL_S = 0.1


class Servers:
    """The storage's daemons. `kept`: descriptors that live as long as the storage."""

    def __init__(self, layout: Layout, settings: Settings) -> None:
        self.layout = layout
        self.settings = settings
        self.environment = clean()
        self.kept: list[int] = []
        self.supervisor = Supervisor(layout.servers_control)
        self.supervisor.orders["kill"] = self.kill
        self.supervisor.orders["freeze"] = lambda order: self._signal(order, signal.SIGSTOP)
        self.supervisor.orders["release"] = self.release
        self.supervisor.orders["thaw"] = lambda order: self._signal(order, signal.SIGCONT)
        #: Daemons that another daemon started: name -> file with its pid, and the command that has
        #: it started again.
        self._adopted: dict[str, tuple[Path, list[str]]] = {}

    def do(self, argv: Sequence[str]) -> str:
        """Run a command to its end, and return what it printed; LabError."""
        try:
            done = subprocess.run(
                argv,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS_MAX,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LabError(f"storage: {error}") from error
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise LabError(f"storage: {' '.join(argv)}: {' '.join(last) or done.returncode}")
        return done.stdout

    def run(self, name: str, argv: list[str]) -> None:
        """Start a daemon now; it is not started again by itself."""
        program = Program(
            name, argv, self.layout.servers / f"{name}.log", self.environment, CHECKOUT
        )
        program.restart = False
        self.supervisor.programs[name] = program
        self.supervisor.start(program)

    def adopt(self, name: str, record: Path, again: list[str], seconds_max: float) -> None:
        """Take in a daemon that another one starts and writes the number of to a file. `again`: the
        command that has it started once more."""
        deadline = time.monotonic() + seconds_max
        while not (record.exists() and record.read_text().strip()):
            if time.monotonic() > deadline:
                raise LabError(f"storage: {name} did not start: no {record}")
            time.sleep(POLL_S)
        self._adopted[name] = (record, again)

    def until(self, what: str, argv: Sequence[str], text: str, seconds_max: float) -> None:
        """Repeat a command until it prints the text; LabError."""
        deadline = time.monotonic() + seconds_max
        last: object = "nothing"
        while True:
            left = deadline - time.monotonic()
            try:
                done = subprocess.run(
                    argv,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=max(1.0, min(10.0, left)),
                )
                last = done.stdout.strip() or done.stderr.strip()
                if text in done.stdout:
                    return
            except (OSError, subprocess.TimeoutExpired) as error:
                last = error
            if time.monotonic() > deadline:
                raise LabError(f"storage: {what}: not after {seconds_max:.0f} s: {last}")
            time.sleep(POLL_S)

    def pid(self, name: str) -> int | None:
        """The number of a daemon, in this PID namespace; None while it does not run."""
        if name in self._adopted:
            try:
                pid = int(self._adopted[name][0].read_text())
                os.kill(pid, 0)
            except (OSError, ValueError):
                return None
            return pid
        program = self.supervisor.programs.get(name)
        if program is None:
            raise LabError(f"{name}: not one of {', '.join(self.names)}")
        return program.process.pid if program.process is not None else None

    @property
    def names(self) -> list[str]:
        """What can be killed and frozen."""
        return [*self.supervisor.programs, *self._adopted]

    def kill(self, order: dict[str, Any]) -> None:
        """End a daemon at once; `release` starts it again."""
        name = str(order["program"])
        program = self.supervisor.programs.get(name)
        if program is not None:
            program.held = True
        self._signal(order, signal.SIGKILL)

    def release(self, order: dict[str, Any]) -> None:
        """Start a daemon again that was killed; nothing where it runs."""
        name = str(order["program"])
        if self.pid(name) is not None:
            return
        if name in self._adopted:
            self.do(self._adopted[name][1])
        else:
            self.supervisor.release(self.supervisor.programs[name])

    def _signal(self, order: dict[str, Any], number: signal.Signals) -> None:
        name = str(order["program"])
        pid = self.pid(name)
        if pid is None:
            raise LabError(f"{name}: does not run")
        os.kill(pid, number)

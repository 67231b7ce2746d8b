# SPDX-License-Identifier: LGPL-2.1-or-later
"""The driver for any program of the fence-agents collection: PDUs, blade chassis, clouds.

The interface is the FenceAgentAPI of the ClusterLabs: options as `key=value` lines on
standard input, so that no password is on a command line; `action=` on, off, status or
monitor; exit code 0 means done, or on; 2 for status means off. Here a new process is right: these
programs know a hundred kinds of devices. Each run is a process group of its own and is killed as
a whole at its deadline. The end of its output is kept, for error texts.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO

from agent.fence.driver import DeviceError, Pointless, go
from agent.ports import Still
from scoring.observation import Power

#: Folders of the programs beside PATH, which under systemd or sudo may lack them.
_DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/local/sbin")
_TAIL_BYTES_MAX = 2048
_STATUS = {0: Power.ON, 2: Power.OFF}


def find_agent(program: str) -> str | None:
    """The path of a fence agent, or None where it is not installed."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), *_DIRECTORIES]))


class AgentDriver:
    """The Driver of a device that a fence agent controls. `options`: all but the action."""

    def __init__(self, program: str, options: Mapping[str, str]) -> None:
        self._program = program
        self._options = options

    @contextmanager
    def login(self, timeout_s: float) -> Iterator[_AgentLogin]:
        """Check the program; each of its runs logs in by itself."""
        path = find_agent(self._program)
        if path is None:
            raise Pointless(f"{self._program} is not installed (package fence-agents)")
        if any("\n" in value or "\r" in value for value in self._options.values()):
            raise Pointless("a line break in a user name or password cannot be passed on")
        yield _AgentLogin(path, self._options, time.monotonic() + timeout_s)


class _AgentLogin:
    def __init__(self, path: str, options: Mapping[str, str], deadline_s: float) -> None:
        self._path = path
        self._options = options
        self._deadline_s = deadline_s

    def guid(self) -> bytes | None:
        return None

    def power(self) -> Power:
        code, text = self._run("status")
        if code not in _STATUS:
            raise DeviceError(f"status ended with {code}: {text}")
        return _STATUS[code]

    def lacks(self) -> str | None:
        code, text = self._run("monitor")
        if code != 0:
            raise DeviceError(f"monitor ended with {code}: {text}")
        return None  # no action asks for the privilege alone

    def switch(self, on: bool, still: Still) -> None:
        # The program logs in by itself: between its login and its order nobody can stop it.
        action = "on" if on else "off"
        go(still)
        code, text = self._run(action)
        if code != 0:
            raise DeviceError(f"{action} ended with {code}: {text}")

    def _run(self, action: str) -> tuple[int, str]:
        """The exit code, and the end of its standard error."""
        options = "".join(f"{k}={v}\n" for k, v in {"action": action, **self._options}.items())
        with subprocess.Popen(  # noqa: S603  (a program named by root's own configuration)
            [self._path],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            start_new_session=True,
        ) as process:
            assert process.stdin is not None and process.stderr is not None
            try:
                with suppress(BrokenPipeError), process.stdin:
                    process.stdin.write(options.encode())
                text = _tail(process.stderr, self._deadline_s)
                code = process.wait(max(0.0, self._deadline_s - time.monotonic()))
            except (TimeoutError, subprocess.TimeoutExpired):
                raise DeviceError(f"{action} did not end in time") from None
            finally:
                if process.returncode is None:  # not reaped: the group's number is still its own
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
        return code, " ".join(text.split()) or "it said nothing"


def _tail(pipe: IO[bytes], deadline_s: float) -> str:
    """The end of the output until the pipe is closed, in whole lines (a part of a password would
    not be recognised, so lines are not cut); TimeoutError at the deadline."""
    kept, cut = b"", False
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline_s - time.monotonic())):
            data = os.read(pipe.fileno(), 4096)
            if not data:
                whole = kept.partition(b"\n")[2] if cut else kept
                return whole.decode(errors="replace")
            kept += data
            cut = cut or len(kept) > _TAIL_BYTES_MAX
            kept = kept[-_TAIL_BYTES_MAX:]
            if time.monotonic() >= deadline_s:
                break
    raise TimeoutError

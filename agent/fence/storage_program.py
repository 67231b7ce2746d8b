# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs a command of the storage for storage fencing: as a process group, to a deadline."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from agent.fence.driver import FenceError
from broker.daemon.foreign import sentence

_FOLDERS = ("/usr/sbin", "/sbin", "/usr/local/sbin")


class StorageFenceError(FenceError):
    """The storage refused, or its command failed: a sentence that may be shown."""


def installed(program: str) -> str:
    """The program's path; StorageFenceError where it is not installed."""
    path = shutil.which(program, path=_search())
    if path is None:
        raise StorageFenceError(f"{program} is not installed")
    return path


def _search() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *_FOLDERS])


def run(argv: Sequence[str], deadline_s: float, leave: bool = False) -> str:
    """What a command printed; StorageFenceError where it failed or did not end by `deadline_s`. It
    is a process group of its own, killed as a whole then; `leave`: it goes on, for its end would
    not be the end of what it has begun."""
    program = installed(argv[0])
    try:
        process = subprocess.Popen(  # noqa: S603  (a program named by root's own configuration)
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PATH": _search(), "LC_ALL": "C"},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        # The file is no program (a script without its first line), or a word holds a zero byte.
        raise StorageFenceError(f"{program} cannot be run: {error}") from None
    try:
        out, err = process.communicate(timeout=max(0.0, deadline_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        if leave:
            threading.Thread(target=process.communicate, daemon=True).start()
            raise StorageFenceError(f"{argv[0]} did not end in time, and goes on") from None
        raise StorageFenceError(f"{argv[0]} did not end in time") from None
    finally:
        if process.returncode is None and not leave:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        said = sentence((err or out).decode(errors="replace"))
        raise StorageFenceError(f"{argv[0]} ended with {process.returncode}: {said}")
    return out.decode(errors="replace")

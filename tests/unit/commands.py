# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent` and `ha-broker` as processes that end by themselves, without the price of a start.

A command imports for a third of a second before it does anything, and the tests start some
hundreds. One process of each pytest worker imports everything once, and forks for each command:
what runs then is a process of its own, with its own arguments, environment, standard streams, exit
code and end. What it costs to start, what it loads, and how it takes signals is tried with the
installed programs instead (test_status_text.py, test_reload.py, tests/lab).
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: Command -> the function of its entry point (pyproject.toml).
PROGRAMS = {"ha-agent": "agent.main", "ha-broker": "broker.main"}
TIMEOUT_S = 60

_lock = threading.Lock()
_server: subprocess.Popen[str] | None = None


def run(
    program: str,
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    timeout_s: int = TIMEOUT_S,
) -> subprocess.CompletedProcess[str]:
    """What the command says, and its exit code; negative: the signal that ended it. Its standard
    input is empty. `env`: instead of this process's own environment. It is killed when it takes
    longer than `timeout_s`."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        order = {
            "program": program,
            "arguments": [str(word) for word in arguments],
            "env": dict(os.environ if env is None else env),
            "folder": os.getcwd(),
            "streams": [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err)],
            "timeout_s": timeout_s,
        }
        with _lock:
            server = _started()
            assert server.stdin is not None and server.stdout is not None
            server.stdin.write(json.dumps(order) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess([program, *arguments], code, out.read(), err.read())


def _started() -> subprocess.Popen[str]:
    global _server
    if _server is None:
        _server = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.commands"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(_end, _server)
    return _server


def _end(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.communicate()


# --- in the process that forks ------------------------------------------------------------------


def serve() -> None:
    """Fork for each order of standard input, one after the other; the exit codes go to standard
    output."""
    mains = {program: importlib.import_module(name) for program, name in PROGRAMS.items()}
    for package in ("agent", "broker"):
        for found in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(mains[order["program"]], order)
        print(_ended(child), flush=True)


def _ended(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _become(module: Any, order: dict[str, Any]) -> None:
    """Be the command, to its end."""
    code: object = 1
    try:
        signal.alarm(order["timeout_s"])
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["env"])
        sys.argv = [str(Path(sys.executable).parent / order["program"]), *order["arguments"]]
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, path in enumerate(order["streams"], start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
        module.main()
        code = 0
    except SystemExit as error:
        code = 0 if error.code is None else error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve()

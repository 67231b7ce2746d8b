# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent` and `ha-broker` as processes that end by themselves, without the price of a start.

A command imports for a third of a second before it does anything, and the tests start some
hundreds. One process imports everything once, and forks for each command of all the processes that
run tests side by side: what runs then is a process of its own, with its own arguments, environment,
standard streams, exit code and end. What it costs to start, what it loads, and how it takes signals
is tried with the installed programs instead (test_status_text.py, test_reload.py, tests/lab).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
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
#: For the start of a command, beside its own time.
SPARE_S = 60

#: The longest order that is taken, in bytes: its environment is in it.
ORDER_BYTES_MAX = 1 << 20

_lock = threading.Lock()
_orders: socket.socket | None = None


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
        reading, writing = os.pipe()
        try:
            order = {
                "program": program,
                "arguments": [str(word) for word in arguments],
                "env": dict(os.environ if env is None else env),
                "folder": os.getcwd(),
                "streams": [_path(file.fileno()) for file in (out, err)],
                "code": _path(writing),
                "timeout_s": timeout_s,
            }
            # A packet arrives whole, whoever else sends one.
            start().send(json.dumps(order).encode())
            # The command itself is killed at its deadline; this is for who waits for it there.
            told, _, _ = select.select([reading], [], [], timeout_s + SPARE_S)
            assert told, f"{program} has not ended"
            code = int(os.read(reading, 16))
        finally:
            os.close(reading)
            os.close(writing)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess([program, *arguments], code, out.read(), err.read())


def _path(descriptor: int) -> str:
    """Where another process opens what is open here."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def start() -> socket.socket:
    """Where orders are sent. The process that takes them is started at the first call; those that
    are forked from this one later share it. It ends with the last of them."""
    global _orders
    with _lock:
        if _orders is None:
            _orders, taken = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.unit.commands", str(taken.fileno())],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[taken.fileno()],
            )
            taken.close()
            atexit.register(_end, server, os.getpid())
    return _orders


def _end(server: subprocess.Popen[bytes], starter: int) -> None:
    assert _orders is not None
    _orders.close()
    # A process that was forked from the starter has no such child.
    if os.getpid() == starter:
        server.kill()
        server.wait()


# --- in the process that forks ------------------------------------------------------------------


def serve(orders: socket.socket) -> None:
    """Fork for each order, many at a time; each order says where its exit code is to be
    written."""
    mains = {program: importlib.import_module(name) for program, name in PROGRAMS.items()}
    for package in ("agent", "broker"):
        for found in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
    # Nobody here waits for those that wait for the commands.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # What is imported stays: no command looks for garbage in it, or needs a copy of its memory.
    gc.collect()
    gc.freeze()
    while packet := orders.recv(ORDER_BYTES_MAX):
        order = json.loads(packet)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child = os.fork()
            if child == 0:
                _become(mains[order["program"]], order)
            _tell(order["code"], child)


def _tell(path: str, child: int) -> None:
    """Wait for the command, and write how it ended."""
    _, status = os.waitpid(child, 0)
    with open(path, "w") as code:
        code.write(str(os.waitstatus_to_exitcode(status)))
    os._exit(0)


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
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        orders.set_inheritable(False)
        serve(orders)

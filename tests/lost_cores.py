# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs a command while its processes lose their core at random, as on a machine that is busy.

    python -m tests.lost_cores -- python -m pytest -q -p tests.side_by_side --processes 6 tests/unit

Each test has to hold all the same; one that does not measures the machine, or has found a fault.
What was stopped is said at the end, and the exit code is the command's.

A process group that has lost its leader gets SIGHUP from the kernel where one of it stands still
(setpgid(2)): a test that fails by return code -1 failed for that.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def below(pid: int) -> Iterator[int]:
    """The processes that one has started, and what these have."""
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for word in (thread / "children").read_text().split():
                yield int(word)
                yield from below(int(word))


def stands_still(pid: int) -> bool:
    """Whether somebody else has stopped it: who does so continues it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TtZ"


def main() -> int:
    """The exit code of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest", type=float, default=1.0, metavar="S", help="of one stop")
    parser.add_argument("--apart", type=float, default=0.02, metavar="S", help="mean, of two stops")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    stops = 0
    command = subprocess.Popen(given.command, start_new_session=True)
    try:
        while command.poll() is None:
            time.sleep(chance.expovariate(1 / given.apart))
            if not (family := [*below(command.pid)]):
                continue
            pid = chance.choice(family)
            with suppress(OSError):
                if stands_still(pid):
                    continue
                os.kill(pid, signal.SIGSTOP)
                time.sleep(chance.uniform(0.05, given.longest))
                os.kill(pid, signal.SIGCONT)
                stops += 1
    finally:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGTERM)
    print(f"{stops} processes stood still for up to {given.longest} s each", file=sys.stderr)
    return command.wait()


if __name__ == "__main__":
    sys.exit(main())

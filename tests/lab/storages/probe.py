# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes to the storage, and reads what another host writes: what a host itself sees of it.

Both ends run in hosts of one machine and go by its one monotonic clock.

``python -m tests.lab.storages.probe write|read PATH OFFSET SECONDS``: one block at OFFSET, past
every cache, every WRITE_EVERY_S or as fast as it goes. Prints a JSON list of
[number, began, ended]: of every write, or of every read that did not show what the one before it
showed, and of the read before it.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time

BLOCK_BYTES = 4096
WRITE_EVERY_S = 0.05
_READ_PAUSE_S = 0.0002


def write(path: str, offset: int, seconds: float) -> list[tuple[int, float, float]]:
    """Count on that block; [number, began, ended] of each write."""
    done = []
    block = mmap.mmap(-1, BLOCK_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
    due_s = time.monotonic()
    until_s = due_s + seconds
    number = 0
    while due_s < until_s:
        number += 1
        block[:8] = number.to_bytes(8)
        began_s = time.monotonic()
        os.pwritev(descriptor, [block], offset)
        ended_s = time.monotonic()
        done.append((number, began_s, ended_s))
        due_s = max(due_s + WRITE_EVERY_S, ended_s)
        time.sleep(max(0.0, due_s - time.monotonic()))
    return done


def read(path: str, offset: int, seconds: float) -> list[tuple[int, float, float]]:
    """Watch that block; [number, began, ended] of each read that showed a change, and of the one
    before it."""
    seen: list[tuple[int, float, float]] = []
    block = mmap.mmap(-1, BLOCK_BYTES)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    until_s = time.monotonic() + seconds
    last: tuple[int, float, float] | None = None
    while time.monotonic() < until_s:
        began_s = time.monotonic()
        os.preadv(descriptor, [block], offset)
        one = (int.from_bytes(block[:8]), began_s, time.monotonic())
        if last is not None and one[0] != last[0]:
            seen += [last, one]
        last = one
        time.sleep(_READ_PAUSE_S)
    return seen


def main() -> None:
    """Prints what it saw."""
    what, path, offset, seconds = sys.argv[1:]
    does = {"write": write, "read": read}[what]
    print(json.dumps(does(path, int(offset), float(seconds))))


if __name__ == "__main__":
    main()

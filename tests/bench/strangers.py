# SPDX-License-Identifier: LGPL-2.1-or-later
"""How late a broker's beats begin while strangers do all that they can at once, over TCP and over
UDP (tests/bench/attack.py), and write a forged slot a second: `python -m tests.bench strangers`.

Two clusters of three hosts, each on a whiteboard of its own: one is attacked at the host that runs
the VM, one is left alone. Both run in the same minutes on the same machine, so what the second one
is late is the machine's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from broker.config.sections import HEARTBEAT_PORT
from broker.peers.datagram import Question, question_bytes
from broker.peers.heartbeat import new_nonce
from broker.whiteboard.layout import SLOT_MAX
from broker.whiteboard.sizes import SLOT_BYTES

from .attack import SOURCES
from .figure import Figure
from .forged import Forged
from .played_brokers import API_PORT, KEY, Spent

P99_MAX_MS = 50.0
SETTLE_S = 5.0
TARGET, LEFT_ALONE = "attacked", "left alone"
NETWORKS = {TARGET: "127.0.8", LEFT_ALONE: "127.0.10"}
ADDRESSES = [f"127.0.9.{number}" for number in range(1, SOURCES + 1)]


class _Program:
    """A program of this bench, which ends when its standard input does."""

    def __init__(self, stack: ExitStack, module: str, *arguments: str) -> None:
        self._process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", f"tests.bench.{module}", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(self._process.kill)

    @property
    def to(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def end(self) -> str:
        """What it says at its end."""
        self.to.close()
        return self.line()


def measure(minutes: float) -> Iterator[Figure]:
    """p99 of how late the beats of both begin, and what the strangers got done."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        found = {
            what: _cluster(stack, Path(folder, network), network)
            for what, network in NETWORKS.items()
        }
        there = f"{NETWORKS[TARGET]}.1", str(API_PORT), str(HEARTBEAT_PORT)
        strangers = _Program(stack, "attack", *there, *ADDRESSES)
        recorded = question_bytes(KEY, Question(2, 1, "recorded", 1, new_nonce()))
        strangers.to.write(recorded.hex() + "\n")
        strangers.to.flush()
        assert strangers.line() == "begun\n"
        with Forged(Path(folder, NETWORKS[TARGET], "whiteboard")):
            time.sleep(SETTLE_S + 60.0 * minutes)
        done = json.loads(strangers.end())
        spent = {what: Spent(**json.loads(host.end())) for what, host in found.items()}
    for what, one in spent.items():
        target = P99_MAX_MS if what == TARGET else None
        yield Figure(f"beats ({what})", "", [float(len(one.beats_ms))])
        yield Figure(f"p99 of beat start ({what})", "ms", [_p99(one.beats_ms)], target)
        yield Figure(f"latest beat ({what})", "ms", [max(one.beats_ms)])
        yield Figure(f"p99 of the loop's wakes ({what})", "ms", [_p99(one.wakes_ms)])
        yield Figure(f"longest stop by the collector ({what})", "ms", [max(one.collected_ms)])
        yield Figure(f"CPU of the broker ({what})", "%", [100 * one.cpu_s / one.for_s])
        yield Figure(f"CPU of its front process ({what})", "%", [100 * one.front_cpu_s / one.for_s])
    for_s = spent[TARGET].for_s
    for name, count in sorted(done.items()):
        yield Figure(f"strangers: {name} a second", "", [count / for_s])


def _cluster(stack: ExitStack, folder: Path, network: str) -> _Program:
    """The program of its first host; the others have another."""
    folder.mkdir()
    (folder / "whiteboard").write_bytes(bytes((SLOT_MAX + 1) * SLOT_BYTES))
    first, others = (
        _Program(stack, "played_brokers", str(folder), hosts, network) for hosts in ("1", "2,3")
    )
    assert first.line() == others.line() == "ready\n"
    return first


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""When what happened in a takeover, in seconds since the plug was pulled.

The two ends are the lab's own observation (the watcher's QEMU processes, the guest's
page); the steps between are read from the agents' logs, which carry wall time of this
one machine.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from .cluster import Cluster
from .watch import EngineWatcher

#: What the agent of the host that takes over writes at each step.
STEPS = (
    ("suspected", re.compile(r"EngineDown stays because .*(lease-asked|power-asked)")),
    ("fence lease taken", re.compile(r"FenceLeaseAnswer\(held=True")),
    # Among the first, where it is found before the host is suspected.
    ("proven off", re.compile(r" because .*\bproven-off: ")),
    ("host id freed", re.compile(r"freed host id \d+")),
    ("engine lease taken", re.compile(r"EngineStart -> EngineStarting")),
)
#: The steps of a takeover from a host that hangs with its power on.
HANG_STEPS = (
    *STEPS[:2],
    ("ordered off", re.compile(r"switching host \d+ off \(order")),
    *STEPS[2:],
)
_STAMP = "%Y-%m-%d %H:%M:%S,%f"


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the timeline; `at_s` None: it did not happen, or was not seen."""

    name: str
    at_s: float | None


@dataclass(frozen=True, slots=True)
class Takeover:
    """One power cut and what came of it."""

    victim: str
    heir: str
    steps: tuple[Step, ...]

    def at_s(self, name: str) -> float | None:
        """When a step happened."""
        return next((step.at_s for step in self.steps if step.name == name), None)


def cut_and_watch(cluster: Cluster, watcher: EngineWatcher, timeout_s: float) -> Takeover:
    """Cut the engine host's power and wait until the page answers from another host.

    Raises LabError when that does not happen within `timeout_s`.
    """
    return strike_and_watch(cluster, watcher, timeout_s, cluster.cut, STEPS)


def hang_and_watch(cluster: Cluster, watcher: EngineWatcher, timeout_s: float) -> Takeover:
    """Hang the VM's host, and watch the takeover."""

    def hang(host: str) -> float:
        at_s = time.monotonic()
        cluster.freeze(host)
        return at_s

    return strike_and_watch(cluster, watcher, timeout_s, hang, HANG_STEPS)


def strike_and_watch(
    cluster: Cluster,
    watcher: EngineWatcher,
    timeout_s: float,
    strike: Callable[[str], float],
    steps: tuple[tuple[str, re.Pattern[str]], ...],
) -> Takeover:
    """`strike`: does it to the engine's host; time.monotonic() of that moment."""
    victim = cluster.wait_healthy(timeout_s)
    wall_s = time.time()
    cut_s = strike(victim)
    heir = cluster.wait_healthy(timeout_s)
    answers_s = time.monotonic() - cut_s
    started = [p for p in watcher.history() if p.host == heir and p.appeared > cut_s]
    runs_s = next((p.ran_at - cut_s for p in started if p.ran_at is not None), None)
    log = cluster.log_path(heir, "agent").read_text().splitlines()
    found = [Step(name, first_line_s(log, pattern, wall_s)) for name, pattern in steps]
    return Takeover(
        victim,
        heir,
        (
            Step("power cut", 0.0),
            *found,
            Step("VM started", runs_s),
            Step("page answers", answers_s),
        ),
    )


def first_line_s(log: list[str], pattern: re.Pattern[str], after_s: float) -> float | None:
    """When a line of a daemon's log first matches, in seconds after a wall time."""
    for line in log:
        if pattern.search(line) is None:
            continue
        try:
            at_s = datetime.strptime(line[:23], _STAMP).timestamp()
        except ValueError:
            continue
        if at_s >= after_s:
            return at_s - after_s
    return None

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many runs by chance: one seed, one run; what they add up to; the first broken law."""

from __future__ import annotations

import functools
import gc
import hashlib
import logging
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from tests.simulation.faults import FAULTS, schedule
from tests.simulation.laws import Broken
from tests.simulation.timeline import Stuck
from tests.simulation.vm_faults import HOST_SIZES_MB, VM_FAULTS, populate
from tests.simulation.world import Outage, Settings, World

#: Lines of the timeline that are shown for a broken law.
SHOWN_LINES = 60
#: Mean times between faults that a run may have, and faults in a run, give or take.
APART_S = (30.0, 90.0, 200.0, 400.0, 1800.0, 7200.0, 28800.0)
MOMENTS = 12
#: How long all hosts beat at the end, with nothing passed over: nothing may begin then.
REST_S = 10.0
#: Nothing of a run is a cycle that has to be found often.
GC_THRESHOLD = 50_000


@dataclass(slots=True)
class Result:
    """What became of one seed. `fingerprint`: of the whole trace."""

    seed: int
    hosts: int
    simulated_s: float
    leapt_s: float
    cpu_s: float
    faults: Counter[str]
    outages: list[Outage]
    fingerprint: str
    broken: str = ""
    trace: list[str] = field(default_factory=list)


def settings_of(chance: random.Random, hosts: tuple[int, int]) -> Settings:
    """A cluster by chance."""
    return Settings(
        hosts=chance.randint(*hosts),
        io_timeout_s=chance.choice([10, 10, 10, 5]),
        fence=chance.random() < 0.8,
        migration=chance.random() < 0.8,
        host_boot_s=chance.choice([8.0, 30.0, 60.0, 150.0]),
        guest_boot_s=chance.choice([5.0, 20.0, 60.0]),
        latency_s=chance.choice([0.0, 0.004, 0.05]),
        drift=chance.choice([0.0, 0.0002]),
        names_fixed=chance.random() < 0.8,
    )


def run_seed(
    seed: int,
    hosts: tuple[int, int],
    minutes: float | None = None,
    keep_trace: bool = False,
    leaps: bool = True,
    apart_s: float | None = None,
    moments: int = MOMENTS,
    vms: tuple[int, int] = (1, 1),
) -> Result:
    """One run: cold start, faults for so long, then the bound, in which all must come well.

    `vms`: how many VMs there are, at least and at most, the engine among them.

    `apart_s`: mean time between faults; None: drawn from the seed, one of APART_S. `minutes`:
    how long; None: long enough for about so many `moments` of faults, each of one to three.
    """
    logging.disable(logging.CRITICAL)
    began_s = time.process_time()
    files = _open_files()
    chance = random.Random(seed)
    drawn_s = random.Random(seed + 2).choice(APART_S)
    apart_s = drawn_s if apart_s is None else apart_s
    faults_s = apart_s * moments if minutes is None else minutes * 60.0
    settings = settings_of(chance, hosts)
    # Drawn apart, so that all other draws of a seed are what they were.
    settings = replace(settings, heartbeat=random.Random(seed + 3).random() < 0.8)
    several = random.Random(seed + 4)
    count = several.randint(*vms)
    if count > 1:
        settings = replace(settings, memory_mb=float(several.choice(HOST_SIZES_MB)))
    world = World(settings, chance)
    if count > 1:
        populate(world, several, count)
    broken = ""
    try:
        world.fault_began("cold start")
        on_within_s = chance.choice([1.0, 30.0])
        world.power_all_on(on_within_s)
        world.timeline.after(on_within_s + 1.2 * settings.host_boot_s, world.fault_ended)
        faults_from_s = chance.choice([5.0, 300.0, 600.0])
        kinds = FAULTS if count == 1 else (*FAULTS, *VM_FAULTS)
        schedule(world, random.Random(seed + 1), faults_from_s, faults_s, apart_s, kinds)
        world.run(faults_s, leaps)
        while not world.is_quiet():
            world.run(max(1.0, world.bound_s() - world.is_calm_for()), leaps)
        world.laws.must_be_up()
        world.run(REST_S)
        world.stop()
    except Broken as error:
        broken = str(error)
    except Stuck as error:
        broken = f"law 'clean' broken: {error}"
    finally:
        world.close()
    left = _open_files() - files
    if left and not broken:
        broken = f"law 'clean' broken: {left} files are left open"
    lines = [f"{at_s:10.3f}  {who:9} {what}" for at_s, who, what in world.trace]
    fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Result(
        seed,
        settings.hosts,
        world.timeline.now_s,
        world.timeline.leapt_s,
        time.process_time() - began_s,
        world.faults,
        world.outages,
        fingerprint,
        broken,
        lines if keep_trace else lines[-SHOWN_LINES:] if broken else [],
    )


def _open_files() -> int:
    """How many files this process has open; 0 where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def run_seeds(
    seeds: Iterable[int],
    hosts: tuple[int, int],
    processes: int,
    minutes: float | None = None,
    apart_s: float | None = None,
    moments: int = MOMENTS,
    vms: tuple[int, int] = (1, 1),
) -> Iterator[Result]:
    """All seeds, in order, on several processors; the rest as for `run_seed`."""
    one = functools.partial(
        run_seed, hosts=hosts, minutes=minutes, apart_s=apart_s, moments=moments, vms=vms
    )
    if processes <= 1:
        yield from map(one, seeds)
        return
    context = multiprocessing.get_context("forkserver")
    with context.Pool(processes, gc.set_threshold, (GC_THRESHOLD,)) as pool:
        yield from pool.imap(one, seeds)


def percentile(values: list[float], part: float) -> float:
    """The smallest value that is not below `part` of all values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


@dataclass(slots=True)
class Sum:
    """What many runs add up to."""

    seeds: int = 0
    simulated_s: float = 0.0
    leapt_s: float = 0.0
    host_s: float = 0.0
    cpu_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    outages: list[Outage] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """One more."""
        self.seeds += 1
        self.simulated_s += result.simulated_s
        self.leapt_s += result.leapt_s
        self.host_s += result.simulated_s * result.hosts
        self.cpu_s += result.cpu_s
        self.faults.update(result.faults)
        self.outages += result.outages

    def lines(self) -> Iterator[str]:
        """For people."""
        hours = self.simulated_s / 3600
        yield (
            f"{self.seeds} seeds, {hours:.1f} cluster-hours ({self.host_s / 3600:.1f} host-hours), "
            f"{hours / max(self.cpu_s, 1e-9):.2f} cluster-hours simulated per CPU-second, "
            f"{hours / max(self.cpu_s / 60, 1e-9):.0f} per CPU-minute "
            f"({100 * self.leapt_s / max(self.simulated_s, 1e-9):.0f} % of the time was quiet and "
            f"passed over)"
        )
        yield "faults: " + ", ".join(
            f"{name} {count}" for name, count in sorted(self.faults.items())
        )
        by_cause: dict[str, list[float]] = {}
        for outage in self.outages:
            by_cause.setdefault(outage.cause, []).append(outage.ended_s - outage.began_s)
        yield "no healthy VM, in seconds, by what ended it:"
        for cause, times in sorted(by_cause.items()):
            yield (
                f"  {cause:36} {len(times):5} times  p50 {percentile(times, 0.5):6.1f}  "
                f"p99 {percentile(times, 0.99):7.1f}  max {max(times):7.1f}"
            )

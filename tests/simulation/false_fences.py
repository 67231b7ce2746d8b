# SPDX-License-Identifier: LGPL-2.1-or-later
"""Is anybody switched off who lives? Days of clusters with storages that stall for up to a
minute, links that come and go and daemons that die, often two of these at once on one host: the
one who would look dead.

No host dies and none hangs here, so nobody has to be switched off for the VM's sake. Whom the
protocol may take for dead is a host that nobody could hear on any path for fence-after; such a
fence is counted and shown, but is not a false one. False is one of a host that could have been
heard, by the storage or by the network, when it was shot.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.simulation.faults import Fault, begin
from tests.simulation.host import Host
from tests.simulation.laws import RENEWALS, Broken
from tests.simulation.seeds import GC_THRESHOLD
from tests.simulation.timeline import Stuck
from tests.simulation.world import Settings, Shot, World

DAY_S = 86_400.0
STALL_MAX_S = 60.0
#: Mean time between two moments at which something begins: about 14 moments a day.
APART_S = 6000.0
#: A host that heard nothing for so long had its time to answer; less is a race, and is told.
RACE_S = 5.0


def _stall(fault: str) -> Callable[[World, Host, random.Random], Callable[[], None]]:
    def start(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
        host.break_storage(fault, chance.uniform(0.2, 3.0) if fault == "slow" else 0.0)
        return lambda: host.break_storage("")

    return start


def _stall_of_all(world: World, _: Host, chance: random.Random) -> Callable[[], None]:
    for host in world.hosts.values():
        host.break_storage("hang")

    def back() -> None:
        for host in world.hosts.values():
            host.break_storage("")

    return back


def _flap(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """The cable comes and goes, until it is mended for good."""
    over = [False]

    def turn() -> None:
        if over[0]:
            return
        host.network_up = not host.network_up
        host.gateway_answers = float(host.network_up)
        mean_s = chance.choice([1.0, 4.0, 15.0])
        world.timeline.after(chance.expovariate(1 / mean_s), turn)

    def back() -> None:
        over[0] = host.network_up = True
        host.gateway_answers = 1.0

    turn()
    return back


def _cut(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.network_up, host.gateway_answers = False, 0.0

    def back() -> None:
        host.network_up, host.gateway_answers = True, 1.0

    return back


def _one_way(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    other = chance.choice(sorted(world.hosts))
    world.cut_links.add((host.number, other))
    return lambda: world.cut_links.discard((host.number, other))


def _loss(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.packet_loss = chance.choice([0.1, 0.3, 0.7])

    def back() -> None:
        host.packet_loss = 0.0

    return back


def _daemons_away(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    world.wish_daemons(host, False)
    return lambda: world.wish_daemons(host, True)


def _dies(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    host.crash("broker")
    return lambda: None


def _stands_still(world: World, host: Host, chance: random.Random) -> Callable[[], None]:
    """SIGSTOP of the daemons."""
    lasts_s = chance.choice([4.0, 12.0, 40.0])
    for name in ("broker", "agent"):
        if name in host.processes:
            host.stop_process(name, lasts_s)
    return lambda: None


_LASTS_S = (1.0, STALL_MAX_S)
STORAGE = (
    Fault("storage hangs", _stall("hang"), _LASTS_S, weight=3),
    Fault("storage slow", _stall("slow"), _LASTS_S),
    Fault("storage of all hangs", _stall_of_all, _LASTS_S),
)
LINKS = (
    Fault("link flaps", _flap, _LASTS_S, weight=3),
    Fault("network cut", _cut, _LASTS_S, weight=2),
    Fault("one way cut", _one_way, _LASTS_S),
    Fault("packet loss", _loss, _LASTS_S),
)
DAEMONS = (
    Fault("daemons away", _daemons_away, _LASTS_S, weight=3),
    Fault("broker dies", _dies),
    Fault("daemons stand still", _stands_still, (STALL_MAX_S, STALL_MAX_S)),
)
#: What goes wrong at one moment.
KINDS = (
    (STORAGE,),
    (LINKS,),
    (DAEMONS,),
    (STORAGE, LINKS),
    (LINKS, STORAGE),
    (DAEMONS, LINKS),
    (LINKS, DAEMONS),
    (DAEMONS, STORAGE),
)


@dataclass(slots=True)
class Day:
    """What became of one cluster's day."""

    seed: int
    hosts: int
    cpu_s: float
    faults: Counter[str]
    shots: list[Shot]
    broken: str = ""


def run_day(seed: int) -> Day:
    """One cluster for one day; the same seed gives the same day."""
    logging.disable(logging.CRITICAL)
    began_s = time.process_time()
    chance = random.Random(seed)
    settings = Settings(
        hosts=chance.choice([2, 3, 3, 3, 5]),
        io_timeout_s=chance.choice([10, 10, 5, 2]),
        latency_s=chance.choice([0.004, 0.05]),
    )
    world = World(settings, chance)
    broken = ""
    try:
        world.power_all_on(5.0)
        _plan(world, random.Random(seed + 1))
        world.run(DAY_S, leaps=True)
        world.stop()
    except (Broken, Stuck) as error:
        broken = str(error)
    finally:
        world.close()
    cpu_s = time.process_time() - began_s
    return Day(seed, settings.hosts, cpu_s, world.faults, world.shots, broken)


def _plan(world: World, chance: random.Random) -> None:
    """Every moment of the day at which something begins. In most of them two things go wrong with
    a host, one soon after the other."""
    at_s = 900.0
    while at_s < DAY_S - 600.0:
        host_id = chance.randint(1, world.settings.hosts)
        for faults in chance.choice(KINDS):
            fault = chance.choices(faults, [fault.weight for fault in faults])[0]
            lasts_s = chance.uniform(*fault.lasts_s)
            began_s = at_s + chance.uniform(0.0, 20.0)
            world.timeline.plan(began_s, begin, world, fault, host_id, chance.random(), lasts_s)
        at_s += chance.expovariate(1 / APART_S)


def is_false(shot: Shot) -> bool:
    """Whether its target could have been heard for longer than a race may last."""
    return any(s is not None and s > RACE_S for s in _heard_for_s(shot))


def is_race(shot: Shot) -> bool:
    """Whether a path of its target had come back, but only just."""
    return not is_false(shot) and any(s is not None for s in _heard_for_s(shot))


def is_at_once(shot: Shot) -> bool:
    """Whether its target lost its daemons and its network in one moment: nothing but a renewal that
    was not due yet told it from one that hangs."""
    return shot.at_once and shot.heard_for_s.get(RENEWALS) is not None


def _heard_for_s(shot: Shot) -> list[float | None]:
    heard = dict(shot.heard_for_s)
    if is_at_once(shot):
        del heard[RENEWALS]
    if shot.gave_up:
        # The host lives, and has said on the network that it has lost the storage and runs no VM.
        heard = {path: since_s for path, since_s in heard.items() if "network" not in path}
    return list(heard.values())


@dataclass(slots=True)
class Sum:
    """What many days add up to."""

    days: int = 0
    hosts: int = 0
    cpu_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    shots: list[Shot] = field(default_factory=list)

    def add(self, day: Day) -> None:
        """One more."""
        self.days += 1
        self.hosts += day.hosts
        self.cpu_s += day.cpu_s
        self.faults.update(day.faults)
        self.shots += day.shots

    @property
    def false(self) -> int:
        """Hosts that were switched off although they could be heard."""
        return sum(map(is_false, self.shots))

    def lines(self) -> Iterator[str]:
        """For people."""
        races = sum(map(is_race, self.shots))
        yield (
            f"{self.days} cluster-days ({self.hosts} host-days), {self.cpu_s / 60:.1f} CPU-minutes"
        )
        yield "faults: " + ", ".join(f"{name} {n}" for name, n in sorted(self.faults.items()))
        yield (
            f"switched off: {len(self.shots)}; silent on every path: "
            f"{len(self.shots) - races - self.false}; a path back for less than {RACE_S:g} s: "
            f"{races}"
        )
        yield f"lost the storage alone, and gave the VM up: {sum(s.gave_up for s in self.shots)}"
        yield f"without daemons and network from one moment on: {sum(map(is_at_once, self.shots))}"
        yield f"false fences: {self.false}"


def run_days(days: int, first: int, processes: int) -> Iterator[Day]:
    """Run `days` days, in order of their seeds."""
    seeds = range(first, first + days)
    if processes <= 1:
        yield from map(run_day, seeds)
        return
    context = multiprocessing.get_context("forkserver")
    with context.Pool(processes, gc.set_threshold, (GC_THRESHOLD,)) as pool:
        yield from pool.imap(run_day, seeds)

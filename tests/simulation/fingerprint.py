# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a run did, as one digest: the proof that a change of the code's shape changes nothing else.

Into it goes every decision of every host (its virtual time, state, actions, reasons, score and when
it wants to be asked again), every slot that was written, and every line of the trace. Names of
classes and fields do not: an action goes in as a word of WORDS and the values of its fields, but
for the number of the VM where that is 1. So the digests of older code, kept in a file, can be held
against those of the code as it is now.

    python -m tests.simulation fingerprint --seeds 40 --scenarios --to before.txt
    python -m tests.simulation fingerprint --seeds 40 --scenarios --against before.txt
"""

from __future__ import annotations

import functools
import gc
import hashlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import agent.beat
from scoring import decision as made
from scoring.decide import Decision
from scoring.decision import Action
from tests.simulation.laws import Broken
from tests.simulation.scenario import Disappointed, Player, load
from tests.simulation.seeds import GC_THRESHOLD, run_seed
from tests.simulation.whiteboard import Whiteboard
from tests.simulation.world import World

#: The word of each kind of action; it stays when the class gets another name.
WORDS: Mapping[type[Action], str] = {
    made.StartVm: "start",
    made.ShutDownVm: "shut down",
    made.PowerOffVm: "end",
    made.MigrateVm: "migrate",
    made.CancelMigration: "cancel",
    made.DisarmDomain: "disarm",
    made.AskMigrationPath: "ask path",
    made.AskLease: "ask lease",
    made.AskPower: "ask power",
    made.TakeFenceLease: "take fence lease",
    made.AskFenceOwner: "ask fence owner",
    made.DropFenceLease: "drop fence lease",
    made.FreeHostId: "free host id",
    made.PowerOffHost: "power off host",
    made.NoteFenceFailed: "note failed",
    made.PowerOnHost: "power on host",
}
#: Not of an action's contents while one VM is all there is.
_NUMBER = ("vm", 1)
SCENARIOS = Path(__file__).parents[1] / "scenarios"


def told(decision: Decision) -> tuple[Any, ...]:
    """A decision by its values alone."""
    return (
        decision.state.engine.name.value,
        tuple(_action(action) for action in decision.actions),
        tuple((reason.code.value, reason.text) for reason in decision.reasons),
        decision.score.value,
        tuple((part.name, part.points, part.why) for part in decision.score.penalties),
        decision.score.unknown,
        decision.wake_s,
    )


def _action(action: Action) -> tuple[Any, ...]:
    contents = [(field.name, getattr(action, field.name)) for field in fields(action)]
    return (WORDS[type(action)], *(value for name, value in contents if (name, value) != _NUMBER))


@dataclass(slots=True)
class Digest:
    """Grows with each thing that happens."""

    _hash: Any
    decisions: int = 0

    def add(self, *what: object) -> None:
        """One more thing that happened."""
        self._hash.update(repr(what).encode())

    @property
    def hex(self) -> str:
        """The digest of all that happened so far."""
        return str(self._hash.hexdigest()[:32])


@contextmanager
def recorded() -> Iterator[Digest]:
    """The digest of all that simulated clusters do meanwhile."""
    digest = Digest(hashlib.sha256())
    beats: Any = agent.beat
    boards: Any = Whiteboard
    worlds: Any = World
    decide, put, tell = beats.decide, boards.put, worlds.tell

    def deciding(state: Any, observation: Any, now_s: float) -> Decision:
        decision: Decision = decide(state, observation, now_s)
        digest.decisions += 1
        digest.add("decided", observation.local.host_id, now_s, told(decision))
        return decision

    def putting(self: Whiteboard, slot: int, data: bytes) -> None:
        digest.add("put", slot, data)
        put(self, slot, data)

    def telling(self: World, who: str, what: str) -> None:
        digest.add("told", self.timeline.now_s, who, what)
        tell(self, who, what)

    beats.decide, boards.put, worlds.tell = deciding, putting, telling
    try:
        yield digest
    finally:
        beats.decide, boards.put, worlds.tell = decide, put, tell


def of_seed(seed: int, hosts: tuple[int, int], moments: int, vms: tuple[int, int] = (1, 1)) -> str:
    """One line: the seed, its digest, and how many decisions that is of."""
    with recorded() as digest:
        result = run_seed(seed, hosts, moments=moments, vms=vms)
        digest.add("ended", result.simulated_s, result.broken)
    name = f"seed {seed} of {hosts[0]}..{hosts[1]} hosts, {moments} moments"
    name += "" if vms == (1, 1) else f", {vms[0]}..{vms[1]} VMs"
    return f"{name}: {digest.hex} {digest.decisions}"


def of_scenario(path: Path) -> str:
    """One line: the scenario, its digest, and how many decisions that is of."""
    with recorded() as digest:
        try:
            Player(load(path)).play()
        except (Broken, Disappointed) as error:
            digest.add("ended", str(error))
    return f"scenario {path.stem}: {digest.hex} {digest.decisions}"


def run(
    seeds: Iterable[int],
    hosts: tuple[int, int],
    moments: int,
    scenarios: bool,
    processes: int,
    vms: tuple[int, int] = (1, 1),
) -> Iterator[str]:
    """The lines of all scenarios, if wanted, and of all seeds, in order."""
    paths = sorted(SCENARIOS.glob("*.txt")) if scenarios else []
    one: Callable[[int], str] = functools.partial(of_seed, hosts=hosts, moments=moments, vms=vms)
    if processes <= 1:
        yield from map(of_scenario, paths)
        yield from map(one, seeds)
        return
    context = multiprocessing.get_context("forkserver")
    with context.Pool(processes, gc.set_threshold, (GC_THRESHOLD,)) as pool:
        yield from pool.imap(of_scenario, paths)
        yield from pool.imap(one, seeds)


def differing(lines: Iterable[str], against: Iterable[str]) -> Iterator[str]:
    """The lines whose digest is another one than there, and those that are not there."""
    known = dict(line.rstrip("\n").split(": ", 1) for line in against)
    for line in lines:
        name, digest = line.split(": ", 1)
        if known.get(name) != digest:
            yield f"{name}: was {known.get(name, 'not there')}, is {digest}"

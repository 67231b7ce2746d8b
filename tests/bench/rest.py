# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nothing moves at rest: random clusters of several VMs, of which every host decides again and
again on what the others published the turn before, while loads, networks and free memory are a
little unsteady.

    python -m tests.bench rest [--clusters 100] [--first 0] [--hours 24] [--balance] [--part K/N]

Where no host has anything in mind, the time until the next decision is longer (LEAP_S instead of
STEP_S). With `--balance` VMs move until the hosts are even (SETTLE_S at least without a move, which
is longer than any of the decision's own times, and MOVES_MAX moves of each VM at most); the hours
are counted from then on.

Prints each action that is more than a question, and ends with 1 where there was one.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from scoring.decide import Decision, decide
from scoring.decision import (
    Action,
    AskFenceOwner,
    AskLease,
    AskMigrationPath,
    AskPower,
    DisarmDomain,
    MigrateVm,
    StartVm,
)
from scoring.observation import (
    LeaseAnswer,
    LocalHost,
    Observation,
    Outcome,
    PeerReport,
    Standing,
    StartResult,
    VmMigrationEnded,
    VmStartEnded,
)
from scoring.rules import Rules
from scoring.state import AgentState
from scoring.vm.plan import Host, place
from scoring.vm_facts import (
    ENGINE,
    DomainHere,
    EngineStatus,
    Health,
    PeerVm,
    VmHere,
    VmSpec,
    VmStatus,
)

#: What is only asked, or is nothing that anybody would notice.
QUESTIONS = (AskLease, AskPower, AskFenceOwner, AskMigrationPath, DisarmDomain)
#: Seconds from one decision to the next while a host has something in mind, and while none has:
#: whoever wants to move a VM wants it for `move_dwell` (30 s) first, so that it shows.
STEP_S, LEAP_S = 10.0, 100.0
#: So long after the last move the hosts are as even as they will be.
SETTLE_S = 3600.0
MOVES_MAX = 2
#: What a host's free memory is unsteady by, MiB.
UNSTEADY_MB = 1024
#: Memory of each host, and of the engine, MiB.
TOTAL_MB, ENGINE_MB = 65_536, 4096
UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")
DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "")
CLEAN = DomainHere(memory_image=False, autostart=False)


@dataclass(frozen=True, slots=True)
class Cluster:
    """`at`: the host of each VM that has a place."""

    hosts: int
    specs: tuple[VmSpec, ...]
    at: dict[int, int]


def cluster(seed: int) -> Cluster:
    """A cluster in which each VM is where it was placed when all were missing."""
    chance = random.Random(seed)
    hosts, count = chance.randint(2, 7), chance.randint(2, 12)
    specs = [VmSpec(ENGINE, "engine", ENGINE_MB, priority=100)]
    for number in range(2, count + 1):
        others = range(2, number)
        wish = chance.random()
        one = (chance.choice(others),) if others else ()
        specs.append(
            VmSpec(
                number,
                f"vm{number}",
                chance.choice([1024, 2048, 8192, 16_384]),
                priority=chance.choice([10, 50, 90]),
                after=one if chance.random() < 0.3 else (),
                apart=one if wish < 0.15 else (),
                together=one if 0.15 <= wish < 0.25 else (),
                only=tuple(chance.sample(range(1, hosts + 1), 2)) if wish > 0.85 else (),
                prefer=(chance.randint(1, hosts),) if chance.random() < 0.4 else (),
                failback=chance.random() < 0.3,
            )
        )
    rooms = [Host(n, 3400, TOTAL_MB, TOTAL_MB - 1024) for n in range(1, hosts + 1)]
    plan = place(specs, rooms, frozenset(spec.number for spec in specs))
    return Cluster(hosts, tuple(specs), {vm: order[0] for vm, order in plan.order.items()})


def acts(
    its: Cluster, seed: int, hours: float, balance: bool = False
) -> Iterator[tuple[float, int, Action]]:
    """What is done in so many hours after the last move that balances: when, by which host, and
    what. Moves, and starts for which they have made room, are carried out at once."""
    chance = random.Random(seed + 1)
    ids = range(1, its.hosts + 1)
    rules = Rules(vm_memory_mb=float(ENGINE_MB), balance=balance)
    states = {host: AgentState(rules) for host in ids}
    said: dict[int, Decision] = {}
    moved: dict[int, list[Outcome]] = {host: [] for host in ids}
    loads = dict.fromkeys(ids, 0.2)
    turn, now_s, left = 0, 1000.0, MOVES_MAX * len(its.at)
    rest_s = now_s + SETTLE_S if balance else now_s
    while now_s < rest_s + hours * 3600:
        turn += 1
        now_s += STEP_S if turn < 10 or _has_plans(said) else LEAP_S
        for host in ids:
            # Up to 0.7: 600 points of 1000, less than what moves a VM.
            loads[host] = min(0.7, max(0.05, loads[host] + chance.uniform(-0.05, 0.05)))
        local = {host: _local(its, host, now_s, loads[host], chance) for host in ids}
        slots = {host: _slot(its, local[host], said.get(host), turn, now_s) for host in ids}
        for host in ids:
            observation = Observation(
                local=local[host],
                peers=tuple(slots[other] for other in ids if other != host),
                storage_good_since_s=0.0,
                sweep=turn,
                global_maintenance=False,
                lockspace_joined=True,
                migration_possible=True,
                fence_log=(),
                outcomes=(*_answers(its, said.get(host), now_s), *moved[host]),
                specs=its.specs,
                registry=1,
                own_claims=said[host].state.claims if host in said else (),
            )
            decision = said[host] = decide(states[host], observation, now_s)
            states[host] = decision.state
            moved[host].clear()
            for action in decision.actions:
                if balance and isinstance(action, MigrateVm):
                    its.at[action.vm] = action.target
                    moved[host].append(VmMigrationEnded(action.target, True, vm=action.vm))
                elif balance and isinstance(action, StartVm):
                    # The moves have made room for one that had no place.
                    its.at[action.vm] = host
                    moved[host].append(VmStartEnded(StartResult.STARTED, vm=action.vm))
                evens_out = balance and isinstance(action, MigrateVm | StartVm)
                if evens_out and now_s < rest_s and left:
                    left -= 1
                    rest_s = now_s + SETTLE_S
                    continue
                if not isinstance(action, QUESTIONS):
                    yield now_s, host, action


def _has_plans(said: dict[int, Decision]) -> bool:
    """Whether a host is about to do something, or has just done it."""
    return any(
        vm.better_since_s is not None or vm.held is not None or vm.acting
        for decision in said.values()
        for vm in decision.state.vms.values()
    )


def _answers(its: Cluster, said: Decision | None, now_s: float) -> tuple[LeaseAnswer, ...]:
    """What sanlock says of the leases that were asked for."""
    asked = () if said is None else said.actions
    return tuple(
        LeaseAnswer(True, now_s, its.at.get(one.vm), 1, 1, 1, Standing.LIVE, vm=one.vm)
        for one in asked
        if isinstance(one, AskLease)
    )


def _free_mb(its: Cluster, host: int) -> float:
    taken = sum(spec.memory_mb for spec in its.specs if its.at.get(spec.number) == host)
    return TOTAL_MB - 1024.0 - taken


def _local(its: Cluster, host: int, now_s: float, load: float, chance: random.Random) -> LocalHost:
    vms = tuple(
        VmHere(
            UP if its.at.get(spec.number) == host else DOWN,
            now_s,
            lease_held=True if its.at.get(spec.number) == host else None,
            last_ran=1 if its.at.get(spec.number) == host else 0,
            config_up_to_date=True,
            domain=CLEAN,
            number=spec.number,
        )
        for spec in its.specs
        if spec.number != ENGINE
    )
    is_here = its.at.get(ENGINE) == host
    free_mb = max(0.0, (_free_mb(its, host) - chance.uniform(0, UNSTEADY_MB)) // 64 * 64)
    engine = VmHere(
        UP if is_here else DOWN,
        now_s,
        lease_held=True if is_here else None,
        last_ran=1 if is_here else 0,
        config_up_to_date=True,
        domain=CLEAN,
    )
    return LocalHost(
        host_id=host,
        vms=(engine, *vms),
        network=chance.choice([1.0, 1.0, 0.95]),
        bridge_up=True,
        mem_free_mb=free_mb,
        cpu_load=load,
        lock_driver=True,
        total_mb=float(TOTAL_MB),
        free_mb=free_mb,
        free_huge_mb=0.0,
    )


def _slot(
    its: Cluster, local: LocalHost, said: Decision | None, turn: int, now_s: float
) -> PeerReport:
    machines = {} if said is None else said.state.vms
    vms = {
        vm.number: PeerVm(
            vm.report,
            machines[vm.number].name.value if vm.number in machines else "",
            vm.last_ran,
        )
        for vm in local.vms
        if vm.report.vm is VmStatus.UP
    }
    state = "" if said is None else said.state.engine.name.value
    vms[ENGINE] = PeerVm(local.engine.report, state, local.engine.last_ran, uplink_up=True)
    return PeerReport(
        host_id=local.host_id,
        timestamp=turn + 1,
        score=0 if said is None else said.score.value,
        vms=vms,
        hostname=f"host{local.host_id}",
        read_s=now_s,
        heartbeat_s=now_s,
        mem_free_mb=local.mem_free_mb,
        way_out=True,
        claims=() if said is None else said.state.claims,
        speaks=2,
        registry=1,
        total_mb=local.total_mb,
        free_mb=local.free_mb,
        free_huge_mb=0.0,
    )


def main(words: list[str]) -> int:
    """The command; 1 where something was done."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench rest", description=__doc__)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--balance", action="store_true", help="vm.balance is set")
    parser.add_argument("--part", default="1/1", help="K/N: the K-th of N parts")
    arguments = parser.parse_args(words)
    number, of = (int(word) for word in arguments.part.split("/"))
    seeds = range(arguments.first, arguments.first + arguments.clusters)
    done, vms, moves, began_s = 0, 0, 0, time.process_time()
    for seed in seeds[number - 1 :: of]:
        its = cluster(seed)
        vms += len(its.at)
        before = dict(its.at)
        print(f"cluster {seed}: {its.hosts} hosts, {len(its.at)} VMs", file=sys.stderr, flush=True)
        for at_s, host, action in acts(its, seed, arguments.hours, arguments.balance):
            done += 1
            print(f"cluster {seed}, {at_s:.0f} s: host {host}: {action}")
        moves += sum(its.at[vm] != before[vm] for vm in before)
    count = len(seeds[number - 1 :: of])
    took_s = time.process_time() - began_s
    print(
        f"{count} clusters, {vms} VMs, {arguments.hours:g} h each: {done} acts"
        f"{f', after {moves} VMs had moved to be even' if arguments.balance else ''}"
        f" ({took_s:.0f} s CPU)"
    )
    return 1 if done else 0

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Figures of the pure parts, in CPU time: they wait for nothing but for a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from broker.config.cluster_key import ClusterKey
from broker.whiteboard.signatures import COUNTER_LINE, GOOD, SLOT, Signatures
from broker.whiteboard.slot import SlotReport, decode_sweep, encode_cluster, encode_slot
from scoring.decide import decide
from scoring.observation import LeaseAnswer, LocalHost, Observation, PeerReport
from scoring.state import AgentState
from scoring.vm_facts import ENGINE, EngineStatus, Health, PeerVm, VmHere, VmSpec, VmStatus

from .figure import Figure

RUNS = 9
CALLS = 300
SEVERAL_CALLS = 40

_DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "unknown", "vm not running on this host")
_UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")


def measure() -> Iterator[Figure]:
    """All of them."""
    yield Figure("machine noise: a fixed loop", "ms", noise_ms())
    yield Figure("decide() at 3 hosts", "us", decide_us(3), 200)
    yield Figure("decide() at 100 hosts", "us", decide_us(100))
    yield Figure("decide() at 16 hosts x 50 VMs, at rest", "us", decide_several_us(16, 50), 1000)
    missing = partial(decide_several_us, missing=True)
    yield Figure("decide() at 16 hosts x 50 VMs, all missing", "us", missing(16, 50), 5000)
    yield Figure("decide() at 200 hosts x 50 VMs, at rest", "us", decide_several_us(200, 50), 3000)
    yield Figure("decide() at 200 hosts x 50 VMs, all missing", "us", missing(200, 50), 20000)
    yield Figure("whiteboard sweep decoded, 3 hosts", "us", decode_us(3))
    yield Figure("whiteboard sweep decoded, 100 hosts", "us", decode_us(100))
    yield Figure("a slot signed", "us", sign_us())
    for hosts in (3, 100, 2000):
        yield Figure(f"signatures of a sweep looked at, {hosts} hosts", "us", signatures_us(hosts))


def _per_call_us(call: Callable[[int], object]) -> list[float]:
    """Microseconds per call, one value a run."""
    values = []
    for run in range(RUNS):
        started = time.process_time()
        for number in range(CALLS):
            call(run * CALLS + number)
        values.append((time.process_time() - started) / CALLS * 1e6)
    return values


def noise_ms() -> list[float]:
    """What the same work takes from run to run: the machine's own spread."""
    return [us / 1000 for us in _per_call_us(lambda _: sum(range(10_000)))]


def _host(now_s: float) -> LocalHost:
    """This host, which has the engine."""
    engine = VmHere(_UP, now_s, lease_held=True, config_up_to_date=True)
    return LocalHost(1, (engine,), 1.0, True, 8000.0, 0.2)


def _vms(up: Iterable[int]) -> dict[int, PeerVm]:
    """What another host says: the engine is down there, these VMs are up."""
    return {ENGINE: PeerVm(_DOWN), **{number: PeerVm(_UP) for number in up}}


def decide_us(hosts: int) -> list[float]:
    """One decision in the steady state: the engine up here, all peers live."""
    state = AgentState()
    peers = tuple(PeerReport(n, 1, 3400, _vms(()), f"host{n}") for n in range(2, hosts + 1))
    observation = Observation(
        local=_host(0.0),
        peers=peers,
        storage_good_since_s=0.0,
        global_maintenance=False,
        lockspace_joined=True,
    )

    def one(number: int) -> None:
        nonlocal state
        now_s = float(number)
        seen = replace(
            observation,
            sweep=number,
            local=_host(now_s),
            peers=tuple(replace(peer, timestamp=number) for peer in peers),
        )
        started = time.process_time()
        state = decide(state, seen, now_s).state
        spent[0] += time.process_time() - started

    values = []
    spent = [0.0]
    for run in range(RUNS):
        spent[0] = 0.0
        for number in range(CALLS):
            one(run * CALLS + number)
        values.append(spent[0] / CALLS * 1e6)
    return values


def decide_several_us(hosts: int, vms: int, missing: bool = False) -> list[float]:
    """One decision of a host among `hosts`, each of which runs its share of the VMs; or none of
    them runs anywhere, and their leases are free."""
    numbers = range(2, vms + 2)
    specs = tuple(VmSpec(n, f"vm{n}", 1024, priority=n % 100) for n in numbers)
    peers = tuple(
        PeerReport(
            host,
            1,
            3400,
            _vms(() if missing else [n for n in numbers if n % hosts + 1 == host]),
            f"host{host}",
            speaks=2,
            registry=1,
            total_mb=262_144,
            free_mb=65_536,
            free_huge_mb=0,
            host_score=3400,
        )
        for host in range(2, hosts + 1)
    )
    observation = Observation(
        local=replace(_host(0.0), total_mb=262_144, free_mb=65_536, free_huge_mb=0),
        peers=peers,
        storage_good_since_s=0.0,
        global_maintenance=False,
        lockspace_joined=True,
        specs=specs,
        registry=1,
    )
    state = AgentState()
    values = []
    for run in range(RUNS):
        spent = 0.0
        for number in range(1, SEVERAL_CALLS + 1):
            now_s = float(run * SEVERAL_CALLS + number)
            here = tuple(
                VmHere(_DOWN if missing or n % hosts else _UP, now_s, True, number=n)
                for n in numbers
            )
            asked = (LeaseAnswer(True, now_s, vm=n) for n in numbers if missing)
            seen = replace(
                observation,
                sweep=number,
                local=replace(observation.local, vms=(*_host(now_s).vms, *here)),
                peers=tuple(replace(peer, timestamp=int(now_s)) for peer in peers),
                outcomes=tuple(asked),
            )
            started = time.process_time()
            state = decide(state, seen, now_s).state
            spent += time.process_time() - started
        values.append(spent / SEVERAL_CALLS * 1e6)
    return values


def decode_us(hosts: int) -> list[float]:
    """One sweep of the slots in use, decoded."""
    slots = {0: encode_cluster(False)}
    for number in range(1, hosts + 1):
        slots[number] = encode_slot(
            SlotReport(number, 5, 3400, _DOWN, f"host{number}", extra={"state": "EngineDown"})
        )
    return _per_call_us(lambda _: decode_sweep(slots))


def sign_us() -> list[float]:
    """One slot, with lines that fill half of it."""
    signatures, report = Signatures(ClusterKey(bytes(32))), _half_full(2, 1)
    return _per_call_us(lambda _: encode_slot(report, partial(signatures.sign, SLOT, 2)))


def signatures_us(hosts: int) -> list[float]:
    """All slots of a sweep, each one new."""
    key = ClusterKey(bytes(32))
    signer = Signatures(key)
    slots = []
    for host in range(1, hosts + 1):
        report = _half_full(host, 1)
        slots.append((report, encode_slot(report, partial(signer.sign, SLOT, host))))

    def look(_: int) -> None:
        reader = Signatures(key)
        for report, data in slots:
            assert reader.look_at_slot(report, data) in GOOD

    calls = max(1, CALLS // hosts)
    values = []
    for _ in range(RUNS):
        started = time.process_time()
        for number in range(calls):
            look(number)
        values.append((time.process_time() - started) / calls * 1e6)
    return values


def _half_full(host: int, counter: int) -> SlotReport:
    lines = {"boot-id": "b", COUNTER_LINE: str(counter), "reason": "x" * 900, "path-3": "y" * 900}
    return SlotReport(host, 1, 3400, _DOWN, f"host{host}", extra=lines, extra_trusted=True)

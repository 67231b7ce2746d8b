# SPDX-License-Identifier: LGPL-2.1-or-later
"""A broker on simulated storage, and what its agent and its monitors would have told it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from broker.api.socket import serve
from broker.broker import Broker, Given
from broker.client.ask import ask
from broker.config.load import load
from broker.monitors.runner import MonitorRunner, Sample
from broker.monitors.watched import Watched
from broker.registry.cache import Cached, RegistryCache, no_registry
from broker.registry.record import VmRecord
from broker.vm.domain_facts import Difference
from broker.whiteboard.board import Board
from broker.whiteboard.vm_lines import Differing, Memory
from broker.wire.exchange import Report
from broker.wire.status import MigrationStatus, PenaltyOnWire, ReasonOnWire
from scoring.vm_facts import DomainHere, EngineStatus, Health, VmHere, VmStatus
from tests.fakes.lockspace import FakeLockspace
from tests.fakes.slot_store import MemoryStore, MemoryVolume


class Engine:
    """What of the VM here is not sampled by a monitor: its lease, its migration, its pause."""

    lease_held: bool | None = True
    migration: MigrationStatus | None = None
    facts: DomainHere = DomainHere()


class FakeVms:
    """What the monitors of the VMs beside the engine found: `here` as the test sets it."""

    def __init__(self, *here: VmHere) -> None:
        self.here: dict[int, VmHere] = {}
        self.memory = Memory(131_072.0, 98_304.0, 0.0)
        self.differing: dict[int, Differing] = {}
        self.unlike: dict[int, tuple[Difference, ...]] = {}
        self.watched = Cached()
        self.find(*here)

    def find(self, *here: VmHere) -> None:
        """Let them have been sampled so."""
        self.here |= {vm.number: vm for vm in here}

    def watch(self, known: Cached) -> None:
        """Remember which VMs are watched."""
        self.watched = known


def registry_of(*records: VmRecord, generation: int = 14) -> RegistryCache:
    """What a host knows of a registry with these VMs."""
    registry = no_registry()
    registry.cached = Cached(generation, {record.number: record for record in records})
    return registry


def record(number: int, name: str, memory_mb: int = 2048) -> VmRecord:
    """A VM in the registry."""
    uuid = f"00000000-0000-4000-8000-{number:012d}"
    return VmRecord(number=number, name=name, uuid=uuid, generation=1, memory_mb=memory_mb)


def make_broker(
    tmp_path: Path,
    volume: MemoryVolume,
    host_id: int = 1,
    boot_id: str | None = None,
    registry: RegistryCache | None = None,
    vms: FakeVms | None = None,
) -> Broker:
    """The broker of a host on this whiteboard; its lockspace is joined, it has no monitors."""
    path = tmp_path / f"{host_id}.toml"
    path.write_text(
        f'[host]\nid = {host_id}\nname = "host{host_id}"\n'
        '[storage]\nwhiteboard = "/w"\nleases = "/l"\n'
        f'[daemon]\nstate-dir = "{tmp_path}/{host_id}"\n'
        f'socket = "{tmp_path}/{host_id}.sock"\n'
    )
    monitors = MonitorRunner([])
    return Broker(
        load(str(path)),
        Board(MemoryStore(volume), host_id),
        FakeLockspace(),
        Watched(monitors, Engine(), vms=vms),
        Given(boot_id, registry=registry),
    )


def report(state: str = "EngineUp", score: int = 3400, stopped: bool = False) -> Report:
    """What an agent reports whose VM is up and healthy, in that state."""
    return Report(
        score=score,
        state=state,
        penalties=(PenaltyOnWire("load", 7, "mean load 0.40"),),
        reasons=(ReasonOnWire("engine-healthy", "the VM is up and healthy here"),),
        last_ran=3,
        stopped=stopped,
    )


def up(broker: Broker, now_s: float) -> None:
    """Let the monitor of the VM have found it up and healthy at `now_s`."""
    status = EngineStatus(VmStatus.UP, Health.GOOD, "up")
    broker.monitors.latest["engine"] = Sample(status, now_s)


def served(
    tmp_path: Path, test: Callable[[Broker, str, aiohttp.ClientSession], Awaitable[None]]
) -> None:
    """Run a test on a broker that serves its socket: with the broker, the path, a session on it."""

    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        path = broker.config.daemon.socket
        runner = await serve(broker, path)
        try:
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
                await test(broker, path, session)
        finally:
            await runner.cleanup()

    asyncio.run(run())


async def in_thread(path: str, *arguments: Any) -> Any:
    """The blocking `ask` of a command, beside this event loop."""
    return await asyncio.to_thread(ask, path, *arguments)

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
from broker.config.sections import load
from broker.monitors import MonitorRunner, Sample
from broker.monitors.watched import Watched
from broker.whiteboard.board import Board
from broker.wire.status import (
    MigrationStatus,
    PenaltyOnWire,
    ReasonOnWire,
    Report,
)
from scoring.vm_facts import DomainHere, EngineStatus, Health, VmStatus
from tests.fakes.lockspace import FakeLockspace
from tests.fakes.slot_store import MemoryStore, MemoryVolume


class Engine:
    """What of the VM here is not sampled by a monitor: its lease, its migration, its pause."""

    lease_held: bool | None = True
    migration: MigrationStatus | None = None
    facts: DomainHere = DomainHere()


def make_broker(
    tmp_path: Path, volume: MemoryVolume, host_id: int = 1, boot_id: str | None = None
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
        Watched(monitors, Engine()),
        Given(boot_id),
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

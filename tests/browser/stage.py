# SPDX-License-Identifier: LGPL-2.1-or-later
"""A small cluster for the browser: real brokers on storage in memory, beating in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from broker.broker import Broker
from broker.config.cluster_key import ClusterKey
from broker.lockspace.hosts import Witness
from broker.lockspace.renewals import Renewal
from broker.monitors.runner import Sample
from broker.whiteboard.vm_lines import Memory
from broker.wire.exchange import FenceNote, Report
from broker.wire.status import PenaltyOnWire, ReasonOnWire
from scoring.observation import FenceStep
from scoring.vm_facts import EngineStatus, Health, VmHere, VmStatus
from tests.fakes.broker import FakeVms, make_broker, record, registry_of, report
from tests.fakes.listener import Listener
from tests.fakes.lockspace import FakeLockspace
from tests.fakes.slot_store import MemoryVolume

TOKEN, KEY = "t" * 40, ClusterKey(b"k" * 32)
#: The VM beside the engine.
DB, DB_NAME = 2, "db"
UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")
DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "shut off")
_T = TypeVar("_T")


class Stage:
    """`names`: of the hosts with ids 1, 2, …; the page is host 1's. `owner`: runs the engine.
    `db`: beside the engine there is a VM db of 8 GiB, on the host with this id. `well`: nothing is
    wrong, and the hosts can order each other."""

    def __init__(
        self,
        folder: Path,
        names: tuple[str, ...],
        owner: int = 1,
        db: int | None = None,
        well: bool = False,
    ) -> None:
        self._folder = folder
        self._names = names
        self._owner = owner
        self._db, self._well = db, well
        #: The VM's health; by host, the state that an agent without the VM reports.
        self.health, self._state = Health.GOOD, dict[int, str]()
        self._vms = {host_id: FakeVms() for host_id in range(1, len(names) + 1)}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="stage")
        self.brokers: list[Broker] = []
        self.alive: set[int] = set()

    def __enter__(self) -> Stage:
        self._thread.start()
        assert self._ready.wait(20.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(20.0)

    def call(self, function: Callable[[], _T]) -> _T:
        """Run it where the brokers live."""

        async def inside() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(inside(), self._loop).result(10.0)

    def wait(self, awaitable: Any) -> Any:
        """Run a coroutine there."""
        return asyncio.run_coroutine_threadsafe(awaitable, self._loop).result(10.0)

    def proven_off(self, target: int, by: int) -> None:
        """Host `by` writes into the log that it has read `target` off twice and freed its id."""
        for step in (FenceStep.FREEING, FenceStep.DEAD):
            note = FenceNote(step, target, ordered=True, text="read off twice")
            self.wait(self.brokers[by - 1].asked.note_fence(note))
        self.call(lambda: self._freed(target))

    def _freed(self, target: int) -> None:
        for broker in self.brokers:
            assert isinstance(broker.lockspace, FakeLockspace)
            for host_id in range(1, len(self._names) + 1):
                state = "free" if host_id == target else "live"
                broker.lockspace.witnesses[host_id] = Witness(state, 1, 1, 0.0)
            broker.lockspace.renewals.table[target] = Renewal(1, 0, self._loop.time())

    def boots(self) -> None:
        """The VM has been started where it runs, and does not answer yet."""
        self.health, self._state[self._owner] = Health.BAD, "EngineStarting"

    def takes_over(self, host_id: int, state: str) -> None:
        """The agent of host `host_id` reports this state; the VM runs there from EngineUp on."""
        self._state[host_id] = state
        if state == "EngineUp":
            self._owner = host_id

    def db_runs_on(self, host_id: int) -> None:
        """The VM beside the engine runs there from now on."""
        self._db = host_id

    async def close_door(self) -> None:
        """Host 1's broker answers no more."""
        await self.door.close()

    async def open_door(self) -> None:
        """Open the listener again, at the same address."""
        self.door = Listener(self.brokers[0], TOKEN)
        await self.door.start([("127.0.0.1", self.port)])

    async def _main(self) -> None:
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        volume = MemoryVolume()
        for host_id, name in enumerate(self._names, 1):
            registry = registry_of(record(DB, DB_NAME, 8192)) if self._db else None
            vms = self._vms[host_id] if self._db else None
            # The host of db alone has the room for it.
            room_mb = 10_240.0 if host_id == self._db else 2048.0
            self._vms[host_id].memory = Memory(32_768.0, room_mb, 0.0)
            broker = make_broker(self._folder, volume, host_id, registry=registry, vms=vms)
            if isinstance(broker.lockspace, FakeLockspace) and self._db:
                ids = range(1, len(self._names) + 1)
                broker.lockspace.witnesses = {each: Witness("live", 1, 1, 0.0) for each in ids}
            host = msgspec.structs.replace(broker.config.host, name=name)
            config = msgspec.structs.replace(broker.config, host=host)
            if self._well:
                broker.heartbeats.key = KEY
                fence = msgspec.structs.replace(config.fence, expected=False)
                libvirt = msgspec.structs.replace(
                    config.libvirt, migration_uri="qemu+tls://{host}/"
                )
                api = msgspec.structs.replace(config.api, listen=(f"192.0.2.{host_id}:8765",))
                config = msgspec.structs.replace(config, fence=fence, libvirt=libvirt, api=api)
            broker.reconfigure(config)
            self.brokers.append(broker)
            self.alive.add(host_id)
        self.door = Listener(self.brokers[0], TOKEN)
        await self.door.start([("127.0.0.1", 0)])
        others = [Listener(broker) for broker in self.brokers[1:]]
        for door, broker in zip(others, self.brokers[1:], strict=True):
            await door.start([("127.0.0.1", 0)])
            broker.own_slot.advertised = (f"127.0.0.1:{door.ports[0]}",)
        (self.port,) = self.door.ports
        self.url = f"http://127.0.0.1:{self.port}/"
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._live(broker)) for broker in self.brokers]
            await asyncio.sleep(0.1)
            self._ready.set()
            await self._done.wait()
            for task in tasks:
                task.cancel()
        for door in (self.door, *others):
            await door.close()

    def _report(self, host_id: int) -> Report:
        if host_id == self._owner and self.health is Health.GOOD:
            return msgspec.structs.replace(report(), penalties=()) if self._well else report()
        if not self._well:
            return _ill(host_id)
        reasons = (ReasonOnWire("engine-elsewhere", f"the VM is up on host {self._owner}"),)
        return Report(3400, self._state.get(host_id, "EngineDown"), (), reasons, 0)

    async def _live(self, broker: Broker) -> None:
        while True:
            host_id = broker.config.host.id
            now_s = self._loop.time()
            if host_id in self.alive:
                if host_id == self._owner:
                    found = EngineStatus(VmStatus.UP, self.health, "up")
                    broker.monitors.latest["engine"] = Sample(found, now_s)
                elif self._owner != 1:
                    down(broker, now_s)
                at = UP if host_id == self._db else DOWN
                self._vms[host_id].find(VmHere(at, now_s, number=DB))
                broker.take_report(self._report(host_id), now_s)
                await broker.beat(now_s)
            elif host_id == 1:
                await broker.read(now_s)
            await asyncio.sleep(0.5)


def down(broker: Broker, now_s: float) -> None:
    status = EngineStatus(VmStatus.DOWN, Health.BAD, "off", "vm not running on this host")
    broker.monitors.latest["engine"] = Sample(status, now_s)


def _ill(host_id: int) -> Report:
    why = "no answer from 192.0.2.1 <img src=x onerror=alert(1)>"
    lacks = PenaltyOnWire("network", 400 * (host_id - 1), why)
    reasons = (ReasonOnWire("engine-elsewhere", f"the VM is up on host 1 {why}"),)
    return Report(3400 - lacks.points, "EngineDown", (lacks,), reasons, 0)

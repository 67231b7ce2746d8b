# SPDX-License-Identifier: LGPL-2.1-or-later
"""Three real brokers whose hosts run several VMs: the engine, db and web, on storage in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from broker.broker import Broker
from broker.lockspace.hosts import Witness
from broker.monitors.runner import Sample
from broker.registry.record import VmRecord
from broker.whiteboard.vm_lines import Memory
from broker.wire.exchange import Report, VmReportOnWire
from scoring.vm_facts import EngineStatus, Health, VmHere, VmStatus
from tests.fakes.broker import FakeVms, make_broker, record, registry_of, report
from tests.fakes.lockspace import FakeLockspace
from tests.fakes.slot_store import MemoryVolume

GIB = 1024
UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")
DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "shut off")
DB, WEB = 2, 3
RECORDS = (record(DB, "db", 8 * GIB), record(WEB, "web", 2 * GIB))
FREE_GIB = {1: 1, 2: 10, 3: 2}


class VmCluster:
    """`at`: by VM number, the host that runs it; a VM that is not in it is down. `alive`: the
    hosts that beat. `vms`: their monitors. `said`: by host id, what its agent says of the VMs
    beyond that they are up. `engine_mb`: what the engine takes by the agents' definition."""

    def __init__(self, folder: Path, records: tuple[VmRecord, ...] = RECORDS) -> None:
        self.at: dict[int, int] = {1: 1, DB: 2, WEB: 3}
        self.health: dict[int, Health] = {}
        self.alive = set(FREE_GIB)
        self.said: dict[int, tuple[VmReportOnWire, ...]] = {}
        self.engine_mb = 0.0
        self.records = records
        self.vms: Mapping[int, FakeVms] = {host: FakeVms() for host in FREE_GIB}
        volume = MemoryVolume()
        self.brokers: dict[int, Broker] = {}
        for host, vms in self.vms.items():
            vms.memory = Memory(32.0 * GIB, float(FREE_GIB[host] * GIB), 0.0)
            registry = registry_of(*records)
            broker = make_broker(folder, volume, host, registry=registry, vms=vms)
            assert isinstance(broker.lockspace, FakeLockspace)
            broker.lockspace.witnesses = {each: Witness("live", 1, 1, 0.0) for each in FREE_GIB}
            self.brokers[host] = broker

    async def beat(self, now_s: float) -> None:
        """One beat of all hosts that live."""
        for host in sorted(self.alive):
            await self.beat_of(host, now_s)

    async def beat_of(self, host: int, now_s: float) -> None:
        """One beat of a host: its monitors, its agent's report, its broker."""
        broker = self.brokers[host]
        broker.monitors.latest["engine"] = Sample(self._status(1, host), now_s)
        for each in self.records:
            here = VmHere(self._status(each.number, host), now_s, number=each.number)
            self.vms[host].find(here)
        broker.take_report(self._report(host, now_s), now_s)
        await broker.beat(now_s)

    def _status(self, number: int, host: int) -> EngineStatus:
        if self.at.get(number) != host:
            return DOWN
        health = self.health.get(number, Health.GOOD)
        reason = None if health is Health.GOOD else "the health page answers 503"
        return EngineStatus(VmStatus.UP, health, "up", reason)

    def _report(self, host: int, now_s: float) -> Report:
        said = {vm.number: vm for vm in self.said.get(host, ())}
        for number, at in self.at.items():
            if number != 1 and at == host:
                said.setdefault(number, VmReportOnWire(number, "EngineUp", 17))
        state = "EngineUp" if self.at.get(1) == host else "EngineDown"
        vms = tuple(said.values())
        return msgspec.structs.replace(
            report(state), vms=vms, beat=int(now_s), vm_memory_mb=self.engine_mb
        )

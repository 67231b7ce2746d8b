# SPDX-License-Identifier: LGPL-2.1-or-later
"""The registry from the broker to its agent, and what the broker knows for `vm add`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from agent.commands import vms
from agent.terminal.errors import CommandError
from broker.broker import Broker
from broker.monitors.runner import Sample
from broker.registry.cache import Cached
from broker.registry.record import Definition, VmRecord
from broker.whiteboard.mode import Mode
from broker.wire.exchange import View
from scoring.vm_facts import Want
from tests.fakes.broker import in_thread, make_broker, record, report, served, up
from tests.fakes.slot_store import MemoryStore, MemoryVolume

DB = VmRecord(
    number=2, name="db", uuid="0" * 8 + "-1111-2222-3333-" + "4" * 12, generation=5, memory_mb=8192
)
KNOWN = Cached(5, {2: DB}, {2: "<domain/>"}, {2: "its record cannot be read"})


def test_the_agent_gets_specs_generation_and_damage(tmp_path: Path) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        assert (await in_thread(path, "GET", "/v1/view", View)).specs == ()
        broker.registry.cached = KNOWN
        view = await in_thread(path, "GET", "/v1/view", View)
        assert (view.specs, view.registry) == ((DB.spec(),), 5)
        assert view.damaged == {2: "its record cannot be read"}

    served(tmp_path, test)


def test_the_slot_has_the_generation_of_the_engine_in_the_reference_s_field(
    tmp_path: Path,
) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        def published() -> tuple[bool, int]:
            slot = broker.own_slot.make(asyncio.get_running_loop().time())
            return slot.conf_on_shared_storage, slot.local_conf_timestamp

        assert published() == (False, 0)
        kept = Definition(place=0, stored=1, sha256="0" * 64, generation=4, wall_s=1.0)
        engine = msgspec.structs.replace(DB, number=1, name="engine", definitions=(kept,))
        broker.registry.cached = Cached(5, {1: engine, 2: DB})
        assert published() == (True, 4)
        gone = msgspec.structs.replace(engine, removed=True)
        broker.registry.cached = Cached(6, {1: gone, 2: DB})
        assert published() == (False, 0)

    served(tmp_path, test)


def test_a_command_has_the_registry_read_at_once(tmp_path: Path) -> None:
    looks: list[None] = []

    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        broker.registry.look_now = lambda: looks.append(None)  # type: ignore[method-assign]
        assert await in_thread(path, "POST", "/v1/registry", dict[str, Any]) == {}

    served(tmp_path, test)
    assert looks == [None]


def test_memory_that_no_host_has_is_said_or_refused(tmp_path: Path) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        config = broker.config
        strict = msgspec.structs.replace(
            config, vm=msgspec.structs.replace(config.vm, admission="refuse")
        )
        assert await asyncio.to_thread(vms.room, config, DB) == [], "unknown is not too little"
        broker.monitors.latest["memory"] = Sample(4096.0, asyncio.get_running_loop().time())
        text = "no host has 8192 MiB free for db: host1 has the most, 4096 MiB"
        assert await asyncio.to_thread(vms.room, config, DB) == [text]
        with pytest.raises(CommandError, match=r"host1 has the most.*vm\.admission"):
            await asyncio.to_thread(vms.room, strict, DB)
        for fine in ({"memory_mb": 4096}, {"overcommit": True}, {"want": Want.DOWN}):
            record = msgspec.structs.replace(DB, **fine)
            assert await asyncio.to_thread(vms.room, strict, record) == [], fine

    served(tmp_path, test)


def test_a_vm_without_a_place_in_the_plan_is_said_or_refused(tmp_path: Path) -> None:
    """When the registry is known, the hosts' own plan says so, not free memory alone."""
    sso = record(3, "sso", 4096)

    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        now_s = asyncio.get_running_loop().time()
        broker.monitors.latest["memory"] = Sample(65536.0, now_s)
        broker.registry.cached = KNOWN
        for later_s in (0.0, 1.0):
            up(broker, now_s + later_s)
            broker.take_report(report(), now_s + later_s)
            await broker.beat(now_s + later_s)
        config = broker.config
        text = "sso has no place: 4 GiB short (needs 4, host1 has 0)"
        assert text in await asyncio.to_thread(vms.room, config, sso)
        strict = msgspec.structs.replace(
            config, vm=msgspec.structs.replace(config.vm, admission="refuse")
        )
        with pytest.raises(CommandError, match=r"needs 4, host1 has 0.*vm\.admission"):
            await asyncio.to_thread(vms.room, strict, sso)
        stopped = msgspec.structs.replace(sso, want=Want.DOWN)
        assert await asyncio.to_thread(vms.room, strict, stopped) == []

    served(tmp_path, test)


def test_in_global_maintenance_it_is_said_that_nothing_starts_or_stops(tmp_path: Path) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        now_s = asyncio.get_running_loop().time()
        await broker.beat(now_s)
        assert await asyncio.to_thread(vms.held_still, broker.config) == []
        await broker.keeper.set_global(Mode("root", "disk"))
        await broker.beat(now_s + 1)
        (text,) = await asyncio.to_thread(vms.held_still, broker.config)
        assert text.startswith("global maintenance is set: nothing starts or stops until it ends")

    served(tmp_path, test)
    assert vms.held_still(make_broker(tmp_path, MemoryVolume()).config) == []


def test_a_host_that_knows_one_vm_only_is_named(tmp_path: Path) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        store = broker.board._store
        assert isinstance(store, MemoryStore)
        other = make_broker(tmp_path, store.volume, 2)
        now_s = asyncio.get_running_loop().time()
        up(other, now_s)
        await other.beat(now_s)
        await broker.beat(now_s)
        assert await asyncio.to_thread(vms.room, broker.config, DB) == []
        broker.registry.cached = KNOWN
        (text,) = await asyncio.to_thread(vms.room, broker.config, DB)
        assert text.startswith("host2: starts no VM but the engine: an earlier version")
        other.registry.cached = KNOWN
        await other.beat(now_s + 1)
        await broker.beat(now_s + 1)
        assert await asyncio.to_thread(vms.room, broker.config, DB) == []

    served(tmp_path, test)


def test_without_a_broker_nothing_is_known_of_memory(tmp_path: Path) -> None:
    broker = make_broker(tmp_path, MemoryVolume())
    (text,) = vms.room(broker.config, DB)
    assert "ha-broker does not answer here" in text

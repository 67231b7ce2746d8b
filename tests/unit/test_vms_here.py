# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host with several VMs: what its broker publishes of them, and what its agent gets to see."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from broker.broker import Broker
from broker.peers.same_storage import _answer
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import decode_slot
from broker.wire.exchange import Report, View, VmReportOnWire
from scoring.vm.seen import at
from scoring.vm_facts import Claim, EngineStatus, Health, Obstacle, VmHere, VmStatus
from tests.fakes.broker import FakeVms, make_broker, record, registry_of, report, up
from tests.fakes.slot_store import MemoryVolume

UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")
DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "shut down")
UNKNOWN = EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN)
DB, WEB = record(2, "db"), record(3, "web")


def broker_of(
    tmp_path: Path, volume: MemoryVolume, host_id: int, *here: VmHere
) -> tuple[Broker, FakeVms]:
    vms = FakeVms(*here)
    return make_broker(tmp_path, volume, host_id, registry=registry_of(DB, WEB), vms=vms), vms


def slot_lines(volume: MemoryVolume, host_id: int) -> Mapping[str, str]:
    data = bytes(volume.data[host_id * SLOT_BYTES : (host_id + 1) * SLOT_BYTES])
    slot = decode_slot(host_id, data)
    assert slot is not None and slot.extra_trusted
    return slot.extra


def saying(*vms: VmReportOnWire, claims: tuple[Claim, ...] = ()) -> Report:
    return msgspec.structs.replace(report(), vms=vms, claims=claims, beat=7)


def test_one_host_tells_another_what_it_runs_and_how_much_memory_it_has(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, vms = broker_of(tmp_path, volume, 1, VmHere(UP, 9.5, number=2))
        vms.find(VmHere(DOWN, 9.5, number=3))
        two, _ = broker_of(tmp_path, volume, 2)
        one.take_report(saying(VmReportOnWire(2, "EngineUp", 17)), 9.0)
        await one.beat(10.0)
        await two.beat(10.0)
        (peer,) = two.view(10.0).peers
        assert set(peer.vms) == {2}
        assert peer.vms[2].last_ran == 17
        assert (peer.speaks, peer.registry) == (2, 14)
        assert (peer.total_mb, peer.free_mb, peer.free_huge_mb) == (131_072.0, 98_304.0, 0.0)
        local = one.view(10.0).local
        assert [(vm.number, vm.report.vm, vm.last_ran) for vm in local.vms] == [
            (2, VmStatus.UP, 17),
            (3, VmStatus.DOWN, 0),
        ]
        assert local.free_mb == 98_304.0

    asyncio.run(run())


def test_a_vm_alone_has_the_slot_of_today(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        broker = make_broker(tmp_path, volume, 1, vms=FakeVms())
        broker.take_report(report(), 9.0)
        up(broker, 9.5)
        await broker.beat(10.0)
        new = {"registry", "mem", "claims", "vms", "speaks"}
        assert new & slot_lines(volume, 1).keys() == set()
        assert broker.view(10.0).local.vms == ()

    asyncio.run(run())


def test_a_vm_that_was_not_sampled_lately_is_unknown_and_is_listed(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        broker, _ = broker_of(tmp_path, volume, 1, VmHere(DOWN, 10.0, number=2))
        await broker.beat(10.0)
        assert slot_lines(volume, 1)["vms"] == "3:K0"
        await broker.beat(40.0)
        assert slot_lines(volume, 1)["vms"] == "2:K0 3:K0"
        assert broker.view(40.0).local.vms[0].report.reason == "the last sample is 30 s old"

    asyncio.run(run())


def test_only_a_claim_that_is_acknowledged_and_read_back_stands(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        broker, _ = broker_of(tmp_path, volume, 1)
        await broker.beat(1.0)
        claim = Claim(3, 2, 1, 62.0)
        broker.take_report(saying(claims=(claim,)), 1.5)
        assert broker.view(1.5).own_claims == (), "it is not written yet"
        await broker.beat(2.0)
        assert broker.view(2.0).own_claims == (claim,)
        volume.read_only = True
        broker.take_report(saying(claims=(claim, Claim(2, 1, 1, 62.0))), 2.5)
        await broker.beat(3.0)
        assert broker.view(3.0).own_claims == (claim,), "what is there is the slot before"

    asyncio.run(run())


def test_the_claims_of_others_are_in_the_view_by_the_readers_clock(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, _ = broker_of(tmp_path, volume, 1)
        two, _ = broker_of(tmp_path, volume, 2)
        one.take_report(saying(claims=(Claim(3, 2, 1, 70.0),)), 9.0)
        await one.beat(10.0)
        await two.beat(5000.0)
        assert two.view(5000.0).peers[0].claims == (Claim(3, 2, 1, 5060.0),)

    asyncio.run(run())


def test_a_claim_and_a_new_state_of_a_vm_are_published_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        broker, _ = broker_of(tmp_path, MemoryVolume(), 1)

        def is_urgent(said: Report) -> bool:
            broker.news.to_publish.clear()
            broker.take_report(said, 1.0)
            return broker.news.to_publish.is_set()

        assert is_urgent(saying())
        assert not is_urgent(saying())
        assert is_urgent(saying(claims=(Claim(3, 2, 1, 70.0),)))
        assert not is_urgent(saying(claims=(Claim(3, 2, 1, 70.0),)))
        assert is_urgent(saying(VmReportOnWire(2, "EngineStart")))
        assert is_urgent(saying(VmReportOnWire(2, "EngineStarting")))
        assert not is_urgent(saying(VmReportOnWire(2, "EngineStarting", retries=1)))
        assert is_urgent(saying(VmReportOnWire(2, "EngineStarting", barred_until_s=600.0)))

    asyncio.run(run())


def test_a_broker_that_starts_goes_on_with_the_counts_and_claims_in_its_slot(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        loop, volume = asyncio.get_running_loop(), MemoryVolume()
        now_s = loop.time()
        one, _ = broker_of(tmp_path, volume, 1, VmHere(UP, now_s, number=2))
        said = saying(VmReportOnWire(2, "EngineUp", 17), claims=(Claim(3, 2, 1, now_s + 60.0),))
        one.take_report(said, now_s)
        await one.beat(now_s)
        again, _ = broker_of(tmp_path, volume, 1, VmHere(UP, now_s, number=2))
        await again.beat(now_s)
        assert again.view(now_s).local.vms[0].last_ran == 17
        assert slot_lines(volume, 1)["claims"].startswith("3>2/6")
        again.take_report(saying(VmReportOnWire(2, "EngineUp", 17)), now_s)
        await again.beat(now_s + 1.0)
        assert "claims" not in slot_lines(volume, 1)

    asyncio.run(run())


def test_a_torn_slot_says_nothing_of_its_vms(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, _ = broker_of(tmp_path, volume, 1, VmHere(UP, 9.5, number=2))
        two, _ = broker_of(tmp_path, volume, 2)
        await one.beat(10.0)
        at = volume.data.index(b"vms=2:U", SLOT_BYTES)
        volume.data[at + 6 : at + 7] = b"D"
        await two.beat(10.0)
        (peer,) = two.view(10.0).peers
        assert (peer.vms, peer.speaks, peer.claims) == ({}, 1, ())

    asyncio.run(run())


def test_what_the_registry_calls_damaged_cannot_start_here(tmp_path: Path) -> None:
    async def run() -> None:
        broker, vms = broker_of(tmp_path, MemoryVolume(), 1, VmHere(DOWN, 1.0, number=2))
        known = broker.registry.cached
        broker.registry.cached = type(known)(14, known.records, {}, {2: "its record is gone"})
        broker.registry.on_change()
        assert vms.watched is broker.registry.cached
        assert broker.news.to_publish.is_set()
        (db, web) = broker.view(1.0).local.vms
        assert [(each.obstacle, each.text) for each in db.unfit] == [
            (Obstacle.CANNOT_START, "its record is gone")
        ]
        assert web.unfit == ()

    asyncio.run(run())


def test_report_and_view_survive_the_socket(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, _ = broker_of(tmp_path, volume, 1, VmHere(UP, 9.5, number=2))
        two, _ = broker_of(tmp_path, volume, 2)
        said = saying(VmReportOnWire(2, "EngineUp", 17), claims=(Claim(3, 2, 1, 70.0),))
        assert msgspec.json.decode(msgspec.json.encode(said), type=Report) == said
        one.take_report(said, 9.0)
        await one.beat(10.0)
        await two.beat(10.0)
        view = two.view(10.0)
        assert msgspec.json.decode(msgspec.json.encode(view), type=View) == view
        old = msgspec.json.decode(msgspec.json.encode(report()), type=dict)
        for key in ("vms", "claims", "plan"):
            del old[key]
        assert msgspec.json.decode(msgspec.json.encode(old), type=Report) == report()

    asyncio.run(run())


def test_vms_that_have_no_room_in_the_slot_are_a_trouble_and_are_not_taken_for_down(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        volume, numbers = MemoryVolume(), range(2, 129)
        vms = FakeVms(*(VmHere(UP, 9.5, number=n) for n in numbers))
        registry = registry_of(*(record(n, f"vm{n}") for n in numbers))
        one = make_broker(tmp_path, volume, 1, registry=registry, vms=vms)
        one.own_slot.advertised = ("n" * 900,)
        two, _ = broker_of(tmp_path, volume, 2)
        moving = (
            VmReportOnWire(n, "EngineMigratingAway", 10**12, moving_to=2000, moving_until_s=999.0)
            for n in numbers
        )
        one.take_report(saying(*moving), 9.0)
        await one.beat(10.0)
        await two.beat(10.0)
        left_out = one.status(10.0).hosts[1].left_out
        assert left_out > 0 and two.status(10.0).hosts[1].left_out == left_out
        (peer,) = two.view(10.0).observed().peers
        assert peer.speaks == 1
        assert 0 < len(peer.vms) < 127
        assert all(at(peer, n).report.vm is not VmStatus.DOWN for n in numbers)

    asyncio.run(run())


def test_it_says_over_the_network_that_another_vm_than_the_engine_is_up(tmp_path: Path) -> None:
    """Where the storages differ the others start nothing then; the engine's place is as it was."""

    async def run() -> None:
        broker, vms = broker_of(tmp_path, MemoryVolume(), 1, VmHere(UP, 9.5, number=2))
        broker.take_report(saying(), 9.0)
        await broker.beat(10.0)
        life = broker.sign_of_life._made("0" * 32, 10.0)
        assert life.others_up and life.vm is not VmStatus.UP
        assert _answer(life, 10.0).vm_up
        vms.find(VmHere(DOWN, 9.6, number=2))
        vms.find(VmHere(DOWN, 9.6, number=3))
        life = broker.sign_of_life._made("0" * 32, 10.0)
        assert not life.others_up and _answer(life, 10.0).vm_up, "the engine is not known"
        life = msgspec.structs.replace(life, vm=VmStatus.DOWN)
        assert not _answer(life, 10.0).vm_up
        vms.find(VmHere(UNKNOWN, 9.7, number=2))
        assert broker.sign_of_life._made("0" * 32, 10.0).others_up, "unknown is not down"

    asyncio.run(run())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM that runs with other disks than its definition says is started by nobody until somebody has
decided: a start would boot an old disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from agent.status.vms_text import troubles
from broker.broker import Broker
from broker.events.notice import Notice
from broker.events.of_vms import VmEvents
from broker.monitors.vm_disks import Asked, DisksLook
from broker.registry.record import Definition, VmRecord
from broker.vm.domain_facts import Difference, Differs
from broker.whiteboard.vm_lines import DIFFER, UNLIKE, Differing, differing_in, unlike_in
from broker.wire.exchange import Report, VmReportOnWire
from broker.wire.kinds import Kind
from scoring.vm_facts import EngineStatus, Health, Obstacle, VmHere, VmStatus
from tests.fakes.broker import FakeVms, make_broker, record, registry_of, report
from tests.fakes.slot_store import MemoryVolume

UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")
DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "shut down")
OVERLAY = "disk vda: recorded /images/db.raw, found /images/db.snap"


def db(generation: int) -> VmRecord:
    """The VM, defined at this generation of the registry."""
    kept = Definition(place=0, stored=1, sha256="0" * 64, generation=generation, wall_s=0.0)
    return msgspec.structs.replace(record(2, "db"), definitions=(kept,))


def host(
    tmp_path: Path, volume: MemoryVolume, host_id: int, here: VmHere, defined: int = 5
) -> tuple[Broker, FakeVms]:
    vms = FakeVms(here)
    registry = registry_of(db(defined))
    return make_broker(tmp_path, volume, host_id, registry=registry, vms=vms), vms


def ran(last_ran: int) -> Report:
    return msgspec.structs.replace(report(), vms=(VmReportOnWire(2, "EngineUp", last_ran),))


def obstacles(broker: Broker, now_s: float) -> list[Obstacle]:
    (vm,) = broker.view(now_s).local.vms
    return [unfit.obstacle for unfit in vm.unfit]


def test_a_snapshot_on_a_dead_host_holds_a_start_back_until_somebody_decides(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, vms = host(tmp_path, volume, 1, VmHere(UP, 9.5, number=2))
        two, _ = host(tmp_path, volume, 2, VmHere(DOWN, 9.5, number=2))
        one.take_report(ran(17), 9.0)
        await one.beat(10.0)
        await two.beat(10.0)
        assert obstacles(two, 10.0) == []
        vms.differing = {2: Differing(5, OVERLAY)}
        for now_s in (11.0, 12.0):
            await one.beat(now_s)
            await two.beat(now_s)
        # Host 1 writes nothing any more; what it wrote last stands.
        await two.beat(13.0)
        (vm,) = two.view(13.0).local.vms
        (unfit,) = vm.unfit
        assert unfit.obstacle is Obstacle.HELD_BACK
        assert "ha-agent vm set db disks=recorded" in unfit.text
        assert OVERLAY in unfit.text, "its host is dead, and nobody else could say which disk it is"
        # A decision writes the definition anew: what was seen of the older one counts no more.
        two.registry.cached = registry_of(db(6)).cached
        await two.beat(14.0)
        assert obstacles(two, 14.0) == []

    asyncio.run(run())


def test_a_host_that_comes_back_still_knows_it(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, vms = host(tmp_path, volume, 1, VmHere(UP, 9.5, number=2))
        vms.differing = {2: Differing(5, OVERLAY)}
        one.take_report(ran(17), 9.0)
        for now_s in (10.0, 11.0):
            await one.beat(now_s)
        again, _ = host(tmp_path, volume, 1, VmHere(DOWN, 19.5, number=2))
        for now_s in (20.0, 21.0):
            await again.beat(now_s)
        assert obstacles(again, 21.0) == [Obstacle.HELD_BACK]
        assert OVERLAY in again.view(21.0).local.vms[0].unfit[0].text

    asyncio.run(run())


@pytest.mark.parametrize("comes", ["from another host", "under a new broker"])
def test_a_vm_that_was_not_looked_at_yet_runs_with_what_was_said_of_it(
    tmp_path: Path, comes: str
) -> None:
    """A host may die before it has looked at a VM that came: what stands in the slots then must
    hold a start back on a third host."""

    async def run() -> None:
        volume = MemoryVolume()
        one, vms = host(tmp_path, volume, 1, VmHere(UP, 9.5, number=2))
        two, other = host(tmp_path, volume, 2, VmHere(DOWN, 9.5, number=2))
        third, _ = host(tmp_path, volume, 3, VmHere(DOWN, 9.5, number=2))
        vms.differing, vms.unlike = {2: Differing(5, OVERLAY)}, {2: ()}
        one.take_report(ran(17), 9.0)
        two.take_report(report(), 9.0)
        for now_s in (10.0, 11.0):
            await one.beat(now_s)
            await two.beat(now_s)
        if comes == "from another host":
            vms.find(VmHere(DOWN, 11.5, number=2))
            vms.differing, vms.unlike = {}, {}
            other.find(VmHere(UP, 11.5, number=2))
            two.take_report(msgspec.structs.replace(ran(18), beat=9), 11.6)
            runs = two
        else:
            runs, other = host(tmp_path, volume, 1, VmHere(UP, 11.5, number=2))
        for now_s in (12.0, 13.0):
            await runs.beat(now_s)
            await third.beat(now_s)
        assert obstacles(third, 13.0) == [Obstacle.HELD_BACK]
        # The look has ended, and it runs as its definition says.
        other.unlike = {2: ()}
        runs.take_report(msgspec.structs.replace(ran(18), beat=10), 13.5)
        for now_s in (14.0, 15.0):
            await runs.beat(now_s)
            await third.beat(now_s)
        assert obstacles(third, 15.0) == []

    asyncio.run(run())


def test_where_it_ran_later_as_defined_nothing_is_held_back(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, vms = host(tmp_path, volume, 1, VmHere(UP, 9.5, number=2))
        two, other = host(tmp_path, volume, 2, VmHere(DOWN, 9.5, number=2))
        vms.differing = {2: Differing(5, OVERLAY)}
        one.take_report(ran(17), 9.0)
        two.take_report(report(), 9.0)
        for now_s in (10.0, 11.0):
            await one.beat(now_s)
            await two.beat(now_s)
        assert obstacles(two, 11.0) == [Obstacle.HELD_BACK]
        other.find(VmHere(UP, 11.5, number=2))
        other.unlike = {2: ()}
        two.take_report(msgspec.structs.replace(ran(18), beat=9), 11.6)
        await two.beat(12.0)
        assert obstacles(two, 12.0) == []

    asyncio.run(run())


@pytest.mark.parametrize("line", ["", "x", "2:1", "1:1@1", "999:1@1", "2:1@2@3", "2:-1@1"])
def test_any_line_is_read(line: str) -> None:
    assert differing_in({DIFFER: line}) == {}
    assert differing_in({DIFFER: f"{line} 3:4@5"}) == {3: Differing(5, last_ran=4)}
    read = differing_in({DIFFER: f"{line} 3:4@5", "disks-3": OVERLAY, "disks-4": "x"})
    assert read == {3: Differing(5, OVERLAY, 4)}


def test_what_runs_is_compared_with_the_definition() -> None:
    """libvirt's test driver has one domain that runs."""

    async def run() -> None:
        look = DisksLook("test:///default")
        uuid = "6695eb01-f6a4-8304-79aa-97f2502e193f"
        disk = (
            '<disk type="file" device="disk"><driver name="qemu" type="raw"/>'
            '<source file="/guest/diskimage1"/><target dev="vda"/></disk>'
        )
        old = disk.replace("/guest/diskimage1", "/images/db.raw")
        base = (
            f"<domain type='test'><name>test</name><uuid>{uuid}</uuid>"
            "<memory unit='KiB'>8388608</memory><os><type>hvm</type></os>"
            "<devices>%s</devices></domain>"
        )
        task = look.look({2: Asked(uuid, base % old, 5)}, 10.0)
        assert task is not None
        await task
        assert look.found[2].generation == 5 and "vda" in look.found[2].text
        assert look.look({2: Asked(uuid, base % disk, 5)}, 10.5) is None, "not due yet"
        task = look.look({2: Asked(uuid, base % disk, 5)}, 20.0)
        assert task is not None
        await task
        assert look.found == {}
        assert look.look({}, 30.0) is None
        assert look.unlike == {}

    asyncio.run(run())


def test_firmware_tpm_and_memory_are_compared_as_well_and_hold_nothing_back() -> None:
    async def run() -> None:
        look = DisksLook("test:///default")
        uuid = "6695eb01-f6a4-8304-79aa-97f2502e193f"
        definition = (
            f"<domain type='test'><name>test</name><uuid>{uuid}</uuid>"
            "<memory unit='GiB'>4</memory><os><type>hvm</type>"
            "<loader type='pflash'>/usr/share/OVMF.fd</loader><nvram>/shared/db.fd</nvram></os>"
            "<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/>"
            "<source file='/guest/diskimage1'/><target dev='vda'/></disk>"
            "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>"
        )
        task = look.look({2: Asked(uuid, definition, 5)}, 10.0)
        assert task is not None
        await task
        assert look.found == {}
        codes = {each.code for each in look.unlike[2]}
        assert {Differs.FIRMWARE, Differs.TPM, Differs.MEMORY} <= codes
        assert Differs.DISKS not in codes

    asyncio.run(run())


FIRMWARE = Difference(Differs.FIRMWARE, "nvram", "/shared/db.fd", "/var/lib/libvirt/db.fd")
TPM = Difference(Differs.TPM, "tpm", "", "tpm-crb")


def test_every_host_says_in_what_a_vm_is_unlike_its_definition(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, vms = host(tmp_path, volume, 1, VmHere(UP, 9.5, number=2))
        two, _ = host(tmp_path, volume, 2, VmHere(DOWN, 9.5, number=2))
        vms.unlike = {2: (FIRMWARE, TPM)}
        one.take_report(ran(17), 9.0)
        for now_s in (10.0, 11.0):
            await one.beat(now_s)
            await two.beat(now_s)
        assert obstacles(two, 11.0) == []
        there, here = two.status(11.0).vms[1], one.status(11.0).vms[1]
        assert there.differs == here.differs == ("firmware-differs", "tpm-differs")
        assert (there.differences, here.differences) == ((), (str(FIRMWARE), str(TPM)))
        (said,) = (line for line in troubles(one.status(11.0)) if "definition" in line)
        assert "nvram: recorded /shared/db.fd" in said and "--from-running" in said
        (said,) = (line for line in troubles(two.status(11.0)) if "definition" in line)
        assert "firmware-differs, tpm-differs" in said

    asyncio.run(run())


def test_a_notice_says_in_what_a_vm_differs_once_and_when_it_no_longer_does() -> None:
    said: list[Notice] = []
    events = VmEvents(said.append, "host1", {})
    events.names = {2: "db"}
    for found in ({2: (FIRMWARE,)}, {2: (FIRMWARE,)}, {}, {2: (FIRMWARE, TPM)}, {2: (TPM,)}):
        events.differences(found)
    assert [(each.kind, each.facts["what"], each.facts["vm"]) for each in said] == [
        (Kind.VM_DIFFERS, "nvram", "db"),
        (Kind.VM_DIFFERS, "tpm", "db"),
        (Kind.VM_AS_RECORDED, "nvram", "db"),
    ]


@pytest.mark.parametrize("line", ["", "x", "2:", "1:F", "999:F", "2:f", "2:F:T"])
def test_any_line_about_what_differs_is_read(line: str) -> None:
    assert unlike_in({UNLIKE: line}) == {}
    codes = (Differs.FIRMWARE, Differs.VCPUS)
    assert unlike_in({UNLIKE: f"{line} 3:CFZ"}) == {3: codes}

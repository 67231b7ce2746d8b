# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a VM of the registry is started from: this host's copy, and never an older or a damaged
one."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from pathlib import Path
from typing import Any

import libvirt
import msgspec
import pytest

from agent.leases.sanlock import SanlockLeases
from agent.leases.vm_records import VmRecords
from agent.vm import hypervisor, protected
from agent.vm.definition import load_definition
from agent.vm.errors import DefinitionError
from agent.vm.hypervisors import LibvirtHypervisors
from agent.vm.old_domains import OldDomains
from agent.vm.protected import Engine, RecordedVm
from broker.config.engine_file import ENGINE_FILE, FOLDER
from broker.config.sections import (
    ClusterSection,
    Config,
    DaemonSection,
    HostSection,
    LibvirtSection,
    StorageSection,
    VmSection,
)
from broker.lockspace.delta_leases import Layout
from broker.registry.cache import Cached, write_kept
from broker.registry.record import Definition, VmRecord
from scoring.observation import StartResult, VmStartEnded, VmStopEnded
from scoring.vm_facts import Want
from tests.fakes.libvirt_errors import libvirt_error

UUID = "6e67696e-0000-4000-8000-000000000002"
RESOURCE = "vm-" + UUID.replace("-", "")
ALIGN = 1 << 20
XML = f"""<domain type='test'>
  <name>db</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type>hvm</type></os>
  <devices><lease><lockspace>hosted-engine</lockspace><key>{RESOURCE}</key>
    <target path='/leases' offset='{16 * ALIGN}'/></lease></devices>
</domain>"""


def record(xml: str = XML, **changes: Any) -> VmRecord:
    kept = Definition(
        place=0,
        stored=len(xml),
        sha256=hashlib.sha256(xml.encode()).hexdigest(),
        generation=1,
        wall_s=1.0,
    )
    made = VmRecord(number=2, name="db", uuid=UUID, generation=1, memory_mb=64, definitions=(kept,))
    return msgspec.structs.replace(made, **changes)


class Host:
    """A host with a state folder in which a broker keeps the copy."""

    def __init__(self, folder: Path) -> None:
        self.config = Config(
            host=HostSection(id=1, name="one"),
            cluster=ClusterSection(id="7b3f"),
            storage=StorageSection(whiteboard="/whiteboard", leases="/leases"),
            libvirt=LibvirtSection(pid_dir=str(folder)),
            daemon=DaemonSection(state_dir=str(folder)),
        )
        self.folder = folder / FOLDER
        self.records = VmRecords(self.config)
        self.vm = RecordedVm(self.config, 2, self.records)

    def keep(self, one: VmRecord, xml: str = XML, generation: int = 1, damaged: str = "") -> None:
        """What the broker does after a reading."""
        cached = Cached(generation, {2: one}, {2: xml}, {2: damaged} if damaged else {})
        write_kept(self.folder, "7b3f", cached)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(protected, "layout_at", lambda path: Layout(512))
    monkeypatch.setattr(protected, "REGISTRY_LOOK_S", 0.0)
    monkeypatch.setattr(protected, "REGISTRY_PATIENCE_S", 0.0)
    return Host(tmp_path)


def refused(host: Host, registry: int = 1) -> str:
    with pytest.raises(DefinitionError) as error:
        host.vm.wanted(registry)
    return str(error.value)


def test_it_is_the_copy_s_and_a_new_copy_is_seen(host: Host) -> None:
    host.keep(record())
    found = host.vm.wanted(1)
    assert (found.xml, found.name, found.memory_mb) == (XML, "db", 64)
    assert found.lease_offset == 16 * ALIGN and host.vm.resource == RESOURCE
    larger = XML.replace(">64<", ">128<")
    host.keep(record(larger, generation=2, memory_mb=128), larger, generation=2)
    assert host.vm.wanted(2).memory_mb == 128


def test_no_older_definition_is_started_than_any_host_knows(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.keep(record())
    assert "the registry has generation 2, and this host has read 1" in refused(host, 2)
    # The broker has read it while the start waits.
    monkeypatch.setattr(protected, "REGISTRY_PATIENCE_S", 60.0)
    larger = XML.replace(">64<", ">128<")
    looks: list[None] = []

    def sleep(seconds: float) -> None:
        looks.append(None)
        if len(looks) == 3:
            host.keep(record(larger, generation=2, memory_mb=128), larger, generation=2)

    monkeypatch.setattr("agent.vm.protected.time.sleep", sleep)
    assert host.vm.wanted(2).memory_mb == 128 and len(looks) == 3


def test_a_damaged_definition_is_not_started(host: Host) -> None:
    assert "VM 2 is not in the registry as this host knows it" in refused(host, 0)
    host.keep(record(), damaged="its record in the registry cannot be read")
    assert refused(host) == "db: its record in the registry cannot be read"
    host.keep(record())
    (path,) = host.folder.glob("*.xml")
    path.write_text(XML.replace(">64<", ">65<"))
    fresh = RecordedVm(host.config, 2, VmRecords(host.config))
    with pytest.raises(DefinitionError, match="the copy of db's definition here is damaged"):
        fresh.wanted(1)


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        (XML.replace(RESOURCE, "engine"), "has no <lease> for lockspace hosted-engine, key vm-"),
        (XML.replace(str(16 * ALIGN), "1048576"), "has its lease at 1048576, VM 2 has it at 16777"),
        (XML.replace(f"<uuid>{UUID}", f"<uuid>{UUID[:-1]}9"), "has UUID 6e67696e"),
        (XML.replace(f"<uuid>{UUID}</uuid>", ""), "has no <uuid>"),
        (XML.replace("<memory unit='MiB'>64</memory>", ""), "has no usable <memory>"),
        ("<network/>", "holds <network>, not a libvirt <domain>"),
        ("<domain", "is not XML"),
    ],
)
def test_a_definition_that_does_not_fit_its_record_is_not_started(
    host: Host, xml: str, says: str
) -> None:
    host.keep(record(xml), xml)
    assert says in refused(host)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"want": Want.DOWN}, "db is wanted down since this start was decided"),
        ({"only": (2, 3)}, "db may run on hosts 2, 3 alone since this start was decided"),
        ({"only": (1, 3)}, ""),
    ],
)
def test_a_start_that_the_registry_forbids_by_now_is_not_carried_out(
    host: Host, changes: dict[str, Any], says: str
) -> None:
    """The decision was made by an older copy, and the start has waited since."""
    host.keep(record(generation=2, **changes), generation=2)
    if says:
        assert refused(host, 2) == says
    else:
        assert host.vm.wanted(2).name == "db"


def test_a_removed_vm_is_not_started_and_can_still_be_ended(host: Host) -> None:
    host.keep(record())
    host.vm.wanted(1)
    host.keep(record(removed=True, generation=2), generation=2)
    assert refused(host, 2) == "db has no definition in the registry"
    write_kept(host.folder, "7b3f", Cached(3))
    assert refused(host, 3) == "db has no definition in the registry"
    assert host.vm.resource == RESOURCE, "what runs can be named"


class Libvirt:
    """A libvirt whose defineXML waits for a word, for one of its VMs; its starts then fail, for it
    has no processes."""

    def __init__(self, hanging: str) -> None:
        self.hanging, self.word = hanging, threading.Event()
        self.defined: list[str] = []

    def lookupByName(self, name: str) -> None:  # noqa: N802
        raise self._error(libvirt.VIR_ERR_NO_DOMAIN, "no domain")

    lookupByUUIDString = lookupByName  # noqa: N815

    def defineXML(self, xml: str) -> None:  # noqa: N802
        self.defined.append(xml)
        if self.hanging in xml:
            assert self.word.wait(30.0)
        raise self._error(1, "no processes here")

    def _error(self, code: int, text: str) -> libvirt.libvirtError:
        return libvirt_error(text, code, 10)

    def close(self) -> None:
        """Nothing is open."""


def several(host: Host, numbers: range) -> LibvirtHypervisors:
    """Hands on VMs of these numbers, whose names are vm2, …"""
    records: dict[int, VmRecord] = {}
    definitions: dict[int, str] = {}
    for number in numbers:
        uuid = f"{UUID[:-3]}{number:03d}"
        xml = (
            XML.replace("<name>db<", f"<name>vm{number}<")
            .replace(UUID, uuid)
            .replace(RESOURCE, "vm-" + uuid.replace("-", ""))
            .replace(str(16 * ALIGN), str((14 + number) * ALIGN))
        )
        records[number] = record(xml, number=number, name=f"vm{number}", uuid=uuid)
        definitions[number] = xml
    write_kept(host.folder, "7b3f", Cached(1, records, definitions))
    leases = SanlockLeases(host.config, 0, records=host.records)
    return LibvirtHypervisors(host.config, None, leases, host.records)  # type: ignore[arg-type]


def test_what_hangs_for_one_vm_holds_no_other(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Libvirt(hanging="<name>vm2<")
    monkeypatch.setattr(libvirt, "open", lambda uri: node)

    async def story() -> None:
        hands = several(host, range(2, 5))
        hung = asyncio.create_task(hands(2).start(None, 1))
        while not node.defined:
            await asyncio.sleep(0)
        failed = VmStartEnded(StartResult.FAILED, "libvirt: no processes here")
        assert await hands(3).start(None, 1) == await hands(4).start(None, 1) == failed
        assert await hands(3).shut_down() == VmStopEnded(True), "it is not there"
        assert not hung.done() and hands(2) is hands(2)
        node.word.set()
        assert await hung == failed

    asyncio.run(asyncio.wait_for(story(), 30.0))


def test_no_more_than_four_start_at_once_until_one_has_really_ended(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fifth begins nothing: it would take sanlock's next thread."""
    node = Libvirt(hanging="<name>")
    monkeypatch.setattr(libvirt, "open", lambda uri: node)
    monkeypatch.setattr(hypervisor, "START_TURN_S", 0.05)
    monkeypatch.setattr(hypervisor, "START_DEADLINE_S", 0.5)

    async def story() -> None:
        hands = several(host, range(2, 8))
        hung = [asyncio.create_task(hands(vm).start(None, 1)) for vm in range(2, 6)]
        while len(node.defined) < 4:
            await asyncio.sleep(0)
        monkeypatch.setattr(hypervisor, "START_DEADLINE_S", 30.0)
        over = "4 VMs are being started on this host and do not end"
        assert await hands(6).start(None, 1) == VmStartEnded(StartResult.FAILED, over)
        for each in hung:
            assert "has not answered" in (await each).detail
        late = await hands(7).start(None, 1)
        assert late.detail == over, "nobody waits for them any more, but they have not ended"
        node.word.set()
        while (ended := await hands(6).start(None, 1)).detail == over:
            await asyncio.sleep(0)
        assert ended.detail == "libvirt: no processes here"

    asyncio.run(asyncio.wait_for(story(), 30.0))


def test_a_domain_of_earlier_days_is_undefined_when_the_registry_changes(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a domain would keep the VM from being migrated here, which no start here mends."""
    (tmp_path / "node.xml").write_text("<node/>")
    real = libvirt.open(f"test://{tmp_path}/node.xml")
    old_uuid = UUID[:-1] + "9"
    old = XML.replace(UUID, old_uuid).replace(RESOURCE, "vm-" + old_uuid.replace("-", ""))
    opened: list[str] = []

    class Open:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def close(self) -> None:
            """Not yet: the test driver forgets everything."""

    def connect(uri: str) -> Open:
        opened.append(uri)
        return Open()

    monkeypatch.setattr(libvirt, "open", connect)
    looks = OldDomains(host.config, host.records)
    host.keep(record())
    looks.look()
    looks.look()
    assert len(opened) == 1, "nothing has changed"
    real.defineXML(old)
    other = XML.replace("<name>db<", "<name>other<").replace(UUID, UUID[:-1] + "8")
    real.defineXML(other)
    host.keep(record(generation=2), generation=2)
    looks.look()
    assert [domain.name() for domain in real.listAllDomains()] == ["other"]


REACH = "<serial type='file'><source path='/root/.ssh/authorized_keys'/></serial></devices>"


def test_what_this_host_must_not_start_is_refused_at_the_start_too(host: Host) -> None:
    """The copy is read by the broker, and by the agent once more."""
    xml = XML.replace("</devices>", REACH)
    host.keep(record(xml), xml)
    assert "passthrough is off on this host" in refused(host)


ENGINE_XML = f"""<domain type='kvm'>
  <name>engine-vm</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory>
  <os><type>hvm</type></os>
  <devices><lease><lockspace>hosted-engine</lockspace><key>engine</key>
    <target path='/leases' offset='{ALIGN}'/></lease></devices>
</domain>"""


def engine_in_the_registry(host: Host, xml: str, generation: int = 1, **changes: Any) -> Engine:
    """VM 1 on a host whose broker has that copy, and whose daemons were restarted since."""
    config = msgspec.structs.replace(
        host.config,
        vm=VmSection(name="engine-vm", definition=str(host.folder / ENGINE_FILE)),
    )
    one = record(xml, number=1, name="engine-vm", **changes)
    write_kept(host.folder, "7b3f", Cached(generation, {1: one}, {1: xml}))
    return Engine(config, load_definition(config), host.records)


def test_the_engine_of_the_registry_is_no_older_than_any_host_knows(host: Host) -> None:
    engine = engine_in_the_registry(host, ENGINE_XML)
    assert engine.wanted(1).xml == ENGINE_XML
    with pytest.raises(DefinitionError, match="generation 2, and this host has read 1"):
        engine.wanted(2)


def test_the_engine_of_the_registry_may_do_no_more_than_other_vms(host: Host) -> None:
    """The definition was written on another host, whose intruder must not become root here."""
    engine = engine_in_the_registry(host, ENGINE_XML.replace("</devices>", REACH))
    with pytest.raises(DefinitionError, match="passthrough is off on this host"):
        engine.wanted(1)
    engine.config = msgspec.structs.replace(engine.config, libvirt=LibvirtSection(passthrough=True))
    assert "authorized_keys" in engine.wanted(1).xml


def test_the_engine_of_a_file_is_the_host_s_own_word(host: Host, tmp_path: Path) -> None:
    """Also where the registry has had it once."""
    engine = engine_in_the_registry(host, ENGINE_XML, removed=True)
    assert engine.wanted(1).name == "engine-vm"
    own = tmp_path / "own.xml"
    own.write_text(ENGINE_XML.replace(">64<", ">96<"))
    engine.config = msgspec.structs.replace(
        engine.config, vm=VmSection(name="engine-vm", definition=str(own))
    )
    assert engine.wanted(9).memory_mb == 96


def test_a_lease_is_asked_for_by_the_name_in_the_copy(host: Host) -> None:
    host.keep(record())
    leases = SanlockLeases(host.config, 0)
    mine, other = asyncio.run(leases.ask_vms((2, 9)))
    assert (mine.vm, mine.known, other.vm, other.known) == (2, False, 9, False)
    assert "/leases" in mine.detail, "there is no such volume"
    assert other.detail == "VM 9 is not in the registry as this host knows it"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a host could start the VM, part by part; libvirt's errors are those that libvirt 9.0 gave
when it was asked (code, domain), through a connection of this test's own."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import libvirt
import pytest

from agent.doctor import host as health_of_host
from broker.config.sections import Config, HostSection, StorageSection, VmSection
from broker.monitors import can_start as monitor_module
from broker.monitors.can_start import AGAIN_S, CanStartMonitor
from broker.monitors.runner import Unknown
from broker.vm import start_proof
from broker.vm.errors import BadDomain
from broker.vm.needs import NeededFile, VmNeeds, needs_of
from broker.vm.start_proof import lacks, refusals, unreadable
from tests.fakes.libvirt_errors import libvirt_error

VM = """<domain type='kvm'><name>vm</name><memory unit='GiB'>2</memory><vcpu>4</vcpu>
<os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type><kernel>/boot/vm</kernel>
<nvram template='/usr/share/vars'>/var/nvram/vm</nvram></os>
<cpu mode='custom'><model>Skylake-Server</model></cpu>
<devices><emulator>/usr/bin/qemu</emulator>
<disk type='file'><source file='/shared/top'/><backingStore type='file'>
<source file='/shared/base'/><backingStore/></backingStore><target dev='vda'/></disk>
<disk type='block'><source dev='/dev/vg/data'/><target dev='vdb'/></disk>
<disk type='file' device='cdrom'><source file='/iso' startupPolicy='optional'/></disk>
<disk type='file' device='cdrom'><target dev='sdb'/></disk>
<disk type='network'><source protocol='rbd' name='pool/image'/><target dev='vdc'/></disk>
<disk type='volume'><source pool='iscsi' volume='unit:0:0:1'/><target dev='vdd'/></disk>
<interface type='bridge'><source bridge='br-vlan20'/></interface>
<interface type='direct'><source dev='eth9'/></interface>
<interface type='network'><source network='inner'/></interface>
<interface type='user'/>
<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='0x3b' slot='0x00'
function='0x1'/></source></hostdev>
</devices></domain>"""
NEEDS = needs_of(VM)


def changed(*changes: tuple[str, str]) -> VmNeeds:
    text = VM
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return needs_of(text)


# --- what the definition needs --------------------------------------------------------------------


def test_what_a_definition_needs() -> None:
    assert (NEEDS.domain_type, NEEDS.arch, NEEDS.machine) == ("kvm", "x86_64", "q35")
    assert (NEEDS.emulator, NEEDS.vcpus, NEEDS.memory_kib) == ("/usr/bin/qemu", 4, 2 * 2**20)
    assert NEEDS.files == (
        NeededFile("/boot/vm", "the kernel"),
        NeededFile("/var/nvram/vm", "the firmware's variables", "/usr/share/vars"),
        NeededFile("/shared/top", "disk vda"),
        NeededFile("/shared/base", "disk vda"),
        NeededFile("/dev/vg/data", "disk vdb"),
    )
    assert NEEDS.links == (("br-vlan20", "bridge"), ("eth9", "network device"))
    assert (NEEDS.networks, NEEDS.volumes) == (("inner",), (("iscsi", "unit:0:0:1"),))
    assert NEEDS.pci == ("0000:3b:00.1",)
    assert NEEDS.efi and "Skylake-Server" in NEEDS.cpu
    assert needs_of("<domain/>") == VmNeeds("")


@pytest.mark.parametrize(
    ("change", "is_compared"),
    [
        (("mode='custom'", ""), True),
        (("mode='custom'", "check='none'"), False),
        (("type='kvm'", "type='qemu'"), False),
        (("<cpu mode='custom'>", "<cpu mode='host-model'>"), False),
    ],
)
def test_the_cpu_is_compared_where_libvirt_compares_it(
    change: tuple[str, str], is_compared: bool
) -> None:
    assert bool(changed(change).cpu) is is_compared
    asked_for = changed(("type='kvm'", "type='qemu'"), ("mode='custom'", "check='full'"))
    assert asked_for.cpu, "who says so wants it without KVM too"


@pytest.mark.parametrize("text", ["no", "<pool/>", "<?xml version='1.0' encoding='utf-99'?><a/>"])
def test_a_text_that_is_no_definition(text: str) -> None:
    with pytest.raises(BadDomain):
        needs_of(text)


@pytest.mark.parametrize(
    ("pages", "sizes"),
    [
        ("<hugepages/>", (0,)),
        ("<hugepages><page size='1' unit='GiB'/></hugepages>", (2**20,)),
        ("<hugepages><page size='2048'/><page size='x'/></hugepages>", (2048,)),
    ],
)
def test_the_sizes_of_huge_pages(pages: str, sizes: tuple[int, ...]) -> None:
    text = f"<domain><memoryBacking>{pages}</memoryBacking></domain>"
    assert needs_of(text).hugepages_kib == sizes


# --- the host -------------------------------------------------------------------------------------

MEMINFO = "MemTotal:  4194304 kB\nSwapTotal:  0 kB\nHugepagesize:  2048 kB\n"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host that has all of it."""
    for name in ("br-vlan20", "eth9"):
        (tmp_path / "sys/class/net" / name).mkdir(parents=True)
    (tmp_path / "sys/bus/pci/devices/0000:3b:00.1").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kvm").touch()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    pool = tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB"
    pool.mkdir(parents=True)
    (pool / "nr_hugepages").write_text("1000\n")
    (pool / "nr_overcommit_hugepages").write_text("24\n")
    return tmp_path


def test_a_host_that_has_all_lacks_nothing(host: Path) -> None:
    assert list(lacks(NEEDS, host)) == []
    (host / "proc/meminfo").unlink()
    assert list(lacks(NEEDS, host)) == [], "what is not known is no lack"


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("sys/class/net/br-vlan20", "br-vlan20 of the VM's interface is not on this host"),
        ("sys/class/net/eth9", "make that network device"),
        ("sys/bus/pci/devices/0000:3b:00.1", "PCI device 0000:3b:00.1"),
        ("dev/kvm", "there is no /dev/kvm"),
    ],
)
def test_each_thing_that_is_not_there_is_named(host: Path, gone: str, said: str) -> None:
    path = host / gone
    path.rmdir() if path.is_dir() else path.unlink()
    (problem,) = lacks(NEEDS, host)
    assert said in problem


def test_more_memory_than_there_is_in_all(host: Path) -> None:
    assert not list(lacks(changed(("'GiB'>2<", "'GiB'>4<")), host))
    (problem,) = lacks(changed(("'GiB'>2<", "'GiB'>5<")), host)
    assert "5120 MiB" in problem and "4096 in all" in problem
    swap = MEMINFO.replace("SwapTotal:  0", "SwapTotal:  2000000")
    (host / "proc/meminfo").write_text(swap)
    assert not list(lacks(changed(("'GiB'>2<", "'GiB'>5<")), host))


def test_huge_pages(host: Path) -> None:
    def found(page: str, gib: int) -> list[str]:
        backing = f"<memoryBacking><hugepages>{page}</hugepages></memoryBacking>"
        return list(lacks(changed(("<vcpu>", f"{backing}<vcpu>"), (">2<", f">{gib}<")), host))

    assert found("", 2) == found("<page size='2048'/>", 2) == []
    (problem,) = found("", 3)
    assert "3072 MiB in huge pages of 2048 KiB" in problem and "2048 in all" in problem
    (problem,) = found("<page size='1' unit='G'/>", 1)
    assert "no huge pages of 1048576 KiB" in problem


# --- files ----------------------------------------------------------------------------------------


def test_files_that_are_there_and_files_that_are_not(tmp_path: Path) -> None:
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.touch()
    needs = VmNeeds(
        "qemu",
        emulator=str(there),
        files=(
            NeededFile(str(there), "disk vda"),
            NeededFile(str(gone), "the firmware's variables", str(there)),
        ),
    )
    assert list(unreadable(needs)) == []
    needs = VmNeeds(
        "qemu",
        emulator=str(gone),
        files=(
            NeededFile(str(gone), "disk vda"),
            NeededFile(str(gone), "the variables", f"{gone}2"),
            NeededFile(str(there / "below"), "the kernel"),
        ),
    )
    emulator, disk, template, kernel = unreadable(needs)
    assert emulator.startswith(f"the emulator: {gone} cannot be read on this host: No such file")
    assert disk.startswith(f"disk vda: {gone}")
    assert template.startswith(f"the template of the variables: {gone}2")
    assert kernel.endswith("Not a directory")


@pytest.mark.parametrize(
    ("number", "is_problem"),
    [
        (errno.EACCES, False),
        (errno.EMFILE, False),
        (errno.EIO, True),
        (errno.ESTALE, True),
        (errno.ENOTCONN, True),
    ],
)
def test_what_the_file_says_and_what_is_our_own_trouble(
    monkeypatch: pytest.MonkeyPatch, number: int, is_problem: bool
) -> None:
    def fails(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    needs = VmNeeds("qemu", files=(NeededFile("/disk", "disk vda"),))
    monkeypatch.setattr(os, "open", fails)
    assert bool(list(unreadable(needs))) is is_problem


def test_a_folder_that_the_unit_sees_otherwise_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = VmNeeds("qemu", files=(NeededFile(str(tmp_path / "gone"), "disk vda"),))
    monkeypatch.setattr(start_proof, "_hidden", lambda: (f"{tmp_path}/",))
    assert list(unreadable(needs)) == []


# --- libvirt --------------------------------------------------------------------------------------

CAPABILITIES = """<domainCapabilities><os supported='yes'><enum name='firmware'>
<value>efi</value></enum></os><vcpu max='255'/></domainCapabilities>"""


def error(code: int, domain: int, text: str) -> libvirt.libvirtError:
    return libvirt_error(text, code, domain)


class Libvirt:
    """A connection that knows everything, but for what `answers` says: by method, an error or
    another answer."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers
        self.asked: list[str] = []

    def _answer(self, name: str, usual: Any) -> Any:
        self.asked.append(name)
        answer = self._answers.get(name, usual)
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    def getDomainCapabilities(self, *_: Any) -> Any:  # noqa: N802
        return self._answer("capabilities", CAPABILITIES)

    def compareHypervisorCPU(self, *_: Any) -> Any:  # noqa: N802
        return self._answer("cpu", 2)

    def networkLookupByName(self, name: str) -> Any:  # noqa: N802
        return self._answer("network", self)

    def storagePoolLookupByName(self, name: str) -> Any:  # noqa: N802
        return self._answer("pool", self)

    def storageVolLookupByName(self, name: str) -> Any:  # noqa: N802
        return self._answer("volume", self)

    def isActive(self) -> Any:  # noqa: N802
        return self._answer("active", 1)

    def domainXMLToNative(self, *_: Any) -> Any:  # noqa: N802
        return self._answer("native", "/usr/bin/qemu")

    def close(self) -> None:
        """Nothing is open."""


CPU = libvirt.VIR_FROM_CPU
QEMU = libvirt.VIR_FROM_QEMU
MACHINE = error(8, QEMU, "invalid argument: the machine 'pc-q35-99.0' is not supported")
REFUSED = error(67, QEMU, "unsupported configuration: TPM version '2.0' is not supported")
INTERNAL = error(1, QEMU, "internal error: invalid PCI passthrough type 'default'")
SILENT = error(38, libvirt.VIR_FROM_RPC, "Cannot write data: Broken pipe")


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({}, None),
        ({"capabilities": MACHINE}, "libvirt: invalid argument: the machine 'pc-q35-99.0'"),
        ({"capabilities": CAPABILITIES.replace("255", "2")}, "the VM has 4 CPUs"),
        ({"capabilities": CAPABILITIES.replace("efi", "bios")}, "no UEFI firmware"),
        ({"capabilities": error(3, 20, "not supported by the driver")}, None),
        ({"cpu": error(91, CPU, "lacks avx512f")}, "the VM's CPU cannot be had on this host"),
        ({"cpu": error(1, CPU, "Unknown CPU model Nosuch")}, "Unknown CPU model Nosuch"),
        ({"cpu": error(1, QEMU, "something else")}, None),
        ({"network": error(43, 19, "Network not found")}, "knows no network 'inner'"),
        ({"network": Libvirt(active=0)}, "'inner' is not active here: virsh net-start inner"),
        ({"pool": error(49, 18, "no pool")}, "knows no storage pool 'iscsi'"),
        ({"pool": Libvirt(active=0)}, "virsh pool-start iscsi"),
        ({"volume": error(50, 18, "no volume")}, "has no volume 'unit:0:0:1' here"),
        ({"volume": INTERNAL}, None),
        ({"native": REFUSED}, "libvirt refuses the definition: unsupported configuration: TPM"),
        ({"native": error(27, 5, "XML error: bad type")}, "XML error: bad type"),
        ({"native": INTERNAL}, None),
    ],
)
def test_what_libvirt_refuses_and_what_it_cannot_tell(
    answers: dict[str, Any], said: str | None
) -> None:
    found = list(refusals(Libvirt(**answers), NEEDS, VM))
    assert len(found) == (said is not None), found
    assert said is None or said in found[0]


@pytest.mark.parametrize("method", ["capabilities", "cpu", "network", "pool", "native"])
def test_a_libvirt_that_does_not_answer_has_said_nothing(method: str) -> None:
    with pytest.raises(libvirt.libvirtError):
        list(refusals(Libvirt(**{method: SILENT}), NEEDS, VM))


# --- the monitor ----------------------------------------------------------------------------------


class Site:
    """A monitor on a host whose files, /sys and libvirt the test gives."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **vm: Any) -> None:
        self.libvirt = Libvirt()
        self.lacking: list[str] = []
        self.opens: Any = lambda needs: iter(())
        self.definition = folder / "engine.xml"
        self.definition.write_text(VM)
        self.config = Config(
            host=HostSection(id=1, name="one"),
            storage=StorageSection(whiteboard="/no/whiteboard", leases="/no/leases"),
            vm=VmSection(name="vm", definition=str(self.definition), **vm),
        )
        self.monitor = CanStartMonitor(self.config)
        monkeypatch.setattr(libvirt, "open", lambda uri: self.libvirt)
        for module in (monitor_module, health_of_host):
            monkeypatch.setattr(module, "lacks", lambda needs: iter(self.lacking))
            monkeypatch.setattr(module, "unreadable", lambda needs: self.opens(needs))

    async def look(self) -> tuple[bool | None, str]:
        try:
            value = await self.monitor.sample()
        except Unknown as unknown:
            return None, str(unknown)
        return value, self.monitor.judge(value)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_the_monitor_looks_often_until_it_can(site: Site) -> None:
    async def run() -> None:
        site.lacking = ["no bridge"]
        assert await site.look() == (False, "no bridge")
        assert site.monitor.interval_s == AGAIN_S
        site.lacking = [str(number) for number in range(5)]
        assert await site.look() == (False, "0; 1; 2; and 2 more (ha-agent doctor)")
        site.lacking = []
        assert await site.look() == (True, "")
        assert site.monitor.interval_s == 60.0

    asyncio.run(run())


def test_storage_that_hangs_hides_no_missing_bridge_and_is_no_cannot(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "PART_DEADLINE_S", 0.05)
    answers = threading.Event()

    def hangs(needs: VmNeeds) -> Any:
        answers.wait(10.0)
        return iter(())

    async def run() -> None:
        site.opens = hangs
        value, problem = await site.look()
        assert value is None and "files of the VM" in problem
        assert site.monitor.interval_s == AGAIN_S
        site.lacking = ["no bridge"]
        assert await site.look() == (False, "no bridge")
        answers.set()

    asyncio.run(run())


def test_a_libvirt_that_is_away_is_not_known_and_asked_anew(site: Site) -> None:
    async def run() -> None:
        site.libvirt = Libvirt(capabilities=SILENT)
        value, problem = await site.look()
        assert value is None and "Broken pipe" in problem
        site.libvirt = Libvirt()
        assert await site.look() == (True, "")

    asyncio.run(run())


def test_libvirt_is_not_asked_for_each_of_many_changes(site: Site) -> None:
    async def run() -> None:
        for _ in range(20):
            assert await site.look() == (True, "")
        assert site.libvirt.asked.count("native") == 1
        site.definition.write_text(VM + " ")
        await site.look()
        assert site.libvirt.asked.count("native") == 2, "another definition is another question"

    asyncio.run(run())


def test_what_is_proven_has_the_disks_that_ran_last(site: Site) -> None:
    async def run() -> None:
        needed: list[str] = []

        def opens(needs: VmNeeds) -> Any:
            needed[:] = [file.path for file in needs.files if file.what == "disk vda"]
            return iter(())

        site.opens = opens
        await site.look()
        assert needed == ["/shared/top", "/shared/base"]
        overlay = "<disk type='file'><source file='/shared/overlay'/><target dev='vda'/></disk>"
        site.monitor.disks = lambda: {"vda": overlay}
        await site.look()
        assert needed == ["/shared/overlay"]

    asyncio.run(run())


def test_of_a_definition_that_cannot_be_used_nothing_is_known(site: Site) -> None:
    async def run() -> None:
        site.definition.write_text("no")
        value, problem = await site.look()
        assert value is None and "is not XML" in problem
        site.definition.unlink()
        assert (await site.look())[0] is None

    asyncio.run(run())


def test_a_host_that_shall_not_prove_it_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, monkeypatch, prove_start=False)
    site.lacking = ["no bridge"]
    assert asyncio.run(site.look()) == (None, "not looked at: vm.prove-start is false")


def test_doctor_gives_the_same_proof(site: Site) -> None:
    (found,) = health_of_host.can_start(site.config)
    assert found[0] == "ok"
    site.lacking = ["no bridge"]
    site.libvirt = Libvirt(native=REFUSED)
    verdicts = [(verdict, text) for verdict, text, _ in health_of_host.can_start(site.config)]
    assert verdicts == [
        ("fail", "no bridge"),
        ("fail", f"libvirt refuses the definition: {REFUSED}"),
    ]
    site.lacking, site.libvirt = [], Libvirt(capabilities=SILENT)
    assert next(health_of_host.can_start(site.config))[0] == "warn"

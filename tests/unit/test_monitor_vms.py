# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VMs of the registry on this host. libvirt's own test driver plays the hypervisor, with the
domains of a file of the test's own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import libvirt
import pytest
from msgspec import structs

from broker.config.sections import (
    Config,
    DaemonSection,
    HealthSection,
    HostSection,
    LibvirtSection,
    StorageSection,
)
from broker.monitors import vms
from broker.monitors.all_domains import AllDomains, DomainSeen
from broker.monitors.budget import Committed
from broker.monitors.domain_events import PANICKED
from broker.monitors.health_asked import health_of
from broker.monitors.of_host import HostMonitors
from broker.monitors.runner import Unknown
from broker.monitors.vms import OFF_EVERY_S, VmsMonitor
from broker.registry.cache import Cached
from broker.registry.record import VmRecord
from broker.whiteboard.vm_lines import Memory
from scoring.vm_facts import DomainHere, EngineStatus, Health, VmHere, VmStatus
from tests.fakes.broker import record
from tests.fakes.waiting import PATIENCE_S

DB, WEB, SSO = record(2, "db"), record(3, "web"), record(4, "sso")
FOREIGN = record(99, "foreign")
DOMAIN = """<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>{kb}</memory>
<os><type>hvm</type></os>{more}</domain>"""
HUGE = "<memoryBacking><hugepages/></memoryBacking>"
#: A domain that is off by libvirt's word, and one that runs.
OFF = DomainSeen(libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED)
RUNS = DomainSeen(libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED, Committed(2048.0))
UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")
DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "powered off")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that is under way is waited for, however busy the machine is."""
    monkeypatch.setattr(vms, "WAIT_S", PATIENCE_S)


def domain(of: VmRecord, more: str = "") -> str:
    return DOMAIN.format(name=of.name, uuid=of.uuid, kb=of.memory_mb * 1024, more=more)


def config_of(tmp_path: Path, *domains: str) -> Config:
    """The test driver makes the domains of the file anew for each connection, and runs them."""
    path = tmp_path / "node.xml"
    path.write_text(f"<node>{''.join(domains)}</node>")
    return Config(
        host=HostSection(id=1),
        storage=StorageSection(whiteboard="/w", leases="/l", registry="/r"),
        daemon=DaemonSection(state_dir=str(tmp_path)),
        libvirt=LibvirtSection(uri=f"test://{path}", pid_dir=str(tmp_path)),
    )


def known(*records: VmRecord, **definitions: str) -> Cached:
    by_name = {each.name: each.number for each in records}
    texts = {by_name[name]: text for name, text in definitions.items()}
    return Cached(1, {each.number: each for each in records}, texts)


class FakeHealth:
    """The last result of a health monitor."""

    verdict: tuple[Health, str | None] = (Health.GOOD, None)


class FakeDomain:
    """A VM's own monitor, as the test wants it: a look at it takes until `goes_on` is set."""

    deadline_s = 60.0
    lease_held: bool | None = True
    migration = None
    facts = DomainHere()

    def __init__(self, report: EngineStatus = UP) -> None:
        self.report, self.is_known, self.looks = report, None, 0
        self.health = FakeHealth()
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.causes: list[str] = []

    def caused(self, cause: str) -> None:
        self.causes.append(cause)

    async def sample(self) -> EngineStatus:
        self.looks += 1
        await self.goes_on.wait()
        return self.report


class FakeAll:
    """What libvirt says of all domains."""

    def __init__(self, **seen: DomainSeen) -> None:
        self.seen = {record(int(name[2:]), "x").uuid: each for name, each in seen.items()}

    def look(self) -> dict[str, DomainSeen]:
        return self.seen


def faked(
    monitor: VmsMonitor, seen: FakeAll, **domains: FakeDomain
) -> tuple[FakeAll, dict[str, FakeDomain]]:
    monitor._all = seen  # type: ignore[assignment]
    for watch in monitor._watches.values():
        watch.monitor = domains[watch.record.name]  # type: ignore[assignment]
    return seen, domains


def test_one_look_finds_all_domains_and_what_each_may_take(tmp_path: Path) -> None:
    config = config_of(tmp_path, domain(DB), domain(FOREIGN, HUGE))
    look = AllDomains(config.libvirt.uri)
    for _ in range(2):
        found = look.look()
        assert found[DB.uuid].committed == Committed(2048.0)
        assert found[FOREIGN.uuid].committed == Committed(2048.0, huge=True)


def test_each_vm_of_the_registry_is_found_here_or_not(tmp_path: Path) -> None:
    async def run() -> None:
        monitor = VmsMonitor(config_of(tmp_path, domain(DB), domain(FOREIGN)))
        monitor.watch(known(DB, WEB))
        value = await monitor.sample()
        assert str(value) == "1 of 2 up"
        db, web = monitor.here[2], monitor.here[3]
        assert (db.report.vm, web.report.vm) == (VmStatus.UP, VmStatus.DOWN)
        assert (db.lease_held, db.domain.autostart) == (None, False)
        assert web.report.reason == "vm not running on this host"
        assert monitor.memory.total_mb is not None and monitor.memory.free_mb is not None
        assert set(monitor.here) == {2, 3}, "a foreign domain is no VM of ours"

    asyncio.run(run())


def test_the_health_of_a_vm_is_asked_for_while_it_is_up(tmp_path: Path) -> None:
    async def run() -> None:
        woken: list[None] = []
        monitor = VmsMonitor(config_of(tmp_path, domain(DB)), lambda: woken.append(None))
        monitor.watch(known(DB))
        await monitor.sample()
        del woken[:]
        async with asyncio.timeout(60):
            while not woken:
                await asyncio.sleep(0.01)
        await monitor.sample()
        assert monitor.here[2].report == EngineStatus(VmStatus.UP, Health.GOOD, "up")

    asyncio.run(run())


def test_a_check_that_cannot_be_made_is_no_good_health(tmp_path: Path) -> None:
    async def run() -> None:
        monitor = VmsMonitor(config_of(tmp_path, domain(DB)))
        bad = structs.replace(DB, health="http://db/", expect="(")
        monitor.watch(known(bad))
        await monitor.sample()
        report = monitor.here[2].report
        assert (report.vm, report.health) == (VmStatus.UP, Health.UNKNOWN)
        assert "its health check cannot be used" in (report.reason or "")

    asyncio.run(run())


def test_a_vm_that_hangs_costs_no_other_vm_its_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vms, "WAIT_S", 0.3)

    async def run() -> None:
        monitor = VmsMonitor(config_of(tmp_path))
        monitor.watch(known(DB, WEB))
        hanging, other = FakeDomain(), FakeDomain()
        hanging.goes_on.clear()
        faked(monitor, FakeAll(vm2=RUNS, vm3=RUNS), db=hanging, web=other)
        await monitor.sample()
        assert monitor.here[2].report.vm is VmStatus.UNKNOWN
        assert monitor.here[3].report == UP
        other.health.verdict = (Health.BAD, "no answer")
        await monitor.sample()
        assert (hanging.looks, other.looks) == (1, 2), "it is not asked again meanwhile"
        hanging.goes_on.set()
        await asyncio.sleep(0)
        await monitor.sample()
        assert monitor.here[2].report == UP

    asyncio.run(run())


def test_a_vm_whose_monitor_fails_is_unknown_alone(tmp_path: Path) -> None:
    class Failing(FakeDomain):
        async def sample(self) -> EngineStatus:
            raise ZeroDivisionError("a bug")

    async def run() -> None:
        monitor = VmsMonitor(config_of(tmp_path))
        monitor.watch(known(DB, WEB))
        faked(monitor, FakeAll(vm2=RUNS, vm3=RUNS), db=Failing(), web=FakeDomain())
        await monitor.sample()
        assert monitor.here[2].report.reason == "a bug"
        assert monitor.here[3].report == UP

    asyncio.run(run())


def test_a_vm_that_stays_off_is_seldom_looked_at_and_its_sample_is_fresh(tmp_path: Path) -> None:
    async def run() -> None:
        monitor = VmsMonitor(config_of(tmp_path))
        monitor.watch(known(DB))
        seen, domains = faked(monitor, FakeAll(vm2=OFF), db=FakeDomain(DOWN))
        await monitor.sample()
        first_s = monitor.here[2].taken_s
        await monitor.sample()
        assert domains["db"].looks == 1
        assert monitor.here[2].taken_s > first_s
        seen.seen[DB.uuid] = RUNS
        domains["db"].report = UP
        await monitor.sample()
        assert monitor.here[2].report == UP
        assert OFF_EVERY_S > 1.0

    asyncio.run(run())


def test_a_vm_that_is_well_is_not_looked_at_with_each_sample(tmp_path: Path) -> None:
    async def run() -> None:
        monitor = VmsMonitor(config_of(tmp_path))
        monitor.watch(known(DB))
        seen, domains = faked(monitor, FakeAll(vm2=RUNS), db=FakeDomain())
        db = domains["db"]
        await monitor.sample()
        first_s = monitor.here[2].taken_s
        await monitor.sample()
        assert db.looks == 1
        assert monitor.here[2].taken_s > first_s, "libvirt's word on it is of that moment"
        db.health.verdict = (Health.BAD, "no answer")
        await monitor.sample()
        assert db.looks == 2
        db.health.verdict = (Health.GOOD, None)
        paused = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER
        seen.seen[DB.uuid] = DomainSeen(*paused, Committed(2048.0))
        await monitor.sample()
        assert db.looks == 3
        db.lease_held = None
        seen.seen[DB.uuid] = RUNS
        await monitor.sample()
        await monitor.sample()
        assert db.looks == 5, "whether it holds its lease is not known: it is looked at each time"

    asyncio.run(run())


def test_while_libvirt_does_not_answer_every_vm_is_unknown(tmp_path: Path) -> None:
    async def run() -> None:
        config = config_of(tmp_path, domain(DB))
        (tmp_path / "node.xml").unlink()
        monitor = VmsMonitor(config)
        monitor.watch(known(DB, WEB))
        monitor.memory = Memory(4096.0, 1024.0, 0.0)
        with pytest.raises(Unknown):
            await monitor.sample()
        assert [vm.report.vm for vm in monitor.here.values()] == [VmStatus.UNKNOWN] * 2
        assert monitor.memory.free_mb is None

    asyncio.run(run())


def test_what_the_registry_gains_and_loses_is_watched_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vms, "UP_EVERY_S", 3600.0)

    async def run() -> None:
        monitor = VmsMonitor(config_of(tmp_path))
        monitor.watch(known(DB, WEB))
        kept, dropped = FakeDomain(), FakeDomain()
        faked(monitor, FakeAll(vm2=RUNS, vm3=RUNS), db=kept, web=dropped)
        await monitor.sample()
        prior = structs.replace(DB, priority=90, generation=2)
        monitor.watch(known(prior, structs.replace(WEB, removed=True), SSO))
        await monitor.sample()
        assert set(monitor.here) == {2, 4}
        assert (kept.looks, dropped.looks) == (1, 1), "nothing was to be found anew"

    asyncio.run(run())


def test_the_cause_of_an_end_goes_to_the_vm_of_that_uuid(tmp_path: Path) -> None:
    async def run() -> None:
        woken: list[None] = []
        monitor = VmsMonitor(config_of(tmp_path), lambda: woken.append(None))
        monitor.watch(known(DB, WEB))
        _, domains = faked(monitor, FakeAll(), db=FakeDomain(), web=FakeDomain())
        del woken[:]
        monitor.happened(DB.uuid, "crashed", PANICKED)
        monitor.happened(FOREIGN.uuid, "crashed", PANICKED)
        assert (domains["db"].causes, domains["web"].causes) == ([PANICKED], [])
        assert len(woken) == 1, "an event of a foreign domain wakes nobody"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("https://db.example.org/health", HealthSection(url="https://db.example.org/health")),
        ("tcp:db.example.org:5432", HealthSection(tcp="db.example.org:5432")),
        ("guest-agent", HealthSection(guest_agent=True)),
        ("", HealthSection()),
    ],
)
def test_a_record_says_how_its_vm_is_asked(said: str, wanted: HealthSection) -> None:
    given = HealthSection(url="http://engine/", timeout=3.0, failures=4, guest_agent=True)
    found = health_of(structs.replace(DB, health=said), given)
    expected = structs.replace(wanted, expect="", timeout=3.0, failures=4)
    assert found == expected


def test_a_host_without_a_registry_has_no_such_monitor(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    alone = structs.replace(config, storage=structs.replace(config.storage, registry=""))
    assert HostMonitors(alone).vms is None
    monitors = HostMonitors(config)
    assert monitors.vms is not None
    monitors.reload(structs.replace(config, monitors=structs.replace(config.monitors, engine=2.0)))
    assert monitors.vms.interval_s == 2.0


def test_whether_a_bridge_of_the_vm_leads_out_is_said_of_each(tmp_path: Path) -> None:
    async def run() -> None:
        monitor = VmsMonitor(config_of(tmp_path))
        bridge = "<interface type='bridge'><source bridge='ha-none0'/></interface>"
        xml = domain(DB, f"<devices>{bridge}</devices>")
        monitor.watch(known(DB, WEB, db=xml))
        faked(monitor, FakeAll(vm2=RUNS, vm3=RUNS), db=FakeDomain(), web=FakeDomain())
        await monitor.sample()
        here: dict[int, VmHere] = monitor.here
        assert (here[2].uplink_up, here[3].uplink_up) == (False, None)

    asyncio.run(run())

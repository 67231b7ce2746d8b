# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM on this host as libvirt tells it: libvirt's own test driver plays the hypervisor."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from msgspec.structs import replace

from broker.config.sections import (
    Config,
    DaemonSection,
    HostSection,
    LibvirtSection,
    StorageSection,
    VmSection,
)
from broker.monitors.domain_events import FIRED, PANICKED, DomainEvents
from broker.monitors.health import HealthMonitor
from broker.monitors.runner import Unknown
from broker.monitors.vm import CAUSE_FRESH_S, DomainMonitor, translate
from scoring.vm_facts import DETAIL_MIGRATION_SOURCE, DETAIL_PAUSED, DomainHere, Health, VmStatus

URI, VM = "test:///default", "test"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        host=HostSection(id=1),
        storage=StorageSection(whiteboard="/w", leases="/l"),
        daemon=DaemonSection(state_dir=str(tmp_path)),
        vm=VmSection(name=VM),
        libvirt=LibvirtSection(uri=URI, pid_dir=str(tmp_path)),
    )


@pytest.fixture
def domain() -> Iterator[libvirt.virDomain]:
    """The test driver's one domain; it runs before and after each test."""
    connection = libvirt.open(URI)
    found = connection.lookupByName(VM)
    xml = found.XMLDesc()
    yield found
    try:
        found = connection.lookupByName(VM)
    except libvirt.libvirtError:
        found = connection.defineXML(xml)
    if not found.isActive():
        found.create()
    if found.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
        found.resume()
    connection.close()


def made(config: Config) -> DomainMonitor:
    return DomainMonitor(config, HealthMonitor(config))


def test_a_running_vm_is_up_and_its_health_is_asked_for(
    config: Config, domain: libvirt.virDomain
) -> None:
    async def run() -> None:
        monitor = made(config)
        status = await monitor.sample()
        assert (status.vm, status.health) == (VmStatus.UP, Health.UNKNOWN)
        assert status.reason == "its check was not answered yet"
        await monitor.health.sample()
        status = await monitor.sample()
        assert (status.vm, status.health, status.reason) == (VmStatus.UP, Health.GOOD, None)
        assert monitor.judge(status) == ""
        owner = monitor.cpu_s()
        assert owner is not None and owner[1] > 0

    asyncio.run(run())


def test_a_vm_that_was_powered_off_is_down_and_nothing_is_asked_of_it(
    config: Config, domain: libvirt.virDomain
) -> None:
    async def run() -> None:
        monitor = made(config)
        await monitor.sample()
        domain.destroy()
        status = await monitor.sample()
        assert (status.vm, status.detail) == (VmStatus.DOWN, "powered off")
        assert monitor.judge(status) == ""
        assert (monitor.pid, monitor.lease_held, monitor.cpu_s()) == (None, None, None)
        with pytest.raises(Unknown):
            await monitor.health.sample()

    asyncio.run(run())


def test_a_vm_that_libvirt_forgot_has_vanished_once(
    config: Config, domain: libvirt.virDomain
) -> None:
    async def run() -> None:
        monitor = made(config)
        await monitor.sample()
        domain.destroy()
        domain.undefine()
        status = await monitor.sample()
        assert (status.vm, status.detail) == (VmStatus.DOWN_MISSING, "vanished")
        assert monitor.judge(status) == "libvirt no longer knows the VM"
        assert (await monitor.sample()).vm is VmStatus.DOWN

    asyncio.run(run())


def test_why_a_vm_is_paused_is_not_hidden_by_its_page(
    config: Config, domain: libvirt.virDomain
) -> None:
    async def run() -> None:
        monitor = made(config)
        await monitor.sample()
        monitor.health.verdict = (Health.BAD, "the health page does not answer")
        domain.suspend()
        status = await monitor.sample()
        assert (status.vm, status.detail) == (VmStatus.UP, DETAIL_PAUSED)
        assert status.reason is not None
        first, second = status.reason.split("; ")
        assert first.startswith("paused by") and second == "the health page does not answer"
        assert monitor.judge(status) == status.reason

    asyncio.run(run())


def test_the_pid_is_libvirt_s_and_a_lease_without_a_sanlock_is_not_known(
    config: Config, domain: libvirt.virDomain, tmp_path: Path
) -> None:
    async def run() -> None:
        monitor = made(config)
        for text, pid in (("4711\n", 4711), ("?", None), ("", None)):
            (tmp_path / f"{VM}.pid").write_text(text)
            await monitor.sample()
            assert monitor.pid == pid
            assert not monitor.lease_held

    asyncio.run(run())


def test_a_libvirt_that_does_not_answer_makes_the_vm_unknown_and_not_down(
    config: Config, domain: libvirt.virDomain
) -> None:
    nowhere = LibvirtSection(uri="qemu+unix:///system?socket=/nowhere/socket")

    async def run() -> None:
        monitor = made(config)
        await monitor.sample()
        monitor._connection = None
        monitor._config = replace(config, libvirt=nowhere)
        with pytest.raises(Unknown, match="/nowhere/socket"):
            await monitor.sample()
        with pytest.raises(Unknown):
            monitor.cpu_s()
        monitor._config = config
        assert (await monitor.sample()).vm is VmStatus.UP

    asyncio.run(run())


def test_a_libvirt_that_hangs_is_told_with_its_age_and_asked_no_second_time(
    config: Config, domain: libvirt.virDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, asked = threading.Event(), []

    def hang() -> None:
        asked.append(1)
        let_go.wait(30)

    async def run() -> None:
        monkeypatch.setattr("broker.monitors.vm.LIBVIRT_DEADLINE_S", 0.05)
        monitor = made(config)
        monitor._state = hang  # type: ignore[method-assign]
        for _ in range(3):
            with pytest.raises(Unknown, match="asking for the VM has not answered for"):
                await monitor.sample()
        assert len(asked) == 1
        let_go.set()

    asyncio.run(run())


L = libvirt


@pytest.mark.parametrize(
    ("state", "reason", "vm", "detail", "word"),
    [
        (L.VIR_DOMAIN_RUNNING, 1, VmStatus.UP, "up", None),
        (L.VIR_DOMAIN_SHUTDOWN, 1, VmStatus.UP, "powering down", None),
        (L.VIR_DOMAIN_PMSUSPENDED, 0, VmStatus.UP, DETAIL_PAUSED, "suspended itself"),
        (L.VIR_DOMAIN_PAUSED, L.VIR_DOMAIN_PAUSED_USER, VmStatus.UP, DETAIL_PAUSED, "paused by"),
        (
            L.VIR_DOMAIN_PAUSED,
            L.VIR_DOMAIN_PAUSED_IOERROR,
            VmStatus.UP,
            DETAIL_PAUSED,
            "after an I/O error of its disk",
        ),
        (
            L.VIR_DOMAIN_PAUSED,
            L.VIR_DOMAIN_PAUSED_STARTING_UP,
            VmStatus.DOWN,
            "not running yet",
            "being started or received",
        ),
        (
            L.VIR_DOMAIN_PAUSED,
            L.VIR_DOMAIN_PAUSED_UNKNOWN,
            VmStatus.UP,
            DETAIL_PAUSED,
            "libvirt does not know why",
        ),
        (L.VIR_DOMAIN_PAUSED, 14, VmStatus.UP, DETAIL_PAUSED, "could not resume"),
        (L.VIR_DOMAIN_CRASHED, 0, VmStatus.DOWN_UNEXPECTED, "crashed", "the guest crashed"),
        (
            L.VIR_DOMAIN_CRASHED,
            L.VIR_DOMAIN_CRASHED_PANICKED,
            VmStatus.DOWN_UNEXPECTED,
            "panicked",
            "kernel panicked",
        ),
        (
            L.VIR_DOMAIN_PAUSED,
            L.VIR_DOMAIN_PAUSED_CRASHED,
            VmStatus.DOWN_UNEXPECTED,
            "crashed",
            "its process is still here",
        ),
        (
            L.VIR_DOMAIN_SHUTOFF,
            L.VIR_DOMAIN_SHUTOFF_CRASHED,
            VmStatus.DOWN_UNEXPECTED,
            "its process died",
            "its process died",
        ),
        (
            L.VIR_DOMAIN_SHUTOFF,
            L.VIR_DOMAIN_SHUTOFF_MIGRATED,
            VmStatus.DOWN,
            "migrated",
            "migrated",
        ),
        (L.VIR_DOMAIN_SHUTOFF, 99, VmStatus.DOWN, "off", "not running"),
        (L.VIR_DOMAIN_NOSTATE, 0, VmStatus.UNKNOWN, "unknown", "libvirt state 0"),
        (77, 7, VmStatus.UNKNOWN, "unknown", "libvirt state 77, reason 7"),
    ],
)
def test_what_libvirt_s_states_mean(
    state: int, reason: int, vm: VmStatus, detail: str, word: str | None
) -> None:
    found, said, why = translate(state, reason, leaving=False)
    assert (found, said) == (vm, detail)
    assert (why is None) if word is None else (why is not None and word in why)


def test_a_vm_that_leaves_is_up_until_it_is_gone() -> None:
    found = translate(L.VIR_DOMAIN_PAUSED, L.VIR_DOMAIN_PAUSED_MIGRATION, leaving=True)
    assert found == (VmStatus.UP, DETAIL_MIGRATION_SOURCE, None)


class Given(DomainMonitor):
    """A monitor for which libvirt's answers are given."""

    now: Any = None

    def _state(self) -> Any:
        return self.now


def test_a_vm_that_was_not_received_has_not_died_here(
    config: Config, domain: libvirt.virDomain
) -> None:
    incoming = (L.VIR_DOMAIN_PAUSED, L.VIR_DOMAIN_PAUSED_MIGRATION, None, 0.0, DomainHere())
    running = (L.VIR_DOMAIN_RUNNING, L.VIR_DOMAIN_RUNNING_MIGRATED, None, 0.0, DomainHere())
    crashed = (L.VIR_DOMAIN_SHUTOFF, L.VIR_DOMAIN_SHUTOFF_CRASHED, None, 0.0, DomainHere())

    async def run() -> None:
        monitor = Given(config, HealthMonitor(config))
        monitor.now = incoming
        assert (await monitor.sample()).vm is VmStatus.DOWN
        monitor.now = crashed
        for _ in range(2):
            found = await monitor.sample()
            assert (found.vm, found.detail) == (VmStatus.DOWN, "not received")
        for monitor.now in (incoming, running, crashed):
            found = await monitor.sample()
        assert found.vm is VmStatus.DOWN_UNEXPECTED, "it ran here"

    asyncio.run(run())


def test_a_panic_or_a_watchdog_is_named_as_the_cause_of_an_end(config: Config) -> None:
    """libvirt's state of a VM that is off calls both a crash, or a shutdown."""
    running = (L.VIR_DOMAIN_RUNNING, L.VIR_DOMAIN_RUNNING_BOOTED, None, 0.0, DomainHere())
    crashed = (L.VIR_DOMAIN_SHUTOFF, L.VIR_DOMAIN_SHUTOFF_CRASHED, None, 0.0, DomainHere())
    destroyed = (L.VIR_DOMAIN_SHUTOFF, L.VIR_DOMAIN_SHUTOFF_DESTROYED, None, 0.0, DomainHere())

    async def run() -> None:
        monitor = Given(config, HealthMonitor(config))
        for cause in (PANICKED, FIRED):
            monitor.now = running
            await monitor.sample()
            monitor.caused(cause)
            monitor.now = crashed
            for _ in range(2):
                found = await monitor.sample()
                assert (found.vm, found.detail) == (VmStatus.DOWN_UNEXPECTED, cause)
                assert cause in (found.reason or "")
        monitor.now = running
        await monitor.sample()
        monitor.now = destroyed
        assert (await monitor.sample()).detail == "powered off", "it has a cause of its own"
        monitor.now = running
        await monitor.sample()
        monitor._cause = (PANICKED, asyncio.get_running_loop().time() - CAUSE_FRESH_S)
        monitor.now = crashed
        assert (await monitor.sample()).detail == "its process died", "that was long before"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("held", "renewed_ago_s", "detail"),
    [
        ([True], 81.0, "sanlock ended it: this host's id was not renewed for 81 s"),
        # Seen on a full file system: the lease is away while the process still ends.
        ([True, False], 81.0, "sanlock ended it: this host's id was not renewed for 81 s"),
        ([True], 79.0, "shut down"),
        ([True], None, "shut down"),
        ([False], 81.0, "shut down"),
        ([None], 81.0, "shut down"),
    ],
)
def test_sanlock_is_named_where_it_ended_the_vm(
    config: Config, held: list[bool | None], renewed_ago_s: float | None, detail: str
) -> None:
    """QEMU ends in order on its signal, so libvirt calls it shut down. sanlock ends what holds a
    lease, 8 io-timeouts after the last renewal of the host's id."""
    running = (L.VIR_DOMAIN_RUNNING, L.VIR_DOMAIN_RUNNING_BOOTED, None, 0.0, DomainHere())
    ended = (L.VIR_DOMAIN_SHUTOFF, L.VIR_DOMAIN_SHUTOFF_SHUTDOWN, None, 0.0, DomainHere())

    class Told(Given):
        now = running

        async def _holds_lease(self, pid: int | None) -> bool | None:
            return found_held.pop(0)

    found_held = [*held]

    async def run() -> None:
        monitor = Told(config, HealthMonitor(config))
        if renewed_ago_s is not None:
            renewed_s = asyncio.get_running_loop().time() - renewed_ago_s
            monitor.renewed_s = lambda: renewed_s
        for _ in held:
            await monitor.sample()
        monitor.now = ended
        # When the last process is gone, sanlock has no such id, so there is no renewal any more.
        monitor.renewed_s = lambda: None
        for _ in range(2):
            found = await monitor.sample()
            assert found.detail == detail
            assert detail in (found.reason or "")

    assert config.storage.io_timeout == 10
    asyncio.run(run())


# --- events -----------------------------------------------------------------------------------


def test_each_change_of_the_vm_is_told_at_once(
    config: Config, domain: libvirt.virDomain, caplog: pytest.LogCaptureFixture
) -> None:
    """All in one: libvirt's event loop is one for the whole process."""
    caplog.set_level(logging.INFO, "ha-broker.events")

    async def run() -> None:
        told = asyncio.Event()
        causes: list[str] = []
        events = DomainEvents(URI, VM, told.set, causes.append)
        try:
            async with asyncio.timeout(20.0):
                await told.wait()  # of the connection itself: nobody knows what was before
                for act, text in (
                    (domain.suspend, "paused"),
                    (domain.resume, "resumed"),
                    (domain.destroy, "stopped: it was powered off"),
                    (domain.create, "started"),
                ):
                    await tells(told, act, text)
            events._io_error(None, domain, "/shared/disk", "vda", 1, "enospc", None)
            assert "I/O error on /shared/disk (enospc)" in caplog.text
            paused = (L.VIR_DOMAIN_EVENT_SUSPENDED, L.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR)
            events._lifecycle(None, domain, *paused, None)
            assert "paused after an I/O error of its disk" in caplog.text
            events._lifecycle(None, domain, 999, 0, None)
            assert "event 999" in caplog.text
            events._lifecycle(None, domain, L.VIR_DOMAIN_EVENT_CRASHED, 0, None)
            events._watchdog(None, domain, L.VIR_DOMAIN_EVENT_WATCHDOG_RESET, None)
            await asyncio.sleep(0)
            assert causes == [PANICKED, FIRED]
            assert "its watchdog fired: it is reset" in caplog.text
        finally:
            events.close()
        await asyncio.sleep(0)  # what was told before arrives
        told.clear()
        caplog.clear()
        events._lifecycle(None, domain, L.VIR_DOMAIN_EVENT_STARTED, 0, None)
        await asyncio.sleep(0)
        assert not told.is_set() and not caplog.records, "closed: nobody is told any more"

    async def tells(told: asyncio.Event, act: Callable[[], object], text: str) -> None:
        told.clear()
        act()
        while f"libvirt: {VM} {text}" not in caplog.text:
            await told.wait()
            told.clear()

    asyncio.run(run())

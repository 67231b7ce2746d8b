# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a migration and a start are ended, and with which words: libvirt's calls are a domain's that
hangs in its migration until it is aborted, and is not defined for a reason of libvirt's own."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import libvirt
import pytest

from agent.leases.sanlock import SanlockLeases
from agent.vm import hypervisor
from agent.vm.definition import Definition
from agent.vm.hypervisor import LibvirtHypervisor
from agent.vm.migration_check import Refusal
from agent.vm.protected import Engine
from broker.config.sections import Config, HostSection, LibvirtSection, StorageSection
from scoring.observation import (
    LeaseAnswer,
    MigrationCancelled,
    Standing,
    StartResult,
    VmStartEnded,
)
from tests.fakes.libvirt_errors import libvirt_error

PATIENCE_S = 10.0


class Domain:
    """`migrates`: until it is aborted. `abortable`: whether that works."""

    def __init__(self, migrates: bool = True, abortable: bool = True) -> None:
        self.migrates, self.abortable = migrates, abortable
        self.aborted = threading.Event()
        self.calls: list[str] = []
        #: How it was migrated: parameters and flags.
        self.how: tuple[dict[str, Any], int] = {}, 0

    def migrateToURI3(self, uri: str, given: dict[str, Any], flags: int) -> None:  # noqa: N802
        self.calls.append("migrate")
        self.how = given, flags
        if self.migrates:
            assert self.aborted.wait(PATIENCE_S)
        raise libvirt_error("libvirt's own words")

    def migrateStartPostCopy(self) -> None:  # noqa: N802
        self.calls.append("post-copy")

    def abortJob(self) -> None:  # noqa: N802
        self.calls.append("abort")
        if not self.abortable:
            raise libvirt_error("in post-copy")
        self.aborted.set()

    def lookupByName(self, name: str) -> Domain:  # noqa: N802
        """The domain stands in for its connection too."""
        return self

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        return "<domain/>"

    def close(self) -> None:
        """Nothing is open."""


def on(domain: Domain, monkeypatch: pytest.MonkeyPatch, **given: Any) -> LibvirtHypervisor:
    monkeypatch.setattr(libvirt, "open", lambda uri: domain)
    monkeypatch.setattr(hypervisor, "ask_target", lambda uri, own, xml: Refusal())
    config = Config(
        host=HostSection(id=1, name="one"),
        storage=StorageSection(whiteboard="/no/whiteboard", leases="/no/leases"),
        libvirt=LibvirtSection(**{"migration_uri": "qemu+tls://{host}/system", **given}),
    )
    definition = Definition(xml="", name="vm", memory_mb=1, lease_offset=0, domain_type="qemu")
    return LibvirtHypervisor(config, Engine(config, definition), SanlockLeases(config, 0))


@pytest.mark.parametrize(
    ("uri", "asked_for", "is_encrypted"),
    [
        ("qemu+tls://{host}/system", False, True),
        ("qemu+ssh://root@{host}/system", False, False),
        ("qemu+ssh://root@{host}/system", True, True),
    ],
)
def test_the_memory_is_encrypted_where_the_address_is_over_tls_or_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, uri: str, asked_for: bool, is_encrypted: bool
) -> None:
    domain = Domain(migrates=False)
    ours = on(domain, monkeypatch, migration_uri=uri, migration_tls=asked_for)
    assert not asyncio.run(ours.migrate(2, "two")).ok
    given, flags = domain.how
    assert bool(flags & libvirt.VIR_MIGRATE_TLS) is is_encrypted
    assert (given.get(libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION) == "two") is is_encrypted


def test_one_that_takes_too_long_is_cancelled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = Domain()
    ours = on(domain, monkeypatch, migration_timeout=0.01)
    ended = asyncio.run(ours.migrate(2, "two"))
    assert domain.calls == ["migrate", "abort"]
    assert not ended.ok
    assert ended.detail == "cancelled, for it took more than 0.01 s (libvirt.migration-timeout)"


def test_a_vm_may_have_another_time_for_its_migration_than_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = on(Domain(), monkeypatch, migration_timeout=3600.0)
    ended = asyncio.run(ours.migrate(2, "two", 0.01))
    assert ended.detail == "cancelled, for it took more than 0.01 s (its own migration-timeout)"


def test_the_timeout_counts_from_the_begin_whatever_comes_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Post-copy that would begin later than that; one that does begin takes none of its time."""
    domain = Domain()
    ours = on(domain, monkeypatch, migration_timeout=0.01, migration_post_copy_after=3600.0)
    assert "0.01 s" in asyncio.run(ours.migrate(2, "two")).detail
    domain = Domain()
    ours = on(domain, monkeypatch, migration_timeout=0.02, migration_post_copy_after=0.01)
    assert "0.02 s" in asyncio.run(ours.migrate(2, "two")).detail
    assert domain.calls == ["migrate", "post-copy", "abort"]


def test_an_order_cancels_it_and_the_outcome_says_whose(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        domain = Domain()
        ours = on(domain, monkeypatch)
        moving = asyncio.create_task(ours.migrate(2, "two"))
        while "migrate" not in domain.calls:
            await asyncio.sleep(0)
        assert (await ours.cancel_migration("an operator's order")).ok
        assert (await moving).detail == "cancelled by an operator's order"

    asyncio.run(run())


def test_cancelling_what_an_earlier_agent_began_says_nothing_of_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        ours = on(Domain(migrates=False), monkeypatch)
        assert (await ours.cancel_migration("an operator's order")).ok
        assert (await ours.migrate(2, "two")).detail == "libvirt: libvirt's own words"
        refused = on(Domain(abortable=False), monkeypatch)
        assert await refused.cancel_migration("an operator's order") == MigrationCancelled(
            False, "in post-copy"
        )

    asyncio.run(run())


class Refusing:
    """A libvirt that takes no definition. `error`: as libvirt's own carry it: code, domain, text
    (measured with libvirt 9.0 and its sanlock plugin: 87, 42 where another host has the lease)."""

    def __init__(self, code: int, domain: int, text: str) -> None:
        self.error = libvirt_error(text, code, domain)

    def lookupByName(self, name: str) -> None:  # noqa: N802
        raise libvirt_error("no domain", libvirt.VIR_ERR_NO_DOMAIN, 10)

    def defineXML(self, xml: str) -> None:  # noqa: N802
        raise self.error

    def close(self) -> None:
        """Nothing is open."""


class Lease:
    """SanlockLeases with one answer."""

    def __init__(self, answer: LeaseAnswer) -> None:
        self.answer = answer

    async def ask_engine(self) -> LeaseAnswer:
        return self.answer


NO_BRIDGE = (38, 0, "Cannot get interface MTU on 'br-vlan20': No such device")
OWNED = (
    libvirt.VIR_ERR_RESOURCE_BUSY,
    libvirt.VIR_FROM_LOCKING,
    "resource busy: Failed to acquire lock: Lease is held by another host",
)
#: As libvirt 9.0 with QEMU 7.2 said it.
LOCKED = (
    libvirt.VIR_ERR_INTERNAL_ERROR,
    libvirt.VIR_FROM_QEMU,
    "internal error: process exited while connecting to monitor: 2026-11-28T02:23:01.929442Z"
    ' qemu-system-x86_64: -device {"driver":"virtio-blk-pci"}: Failed to get "write" lock\nIs'
    " another process using the image [/srv/engine.disk]?",
)
NO_SANLOCK = (38, libvirt.VIR_FROM_LOCKING, "Failed to acquire lock: Connection refused")
LIVE = LeaseAnswer(True, 7.0, 2, 3, 3, 99, Standing.LIVE)
NOBODY = LeaseAnswer(True, 7.0)
SILENT = LeaseAnswer(False, 7.0, detail="sanlock does not answer")


def started(error: tuple[int, int, str], lease: LeaseAnswer, monkey: Any) -> VmStartEnded:
    """How a start ends that libvirt refuses with that error, on host 1."""
    ours = on(Refusing(*error), monkey)  # type: ignore[arg-type]
    ours._leases = Lease(lease)  # type: ignore[assignment]
    return asyncio.run(ours.start())


@pytest.mark.parametrize(
    "lease",
    [
        replace(LIVE, standing=Standing.DEAD),
        replace(LIVE, standing=Standing.FREE),
        replace(LIVE, current_generation=4),
        replace(LIVE, owner=1),
        NOBODY,
        SILENT,
        # Not the lock driver's: it came before the lease was tried, whoever owns it.
        LIVE,
    ],
)
def test_an_error_of_libvirt_is_told_in_its_own_words_whoever_owned_the_lease(
    lease: LeaseAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = started(NO_BRIDGE, lease, monkeypatch)
    assert ended.result is StartResult.FAILED
    assert ended.detail == f"libvirt: {NO_BRIDGE[2]}"


@pytest.mark.parametrize("standing", [Standing.LIVE, Standing.FAIL, Standing.UNKNOWN])
def test_a_race_is_lost_to_an_owner_that_is_not_gone(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (OWNED, NO_SANLOCK):
        ended = started(error, replace(LIVE, standing=standing), monkeypatch)
        assert ended == VmStartEnded(StartResult.LEASE_HELD, "host 2 owns it")


@pytest.mark.parametrize(
    "lease", [replace(LIVE, standing=Standing.DEAD), replace(LIVE, current_generation=4), NOBODY]
)
def test_a_lease_that_is_refused_though_its_owner_is_gone_is_a_failed_start(
    lease: LeaseAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that were no failed one would be tried each second for ever, uncounted."""
    ended = started(OWNED, lease, monkeypatch)
    assert ended == VmStartEnded(StartResult.FAILED, f"libvirt: {OWNED[2]}")


def test_where_sanlock_does_not_answer_the_lock_driver_s_own_code_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert started(OWNED, SILENT, monkeypatch).result is StartResult.LEASE_HELD
    assert started(NO_SANLOCK, SILENT, monkeypatch).result is StartResult.FAILED


@pytest.mark.parametrize("lease", [LIVE, replace(LIVE, standing=Standing.DEAD), NOBODY, SILENT])
def test_a_locked_image_is_a_cause_of_its_own_whoever_owned_the_lease(
    lease: LeaseAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = started(LOCKED, lease, monkeypatch)
    assert ended.result is StartResult.IMAGE_LOCKED
    assert ended.detail.startswith("another process has /srv/engine.disk; ")


def test_the_way_for_a_migration_is_asked_and_nothing_is_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    domain = Domain()
    made = on(domain, monkeypatch)
    found = asyncio.run(made.ask_path(2, "host2"))
    assert (found.target, found.ok, found.detail, domain.calls) == (2, True, "", [])

    def refuse(uri: str, *_: object) -> Refusal:
        raise libvirt_error(f"no route to {uri}")

    monkeypatch.setattr(hypervisor, "ask_target", refuse)
    found = asyncio.run(made.ask_path(2, "host2"))
    assert not found.ok and "no route to qemu+tls://host2/system" in found.detail
    assert not asyncio.run(made.ask_path(2, "host2?x=")).ok, "no host name, no question"


def test_the_question_whether_it_could_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    made = on(Domain(), monkeypatch)
    released = threading.Event()
    monkeypatch.setattr(hypervisor, "ask_target", lambda *_: released.wait(PATIENCE_S))
    monkeypatch.setattr(hypervisor, "PATH_DEADLINE_S", 0.05)
    found = asyncio.run(made.ask_path(2, "host2"))
    released.set()
    assert not found.ok and "has not answered" in found.detail


@pytest.mark.parametrize(
    ("code", "everywhere"),
    [(libvirt.VIR_ERR_MIGRATE_UNSAFE, True), (libvirt.VIR_ERR_CPU_INCOMPATIBLE, False)],
)
def test_what_libvirt_here_has_against_the_disks_holds_for_any_target(
    code: int, everywhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuses(Domain):
        def migrateToURI3(self, uri: str, given: dict[str, Any], flags: int) -> None:  # noqa: N802
            raise libvirt_error("its own words", code, libvirt.VIR_FROM_QEMU)

    ended = asyncio.run(on(Refuses(), monkeypatch).migrate(2, "host2"))
    assert (ended.ok, ended.lasting, ended.everywhere) == (False, True, everywhere)
    assert ("ha-agent doctor --storage" in ended.detail) is everywhere

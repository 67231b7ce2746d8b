# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a migration is ended, and with which words: libvirt's calls are a domain's that hangs in its
migration until it is aborted."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import libvirt
import pytest

from agent import hypervisor
from agent.definition import Definition
from agent.hypervisor import LibvirtHypervisor
from agent.leases import SanlockLeases
from broker.config import Config, HostSection, LibvirtSection, StorageSection
from scoring.observation import MigrationCancelled

PATIENCE_S = 10.0


class Domain:
    """`migrates`: until it is aborted. `abortable`: whether that works."""

    def __init__(self, migrates: bool = True, abortable: bool = True) -> None:
        self.migrates, self.abortable = migrates, abortable
        self.aborted = threading.Event()
        self.calls: list[str] = []

    def migrateToURI3(self, *_: Any) -> None:  # noqa: N802
        self.calls.append("migrate")
        if self.migrates:
            assert self.aborted.wait(PATIENCE_S)
        raise libvirt.libvirtError("libvirt's own words")

    def migrateStartPostCopy(self) -> None:  # noqa: N802
        self.calls.append("post-copy")

    def abortJob(self) -> None:  # noqa: N802
        self.calls.append("abort")
        if not self.abortable:
            raise libvirt.libvirtError("in post-copy")
        self.aborted.set()

    def lookupByName(self, name: str) -> Domain:  # noqa: N802
        """It is its own connection too."""
        return self

    def close(self) -> None:
        """Nothing is open."""


def on(domain: Domain, monkeypatch: pytest.MonkeyPatch, **given: Any) -> LibvirtHypervisor:
    monkeypatch.setattr(libvirt, "open", lambda uri: domain)
    monkeypatch.setattr(hypervisor, "ask_libvirt", lambda uri: None)
    config = Config(
        host=HostSection(id=1, name="one"),
        storage=StorageSection(whiteboard="/no/whiteboard", leases="/no/leases"),
        libvirt=LibvirtSection(migration_uri="qemu+tls://{host}/system", **given),
    )
    definition = Definition(xml="", name="vm", memory_mb=1, lease_offset=0, domain_type="qemu")
    return LibvirtHypervisor(config, definition, SanlockLeases(config, 0))


def test_one_that_takes_too_long_is_cancelled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = Domain()
    ours = on(domain, monkeypatch, migration_timeout=0.01)
    ended = asyncio.run(ours.migrate(2, "two"))
    assert domain.calls == ["migrate", "abort"]
    assert not ended.ok
    assert ended.detail == "cancelled, for it took more than 0.01 s (libvirt.migration-timeout)"


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
        assert (await ours.cancel_migration()).ok
        assert (await moving).detail == "cancelled by an operator's order"

    asyncio.run(run())


def test_cancelling_what_an_earlier_agent_began_says_nothing_of_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        ours = on(Domain(migrates=False), monkeypatch)
        assert (await ours.cancel_migration()).ok
        assert (await ours.migrate(2, "two")).detail == "libvirt's own words"
        refused = on(Domain(abortable=False), monkeypatch)
        assert await refused.cancel_migration() == MigrationCancelled(False, "in post-copy")

    asyncio.run(run())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A start is a boot: what libvirt would resume, or start by itself, is taken away before."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import libvirt
import pytest

from agent.leases.sanlock import SanlockLeases
from agent.vm.definition import Definition
from agent.vm.hypervisor import LibvirtHypervisor
from agent.vm.protected import Engine
from broker.config.sections import Config, HostSection, StorageSection
from scoring.observation import DomainDisarmed, StartResult
from tests.fakes.libvirt_errors import libvirt_error

FLAGS = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_FORCE_BOOT


class Domain:
    """A domain and its connection, with what lies without the agent. Not started in the end:
    what comes then needs sanlock."""

    def __init__(self, image: bool, autostart: bool, refuses: bool = False) -> None:
        self.image, self.starts, self.refuses = image, autostart, refuses
        self.calls: list[Any] = []

    def lookupByName(self, name: str) -> Domain:  # noqa: N802
        return self

    def defineXML(self, xml: str) -> Domain:  # noqa: N802
        self.calls.append("define")
        return self

    def XMLDesc(self, flags: int = 0) -> str:  # noqa: N802
        return "<domain><name>vm</name></domain>"

    def name(self) -> str:
        return "vm"

    def hasManagedSaveImage(self) -> int:  # noqa: N802
        return int(self.image)

    def managedSaveRemove(self) -> None:  # noqa: N802
        if self.refuses:
            raise libvirt_error("cannot unlink")
        self.calls.append("remove image")
        self.image = False

    def autostart(self) -> int:
        return int(self.starts)

    def setAutostart(self, on: bool) -> None:  # noqa: N802
        assert not on
        self.calls.append("no autostart")
        self.starts = False

    def createWithFlags(self, flags: int) -> None:  # noqa: N802
        self.calls.append(flags)
        raise libvirt_error("far enough")

    def close(self) -> None:
        """Nothing is open."""


def on(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> LibvirtHypervisor:
    monkeypatch.setattr(libvirt, "open", lambda uri: domain)
    config = Config(
        host=HostSection(id=1, name="one"),
        storage=StorageSection(whiteboard="/no/whiteboard", leases="/no/leases"),
    )
    definition = Definition(
        xml="<domain><name>vm</name></domain>",
        name="vm",
        memory_mb=1,
        lease_offset=0,
        domain_type="qemu",
    )
    return LibvirtHypervisor(config, Engine(config, definition), SanlockLeases(config, 0))


@pytest.mark.parametrize(("image", "autostart"), [(True, True), (True, False), (False, False)])
def test_each_start_boots_and_takes_away_what_it_finds(
    image: bool,
    autostart: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    domain = Domain(image, autostart)
    asyncio.run(on(domain, monkeypatch).start())
    found = [*(["remove image"] if image else []), *(["no autostart"] if autostart else [])]
    assert domain.calls == ["define", *found, FLAGS]
    loud = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any("memory image of vm" in text for text in loud) is image
    assert any("autostart of vm" in text for text in loud) is autostart


def test_an_image_that_cannot_be_removed_is_not_started_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    domain = Domain(True, False, refuses=True)
    ended = asyncio.run(on(domain, monkeypatch).start())
    assert domain.calls == ["define"]
    assert ended.result is StartResult.FAILED and "cannot unlink" in ended.detail


def test_the_image_stays_where_only_autostart_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = Domain(True, True)
    assert asyncio.run(on(domain, monkeypatch).disarm(False)) == DomainDisarmed(True)
    assert domain.calls == ["no autostart"] and domain.image
    assert asyncio.run(on(domain, monkeypatch).disarm(True)) == DomainDisarmed(True)
    assert not domain.image
    refused = asyncio.run(on(Domain(True, False, refuses=True), monkeypatch).disarm(True))
    assert refused == DomainDisarmed(False, "cannot unlink")

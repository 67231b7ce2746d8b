# SPDX-License-Identifier: LGPL-2.1-or-later
"""No VM runs without its lease: a start that is not under it is ended again, whatever libvirt
says of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import libvirt
import pytest

from agent.leases.sanlock import SanlockLeases
from agent.vm import hypervisor
from agent.vm.definition import Definition
from agent.vm.hypervisor import LibvirtHypervisor
from agent.vm.protected import Engine
from broker.config.sections import Config, HostSection, LibvirtSection, StorageSection
from scoring.observation import StartResult

PID = 4711
XML = "<domain><name>vm</name></domain>"
OURS, ANOTHERS = ("hosted-engine", "engine"), ("hosted-engine", "vm-of-another")
Held = frozenset[tuple[str, str]] | None


class Domain:
    """A domain and its connection; the lock driver takes its leases as the guest goes on."""

    def __init__(self) -> None:
        self.state = "off"
        self.ran = False

    def __getattr__(self, name: str) -> Any:
        return {
            "lookupByName": lambda name: self,
            "defineXML": lambda xml: self,
            "XMLDesc": lambda flags=0: XML,
            "hasManagedSaveImage": lambda: 0,
            "autostart": lambda: 0,
            "close": lambda: None,
            "name": lambda: "vm",
        }[name]

    def createWithFlags(self, flags: int) -> None:  # noqa: N802
        assert flags & libvirt.VIR_DOMAIN_START_PAUSED, "it may not run before that is looked at"
        self.state = "paused"

    def resume(self) -> None:
        self.state, self.ran = "running", True

    def destroy(self) -> None:
        self.state = "off"


@pytest.mark.parametrize(
    ("before", "after", "result", "said"),
    [
        (frozenset(), frozenset({OURS}), StartResult.STARTED, ""),
        (frozenset(), frozenset({ANOTHERS, OURS}), StartResult.STARTED, ""),
        (None, frozenset({OURS}), StartResult.FAILED, "without the sanlock lock driver"),
        (frozenset(), frozenset(), StartResult.FAILED, "does not hold lease engine"),
        (frozenset(), frozenset({ANOTHERS}), StartResult.FAILED, "does not hold lease engine"),
        (frozenset(), None, StartResult.FAILED, "does not hold lease engine"),
    ],
)
def test_a_start_counts_under_its_own_lease_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: Held,
    after: Held,
    result: StartResult,
    said: str,
) -> None:
    """`before`, `after`: what sanlock says that the process holds, before and after the guest goes
    on; None: sanlock does not know the process."""
    (tmp_path / "vm.pid").write_text(f"{PID}\n")
    domain = Domain()

    def held(pid: int) -> Held:
        assert pid == PID
        return after if domain.ran else before

    monkeypatch.setattr(libvirt, "open", lambda uri: domain)
    monkeypatch.setattr(hypervisor, "process_leases", held)
    config = Config(
        host=HostSection(id=1, name="one"),
        storage=StorageSection(whiteboard="/no/whiteboard", leases="/no/leases"),
        libvirt=LibvirtSection(pid_dir=str(tmp_path)),
    )
    definition = Definition(XML, "vm", 1, 0, "qemu")
    ours = LibvirtHypervisor(config, Engine(config, definition), SanlockLeases(config, 0))
    ended = asyncio.run(ours.start())
    assert ended.result is result, ended
    assert said in ended.detail
    assert domain.state == ("running" if result is StartResult.STARTED else "off")
    assert domain.ran is (before is not None), "a guest without a lock driver runs no instruction"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ran last, on its way: from the broker of the owner to the agents, the status, the notices
and the one who decides."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import msgspec
import pytest

from agent.commands.why import explain
from agent.status.troubles import troubles
from broker.broker import Broker
from broker.client.ask import BrokerRefused
from broker.events.detector import EventDetector
from broker.events.notice import Notice
from broker.monitors.runner import Sample
from broker.vm import domain_facts
from broker.vm.domain_facts import parse, read
from broker.vm.host_local import OneHost
from broker.vm.in_use import InUse
from broker.wire.exchange import BegunReason
from broker.wire.kinds import Kind
from broker.wire.status import Decision, DifferenceStatus, WhatRanStatus
from scoring.rules import Rules
from scoring.vm_facts import Obstacle
from tests.fakes.broker import in_thread, make_broker, report, served, up
from tests.fakes.definitions import BASE, OVERLAY, domain
from tests.fakes.slot_store import MemoryVolume


def sees(broker: Broker, xml: str, shared: bool, now_s: float) -> None:
    """The monitor's sample of a VM that runs like this; "": none runs."""
    recorded = read(domain())
    use = InUse(recorded, one_host=(OneHost("nvram in /n", "lost", True),))
    if xml:
        found = read(xml)
        layers = {layer for disk in found.disks.values() for layer in disk.chain}
        differences = domain_facts.differences(recorded, found)
        shown = frozenset(layers if shared else ())
        use = InUse(recorded, found, parse(xml), shown, differences, one_host=use.one_host)
    broker.monitors.latest["what_runs"] = Sample(use, now_s)


async def owner_and_heir(tmp_path: Path, shared: bool) -> tuple[Broker, Broker]:
    volume = MemoryVolume()
    owner, heir = make_broker(tmp_path, volume, 1), make_broker(tmp_path, volume, 2)
    now_s = asyncio.get_running_loop().time()
    for broker in (owner, heir):
        broker.take_report(report(), now_s)
    up(owner, now_s)
    sees(owner, domain(OVERLAY, BASE), shared, now_s)
    sees(heir, "", shared, now_s)
    for _ in range(2):
        await owner.beat(now_s)
        await heir.beat(now_s)
    return owner, heir


def test_the_heir_s_agent_gets_what_ran_last(tmp_path: Path) -> None:
    async def run() -> None:
        owner, heir = await owner_and_heir(tmp_path, shared=True)
        now_s = asyncio.get_running_loop().time()
        view = heir.view(now_s)
        assert view.what_ran is not None and OVERLAY in view.what_ran.disks["vda"]
        assert view.local.unfit == () and owner.view(now_s).local.unfit == ()
        again = msgspec.json.decode(msgspec.json.encode(view), type=type(view))
        assert again.what_ran == view.what_ran, "over the wire"
        status = heir.status(now_s)
        assert status.hosts[1].differs == ("disks-differ",)
        told = troubles(owner.status(now_s))
        assert [each for each in told if each.startswith("VM DIFFERS (disks-differ)")] == [
            f"VM DIFFERS (disks-differ): running: vda: recorded {BASE} (qcow2), found"
            f" {OVERLAY} (qcow2) (every host starts it so)"
        ]
        assert "VM DIFFERS on host1: disks-differ (ha-agent why there)" in troubles(status)
        assert "ON ONE HOST ONLY: nvram in /n: lost (ha-agent config check)" in told

    asyncio.run(run())


def test_an_heir_that_would_boot_an_older_disk_is_unfit_and_says_what_to_do(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        owner, heir = await owner_and_heir(tmp_path, shared=False)
        now_s = asyncio.get_running_loop().time()
        (unfit,) = heir.view(now_s).local.unfit
        assert unfit.obstacle is Obstacle.HELD_BACK and "ha-agent vm adopt" in unfit.text
        assert owner.view(now_s).local.unfit == (), "the owner may start it where its disk is"
        status = heir.status(now_s)
        assert f"HELD BACK: {unfit.text}" in troubles(status)
        assert f"Held back: {unfit.text}." in explain(status, Rules())

    asyncio.run(run())


def test_without_the_lease_nothing_is_recorded(tmp_path: Path) -> None:
    async def run() -> None:
        owner = make_broker(tmp_path, MemoryVolume(), 1)
        now_s = asyncio.get_running_loop().time()
        up(owner, now_s)
        sees(owner, domain(OVERLAY, BASE), True, now_s)
        owner.this_host.vm.watched.vm.lease_held = None
        await owner.beat(now_s)
        assert owner.status(now_s).what_ran is None

    asyncio.run(run())


def test_who_decides_is_answered_with_the_record_or_why_not(tmp_path: Path) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        now_s = asyncio.get_running_loop().time()
        with pytest.raises(BrokerRefused, match="was not read yet"):
            await in_thread(path, "POST", "/v1/what-ran", WhatRanStatus, Decision("keep"))
        up(broker, now_s)
        sees(broker, domain(OVERLAY, BASE), False, now_s)
        await broker.beat(now_s)
        await broker.beat(now_s)
        ran = await in_thread(path, "POST", "/v1/what-ran", WhatRanStatus, Decision("adopt"))
        assert (ran.disks, ran.held) == ({"vda": f"{OVERLAY} (qcow2)"}, "")
        assert ran.decided.startswith("adopted by ") and ran.decided.endswith("@host1")
        broker.board._store.fault = "eio"  # type: ignore[attr-defined]
        with pytest.raises(BrokerRefused, match="could not be recorded"):
            await in_thread(path, "POST", "/v1/what-ran", WhatRanStatus, Decision("keep"))

    served(tmp_path, test)


# --- notices ------------------------------------------------------------------------------------


def test_each_difference_is_told_when_it_comes_and_when_it_goes() -> None:
    told: list[Notice] = []
    detector = EventDetector(told.append, 1, "host1")
    disk = DifferenceStatus("disks-differ", "running", "vda", "a", "b", "vda: recorded a, found b")
    cpus = DifferenceStatus("vcpus-differ", "libvirt", "vCPUs", "1", "2", "vCPUs: …")
    detector.differences(None, "")
    detector.differences([disk], "only host1 has it")
    detector.differences([disk, cpus], "")
    detector.differences(None, "")
    detector.differences([cpus], "")
    assert [each.kind for each in told] == [
        Kind.VM_DIFFERS,
        Kind.VM_DIFFERS,
        Kind.VM_AS_RECORDED,
    ]
    assert told[0].detail == "running: vda: recorded a, found b"
    assert told[0].facts["held"] == "only host1 has it"
    assert told[2].detail == "running: vda is as recorded again"


def test_a_start_that_is_held_back_is_told_as_critical() -> None:
    told: list[Notice] = []
    detector = EventDetector(told.append, 1, "host1")
    begun = (BegunReason(1, "held-back", "vda ran last from …"),)
    detector.reported(msgspec.structs.replace(report("EngineDown"), begun=begun), 1.0, 0.0)
    assert [each.kind for each in told] == [Kind.START_HELD_BACK]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the monitors and witnesses see, as the status shows it and the agent gets it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from agent.status.text import as_text
from broker.broker import Broker
from broker.lockspace.hosts import HostRenewal, look
from broker.monitors.network_verdict import TargetResult, Windows
from broker.monitors.runner import Sample, Verdict
from broker.wire.exchange import Report
from broker.wire.status import EngineSummary, Status
from broker.wire.vms import VmEntry, VmWord
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes import virtual_time
from tests.fakes.broker import make_broker, report
from tests.fakes.lockspace import FakeLockspace
from tests.fakes.slot_store import MemoryStore, MemoryVolume

GATEWAY, OTHER = "192.0.2.1", "192.0.2.2"


def windows_of(broker: Broker, *windows: dict[str, float]) -> None:
    """The network test's windows of a host, the last one last."""
    seen = Windows()
    results: tuple[TargetResult, ...] = ()
    for window in windows:
        results = seen.take({target: (part, "no answer") for target, part in window.items()})
    broker.monitors.latest["network"] = Sample(results, 0.0, unit="fraction")


async def beat(brokers: list[Broker], now_s: float) -> None:
    for broker in brokers:
        broker.take_report(report("EngineDown"), now_s)
        await broker.beat(now_s)


def hosts(tmp_path: Path, count: int) -> list[Broker]:
    volume = MemoryVolume()
    return [make_broker(tmp_path, volume, number) for number in range(1, count + 1)]


def text_of(broker: Broker, now_s: float) -> str:
    """The status for people, after its way over the wire."""
    encoded = msgspec.json.encode(broker.status(now_s))
    return as_text(msgspec.json.decode(encoded, type=Status))


def test_a_gateway_that_is_dead_for_everyone_is_named_and_costs_nobody(tmp_path: Path) -> None:
    async def run() -> None:
        three = hosts(tmp_path, 3)
        for broker in three:
            windows_of(broker, *[{GATEWAY: 0.0, OTHER: 1.0}] * 3)
        for now_s in (1.0, 2.0, 3.0):
            await beat(three, now_s)
        for broker in three:
            assert broker.view(3.0).local.network == 1.0
            assert broker.status(3.0).network == f"{GATEWAY} answers no host: not counted"
            assert f"NETWORK: {GATEWAY} answers no host" in text_of(broker, 3.0)

    asyncio.run(run())


def test_a_gateway_that_is_dead_for_one_costs_that_one(tmp_path: Path) -> None:
    async def run() -> None:
        three = hosts(tmp_path, 3)
        windows_of(three[0], *[{GATEWAY: 0.0}] * 3)
        for broker in three[1:]:
            windows_of(broker, {GATEWAY: 1.0})
        for now_s in (1.0, 2.0, 3.0):
            await beat(three, now_s)
        assert [broker.view(3.0).local.network for broker in three] == [0.0, 1.0, 1.0]
        assert "3 of 3 windows bad (no answer)" in three[0].status(3.0).network

    asyncio.run(run())


def test_who_cannot_read_goes_by_no_old_word_of_the_others(tmp_path: Path) -> None:
    async def run() -> None:
        three = hosts(tmp_path, 3)
        for broker in three:
            windows_of(broker, *[{GATEWAY: 0.0, OTHER: 1.0}] * 3)
        for now_s in (1.0, 2.0, 3.0):
            await beat(three, now_s)
        assert three[0].view(3.0).local.network == 1.0
        assert three[0].view(20.0).local.network == 0.5, "nothing was read for 17 s"

    asyncio.run(run())


async def without_gateway(tmp_path: Path, *third: dict[str, float]) -> list[Broker]:
    """Three hosts after three beats: the first two never reached the gateway, the third one has
    the windows `third`, or has not tested yet."""
    three = hosts(tmp_path, 3)
    for broker in three[:2]:
        windows_of(broker, *[{GATEWAY: 0.0}] * 3)
    if third:
        windows_of(three[2], *third)
    for now_s in (1.0, 2.0, 3.0):
        await beat(three, now_s)
    return three


def test_a_host_that_is_silent_has_no_say(tmp_path: Path) -> None:
    async def run() -> None:
        three = await without_gateway(tmp_path, {GATEWAY: 1.0})
        assert three[0].view(3.0).local.network == 0.0
        for now_s in (4.0, 5.0, 6.0, 7.0):
            await beat(three[:2], now_s)
        assert three[0].view(7.0).local.network is None
        assert GATEWAY in three[0].status(7.0).network

    asyncio.run(run())


def test_a_host_that_has_not_tested_yet_has_no_say(tmp_path: Path) -> None:
    async def run() -> None:
        three = await without_gateway(tmp_path)
        assert three[0].view(3.0).local.network is None
        assert three[2].view(3.0).local.network is None

    asyncio.run(run())


def test_a_storage_that_hangs_is_told_with_its_age(tmp_path: Path) -> None:
    async def run() -> None:
        (broker,) = hosts(tmp_path, 1)
        await broker.beat(1.0)
        assert broker.status(1.0).storage.state == "ok"
        store = broker.board._store
        assert isinstance(store, MemoryStore)
        store.fault, store.deadline_s = "hang", 0.01
        loop = asyncio.get_running_loop()
        await broker.beat(loop.time())
        assert broker.board.trouble_since_s is not None
        later_s = broker.board.trouble_since_s + 12.4
        storage = broker.status(later_s).storage
        assert (storage.state, storage.errors) == ("hung", 2)
        assert "STORAGE hung for 12 s: writing slot 1" in text_of(broker, later_s)
        store.fault = "eio"
        await broker.beat(loop.time())
        assert broker.status(loop.time()).storage.state == "error"
        times = broker.status(loop.time()).storage.read_times
        assert times is not None and times.count == 1, "only those that came back"

    virtual_time.run(run())


def vm_2(up: bool | None, host: int | None = None) -> tuple[VmEntry, ...]:
    """The engine, of which nothing is said, and a VM of the registry."""
    state = VmWord.UP if up else VmWord.UNKNOWN
    engine = VmEntry(1, "HostedEngine", 0, "up", 256, VmWord.UNKNOWN, None, None)
    return engine, VmEntry(2, "db", 0, "up", 256, state, up, up, host)


#: The engine is up elsewhere, or nobody knows; all VMs; those that this host's libvirt does not
#: deny; what of them its sanlock may end.
LEFT_HERE = (
    ("unknown", (), (1,), "the VM"),
    ("elsewhere", (), (1,), ""),
    ("unknown", (), (), ""),
    ("unknown", (), None, "the VM"),
    ("elsewhere", vm_2(None), (2,), "db"),
    ("elsewhere", vm_2(True, 1), (1, 2), "db"),
    ("elsewhere", vm_2(True, 3), (2,), ""),
    ("unknown", vm_2(None), (1, 2), "the VMs"),
)


def test_how_much_of_the_lease_budget_is_left(tmp_path: Path) -> None:
    async def run() -> None:
        (broker,) = hosts(tmp_path, 1)
        lockspace = broker.lockspace
        assert isinstance(lockspace, FakeLockspace)
        assert broker.status(100.0).lockspace_budget_s is None
        lockspace.renewed_s = 100.0
        status = broker.status(115.0)
        assert (status.lockspace_budget_s, status.lockspace_budget_max_s) == (65.0, 80.0)
        assert "LEASE" not in text_of(broker, 115.0)
        status = broker.status(150.0)
        words = "sanlock ends the VM here in 30 s"
        assert status.engine.up is None and words in as_text(status), "it may be here"
        assert status.may_run == (1,), "unknown is not down"
        assert "sanlock ends the VM here now, if it has not yet" in text_of(broker, 190.0)
        unheard = msgspec.structs.replace(status.storage, unheard=True)
        up_elsewhere = EngineSummary(up=True, healthy=True, host=2)
        for engine, others, may_run, vms in LEFT_HERE:
            told = msgspec.structs.replace(
                status,
                engine=up_elsewhere if engine == "elsewhere" else status.engine,
                vms=others,
                may_run=may_run,
            )
            ends = f"sanlock ends {vms} here in 30 s" if vms else "sanlock gives it up in 30 s"
            assert ends in as_text(told), (engine, others, may_run)
            # The budget is not low yet, and this host cannot write its slot.
            told = msgspec.structs.replace(told, lockspace_budget_s=63.0, storage=unheard)
            assert ("LEASE" in as_text(told)) is bool(vms)
            assert (f"as well, sanlock ends {vms} here in 63 s" in as_text(told)) is bool(vms)
        lockspace.joined = False
        assert broker.status(150.0).lockspace_budget_s is None

    asyncio.run(run())


def test_sanlock_s_word_on_each_host(tmp_path: Path) -> None:
    async def run() -> None:
        two = hosts(tmp_path, 2)
        await beat(two, 1.0)
        await beat(two, 2.0)
        one = two[0]
        one.lockspace.witnesses = look({}, [HostRenewal(2, 1, 500, "fail")], 10.0)
        seen = one.status(25.0).hosts
        assert (seen[2].sanlock_state, seen[2].sanlock_age_s) == ("fail", 15.0)
        assert (seen[1].sanlock_state, seen[1].sanlock_age_s) == ("unknown", None)

    asyncio.run(run())


def test_every_monitor_is_shown_and_only_what_matters_has_a_line(tmp_path: Path) -> None:
    (broker,) = hosts(tmp_path, 1)
    broker.monitors.latest = {
        "memory": Sample(None, 1.0, 0.1, "no MemAvailable", "MiB", Verdict.UNKNOWN, 5.0),
        "pressure": Sample(None, 1.0, 0.1, "psi=1", "percent", Verdict.UNKNOWN, 10.0),
        "bridge": Sample(False, 1.0, 0.1, "no carrier on eth0", "", Verdict.BAD, 2.0),
        "engine": Sample(
            EngineStatus(VmStatus.UP, Health.GOOD, "up"), 1.0, 0.1, "", "", Verdict.OK, 1.0
        ),
    }
    shown = broker.status(3.0).monitors
    assert list(shown) == ["bridge", "engine", "memory", "pressure"]
    assert (shown["memory"].value, shown["memory"].age_s, shown["memory"].unit) == (
        None,
        2.0,
        "MiB",
    )
    assert shown["engine"].value == "up/good"
    text = text_of(broker, 3.0)
    assert "MONITOR memory is unknown: no MemAvailable" in text
    assert "MONITOR bridge is bad: no carrier on eth0" in text
    assert "pressure" not in text


@pytest.mark.parametrize("who", ["broker", "agent"])
def test_a_configuration_that_either_daemon_refuses_is_told(tmp_path: Path, who: str) -> None:
    (broker,) = hosts(tmp_path, 1)
    if who == "broker":
        broker.in_force.problem = "x.toml: timing: no"
    else:
        sent = Report(0, "EngineDown", (), (), 0, config_problem="x.toml: timing: no")
        broker.take_report(msgspec.json.decode(msgspec.json.encode(sent), type=Report), 1.0)
    assert "CONFIGURATION: an older one is in force: x.toml: timing: no" in text_of(broker, 1.0)
    broker.reconfigure(broker.config)
    assert (broker.status(1.0).config_problem == "") is (who == "broker")

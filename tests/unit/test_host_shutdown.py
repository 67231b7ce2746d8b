# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that shuts down: what its broker says of it, and the command of its unit."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from agent.commands import host_shutdown
from agent.commands.host_shutdown import AWAY_PATIENCE_S, SHOW_AGAIN_S, drain, system_state
from agent.status.text import as_text
from broker.broker import Broker
from broker.client.ask import BrokerDown
from broker.daemon.exit_codes import ExitCode
from broker.maintenance.host_shutdown import (
    GIVE_BACK_S,
    LAPSE_S,
    PAUSED_PATIENCE_S,
    SETTLE_S,
    within_s,
)
from broker.monitors.runner import Sample
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import decode_slot
from broker.wire.exchange import VmReportOnWire
from broker.wire.status import HostShutdownStatus, Maintenance, ReasonOnWire, Status
from scoring.observation import HostShutdown, OnHostShutdown
from scoring.vm_facts import DETAIL_PAUSED, EngineStatus, Health, VmHere, VmStatus
from tests.fakes.broker import FakeVms, make_broker, record, registry_of, report, served, up
from tests.fakes.slot_store import MemoryVolume
from tests.simulation.timeline import HostLoop, Process, Timeline
from tests.unit.builders import TIMING

DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "unknown", "vm not running on this host")


def down(broker: Broker, now_s: float) -> None:
    broker.monitors.latest["engine"] = Sample(DOWN, now_s)


def tell(broker: Broker, state: str, now_s: float, **changed: Any) -> None:
    given = msgspec.structs.replace(report(state), **changed)
    broker.take_report(given, now_s)


def leaving(broker: Broker, way: str) -> None:
    """Configured so."""
    vm = msgspec.structs.replace(broker.config.vm, on_host_shutdown=way)
    broker.reconfigure(msgspec.structs.replace(broker.config, vm=vm))


def text_of(broker: Broker, now_s: float) -> str:
    return as_text(msgspec.json.decode(msgspec.json.encode(broker.status(now_s)), type=Status))


# --- the broker ---------------------------------------------------------------------------------


def test_it_is_in_maintenance_from_the_first_word_on_and_says_by_whom(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        broker, other = make_broker(tmp_path, volume), make_broker(tmp_path, volume, 2)
        tell(broker, "EngineUp", 1.0)
        up(broker, 1.0)
        said = broker.asked.host_shuts_down(1.0)
        assert (said.state, said.within_s) == ("going", within_s(TIMING)) == ("going", 480.0)
        local = broker.view(1.0).local
        assert local.maintenance and local.shutdown == HostShutdown(1.0, OnHostShutdown.MIGRATE)
        await broker.beat(1.0)
        await other.beat(1.0)
        slot = decode_slot(1, bytes(volume.data[SLOT_BYTES : 2 * SLOT_BYTES]))
        assert slot is not None and slot.maintenance
        assert slot.extra["host-shutdown"] == "migrate"
        seen = other.status(1.0).hosts[1]
        assert seen.maintenance and seen.mode is not None and seen.host_shutdown == "migrate"
        assert (seen.mode.owner, seen.mode.reason) == ("systemd", "this host is shutting down")
        assert "SHUTTING DOWN: host1 is shutting down; the VM is moved away first" in text_of(
            other, 1.0
        )
        assert other.view(1.0).local.shutdown is None

    asyncio.run(run())


def test_the_others_say_of_one_that_ended_in_order_that_it_was_shut_down(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        broker, other = make_broker(tmp_path, volume), make_broker(tmp_path, volume, 2)
        for now_s in (1.0, 2.0, 3.0):
            down(broker, now_s)
            tell(broker, "LocalMaintenance", now_s)
            broker.asked.host_shuts_down(now_s)
            await broker.beat(now_s)
            await other.beat(now_s)
        assert "host1 is shutting down; the VM does not run there" in text_of(other, 3.0)
        tell(broker, "AgentStopped", 3.5, stopped=True)
        await broker.beat(3.5)
        for now_s in (4.0, 30.0):
            await other.beat(now_s)
        shown = text_of(other, 30.0)
        assert "SHUT DOWN: host1 was shut down 26 s ago, in order" in shown
        assert "host1 is silent" not in shown
        events = (await other.events.newer(0, 0.0)).events
        assert "host1 is gone, it was shut down in good order" in [each.text for each in events]

    asyncio.run(run())


def test_the_host_is_empty_when_the_others_know_and_the_id_is_given_back(tmp_path: Path) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        begun_s = 10.0

        def state(at_s: float) -> str:
            return said(at_s).state

        def said(at_s: float, name: str = "LocalMaintenance") -> HostShutdownStatus:
            down(broker, at_s)
            tell(broker, name, at_s)
            return broker.asked.host_shuts_down(at_s)

        down(broker, begun_s)
        tell(broker, "LocalMaintenance", begun_s)
        assert state(begun_s) == "going"
        await broker.beat(begun_s)
        assert broker.lockspace.no_join and not broker.lockspace.stay_out, "not told yet"
        told_s = begun_s + SETTLE_S
        tell(broker, "LocalMaintenance", told_s)
        await broker.beat(told_s)
        assert broker.lockspace.stay_out
        assert state(told_s) == "going", "the id is being given back"
        assert state(told_s + GIVE_BACK_S - 0.1) == "going"
        last = said(told_s + GIVE_BACK_S)
        assert (last.state, "could not be given back" in last.text) == ("over", True)
        broker.lockspace.joined = False
        assert said(told_s).text.endswith("the host id is given back")
        assert said(told_s, "EngineStop").state == "going"
        tell(broker, "LocalMaintenance", told_s, intent="fence 3")
        assert broker.asked.host_shuts_down(told_s).state == "going"
        tell(broker, "LocalMaintenance", told_s)
        up(broker, told_s)
        assert broker.asked.host_shuts_down(told_s).state == "going"

    asyncio.run(run())


def test_a_vm_that_is_on_its_way_here_is_waited_for(tmp_path: Path) -> None:
    """The VM's lease needs the host id, so the host id stays too."""

    async def run() -> None:
        volume = MemoryVolume()
        broker, source = make_broker(tmp_path, volume), make_broker(tmp_path, volume, 2)
        broker.asked.host_shuts_down(0.5)
        for now_s in (1.0, 2.0, 5.0):
            down(broker, now_s)
            tell(broker, "LocalMaintenance", now_s)
            tell(source, "EngineMigratingAway", now_s, intent="migrate 1", moving_until_s=60.0)
            await source.beat(now_s)
            await broker.beat(now_s)
        said = broker.asked.host_shuts_down(5.0)
        assert (said.state, said.text) == ("going", "host2 is migrating a VM to this host")
        assert not broker.lockspace.stay_out
        tell(source, "EngineDown", 6.0)
        await source.beat(6.0)
        await broker.beat(6.0)
        assert "host id is being given back" in broker.asked.host_shuts_down(6.0).text
        assert broker.lockspace.stay_out

    asyncio.run(run())


DB = record(2, "db")


def db(vm: VmStatus, at_s: float, detail: str = "") -> VmHere:
    return VmHere(EngineStatus(vm, Health.UNKNOWN, detail), at_s, number=2)


def test_the_host_is_empty_when_the_last_vm_has_left(tmp_path: Path) -> None:
    """The id stays as long as one is here, or between two hosts: its lease needs it."""

    async def run() -> None:
        vms = FakeVms()
        broker = make_broker(tmp_path, MemoryVolume(), registry=registry_of(DB), vms=vms)
        broker.asked.host_shuts_down(0.5)

        def said(at_s: float, here: VmHere, *of_db: VmReportOnWire) -> HostShutdownStatus:
            vms.find(here)
            down(broker, at_s)
            tell(broker, "LocalMaintenance", at_s, vms=of_db)
            return broker.asked.host_shuts_down(at_s)

        await broker.beat(4.0)
        waits = (ReasonOnWire("drain-waiting", "two VMs are leaving already"),)
        up_here = db(VmStatus.UP, 5.0)
        found = said(5.0, up_here, VmReportOnWire(2, "EngineUp", reasons=waits))
        assert (found.state, found.text) == ("going", "db: two VMs are leaving already")
        await broker.beat(5.0)
        assert not broker.lockspace.stay_out, "a VM is here"
        away = db(VmStatus.DOWN, 6.0, "off")
        found = said(6.0, away, VmReportOnWire(2, "EngineMigratingAway", intent="migrate 2"))
        assert (found.state, found.text) == ("going", "db: off")
        await broker.beat(6.0)
        assert not broker.lockspace.stay_out, "it may come back"
        assert said(7.0, db(VmStatus.UNKNOWN, 7.0)).state == "going", "unknown is not down"
        broker.lockspace.joined = False
        assert said(8.0, db(VmStatus.DOWN, 8.0)).state == "over"
        await broker.beat(8.0)
        assert broker.lockspace.stay_out

    asyncio.run(run())


def test_a_paused_vm_is_left_behind_only_when_the_others_have_gone(tmp_path: Path) -> None:
    async def run() -> None:
        vms = FakeVms()
        broker = make_broker(tmp_path, MemoryVolume(), registry=registry_of(DB), vms=vms)
        broker.asked.host_shuts_down(1.0)
        late_s = 1.0 + PAUSED_PATIENCE_S
        vms.find(db(VmStatus.UP, late_s, DETAIL_PAUSED))
        up(broker, late_s)
        tell(broker, "EngineUp", late_s)
        found = broker.asked.host_shuts_down(late_s)
        assert (found.state, found.text) == ("going", "the VM is up and healthy here")
        down(broker, late_s)
        tell(broker, "LocalMaintenance", late_s)
        found = broker.asked.host_shuts_down(late_s)
        assert (found.state, found.text.split(":")[0]) == (
            "left",
            "db is paused, and left to libvirt",
        )

    asyncio.run(run())


def test_it_lapses_when_it_is_not_said_any_more(tmp_path: Path) -> None:
    """A shutdown that was cancelled."""

    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        broker.asked.host_shuts_down(1.0)
        broker.asked.host_shuts_down(2.0)
        await broker.beat(2.0 + LAPSE_S - 0.1)
        assert broker.modes.is_set
        await broker.beat(2.0 + LAPSE_S)
        assert not broker.modes.is_set and broker.view(70.0).local.shutdown is None
        assert not broker.lockspace.no_join

    asyncio.run(run())


def test_it_does_not_outlive_the_broker_and_leaves_a_local_maintenance_as_it_was(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        broker.keeper.set_local(broker.keeper.mode(Maintenance(True, "new memory"), "root@host1"))
        broker.asked.host_shuts_down(1.0)
        await broker.beat(1.0)
        mode = broker.status(1.0).hosts[1].mode
        assert mode is not None and mode.owner == "systemd"
        back = make_broker(tmp_path, MemoryVolume())
        await back.beat(1.0)
        mode = back.status(1.0).hosts[1].mode
        assert mode is not None and mode.reason == "new memory"
        assert not back.status(1.0).hosts[1].host_shutdown

    asyncio.run(run())


@pytest.mark.parametrize(
    ("way", "is_up", "found"),
    [("leave", True, "left"), ("leave", False, "left"), ("shutdown", True, "going")],
)
def test_what_is_configured_decides(tmp_path: Path, way: str, is_up: bool, found: str) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        leaving(broker, way)
        tell(broker, "EngineUp", 1.0)
        (up if is_up else down)(broker, 1.0)
        assert broker.asked.host_shuts_down(1.0).state == found
        assert broker.modes.is_set is (way != "leave")
        shutdown = broker.view(1.0).local.shutdown
        assert (shutdown is not None) is (way != "leave")

    asyncio.run(run())


def test_in_global_maintenance_the_vm_is_left(tmp_path: Path) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        await broker.keeper.set_global(broker.keeper.mode(Maintenance(True), "root@host1"))
        tell(broker, "GlobalMaintenance", 1.0)
        up(broker, 1.0)
        assert broker.asked.host_shuts_down(1.0).state == "left"
        down(broker, 1.0)
        broker.lockspace.joined = False
        assert broker.asked.host_shuts_down(1.0 + SETTLE_S).state == "over", "nothing runs here"

    asyncio.run(run())


def test_a_vm_that_somebody_paused_is_not_waited_for_long(tmp_path: Path) -> None:
    """The agent leaves it alone; a snapshot is over in moments, a user's pause is not."""

    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        paused = EngineStatus(VmStatus.UP, Health.UNKNOWN, DETAIL_PAUSED)
        found = []
        for now_s in (1.0, 10.0, 1.0 + PAUSED_PATIENCE_S):
            tell(broker, "EngineUp", now_s)
            broker.monitors.latest["engine"] = Sample(paused, now_s)
            found.append(broker.asked.host_shuts_down(now_s).state)
        assert found == ["going", "going", "left"]

    asyncio.run(run())


def test_without_an_agent_nobody_can_drain_it(tmp_path: Path) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        up(broker, 1.0)
        said = broker.asked.host_shuts_down(1.0)
        assert (said.state, said.text.split(":")[0]) == ("no-agent", "the agent is silent")
        tell(broker, "AgentStopped", 2.0, stopped=True)
        assert "the agent is stopped" in broker.asked.host_shuts_down(2.0).text
        down(broker, 5.0)
        broker.lockspace.joined = False
        assert broker.asked.host_shuts_down(5.0).state == "over", "the host is empty all the same"

    asyncio.run(run())


def test_only_root_and_the_broker_s_user_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        async with session.put("http://ha/v1/host-shutdown") as answer:
            assert (answer.status, (await answer.json())["state"]) == (200, "no-agent")
        uid = os.getuid()
        monkeypatch.setattr("broker.api.socket._user_id", lambda request: uid + 4711)
        async with session.put("http://ha/v1/host-shutdown") as answer:
            assert answer.status == 403

    served(tmp_path, test)


# --- the command --------------------------------------------------------------------------------


def drained(answers: Iterable[HostShutdownStatus | Exception]) -> tuple[bool, list[str], float]:
    """Whether, what was told, and after how many virtual seconds."""
    told: list[str] = []
    ended: list[tuple[bool, float]] = []
    timeline, left = Timeline(), iter(answers)
    loop = HostLoop(timeline, 0.0, 1.0)  # type: ignore[abstract]

    async def say() -> HostShutdownStatus:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def main() -> None:
        ended.append((await drain(say, told.append), loop.time()))

    Process(loop, "host-shutdown", lambda process, error: None).start(main())
    timeline.run_until(1000.0)
    (is_empty, took_s) = ended[0]
    return is_empty, told, took_s


def going(text: str, state: str = "going", within: float = 480.0) -> HostShutdownStatus:
    return HostShutdownStatus(state, text, within)


def test_it_says_how_far_it_is_until_the_host_is_empty() -> None:
    said = [*[going(f"migrating for {n} s") for n in range(20)], going("empty", "over")]
    is_empty, told, took_s = drained(said)
    assert is_empty and took_s == 20.0
    again = int(SHOW_AGAIN_S)
    assert told == ["migrating for 0 s", f"migrating for {again} s", "empty"]


def test_what_is_left_on_purpose_is_not_waited_for() -> None:
    assert drained([going("leave", "left")]) == (False, ["leave"], 0.0)


@pytest.mark.parametrize("gone", [BrokerDown("no answer"), going("the agent is away", "no-agent")])
def test_who_is_away_is_not_waited_for_much_longer(gone: HostShutdownStatus | Exception) -> None:
    """During a shutdown systemd starts no daemon anew."""
    is_empty, told, took_s = drained(repeat(gone))
    assert not is_empty and took_s == AWAY_PATIENCE_S
    assert told[-1] == "given up after 15 s: what runs here is left to libvirt"


def test_who_was_away_for_a_moment_is_waited_for() -> None:
    away: list[HostShutdownStatus | Exception] = [BrokerDown("no answer")] * 10
    said = [*away, going("migrating"), *away, going("empty", "over")]
    assert drained(said)[0]


def test_it_ends_in_any_case_before_systemd_ends_it() -> None:
    is_empty, told, took_s = drained(repeat(going("unknown", within=90.0)))
    assert not is_empty and took_s == 90.0 and "given up after 90 s" in told[-1]


@pytest.mark.parametrize("state", ["running", "degraded", "starting", ""])
def test_a_unit_that_is_stopped_while_the_system_runs_touches_nothing(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law 6: no socket is even opened."""
    assert host_shutdown.run("/no/such/socket", lambda: state) == ExitCode.OK
    said = capsys.readouterr().out
    assert said.startswith("nothing is done: this host is not shutting down")


def test_the_command_ends_with_what_came_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        leaving(broker, "leave")
        code = await asyncio.to_thread(host_shutdown.run, path, lambda: "stopping")
        assert code == ExitCode.FAILED

    served(tmp_path, test)
    assert "left to libvirt" in capsys.readouterr().out


def test_systemd_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "systemctl"
    fake.write_text('#!/bin/sh\n[ "$1" = is-system-running ] && echo stopping; exit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert system_state() == "stopping"
    fake.unlink()
    assert system_state() == ""

    def hangs(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("systemctl", 1.0)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert system_state() == ""

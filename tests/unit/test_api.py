# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's API over its real socket, on simulated storage."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest

from agent.status.text import as_text
from broker.api.socket import BODY_BYTES_MAX, CONNECTIONS_PER_USER_MAX, serve
from broker.broker import Broker
from broker.client.ask import BrokerDown, BrokerRefused, ask
from broker.client.link import Link
from broker.lockspace.port import LockspaceError
from broker.monitors.runner import Sample, Verdict
from broker.status.of_cluster import STATUS_FRESH_S
from broker.this_host.agent_report import AGENT_SILENT_BEATS
from broker.whiteboard.mode import Mode
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import decode_slot
from broker.wire.status import (
    Maintenance,
    Status,
)
from scoring.vm_facts import Obstacle, Unfit, VmStatus
from tests.fakes.broker import in_thread, make_broker, report, served, up
from tests.fakes.slot_store import MemoryStore, MemoryVolume
from tests.fakes.waiting import until


def test_a_host_that_could_not_start_the_vm_says_so_to_its_agent_and_as_an_event(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        latest = broker.monitors.latest
        assert broker.view(1.0).local.unfit == ()
        latest["can_start"] = Sample(False, 1.0, problem="no bridge", verdict=Verdict.BAD)
        await broker.beat(1.0)
        assert broker.view(1.0).local.unfit == (Unfit(Obstacle.CANNOT_START, "no bridge"),)
        # libvirt hangs: that is not known, and nothing has ended.
        latest["can_start"] = Sample(None, 2.0, problem="hung", verdict=Verdict.UNKNOWN)
        await broker.beat(2.0)
        assert broker.view(2.0).local.unfit == ()
        latest["can_start"] = Sample(True, 3.0)
        await broker.beat(3.0)
        kinds = [event.kind for event in broker.events.after(0, 100).events]
        assert [kind for kind in kinds if "start" in kind] == [
            "broker-started",
            "cannot-start",
            "can-start",
        ]
        latest["lock_driver"] = Sample(False, 3.0, problem="lockd", verdict=Verdict.BAD)
        assert broker.view(3.0).local.lock_driver is False

    asyncio.run(run())


def test_two_hosts_see_each_other(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        one, two = make_broker(tmp_path, volume, 1), make_broker(tmp_path, volume, 2)
        for now_s in (1.0, 2.0):
            up(one, now_s)
            one.take_report(report(), now_s)
            await one.beat(now_s)
            await two.beat(now_s)
        status = two.status(2.5)
        assert status.engine.hostname == "host1"
        assert status.engine.healthy
        host1 = status.hosts[1]
        assert (host1.state, host1.score, host1.liveness) == ("EngineUp", 3400, "live")
        assert host1.penalties == report().penalties
        assert host1.reason == "the VM is up and healthy here"
        assert "host1" in as_text(status)
        view = two.view(2.5)
        assert view.peers[0].last_ran == 3
        assert view.peers[0].read_s == 2.0
        # Nobody writes any more: silence, then no engine.
        for now_s in (4.0, 5.0, 6.0):
            await two.read(now_s)
        assert two.status(6.0).hosts[1].liveness == "silent"
        assert not two.status(6.0).engine.up

    asyncio.run(run())


def test_what_a_silent_agent_was_about_to_do_is_expected_of_nobody(tmp_path: Path) -> None:
    """The silent agent's state stays shown, but no host must wait for it to start the VM."""

    async def run() -> None:
        volume = MemoryVolume()
        one, two = make_broker(tmp_path, volume, 1), make_broker(tmp_path, volume, 2)
        one.take_report(report("EngineStart"), 1.0)
        late_s = 2.0 + AGENT_SILENT_BEATS
        for now_s, seen in ((1.0, "EngineStart"), (late_s, "")):
            await one.beat(now_s)
            await two.beat(now_s)
            assert two.view(now_s).peers[0].state == seen
        assert two.status(late_s).hosts[1].state == "EngineStart"

    asyncio.run(run())


def test_a_silent_agent_makes_score_0_and_a_stopped_one_says_so(tmp_path: Path) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        broker.take_report(report(), 10.0)
        assert broker.status(11.0).hosts[1].score == 3400
        late = broker.status(10.0 + AGENT_SILENT_BEATS + 1).hosts[1]
        assert late.score == 0
        assert late.agent.startswith("silent")
        broker.take_report(report("AgentStopped", 0, stopped=True), 20.0)
        stopped = broker.status(99.0).hosts[1]
        assert stopped.stopped
        assert stopped.agent == "stopped"

    asyncio.run(run())


def test_a_restarted_broker_goes_on_where_its_slot_left_off(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        first = make_broker(tmp_path, volume)
        first.take_report(report(), 1000.0)
        await first.beat(1000.0)
        second = make_broker(tmp_path, volume)
        await second.beat(5.0)
        slot = decode_slot(1, bytes(volume.data[SLOT_BYTES : 2 * SLOT_BYTES]))
        assert slot is not None
        assert slot.timestamp == 1001
        assert second.view(5.0).local.last_ran == 3

    asyncio.run(run())


def test_an_old_engine_sample_is_unknown(tmp_path: Path) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        up(broker, 1.0)
        assert broker.view(2.0).local.engine.vm is VmStatus.UP
        assert broker.view(99.0).local.engine.vm is VmStatus.UNKNOWN

    asyncio.run(run())


def test_status_and_maintenance_over_the_socket(tmp_path: Path) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        await broker.beat(1.0)
        status = await in_thread(path, "GET", "/v1/status", Status)
        assert status.version == 1
        for mode in ("global", "local"):
            where = f"/v1/maintenance/{mode}"
            wanted = Maintenance(True, "a test", 3600)
            assert await in_thread(path, "PUT", where, Maintenance, wanted) == wanted
        status = await in_thread(path, "GET", "/v1/status", Status)
        for mode in (status.global_mode, status.hosts[1].mode):
            assert mode is not None and mode.reason == "a test"
            assert mode.owner == f"{pwd.getpwuid(os.getuid()).pw_name}@host1"
        assert broker.board.global_maintenance
        assert broker.modes.is_set
        assert make_broker(tmp_path, MemoryVolume()).modes.is_set, "kept over a restart"

    served(tmp_path, test)


def test_a_view_is_held_back_until_there_is_news(tmp_path: Path) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        link = Link(path)
        await broker.beat(1.0)
        view = await link.exchange(report(), 0)
        waiting = asyncio.create_task(link.exchange(report(), view.version))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await broker.beat(2.0)
        assert (await waiting).version > view.version
        await link.close()

    served(tmp_path, test)


@pytest.mark.parametrize(
    ("method", "resource", "body", "status"),
    [
        ("GET", "/v1/nothing", b"", 404),
        ("POST", "/v1/status", b"", 405),
        ("PUT", "/v1/maintenance/some", b'{"on":true}', 404),
        ("PUT", "/v1/maintenance/local", b'{"on":3}', 400),
        ("PUT", "/v1/maintenance/local", b'{"on":true,"off":1}', 400),
        ("PUT", "/v1/maintenance/local", b"\xff\xff", 400),
        ("PUT", "/v1/maintenance/local", b'{"on":true,"for_s":0}', 400),
        ("PUT", "/v1/maintenance/local", b'{"on":true,"for_s":1e300}', 400),
        ("PUT", "/v1/maintenance/global", b'{"on":true,"reason":"' + b"x" * 201 + b'"}', 400),
        ("PUT", "/v1/report", b"[" * 5000, 400),
        ("PUT", "/v1/report", b"{}", 400),
        ("PUT", "/v1/report", b"x" * (BODY_BYTES_MAX + 1), 413),
    ],
)
def test_bad_requests_are_answered_as_problems(
    tmp_path: Path, method: str, resource: str, body: bytes, status: int
) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        async with session.request(method, f"http://ha{resource}", data=body) as answer:
            assert answer.status == status
            assert answer.content_type == "application/problem+json"
            assert msgspec.json.decode(await answer.read())["status"] == status
        assert not broker.modes.is_set

    served(tmp_path, test)


def test_a_second_broker_on_the_same_socket_is_refused(tmp_path: Path) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        with pytest.raises(OSError, match="another ha-broker"):
            await serve(broker, path)
        await in_thread(path, "GET", "/v1/status", Status)

    served(tmp_path, test)


def test_what_does_not_answer_is_broker_down(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    stopped = r"ha-broker does not run: nothing answers on .*systemctl start ha-broker"
    with pytest.raises(BrokerDown, match=stopped):
        ask(path, "GET", "/v1/status", Status)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        # What a broker that has ended leaves there.
        with pytest.raises(BrokerDown, match=stopped):
            ask(path, "GET", "/v1/status", Status)
        listener.listen()
        with pytest.raises(BrokerDown, match=r"timed out.*is ha-broker running"):
            ask(path, "GET", "/v1/status", Status, timeout_s=0.1)


def test_trouble_with_the_storage_is_told_to_who_asked(tmp_path: Path) -> None:
    async def test(broker: Broker, path: str, session: aiohttp.ClientSession) -> None:
        store = broker.board._store
        assert isinstance(store, MemoryStore)
        store.fault = "eio"
        with pytest.raises(BrokerRefused, match="Input/output error"):
            await in_thread(path, "PUT", "/v1/maintenance/global", Maintenance, Maintenance(True))

    served(tmp_path, test)


def test_a_slot_that_another_host_writes_is_neither_written_nor_shared(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        owner = make_broker(tmp_path, volume, boot_id="another boot")
        late = make_broker(tmp_path, volume)
        late.lockspace.joined = False
        await owner.beat(1.0)
        await late.beat(1.5)
        await owner.beat(2.0)
        await late.beat(2.5)
        await owner.beat(3.0)
        with pytest.raises(LockspaceError, match="host id 1 is in use by host1"):
            await late.beat(3.5)
        slot = decode_slot(1, bytes(volume.data[SLOT_BYTES : 2 * SLOT_BYTES]))
        assert slot is not None
        assert slot.timestamp == 3

    asyncio.run(run())


def test_what_this_boot_s_earlier_broker_writes_late_is_no_other_host_s(tmp_path: Path) -> None:
    async def run() -> None:
        volume = MemoryVolume()
        earlier, late = make_broker(tmp_path, volume), make_broker(tmp_path, volume)
        late.lockspace.joined = False
        for now_s in (1.0, 2.0, 3.0, 4.0):
            await earlier.beat(now_s)
            await late.beat(now_s + 0.5)

    asyncio.run(run())


def test_many_who_ask_get_one_status_and_never_an_old_one(tmp_path: Path) -> None:
    async def run() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        await broker.beat(1.0)
        first = broker.shown.as_json(1.0)
        assert broker.shown.as_json(1.0 + STATUS_FRESH_S / 2) is first
        assert broker.shown.as_json(1.0 + 2 * STATUS_FRESH_S) is not first

        changes: list[Callable[[], None]] = [
            lambda: broker.take_report(report(), 2.0),
            lambda: up(broker, 2.0),
            lambda: broker.refuse_config("x.toml: no"),
            lambda: broker.keeper.set_local(Mode("root", "disk")),
        ]
        for change in changes:
            before = broker.shown.as_json(2.0)
            change()
            assert broker.shown.as_json(2.0) is not before
        before = broker.shown.as_json(2.0)
        await broker.keeper.set_global(Mode("root", "disk"))
        assert broker.shown.as_json(2.0) is not before
        await broker.beat(2.0)
        assert msgspec.json.decode(broker.shown.as_json(2.0), type=Status) == broker.status(2.0)

    asyncio.run(run())


_TAKE_ALL = """
import socket, sys, time
held = []
for _ in range(40):
    one = socket.socket(socket.AF_UNIX)
    one.connect(sys.argv[1])
    held.append(one)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's process needs root")
def test_a_reader_of_the_group_takes_no_place_of_root_s() -> None:
    """He silenced the host: its agent found no place."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)

    async def run() -> None:
        broker = make_broker(folder, MemoryVolume())
        path = broker.config.daemon.socket
        server = await serve(broker, path)
        Path(path).chmod(0o666)
        reader = await asyncio.create_subprocess_exec(
            "/usr/bin/python3",
            "-c",
            _TAKE_ALL,
            path,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            user=65534,
        )
        try:
            assert reader.stdout is not None and await reader.stdout.readline() == b"held\n"
            await until(lambda: server.connections == {"65534": CONNECTIONS_PER_USER_MAX})
            connector = aiohttp.UnixConnector(path)
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get("http://ha/v1/status") as answer,
            ):
                assert answer.status == 200
            # As many of root's as anybody could want.
            held = [await asyncio.open_unix_connection(path) for _ in range(80)]
            await until(lambda: server.connections["0"] == 80)
            for _, writer in held:
                writer.close()
        finally:
            reader.kill()
            await reader.communicate()
            await server.cleanup()

    try:
        asyncio.run(run())
    finally:
        shutil.rmtree(folder)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Do the others' ports for heartbeats answer: what `init`, `join` and `doctor` ask and say."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from agent.doctor.peers import heartbeat_ports
from agent.setup import heartbeat_reach
from agent.setup.heartbeat_reach import OPEN, Port, ask_ports, how_to_open, ports_done
from agent.setup.join import _heartbeat_listen
from broker.config.cluster_key import ClusterKey
from broker.config.sections import ApiSection, Config
from broker.peers.heartbeat_port import HeartbeatPort
from broker.whiteboard.slot import SlotReport, encode_slot
from broker.whiteboard.volume import Volume
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.fakes.broker import make_broker
from tests.fakes.keyed import with_cluster_key
from tests.fakes.slot_store import MemoryVolume

KEY, OTHER_KEY = ClusterKey(b"k" * 32), ClusterKey(b"o" * 32)


@pytest.fixture
def joined(site: Path) -> Config:
    """A configured host 1 with a key; nobody else is there yet."""
    config = with_cluster_key(site, KEY)
    replace = msgspec.structs.replace
    return replace(
        config,
        api=ApiSection(listen=("192.0.2.1:8765",)),
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_reach, "ANSWER_S", 0.05)


def publish(config: Config, host: int, heartbeat: str, stopped: bool = False) -> None:
    engine = EngineStatus(VmStatus.DOWN, Health.UNKNOWN, "off")
    extra = {"heartbeat": heartbeat}
    report = SlotReport(host, 1, 0, engine, f"host{host}", stopped=stopped, extra=extra)
    with Volume(config.storage.whiteboard) as volume:
        volume.write_slot(host, encode_slot(report))


def with_port(
    tmp_path: Path, test: Callable[[int], Awaitable[None]], key: ClusterKey = KEY
) -> None:
    """Host 2's broker answers on loopback."""

    async def main() -> None:
        broker = make_broker(tmp_path, MemoryVolume(), 2)
        broker.heartbeats.key = key
        clock = asyncio.get_running_loop().time
        port = HeartbeatPort(
            lambda datagram, source: broker.sign_of_life.answer(datagram, source, clock())
        )
        await port.start([("127.0.0.1", 0)])
        try:
            await test(port.ports[0])
        finally:
            port.close()

    asyncio.run(main())


def test_each_port_is_asked_and_what_to_open_is_said(tmp_path: Path, joined: Config) -> None:
    async def test(port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            deaf = f"127.0.0.1:{silent.getsockname()[1]}"
            publish(joined, 2, f"{deaf},127.0.0.1:{port}")
            publish(joined, 3, deaf)
            publish(joined, 4, "")
            publish(joined, 5, f"127.0.0.1:{port}", stopped=True)
            found = await asyncio.to_thread(ask_ports, joined)
            assert [(each.name, each.port, each.what) for each in found] == [
                ("host2 (id 2)", Port.ANSWERS, f"answers at 127.0.0.1:{port}/udp"),
                (
                    "host3 (id 3)",
                    Port.SILENT,
                    f"does not answer: {deaf}/udp: silent for 3 questions",
                ),
                (
                    "host4 (id 4)",
                    Port.NONE,
                    "publishes no port for heartbeats: an earlier version, or it listens nowhere",
                ),
            ]
            said = await asyncio.to_thread(lambda: list(heartbeat_ports(joined)))
        assert [(verdict, fix) for verdict, _, fix in said] == [
            ("ok", ""),
            ("warn", f"there: {OPEN}; ha-agent doctor"),
            ("warn", "there: upgrade, or api.listen"),
        ]

    with_port(tmp_path, test)


def test_a_host_with_another_key_is_silent(tmp_path: Path, joined: Config) -> None:
    async def test(port: int) -> None:
        publish(joined, 2, f"127.0.0.1:{port}")
        (found,) = await asyncio.to_thread(ask_ports, joined)
        assert found.port is Port.SILENT

    with_port(tmp_path, test, OTHER_KEY)


def test_another_hosts_port_is_not_that_host_s(tmp_path: Path, joined: Config) -> None:
    async def test(port: int) -> None:
        publish(joined, 3, f"127.0.0.1:{port}")
        (found,) = await asyncio.to_thread(ask_ports, joined)
        assert found.port is Port.SILENT

    with_port(tmp_path, test)


def test_a_closed_port_and_a_name_without_address_are_said(joined: Config) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{free.getsockname()[1]}"
    publish(joined, 2, closed)
    (found,) = ask_ports(joined)
    assert found.what == f"does not answer: {closed}/udp: Connection refused"


def test_a_set_up_says_what_the_others_need_of_this_host(joined: Config) -> None:
    (own,) = ports_done(joined)
    assert (own.name, own.verdict) == ("heartbeat", "ok")
    assert own.text == (
        f"the other hosts ask this one at 192.0.2.1:8766/udp; in its firewall: {OPEN}"
    )
    nowhere = msgspec.structs.replace(joined, api=ApiSection(listen=()))
    assert ports_done(nowhere) == []
    ((verdict, text, _),) = heartbeat_ports(nowhere)
    assert verdict == "warn" and "loopback" in text


def test_without_a_key_nobody_is_asked(joined: Config) -> None:
    publish(joined, 2, "127.0.0.1:1")
    Path(joined.daemon.secrets).write_text("")
    assert ask_ports(joined) == []


def test_a_port_of_one_s_own_is_opened_by_its_number() -> None:
    assert how_to_open(("192.0.2.1:8766", "[2001:db8::1]:8766")) == OPEN
    assert how_to_open(("192.0.2.1:9", "192.0.2.2:8")) == (
        "firewall-cmd --permanent --add-port=8/udp --add-port=9/udp && firewall-cmd --reload"
    )


def test_who_joins_answers_at_the_member_s_ports_and_its_own_address(joined: Config) -> None:
    assert _heartbeat_listen(joined) is None, "the default follows api.listen"
    given = ApiSection(heartbeat_listen=("0.0.0.0:9",))
    apart = msgspec.structs.replace(joined, api=given)
    assert _heartbeat_listen(apart) == ("0.0.0.0:9",)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""This host answers itself at 127.0.0.1, and no set-up leaves it without an address unasked."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import msgspec
import pytest

from agent.setup import init, join
from agent.setup.answers import Answers, Asker, gateway
from agent.setup.toml_text import Value
from agent.setup.written import Files
from agent.terminal.errors import CommandError
from agent.vm.imported import Imported
from broker import main
from broker.api.front import FrontProcess
from broker.config import addresses
from broker.config.addresses import loopback_beside
from broker.config.load import load
from broker.daemon.exit_codes import ExitCode
from tests.fakes.broker import make_broker
from tests.fakes.slot_store import MemoryVolume
from tests.unit.namespace import BRIDGE, ip, own_network


@pytest.mark.parametrize(
    ("listen", "beside"),
    [
        ((), ("127.0.0.1:8765",)),
        (("192.0.2.1:8765",), ("127.0.0.1:8765",)),
        (("[2001:db8::1]:99", "192.0.2.1:8765"), ("127.0.0.1:99",)),
        (("[::]:8765",), ("127.0.0.1:8765",)),
        (("0.0.0.0:8765",), ()),
        (("192.0.2.1:8765", "127.0.0.1:99"), ()),
        (("[::1]:8765",), ()),
        (("localhost:8765",), ()),
    ],
)
def test_this_host_finds_itself(listen: tuple[str, ...], beside: tuple[str, ...]) -> None:
    assert loopback_beside(listen) == beside


def test_a_port_that_another_program_has_there_ends_no_broker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            broker = make_broker(tmp_path, MemoryVolume())
            path = tmp_path / "1.toml"
            path.write_text(
                path.read_text() + f'[api]\nlisten = ["192.0.2.1:{taken.getsockname()[1]}"]\n'
            )
            front = FrontProcess(broker)
            try:
                await main._start_loopback(front, load(str(path)))
                assert front.ports == []
            finally:
                await front.close()
            assert "127.0.0.1" in caplog.text

    asyncio.run(run())


def test_a_broker_that_listens_nowhere_else_answers_its_own_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        monkeypatch.setattr(addresses, "API_PORT", port)
        broker = make_broker(tmp_path, MemoryVolume())
        path = tmp_path / "1.toml"
        path.write_text(path.read_text() + "[api]\nlisten = []\n")
        front = FrontProcess(broker)
        try:
            await main._start_loopback(front, load(str(path)))
            assert front.ports == [port]
        finally:
            await front.close()

    asyncio.run(run())


def network(given: Answers) -> dict[str, Value | None]:
    values: dict[str, Value | None] = {}
    domain = Imported.__new__(Imported)
    init._network(
        Files(Path("/etc/ha-agent/ha-agent.toml")),
        values,
        given,
        Asker(yes=True, as_json=False),
        domain,
    )
    return values


GIVEN = Answers(bridge="-", network_targets=(), health_url="-")


def test_a_host_without_a_way_anywhere_is_asked_for_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(init, "own_address", lambda towards: "")
    with pytest.raises(CommandError, match=r"--listen is missing .where the other"):
        network(GIVEN)


def test_a_host_of_ipv6_alone_or_without_targets_finds_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        init, "own_address", lambda towards: "2001:db8::7" if ":" in towards else ""
    )
    assert network(GIVEN)["api.listen"] == ("[2001:db8::7]:8765",)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_real_host_of_ipv6_alone_is_set_up_with_its_address_and_its_gateway(
    tmp_path: Path,
) -> None:
    """No IPv4 but the loopback's, as a kernel has it."""
    with own_network(tmp_path):
        ip("link", "set", "lo", "up")
        ip("link", "set", BRIDGE, "up")
        with pytest.raises(CommandError, match="--listen is missing"):
            network(GIVEN)
        ip("addr", "add", "2001:db8::7/64", "dev", BRIDGE, "nodad")
        ip("-6", "route", "add", "default", "via", "2001:db8::1", "dev", BRIDGE)
        assert gateway() == "2001:db8::1"
        found = network(msgspec.structs.replace(GIVEN, network_targets=None))
        assert found["api.listen"] == ("[2001:db8::7]:8765",)
        assert found["network.targets"] == ("2001:db8::1",)
        assert join._here(("[2001:db8::2]:8765",)) == ("[2001:db8::7]:8765",)
        with pytest.raises(CommandError, match=r"--listen is missing.*192\.0\.2\.1") as refused:
            join._here(("192.0.2.1:8765",))
        assert refused.value.code == ExitCode.USAGE
        with socket.create_server(("127.0.0.1", 0)) as here:
            socket.create_connection(here.getsockname()).close()


def test_a_host_without_a_gateway_is_told_that_its_network_is_not_tested(tmp_path: Path) -> None:
    path = tmp_path / "ha-agent.toml"
    for text, wanted in (('test = "none"', ["warning"]), ('targets = ["192.0.2.1"]', [])):
        path.write_text(
            '[host]\nid = 1\n[storage]\nwhiteboard = "/w"\nleases = "/l"\n[network]\n' + text
        )
        said = init._untested(load(str(path)), Answers())
        assert [each.verdict for each in said] == wanted
        assert init._untested(load(str(path)), Answers(network_targets=())) == []


def test_none_is_taken_where_none_is_said() -> None:
    assert network(msgspec.structs.replace(GIVEN, listen="-"))["api.listen"] == ()

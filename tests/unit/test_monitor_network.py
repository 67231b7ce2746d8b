# SPDX-License-Identifier: LGPL-2.1-or-later
"""The network test against real servers on loopback: each kind of probe, and what breaks it."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from pathlib import Path

import icmplib
import pytest
from dns import message, rcode, resolver

from broker.config.sections import NetworkSection
from broker.daemon import name_lookup
from broker.monitors.network import COUNT, NetworkMonitor
from broker.monitors.network_verdict import TargetResult
from broker.monitors.runner import Unknown
from tests.fakes.tcp import NOWHERE, Handler, free_port, listening, take
from tests.fakes.waiting import until
from tests.unit.namespace import BRIDGE, ip


def monitor(test: str, *targets: str, timeout_s: float = 5.0, **given: object) -> NetworkMonitor:
    section = NetworkSection(test=test, targets=targets, **given)  # type: ignore[arg-type]
    return NetworkMonitor(section, apart_s=0.0, timeout_s=timeout_s)


async def window(monitor: NetworkMonitor) -> dict[str, TargetResult]:
    return {result.target: result for result in await monitor.sample()}


# --- tcp --------------------------------------------------------------------------------------


def test_a_port_that_takes_connections_and_one_that_does_not() -> None:
    async def run() -> None:
        async with listening(take) as port, listening(take, "::1") as port6:
            good, good6, bad = f"127.0.0.1:{port}", f"[::1]:{port6}", f"127.0.0.1:{free_port()}"
            found = await window(monitor("tcp", good, good6, bad))
        assert (found[good].last, found[good6].last, found[bad].last) == (1.0, 1.0, 0.0)
        assert "refused" in found[bad].detail.lower()

    asyncio.run(run())


def test_a_port_that_answers_now_and_then_counts_by_its_part() -> None:
    async def run() -> None:
        async with listening(take) as port:
            test = monitor("tcp", f"127.0.0.1:{port}")
            connect, calls = test._connect, iter(range(COUNT))

            async def now_and_then(target: str) -> None:
                if next(calls) % 2:
                    raise OSError("lost")
                await connect(target)

            test._connect = now_and_then  # type: ignore[method-assign]
            (result,) = await test.sample()
        assert result.last == 3 / COUNT
        assert result.detail == "lost"

    asyncio.run(run())


def test_a_backlog_that_is_full_is_given_up_in_time() -> None:
    """A server that is stopped takes no connection any more: the packets go unanswered."""

    async def run() -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen(0)
            port = server.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)):
                (result,) = await monitor("tcp", f"127.0.0.1:{port}", timeout_s=0.05).sample()
        assert (result.last, result.detail) == (0.0, "no answer within 0.05 s")

    asyncio.run(run())


# --- dns --------------------------------------------------------------------------------------


async def asked(reader: asyncio.StreamReader) -> message.Message:
    (length,) = struct.unpack("!H", await reader.readexactly(2))
    return message.from_wire(await reader.readexactly(length))


def name_server(code: rcode.Rcode, seen: list[str]) -> Handler:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        query = await asked(reader)
        seen.append(str(query.question[0].name))
        reply = message.make_response(query)
        reply.set_rcode(code)
        wire = reply.to_wire()
        writer.write(struct.pack("!H", len(wire)) + wire)
        await writer.drain()

    return answer


@pytest.mark.parametrize("code", [rcode.NOERROR, rcode.NXDOMAIN, rcode.SERVFAIL])
def test_any_answer_of_a_name_server_counts(code: rcode.Rcode) -> None:
    seen: list[str] = []

    async def run() -> None:
        async with listening(name_server(code, seen)) as port:
            test = monitor("dns", dns_server="localhost", dns_port=port, dns_name="example.org")
            (result,) = await test.sample()
        assert (result.target, result.last) == ("resolver", 1.0), result.detail
        assert seen == ["example.org."] * COUNT

    asyncio.run(run())


def test_each_name_server_among_the_targets_is_asked_for_the_root() -> None:
    seen: list[str] = []

    async def run() -> None:
        async with listening(name_server(rcode.NOERROR, seen)) as port:
            test = monitor("dns", "127.0.0.1", "127.0.0.2", dns_port=port)
            found = await window(test)
        assert [found[name].last for name in ("127.0.0.1", "127.0.0.2")] == [1.0, 0.0]
        assert set(seen) == {"."}

    asyncio.run(run())


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def say_garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asked(reader)
    writer.write(struct.pack("!H", 60) + b"\xff" * 60)
    await writer.drain()


async def answer_something_else(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asked(reader)
    wire = message.make_response(message.make_query("other.example", "A")).to_wire()
    writer.write(struct.pack("!H", len(wire)) + wire)
    await writer.drain()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asked(reader)


@pytest.mark.parametrize("broken", [say_nothing, say_garbage, answer_something_else, hang_up])
def test_what_is_no_answer_does_not_count_and_has_its_reason(broken: Handler) -> None:
    async def run() -> None:
        async with listening(broken) as port:
            test = monitor("dns", dns_server="127.0.0.1", dns_port=port, timeout_s=0.2)
            (result,) = await test.sample()
        assert result.last == 0.0
        assert result.detail

    asyncio.run(run())


class Configured:
    """What dnspython makes of an /etc/resolv.conf."""

    nameservers: tuple[str, ...] = ()


def test_the_system_s_name_servers_are_asked_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    async def run() -> None:
        async with listening(name_server(rcode.NOERROR, seen)) as port:
            Configured.nameservers = ("127.0.0.2", "127.0.0.1")
            monkeypatch.setattr(resolver, "Resolver", Configured)
            test = monitor("dns", dns_port=port)
            assert (await test.sample())[0].last == 1.0
            Configured.nameservers = ()
            (result,) = await test.sample()
        assert (result.last, result.fraction) == (0.0, 1.0), "one bad window"
        assert "/etc/resolv.conf" in result.detail

    asyncio.run(run())


# --- ping -------------------------------------------------------------------------------------


def can_ping() -> bool:
    first, last = Path("/proc/sys/net/ipv4/ping_group_range").read_text().split()
    return os.geteuid() == 0 or int(first) <= os.getegid() <= int(last)


@pytest.mark.skipif(not can_ping(), reason="ping_group_range does not have this user's group")
def test_the_loopback_answers_by_ipv4_by_ipv6_and_by_name() -> None:
    test = monitor("ping", "127.0.0.1", "::1", "localhost")
    found = asyncio.run(window(test))
    assert {name: result.last for name, result in found.items()} == {
        "127.0.0.1": 1.0,
        "::1": 1.0,
        "localhost": 1.0,
    }


def test_what_does_not_answer_a_ping_says_so(net: Path) -> None:
    test = monitor("ping", NOWHERE, "2001:db8::9", timeout_s=0.1)
    for result in asyncio.run(test.sample()):
        assert (result.last, result.detail) == (0.0, "the ping cannot be sent: is there a route?")
    ip("addr", "add", "192.0.2.2/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    first, _ = asyncio.run(test.sample())
    assert first.last == 0.0
    assert first.detail == "no answer within 0.1 s"


def test_who_may_not_ping_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that may not ping does not score worse for that."""

    async def refuse(*given: object, **more: object) -> None:
        raise icmplib.SocketPermissionError(False)

    monkeypatch.setattr(icmplib, "async_ping", refuse)
    with pytest.raises(Unknown, match="ping_group_range"):
        asyncio.run(monitor("ping", "127.0.0.1").sample())


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", ["ping", "dns"])
@pytest.mark.parametrize("name", ["no-such-host.invalid", "a" * 300, "a..b"])
def test_a_name_that_cannot_be_resolved_is_bad_with_its_reason(
    test: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_such_name(*given: object, **more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    if name.endswith(".invalid"):  # do not depend on this machine's resolver
        monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    (result,) = asyncio.run(monitor(test, name).sample())
    assert result.last == 0.0
    assert result.detail


def test_a_lookup_that_hangs_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hanging lookup is not asked a second time."""
    let_go, lookups = threading.Event(), []

    def hang(name: str) -> list[str]:
        lookups.append(name)
        let_go.wait(30)
        return ["127.0.0.1"]

    async def run() -> None:
        monkeypatch.setattr(name_lookup, "_look_up", hang)
        async with listening(take) as port:
            hung = monitor("tcp", f"engine.example:{port}", timeout_s=0.05)
            fine = monitor("tcp", f"127.0.0.1:{port}")
            first, second = await asyncio.gather(hung.sample(), fine.sample())
            assert (first[0].last, second[0].last) == (0.0, 1.0)
            await until(lambda: lookups)
            assert lookups == ["engine.example"]
            assert "looking up engine.example has not answered" in first[0].detail
            let_go.set()

    asyncio.run(run())


# --- what is not tested -----------------------------------------------------------------------


@pytest.mark.parametrize("given", [("none",), ("none", "192.0.2.1"), ("ping",), ("tcp",)])
def test_nothing_to_test_is_unknown(given: tuple[str, ...]) -> None:
    with pytest.raises(Unknown, match=r"network\.test"):
        asyncio.run(monitor(given[0], *given[1:]).sample())


def test_a_target_is_bad_only_after_all_of_its_windows() -> None:
    async def run() -> None:
        test = monitor("tcp", f"127.0.0.1:{free_port()}")
        problems = [test.judge(await test.sample()) for _ in range(3)]
        assert problems[:2] == ["", ""]
        assert "3 of 3 windows bad" in problems[2]

    asyncio.run(run())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The engine's health against real servers on loopback that do everything wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from msgspec.structs import replace

from broker.config.errors import ConfigError
from broker.config.sections import (
    Config,
    HealthSection,
    HostSection,
    LibvirtSection,
    StorageSection,
)
from broker.daemon import name_lookup
from broker.daemon.bounded_search import SEARCH_S, finder, is_plain
from broker.monitors.health import BODY_BYTES_MAX, HealthMonitor
from broker.monitors.runner import Unknown, Verdict
from scoring.vm_facts import Health

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GOOD = b"DB Up!Welcome to Health Status!"


def config(**given: object) -> Config:
    return Config(
        host=HostSection(id=1),
        storage=StorageSection(whiteboard="/w", leases="/l"),
        health=HealthSection(**{"expect": "DB Up", **given}),  # type: ignore[arg-type]
    )


def monitor(**given: object) -> HealthMonitor:
    """One whose VM is up, and does not boot any more."""
    made = HealthMonitor(config(**given))
    made.ask(True)
    made.boot.ends()
    return made


def page(body: bytes, status: str = "200 OK", *more: str) -> Handler:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *more, "", ""]
        writer.write("\r\n".join(head).encode() + body)
        await writer.drain()

    return answer


def raw(*parts: bytes, for_ever: bytes = b"") -> Handler:
    """Whatever is asked: these bytes, then `for_ever` until nobody listens."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
        while for_ever:
            writer.write(for_ever)
            await writer.drain()

    return answer


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    await asyncio.Event().wait()


@asynccontextmanager
async def served(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The server's `127.0.0.1:port`."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            await handler(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def asked(handler: Handler, times: int = 2, **given: object) -> HealthMonitor:
    """A monitor that has asked this server so often."""

    async def run() -> HealthMonitor:
        async with served(handler) as address:
            made = monitor(url=f"http://{address}/health", **given)
            for _ in range(times):
                await made.sample()
            return made

    return asyncio.run(run())


def is_bad(made: HealthMonitor, *words: str) -> None:
    health, why = made.verdict
    assert health is Health.BAD
    assert why is not None and "\n" not in why and len(why) < 200
    for word in words:
        assert word in why, why


# --- the page ---------------------------------------------------------------------------------


def test_the_default_is_the_page_of_an_ovirt_engine() -> None:
    for given in (
        {"fqdn": "engine.example.org"},
        {"url": "https://other.example.org/ovirt-engine/services/health"},
    ):
        section = HealthSection(**given)  # type: ignore[arg-type]
        assert section.page.endswith("example.org/ovirt-engine/services/health")
        assert section.expected == "DB Up"
    assert asked(page(GOOD)).verdict == (Health.GOOD, None)


def test_nothing_is_expected_of_another_page_unless_it_is_said() -> None:
    assert HealthSection(url="http://shop.example.org/").expected == ""
    assert HealthSection(url="http://shop.example.org/", expect="ready").expected == "ready"
    assert HealthSection(fqdn="engine.example.org", expect="").expected == ""
    assert asked(page(b"anything"), expect=None).verdict == (Health.GOOD, None)
    is_bad(asked(page(b"anything", "503 Service Unavailable"), expect=None), "answers 503")


@pytest.mark.parametrize("expect", ["DB (Up|Ready)", "^DB", "Welcome.*Status"])
def test_what_is_expected_may_be_a_regular_expression(expect: str) -> None:
    assert asked(page(GOOD), expect=expect).verdict == (Health.GOOD, None)


def test_several_failures_in_a_row_make_it_bad_and_one_answer_makes_it_good() -> None:
    async def run() -> None:
        pages = {"now": page(b"", "503 Service Unavailable")}

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await pages["now"](reader, writer)

        async with served(answer) as address:
            made = monitor(url=f"http://{address}/", failures=3)
            seen = [await made.sample() for _ in range(3)]
            assert seen == ["unknown", "unknown", "bad"]
            assert made.judge("bad") == "the health page answers 503"
            pages["now"] = page(GOOD)
            assert await made.sample() == "good"
            pages["now"] = page(b"DB Down")
            assert await made.sample() == "unknown", "counted from the beginning"
            assert made.verdict[1] == "the health page does not say 'DB Up'"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (page(b"DB Down"), ["does not say 'DB Up'"]),
        (page(b""), ["does not say"]),
        (page(GOOD, "404 Not Found"), ["answers 404"]),
        (page(GOOD, "500 Internal Server Error"), ["answers 500"]),
        (page(GOOD, "302 Found", "Location: /health"), ["redirects (302) to /health"]),
        (page(GOOD, "301 Moved"), ["redirects (301) to nowhere"]),
        (page(GOOD, "302 Found", "Location: /" + "x" * 5000), ["redirects (302)"]),
        (raw(b"\x00\xff\xfe" * 100), ["does not answer"]),
        (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), ["does not answer"]),
        (raw(b""), ["does not answer"]),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nDB"), ["does not answer"]),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + GOOD), ["does not answer"]),
        (raw(b"HTTP/1.1 200 OK\r\n", for_ever=b"X-Head: er\r\n" * 100), ["does not answer"]),
        (raw(b"HTTP/1.1 200 OK\r\nX: ", for_ever=b"x" * 1000), ["does not answer"]),
    ],
)
def test_a_page_that_is_not_as_it_should_be(handler: Handler, words: list[str]) -> None:
    is_bad(asked(handler), *words)


def test_garbage_bytes_in_a_page_are_looked_through_all_the_same() -> None:
    assert asked(page(b"\xff\x00\xfe DB Up \x80")).verdict == (Health.GOOD, None)
    is_bad(asked(page(bytes(range(256)))), "does not say")


ENDLESS = raw(b"HTTP/1.1 200 OK\r\n\r\n", for_ever=b"all work and no play " * 100)
CHUNKED = raw(
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", for_ever=b"4\r\nplay\r\n" * 1000
)


@pytest.mark.parametrize("handler", [ENDLESS, CHUNKED, page(b"x" * 10_000_000)])
def test_a_page_without_end_is_read_to_its_bound(handler: Handler) -> None:
    is_bad(asked(handler), "does not say 'DB Up'")


def test_what_is_expected_must_come_within_the_bound() -> None:
    near = b"x" * (BODY_BYTES_MAX - len("DB Up")) + b"DB Up"
    assert asked(page(near + b"y" * 1000)).verdict == (Health.GOOD, None)
    is_bad(asked(page(b"x" + near)), "does not say")


def test_a_packed_page_is_not_unpacked() -> None:
    """64 KiB of it could be 64 MiB. It was not asked for: the request says so."""
    packed = gzip.compress(GOOD * 1000)
    is_bad(asked(page(packed, "200 OK", "Content-Encoding: gzip")), "does not say")


def test_a_page_that_never_answers_is_given_up_in_time() -> None:
    is_bad(asked(silence, timeout=0.05), "does not answer within 0.05 s")


def test_a_page_that_trickles_is_given_up_in_time() -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    is_bad(asked(trickle, timeout=0.1), "does not answer within 0.1 s")


def test_a_port_where_nobody_listens() -> None:
    is_bad(run_twice(monitor(url="http://127.0.0.1:1/")), "does not answer")


async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ready\r\n")
    await writer.drain()
    await reader.read()


@pytest.mark.parametrize(
    ("handler", "scheme", "is_there", "why"),
    [
        (silence, "http", False, "Connection refused"),
        (raw(), "http", True, "it closed the connection without an answer"),
        (greets, "https", True, "TLS fails: "),
    ],
)
def test_why_a_page_does_not_answer_is_in_words(
    handler: Handler, scheme: str, is_there: bool, why: str
) -> None:
    async def run() -> HealthMonitor:
        async with served(handler) as address:
            made = monitor(url=f"{scheme}://{address}/")
            if is_there:
                await made.sample()
                await made.sample()
        if not is_there:
            await made.sample()
            await made.sample()
        return made

    made = asyncio.run(run())
    is_bad(made, f"the health page does not answer: {why}")
    assert "Error" not in (made.verdict[1] or "")


def run_twice(made: HealthMonitor) -> HealthMonitor:
    async def run() -> None:
        await made.sample()
        await made.sample()

    asyncio.run(run())
    return made


def test_a_redirect_to_itself_is_asked_once_and_not_followed() -> None:
    async def run() -> None:
        requests: list[str] = []

        async def again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            requests.append((await reader.readline()).decode())
            writer.write(b"HTTP/1.1 307 Again\r\nLocation: /health\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()

        async with served(again) as address:
            made = monitor(url=f"http://{address}/health")
            await made.sample()
        assert len(requests) == 1

    asyncio.run(run())


@pytest.mark.parametrize("expect", [r"(x+x+)+y", r"(a|aa)+$"])
def test_a_catastrophic_pattern_costs_half_a_second_and_nobody_else_waits(expect: str) -> None:
    async def run() -> None:
        async with served(page(b"xa" * 100 + b"x" * 20_000 + b"a" * 20_000 + b"!")) as address:
            made = monitor(url=f"http://{address}/", expect=expect, failures=1)
            beats = 0

            async def beat() -> None:
                nonlocal beats
                while True:
                    await asyncio.sleep(0.01)
                    beats += 1

            for _ in range(20):  # a busy machine gives the loop no time now and then
                beating = asyncio.create_task(beat())
                assert await made.sample() == "bad"
                beating.cancel()
                if beats > 3:
                    return
                beats = 0
            pytest.fail("the loop stood still while it was searched")

    asyncio.run(run())


def test_patterns() -> None:
    assert is_plain("DB Up!") and not is_plain("DB.Up")
    assert finder("DB Up")("the DB Up and") and not finder("DB Up")("DB  Up")
    with pytest.raises(ValueError):
        finder("(")
    with pytest.raises(TimeoutError):
        finder("(x+x+)+y")("x" * 10_000)
    assert SEARCH_S <= 1.0


# --- TLS --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_of(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def asked_by_tls(tls: ssl.SSLContext | None, **given: object) -> HealthMonitor:
    async def run() -> HealthMonitor:
        # A refused handshake is the server's business here.
        asyncio.get_running_loop().set_exception_handler(lambda loop, what: None)
        async with served(page(GOOD), tls) as address:
            made = monitor(url=f"https://{address}/", **given)
            await made.sample()
            await made.sample()
            return made

    return asyncio.run(run())


def test_a_certificate_is_verified_by_the_ca_file(authority: trustme.CA, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    good = tls_of(authority, "127.0.0.1")
    assert asked_by_tls(good, ca_file=str(ca_file)).verdict == (Health.GOOD, None)
    is_bad(asked_by_tls(good), "ertificate")  # by the system's: not signed by anyone it knows
    other = tls_of(authority, "other.example")
    is_bad(asked_by_tls(other, ca_file=str(ca_file)), "its certificate is not accepted: ")
    strangers = tls_of(trustme.CA(), "127.0.0.1")
    is_bad(asked_by_tls(strangers, ca_file=str(ca_file)), "ertificate")
    assert asked_by_tls(strangers, verify=False).verdict == (Health.GOOD, None)
    is_bad(asked_by_tls(None, ca_file=str(ca_file), timeout=0.2), "does not answer")


@pytest.mark.parametrize("text", [None, "", "-----BEGIN CERTIFICATE-----\n?\n"])
def test_a_ca_file_that_cannot_be_used_is_told_with_its_key(
    text: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"health\.ca-file: /.*ca\.pem cannot be used"):
        HealthMonitor(config(url="https://e/", ca_file=str(path)))


# --- a port, the guest agent, nothing ---------------------------------------------------------


def test_a_port_that_takes_connections_is_health_enough() -> None:
    async def run() -> None:
        async with served(silence) as address:
            made = monitor(tcp=address)
            assert await made.sample() == "good"
        await made.sample()
        assert await made.sample() == "bad"
        is_bad(made, address, "Connection refused")

    asyncio.run(run())


def test_a_port_that_does_not_exist_is_bad_with_its_reason() -> None:
    """The record of a VM may have one; asyncio raises what is no OSError."""
    is_bad(run_twice(monitor(tcp="127.0.0.1:99999")), "there is no port 99999")


def test_a_guest_agent_without_a_libvirt_is_bad_with_its_reason() -> None:
    nowhere = LibvirtSection(uri="qemu+unix:///system?socket=/nowhere/socket")
    made = HealthMonitor(replace(config(guest_agent=True), libvirt=nowhere))
    made.ask(True)
    made.boot.ends()
    is_bad(run_twice(made), "the guest agent does not answer", "/nowhere/socket")


def test_where_nothing_is_asked_a_vm_that_is_up_is_healthy() -> None:
    async def run() -> None:
        assert await monitor().sample() == "good"

    asyncio.run(run())


# --- its life -----------------------------------------------------------------------------------


def test_nothing_is_asked_while_the_vm_is_not_up_here() -> None:
    async def run() -> None:
        made = HealthMonitor(config(url="http://127.0.0.1:1/"))
        with pytest.raises(Unknown, match="not up here"):
            await made.sample()
        assert made.verdict == (Health.UNKNOWN, None)

    asyncio.run(run())


def test_what_an_earlier_vm_answered_is_forgotten() -> None:
    async def run() -> None:
        made = monitor(tcp="127.0.0.1:1", failures=1)
        await made.sample()
        assert made.verdict[0] is Health.BAD
        made.ask(False)
        made.ask(True)
        assert made.verdict == (Health.UNKNOWN, "its check was not answered yet")

    asyncio.run(run())


def test_a_reload_goes_on_with_the_failures_that_were_counted() -> None:
    async def run() -> None:
        old = monitor(tcp="127.0.0.1:1", failures=3)
        await old.sample()
        await old.sample()
        new = HealthMonitor(config(tcp="127.0.0.1:2", failures=3))
        new.go_on_from(old)
        assert new.verdict[0] is Health.UNKNOWN
        assert await new.sample() == "bad"

    asyncio.run(run())


@pytest.mark.parametrize("broken", ["crashes", "hangs"])
def test_a_fault_of_the_monitor_leaves_no_old_verdict_behind(broken: str) -> None:
    async def run() -> None:
        made = monitor()
        assert await made.sample() == "good"

        async def fail() -> str | None:
            if broken == "crashes":
                raise ZeroDivisionError("division by zero")
            await asyncio.Event().wait()
            return None

        made.problem = fail  # type: ignore[method-assign]
        with contextlib.suppress(ZeroDivisionError, TimeoutError):
            async with asyncio.timeout(0.01):
                await made.sample()
        health, why = made.verdict
        assert health is Health.UNKNOWN
        assert why is not None and "the health monitor failed" in why

    asyncio.run(run())


def test_a_name_lookup_that_hangs_is_a_failure_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_go = threading.Event()

    def hang(name: str) -> list[str]:
        let_go.wait(30)
        return ["127.0.0.1"]

    monkeypatch.setattr(name_lookup, "_look_up", hang)
    made = monitor(url="http://engine.example/", timeout=0.05, failures=1)

    async def run() -> None:
        await made.sample()
        is_bad(made, "does not answer within 0.05 s")
        await made.sample()
        is_bad(made, "looking up engine.example has not answered")
        let_go.set()

    asyncio.run(run())


def test_the_verdict_of_its_sample_is_bad_only_with_its_health() -> None:
    made = monitor(tcp="127.0.0.1:1")

    async def run(wanted: Verdict) -> None:
        value = await made.sample()
        assert (value == "bad") is (wanted is Verdict.BAD)

    asyncio.run(run(Verdict.UNKNOWN))
    asyncio.run(run(Verdict.BAD))

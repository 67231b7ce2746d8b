# SPDX-License-Identifier: LGPL-2.1-or-later
"""`/api/v1` over real sockets: held to its OpenAPI document, and against bad clients."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from broker.api import event_stream, gate
from broker.api.bounded_server import BODY_BYTES_MAX
from broker.api.event_stream import STREAMS_MAX, STREAMS_PER_CLIENT_MAX
from broker.api.openapi import document
from broker.broker import Broker
from broker.config.certificate import load_certificate, tls_context
from broker.config.errors import ConfigError
from broker.config.sections import ApiSection
from broker.wire.status import Status
from tests.fakes.broker import make_broker
from tests.fakes.listener import Listener
from tests.fakes.slot_store import MemoryVolume
from tests.fakes.tcp import talk
from tests.fakes.waiting import until
from tests.unit.documents import DOCS, rows, sections

TOKEN = "t" * 40
AUTH = {"Authorization": f"Bearer {TOKEN}"}

Test = Callable[[Broker, str, aiohttp.ClientSession], Awaitable[None]]


def served(tmp_path: Path, test: Test, token: str | None = TOKEN) -> None:
    """The API of a broker that beats, on loopback."""

    async def main() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        door = Listener(broker, token)
        await door.start([("127.0.0.1", 0)])
        beating = asyncio.create_task(broker.run())
        try:
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as session:
                await test(broker, f"http://127.0.0.1:{door.ports[0]}", session)
        finally:
            beating.cancel()
            await door.close()

    asyncio.run(main())


# --- the document -------------------------------------------------------------------------------


def test_the_document_is_the_one_that_is_served(tmp_path: Path) -> None:
    async def test(broker: Broker, url: str, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{url}/api/v1/openapi.json") as answer:
            assert await answer.json() == json.loads(json.dumps(document()))

    served(tmp_path, test)


def test_every_path_is_on_the_page() -> None:
    table = rows(sections(DOCS / "api.md")["The HTTP API"])
    described = {(row[0].strip("`"), row[1].lower()) for row in table}
    made = {(path, verb) for path, verbs in document()["paths"].items() for verb in verbs}
    assert described == made | {("/api/v1/openapi.json", "get")}


def test_the_bounds_are_on_the_page() -> None:
    text = sections(DOCS / "api.md")["Bounds"]
    for bound in (STREAMS_MAX, STREAMS_PER_CLIENT_MAX, BODY_BYTES_MAX, gate.WRONG_MAX):
        assert f"{bound} " in text


# --- who may change things ----------------------------------------------------------------------

CHANGES: list[tuple[str, str, dict[str, object]]] = [
    ("PUT", "/api/v1/maintenance/local", {"on": True, "reason": "x"}),
    ("PUT", "/api/v1/maintenance/global", {"on": True}),
    ("POST", "/api/v1/orders", {"kind": "start"}),
]


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_a_change_needs_the_token(
    tmp_path: Path, method: str, path: str, body: dict[str, object]
) -> None:
    async def test(broker: Broker, url: str, session: aiohttp.ClientSession) -> None:
        wrong: tuple[dict[str, str], ...] = (
            {},
            {"Authorization": "Bearer "},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": TOKEN},
            {"Authorization": "Bearer \xff\xfe"},
        )
        for headers in wrong:
            async with session.request(method, url + path, json=body, headers=headers) as answer:
                assert answer.status == 401, headers
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert answer.content_type == "application/problem+json"
        assert not broker.modes.is_set and not broker.board.global_maintenance
        assert broker.orders.pending(0.0) is None
        async with session.request(method, url + path, json=body, headers=AUTH) as answer:
            assert answer.status == 200

    served(tmp_path, test)


def test_guesses_are_bounded(tmp_path: Path) -> None:
    async def test(broker: Broker, url: str, session: aiohttp.ClientSession) -> None:
        statuses = []
        for _ in range(gate.WRONG_MAX + 2):
            headers = {"Authorization": "Bearer guess"}
            async with session.get(f"{url}/api/v1/token", headers=headers) as answer:
                statuses.append(answer.status)
        assert statuses == [401] * gate.WRONG_MAX + [429] * 2
        async with session.get(f"{url}/api/v1/token", headers=AUTH) as answer:
            assert answer.status == 200, "nobody locks the owner of the right one out"

    served(tmp_path, test)


def test_without_a_token_on_the_host_nothing_can_be_changed(tmp_path: Path) -> None:
    async def test(broker: Broker, url: str, session: aiohttp.ClientSession) -> None:
        method, path, body = CHANGES[0]
        async with session.request(method, url + path, json=body, headers=AUTH) as answer:
            assert answer.status == 403
            assert "secrets file" in (await answer.json(content_type=None))["detail"]

    served(tmp_path, test, token=None)


def test_the_owner_of_a_maintenance_is_told(tmp_path: Path) -> None:
    async def test(broker: Broker, url: str, session: aiohttp.ClientSession) -> None:
        _, path, body = CHANGES[0]
        async with session.put(url + path, json=body, headers=AUTH) as answer:
            assert answer.status == 200
        async with session.get(f"{url}/api/v1/status") as answer:
            mode = (await answer.json())["hosts"]["1"]["mode"]
        assert (mode["owner"], mode["reason"]) == ("api-token@host1", "x")

    served(tmp_path, test)


class _From:
    """A request as the gate sees it."""

    def __init__(self, remote: str, tls: bool) -> None:
        self.remote = remote
        self.headers = AUTH
        self.scheme = "https" if tls else "http"


@pytest.mark.parametrize(
    ("remote", "tls", "status"),
    [
        ("127.0.0.1", False, None),
        ("::1", False, None),
        ("192.0.2.1", False, 403),
        ("", False, 403),
        ("192.0.2.1", True, None),
    ],
)
def test_a_token_is_taken_where_nobody_can_read_it(
    remote: str, tls: bool, status: int | None
) -> None:
    refused = gate.Gate(TOKEN).refusal(_From(remote, tls), 0.0)  # type: ignore[arg-type]
    assert (refused.status if refused is not None else None) == status


def issued(folder: Path, authority: trustme.CA) -> ApiSection:
    """The files of a new certificate for 127.0.0.1, as they are configured."""
    made = authority.issue_cert("127.0.0.1")
    made.private_key_pem.write_to_path(str(folder / "key.pem"))
    chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
    (folder / "cert.pem").write_bytes(chain)
    return ApiSection(
        tls_listen=("127.0.0.1:8766",),
        certificate=str(folder / "cert.pem"),
        private_key=str(folder / "key.pem"),
    )


def test_a_certificate_is_read_anew_and_a_bad_one_is_told(tmp_path: Path) -> None:
    api = issued(tmp_path, trustme.CA())
    tls = tls_context(api)
    assert tls is not None
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "key.pem").write_bytes(
        Path(str(issued(other, trustme.CA()).private_key)).read_bytes()
    )
    with pytest.raises(ConfigError, match=r"api.private-key .*cannot be used"):
        load_certificate(tls, api)
    issued(tmp_path, trustme.CA())
    load_certificate(tls, api)
    (tmp_path / "cert.pem").unlink()
    with pytest.raises(ConfigError, match="No such file"):
        tls_context(api)
    assert tls_context(ApiSection()) is None


def test_over_tls_the_same_is_served(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = tls_context(issued(tmp_path, authority))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def main() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        door = Listener(broker, TOKEN)
        try:
            await door.start([("127.0.0.1", 0)])
            await door.start([("127.0.0.1", 0)], tls)
            url = f"https://127.0.0.1:{door.ports[1]}/api/v1/token"
            async with (
                aiohttp.ClientSession() as session,
                session.get(url, headers=AUTH, ssl=trusting) as answer,
            ):
                assert answer.status == 200
                assert door.connections == {"127.0.0.1": 1}
            # Who says nothing, or no TLS, is counted from the first moment and let go.
            reader, writer = await asyncio.open_connection("127.0.0.1", door.ports[1])
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            assert b"HTTP" not in await reader.read(4096)
            writer.close()
            await until(lambda: not door.connections)
            held = [await asyncio.open_connection("127.0.0.1", door.ports[1]) for _ in range(20)]
            await until(lambda: door.turned_away == 4 and door.connections["127.0.0.1"] == 16)
            for _, writer in held:
                writer.close()
        finally:
            await door.close()
        await until(lambda: not door.connections)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("offered", "is_taken"),
    [
        ("ECDHE+AESGCM", True),
        ("ECDHE+CHACHA20", True),
        ("ECDHE+AES:!AESGCM:!AESCCM", False),
        ("AES128-GCM-SHA256", False),
    ],
)
def test_tls_1_2_takes_no_cbc_and_nothing_without_forward_secrecy(
    tmp_path: Path, offered: str, is_taken: bool
) -> None:
    authority = trustme.CA()
    tls = tls_context(issued(tmp_path, authority))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    trusting.set_ciphers(offered)

    async def main() -> None:
        door = Listener(make_broker(tmp_path, MemoryVolume()))
        try:
            await door.start([("127.0.0.1", 0)], tls)
            opened = asyncio.open_connection("127.0.0.1", door.ports[0], ssl=trusting)
            if not is_taken:
                with pytest.raises(OSError):
                    await opened
                return
            _, writer = await opened
            assert "CBC" not in writer.get_extra_info("cipher")[0]
            writer.close()
        finally:
            await door.close()

    asyncio.run(main())


# --- events ---------------------------------------------------------------------------------------


async def read_event(answer: aiohttp.ClientResponse) -> dict[str, str]:
    """The next event of a stream, as its fields; comments and `retry` are passed over."""
    while True:
        fields: dict[str, str] = {}
        async with asyncio.timeout(10.0):
            while line := (await answer.content.readline()).decode().rstrip("\n"):
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if "event" in fields:
            return fields


def stream(session: aiohttp.ClientSession, url: str, **headers: str) -> Any:
    return session.get(url, headers={"Accept": "text/event-stream", **headers}, timeout=None)


def tell(broker: Broker, text: str) -> int:
    broker.refuse_config(text)
    return broker.events.after(0).last


def test_events_come_as_they_happen_and_what_was_missed_first(tmp_path: Path) -> None:
    async def test(broker: Broker, url: str, session: aiohttp.ClientSession) -> None:
        url += "/api/v1/events"
        async with stream(session, url) as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            first = tell(broker, "one")
            found = await read_event(answer)
            assert (found["event"], int(found["id"])) == ("happened", first)
            assert "one" in json.loads(found["data"])["text"]
        second, third = tell(broker, "two"), tell(broker, "three")
        async with stream(session, url, **{"Last-Event-ID": str(first)}) as answer:
            assert [int((await read_event(answer))["id"]) for _ in "23"] == [second, third]
        async with session.get(f"{url}?after={first}&limit=1") as answer:
            listed = await answer.json()
        assert [event["id"] for event in listed["events"]] == [second]
        assert (listed["missed"], listed["last"]) == (False, second)

    served(tmp_path, test)


def test_who_missed_more_than_is_there_is_told_so(tmp_path: Path) -> None:
    async def test(broker: Broker, url: str, session: aiohttp.ClientSession) -> None:
        first = tell(broker, "first")
        for number in range(1001):
            tell(broker, str(number))
        async with stream(session, f"{url}/api/v1/events?after={first}") as answer:
            assert (await read_event(answer))["event"] == "missed"
            assert int((await read_event(answer))["id"]) == first + 2

    served(tmp_path, test)


def test_the_status_comes_with_each_beat(tmp_path: Path) -> None:
    async def test(broker: Broker, url: str, session: aiohttp.ClientSession) -> None:
        async with stream(session, f"{url}/api/v1/events?status=yes") as answer:
            for _ in range(3):
                found = await read_event(answer)
                assert found["event"] == "status" and "id" not in found
                status = json.loads(found["data"])
                assert status["host_id"] == 1 and set(status) == set(Status.__struct_fields__)

    served(tmp_path, test)


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=0", "limit=1001", "status=maybe"])
def test_a_question_that_does_not_fit_is_refused(tmp_path: Path, query: str) -> None:
    async def test(broker: Broker, url: str, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{url}/api/v1/events?{query}") as answer:
            assert answer.status == 400
            assert query.partition("=")[0] in (await answer.json(content_type=None))["detail"]

    served(tmp_path, test)


def test_no_host_name_ends_a_field_of_the_stream(tmp_path: Path) -> None:
    async def test(broker: Broker, url: str, session: aiohttp.ClientSession) -> None:
        async with stream(session, f"{url}/api/v1/events") as answer:
            tell(broker, "x\n\nid: 7\nevent: status\ndata: {}\r\n\r\n\u2028")
            found = await read_event(answer)
            assert found["event"] == "happened" and "event: status" in found["data"]

    served(tmp_path, test)


# --- too much -----------------------------------------------------------------------------------


def request(line: str, *more: str, body: bytes = b"") -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: ha", "Connection: close", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request("DELETE /api/v1/status"), 405),
        (request("POST /api/v1/status", "Content-Length: 0"), 405),
        (request("TRACE /api/v1/status"), 405),
        (request("GET /api/v1/maintenance/global"), 405),
        (request("GET /api/v1/../../../../etc/passwd"), 404),
        (request("GET /api/v1/%2e%2e/%2e%2e/etc/passwd"), 404),
        (request("GET /api/v1/orders/..%2f..%2fstatus"), 400),
        (request("GET //etc/passwd"), 404),
        (request("GET /api/v1/status%00"), 404),
        (request("GET /api/v1/orders/99999999999999999999"), 400),
        (request("GET /api/v1/orders/1"), 404),
        (
            request(
                "PUT /api/v1/maintenance/local",
                f"Authorization: Bearer {TOKEN}",
                "Content-Length: 1000000",
                body=b"x" * 100_000,
            ),
            413,
        ),
        (
            request(
                "POST /api/v1/orders",
                f"Authorization: Bearer {TOKEN}",
                "Content-Length: 4000",
                body=b"[" * 4000,
            ),
            400,
        ),
        (
            request(
                "PUT /api/v1/maintenance/else",
                f"Authorization: Bearer {TOKEN}",
                "Content-Length: 11",
                body=b'{"on":true}',
            ),
            404,
        ),
    ],
)
def test_bad_requests_are_refused_clearly(tmp_path: Path, sent: bytes, status: int) -> None:
    async def test(broker: Broker, url: str, session: aiohttp.ClientSession) -> None:
        answer = await talk(int(url.rpartition(":")[2]), sent)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status), head
        assert json.loads(body)["status"] == status
        assert b"application/problem+json" in head and b"nosniff" in head

    served(tmp_path, test)


@pytest.mark.slow
def test_two_hundred_streams_are_bounded_and_the_beat_goes_on(tmp_path: Path) -> None:
    async def test(broker: Broker, url: str, session: aiohttp.ClientSession) -> None:
        port = int(url.rpartition(":")[2])
        sent = request("GET /api/v1/events?status=yes", "Accept: text/event-stream")
        opened, heads = [], []
        try:
            for number in range(200):
                # From 25 addresses, as many as one may have from each.
                source = f"127.0.1.{number // STREAMS_PER_CLIENT_MAX + 1}"
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, local_addr=(source, 0)
                )
                opened.append(writer)
                writer.write(sent)
                heads.append((await reader.readuntil(b"\r\n"))[9:12])
            assert heads.count(b"200") == STREAMS_MAX
            assert heads.count(b"503") == 200 - STREAMS_MAX
            before = broker.news.version
            async with asyncio.timeout(10.0):
                while broker.news.version < before + 4:
                    await broker.news.wait(broker.news.version, 5.0)
            async with session.get(f"{url}/api/v1/status") as answer:
                assert answer.status == 200, "others are answered as ever"
        finally:
            for writer in opened:
                writer.close()

    served(tmp_path, test)


def test_one_address_has_so_many_streams(tmp_path: Path) -> None:
    async def test(broker: Broker, url: str, session: aiohttp.ClientSession) -> None:
        url += "/api/v1/events"
        held = [await stream(session, url) for _ in range(STREAMS_PER_CLIENT_MAX)]
        async with stream(session, url) as answer:
            assert answer.status == 503 and "Retry-After" in answer.headers
            assert "one address" in (await answer.json(content_type=None))["detail"]
        held.pop().close()
        async with asyncio.timeout(10.0):
            while True:
                async with stream(session, url) as answer:
                    if answer.status == 200:
                        break
                tell(broker, "so that the end of the other one is noticed")
                await asyncio.sleep(0.05)
        for each in held:
            each.close()

    served(tmp_path, test)


@pytest.mark.slow
def test_a_stream_that_takes_nothing_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "WRITE_S", 0.2)
    monkeypatch.setattr(event_stream, "APART_S", 0.0)

    async def test(broker: Broker, url: str, session: aiohttp.ClientSession) -> None:
        port = int(url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request("GET /api/v1/events", "Accept: text/event-stream"))
        before = broker.events.after(0).last
        async with asyncio.timeout(20.0):
            await asyncio.sleep(0.2)
            # Until the kernel's buffers are full as well.
            while writer.transport.get_extra_info("socket") and not await _dropped(port, broker):
                for _ in range(500):
                    tell(broker, "x" * 450)
                await asyncio.sleep(0.02)
        assert broker.events.after(0).last > before
        writer.close()

    served(tmp_path, test)


async def _dropped(port: int, broker: Broker) -> bool:
    """Whether the broker has no connection any more."""
    text = await talk(port, request("GET /metrics"))
    return b"ha_agent_api_connections 1.0" in text

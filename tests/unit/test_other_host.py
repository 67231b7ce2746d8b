# SPDX-License-Identifier: LGPL-2.1-or-later
"""Orders and maintenance for another host: the signed request, which works once, the broker that
carries it out, and the commands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest

from broker.api.socket import serve
from broker.broker import Broker
from broker.config.cluster_key import ClusterKey
from broker.daemon.exit_codes import ExitCode
from broker.peers import member_request
from broker.peers.errors import BadAnswer
from broker.peers.heartbeat import new_nonce
from broker.peers.member_request import (
    FRESH_S,
    Answer,
    AskOrder,
    Challenges,
    GiveOrder,
    Request,
    SetMaintenance,
    Wanted,
    answer_to,
    request_bytes,
    signed_answer,
)
from broker.wire.problem import Problem
from broker.wire.status import Maintenance, NewOrder, OrderStatus, ReasonOnWire
from scoring.observation import OrderKind
from scoring.vm.state import OrderAnswer
from tests.fakes.broker import make_broker, report, up
from tests.fakes.listener import Listener, listening
from tests.fakes.slot_store import MemoryVolume
from tests.unit import commands

KEY, OTHER = ClusterKey(b"k" * 32), ClusterKey(b"o" * 32)
START = GiveOrder(NewOrder(OrderKind.START))


def made(challenge: str, wanted: Wanted = START, asked: int = 2, asker: int = 1) -> Request:
    body = msgspec.json.encode(wanted).decode()
    return Request(asker, asked, "root@host1", challenge, new_nonce(), body)


def received(key: ClusterKey, request: Request) -> Request:
    return msgspec.json.decode(request_bytes(key, request), type=Request)


# --- the messages -------------------------------------------------------------------------------


def test_a_request_counts_from_who_has_the_key_and_as_it_was_made() -> None:
    asked = received(KEY, made("c"))
    assert asked.is_from(KEY) and not asked.is_from(OTHER)
    assert asked.wanted == START
    for changes in (
        {"asker": 3},
        {"asked": 3},
        {"who": "root@host3"},
        {"challenge": "d"},
        {"nonce": new_nonce()},
        {"body": msgspec.json.encode(AskOrder(1)).decode()},
        {"mac": ""},
        {"mac": "0" * 64},
    ):
        assert not msgspec.structs.replace(asked, **changes).is_from(KEY), changes


def test_no_field_can_hold_a_line_end_so_that_no_two_requests_have_one_text() -> None:
    for field in ("who", "challenge", "body", "nonce"):
        broken = json.loads(request_bytes(KEY, made("c"))) | {field: "a\nb"}
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(json.dumps(broken), type=Request)


def test_an_answer_counts_from_who_has_the_key_and_to_this_request_alone() -> None:
    request = made("c")
    raw = signed_answer(KEY, request, 200, b"{}")
    assert answer_to(KEY, raw, request) == msgspec.json.decode(raw, type=Answer)
    for wrong in (
        signed_answer(OTHER, request, 200, b"{}"),
        signed_answer(KEY, made("c"), 200, b"{}"),
        signed_answer(KEY, msgspec.structs.replace(request, asked=3), 200, b"{}"),
        raw.replace(b"200", b"201"),
        b"\xff",
    ):
        with pytest.raises(BadAnswer):
            answer_to(KEY, wrong, request)


def test_a_challenge_holds_once_for_a_while_and_here_alone() -> None:
    here, elsewhere = Challenges(), Challenges()
    first, second = here.new(5.0), here.new(5.0)
    assert first != second
    assert not elsewhere.take(first, 5.0), "another host, or this one started anew"
    assert here.take(first, 5.0) and not here.take(first, 5.0)
    assert here.take(second, 5.0 + FRESH_S)
    assert not here.take(here.new(5.0), 5.1 + FRESH_S)
    for forged in ("", "5.a.b", first.replace("1388", "2710"), first[:-1] + "٣"):
        assert not here.take(forged, 5.0), forged


def test_what_was_taken_is_remembered_as_long_as_it_holds_and_not_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(member_request, "TAKEN_MAX", 3)
    here = Challenges()
    assert all(here.take(here.new(1.0), 1.0) for _ in range(3))
    assert not here.take(here.new(2.0), 2.0), "full: refused, and nothing is forgotten for it"
    assert here.take(here.new(2.0 + FRESH_S), 2.0 + FRESH_S)


# --- the broker that is asked -------------------------------------------------------------------


def asked(
    tmp_path: Path, test: Callable[[Broker, str, aiohttp.ClientSession], Awaitable[None]]
) -> None:
    """The listener of host 2, which has the key."""

    async def main() -> None:
        broker = make_broker(tmp_path, MemoryVolume(), 2)
        broker.heartbeats.key = KEY
        await broker.beat(1.0)
        async with listening(broker) as port, aiohttp.ClientSession() as session:
            await test(broker, f"http://127.0.0.1:{port}", session)

    asyncio.run(main())


async def challenge(at: str, session: aiohttp.ClientSession) -> str:
    async with session.get(f"{at}/member-challenge") as response:
        found = await response.json()
    assert found["host_id"] == 2
    return str(found["challenge"])


async def post(at: str, session: aiohttp.ClientSession, raw: bytes) -> tuple[int, bytes]:
    async with session.post(f"{at}/member-request", data=raw) as response:
        return response.status, await response.read()


def test_a_recorded_request_works_once_and_never_again(tmp_path: Path) -> None:
    async def test(broker: Broker, at: str, session: aiohttp.ClientSession) -> None:
        request = made(await challenge(at, session))
        raw = request_bytes(KEY, request)
        status, body = await post(at, session, raw)
        found = answer_to(KEY, body, request)
        assert (status, found.status) == (200, 200)
        placed = msgspec.json.decode(found.body, type=OrderStatus)
        assert placed.kind is OrderKind.START and placed.state == "waiting"
        again = answer_to(KEY, (await post(at, session, raw))[1], request)
        assert again.status == 409
        pending = broker.orders.pending(asyncio.get_running_loop().time())
        assert pending is not None and pending.number == placed.number, "no second order"

    asked(tmp_path, test)


def test_a_request_of_no_member_does_nothing_and_uses_no_challenge_up(tmp_path: Path) -> None:
    async def test(broker: Broker, at: str, session: aiohttp.ClientSession) -> None:
        request = made(await challenge(at, session))
        for raw, refusal in (
            (request_bytes(OTHER, request), 403),
            (msgspec.json.encode(request), 400),
            (b"{}", 400),
            (b"\xff", 400),
        ):
            assert (await post(at, session, raw))[0] == refusal
        assert broker.orders.pending(asyncio.get_running_loop().time()) is None
        assert (await post(at, session, request_bytes(KEY, request)))[0] == 200

    asked(tmp_path, test)


def test_a_request_for_another_host_or_of_a_later_version_is_refused(tmp_path: Path) -> None:
    async def test(broker: Broker, at: str, session: aiohttp.ClientSession) -> None:
        for change, refusal in (
            ({"asked": 3}, 403),
            ({"asker": 2}, 403),
            ({"body": '{"type":"explode"}'}, 400),
            ({"body": '{"type":"maintenance","mode":"global","wanted":{"on":true}}'}, 400),
            ({"body": '{"type":"order-status","number":7}'}, 404),
        ):
            request = msgspec.structs.replace(made(await challenge(at, session)), **change)
            _, body = await post(at, session, request_bytes(KEY, request))
            found = answer_to(KEY, body, request)
            assert found.status == refusal, change
            assert msgspec.json.decode(found.body, type=Problem).title
        assert broker.orders.pending(asyncio.get_running_loop().time()) is None
        assert broker.board.global_maintenance is not True

    asked(tmp_path, test)


def test_a_host_without_a_key_takes_no_request(tmp_path: Path) -> None:
    async def test(broker: Broker, at: str, session: aiohttp.ClientSession) -> None:
        request = made(await challenge(at, session))
        broker.heartbeats.key = None
        assert (await post(at, session, request_bytes(KEY, request)))[0] == 404

    asked(tmp_path, test)


def test_maintenance_shows_who_set_it_and_where_he_sat(tmp_path: Path) -> None:
    async def test(broker: Broker, at: str, session: aiohttp.ClientSession) -> None:
        wanted = SetMaintenance("local", Maintenance(True, "a new disk", 3600))
        request = made(await challenge(at, session), wanted)
        _, body = await post(at, session, request_bytes(KEY, request))
        assert answer_to(KEY, body, request).status == 200
        mode = broker.modes.local_countdown.mode
        assert mode is not None and (mode.owner, mode.reason) == ("root@host1", "a new disk")

    asked(tmp_path, test)


# --- the commands -------------------------------------------------------------------------------


def on_host1(
    tmp_path: Path,
    test: Callable[[Broker, Callable[..., Awaitable[tuple[int, str, str]]]], Awaitable[None]],
    *,
    key: str = "6b" * 32,
) -> None:
    """Host 1, on whose command line is typed, and host 2, whose broker listens."""

    async def main() -> None:
        volume = MemoryVolume()
        one, two = (make_broker(tmp_path, volume, host) for host in (1, 2))
        config, secrets = tmp_path / "1.toml", tmp_path / "secrets.toml"
        config.write_text(config.read_text() + f'secrets = "{secrets}"\n')
        secrets.write_text(f'cluster-key = "{key}"\n')
        secrets.chmod(0o600)
        two.heartbeats.key = KEY
        listener, socket = Listener(two), await serve(one, str(tmp_path / "1.sock"))
        try:
            await listener.start([("127.0.0.1", 0)])
            two.own_slot.advertised = (f"127.0.0.1:{listener.ports[0]}",)
            for now_s in (1.0, 2.0):
                for broker in (one, two):
                    await broker.beat(now_s)

            async def typed(*words: str) -> tuple[int, str, str]:
                done = await asyncio.to_thread(commands.run, "ha-agent", "--config", config, *words)
                return done.returncode, done.stdout, done.stderr

            await test(two, typed)
        finally:
            await listener.close()
            await socket.cleanup()

    asyncio.run(main())


def test_maintenance_of_another_host_is_set_and_ended_from_here(tmp_path: Path) -> None:
    async def test(two: Broker, typed: Callable[..., Awaitable[tuple[int, str, str]]]) -> None:
        code, said, _ = await typed("maintenance", "local", "--host", "host2", "--for", "1h")
        assert code == 0 and "host2 starts no VM and is being drained" in said
        assert "or with: ha-agent maintenance none --host host2" in said
        mode = two.modes.local_countdown.mode
        assert mode is not None and mode.owner.endswith("@host1")
        code, said, _ = await typed("maintenance", "none", "--host", "2")
        assert code == 0 and "neither global nor local on host2" in said
        assert two.modes.local_countdown.mode is None

    on_host1(tmp_path, test)


def test_who_waits_for_another_host_to_be_empty_learns_that_the_vm_stays(tmp_path: Path) -> None:
    async def test(two: Broker, typed: Callable[..., Awaitable[tuple[int, str, str]]]) -> None:
        now_s = asyncio.get_running_loop().time()
        up(two, now_s)
        stuck = msgspec.structs.replace(report(), reasons=(ReasonOnWire("drain-stuck", "no CPU"),))
        two.take_report(stuck, now_s)
        await two.beat(now_s)
        code, said, _ = await typed("maintenance", "local", "--host", "host2", "--wait")
        assert code == ExitCode.FAILED and "NOT DRAINED: no CPU" in said

    on_host1(tmp_path, test)


def test_an_order_for_another_host_goes_to_its_agent_and_its_answer_comes_back(
    tmp_path: Path,
) -> None:
    async def test(two: Broker, typed: Callable[..., Awaitable[tuple[int, str, str]]]) -> None:
        async def agent() -> None:
            while (order := two.orders.pending(asyncio.get_running_loop().time())) is None:
                await asyncio.sleep(0.01)
            two.orders.answered([OrderAnswer(order.number, False, "the VM is not here")])

        async with asyncio.TaskGroup() as group:
            group.create_task(agent())
            code, said, problem = await typed("vm", "shutdown", "--yes", "--host", "host2")
        assert (code, said) == (ExitCode.REFUSED, "")
        assert problem == "ha-agent: the VM is not here\n"

    on_host1(tmp_path, test)


def test_a_host_that_cannot_be_asked_and_words_that_do_not_fit_are_named(tmp_path: Path) -> None:
    async def test(two: Broker, typed: Callable[..., Awaitable[tuple[int, str, str]]]) -> None:
        for words, code, said in (
            (("maintenance", "global", "--host", "host2"), ExitCode.USAGE, "every host's"),
            (("maintenance", "none", "--wait"), ExitCode.USAGE, "--wait belongs to"),
            (("migrate", "--host", "host9"), ExitCode.USAGE, "--host host9: no such host"),
        ):
            found = await typed(*words)
            assert found[0] == code and said in found[2], found

    on_host1(tmp_path, test)


def test_another_key_is_refused_by_name(tmp_path: Path) -> None:
    async def test(two: Broker, typed: Callable[..., Awaitable[tuple[int, str, str]]]) -> None:
        code, _, said = await typed("maintenance", "local", "--host", "host2")
        assert code == ExitCode.FAILED and "not signed with this cluster's key" in said
        assert two.modes.local_countdown.mode is None

    on_host1(tmp_path, test, key="6f" * 32)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who has the token of one host orders for any: the API passes it on, signed with the cluster
key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from broker.broker import Broker
from broker.config.cluster_key import ClusterKey
from tests.fakes.broker import make_broker
from tests.fakes.listener import Listener
from tests.fakes.slot_store import MemoryVolume

KEY, OTHER, TOKEN = ClusterKey(b"k" * 32), ClusterKey(b"o" * 32), "t" * 40
Ask = Callable[..., Awaitable[tuple[int, dict[str, Any]]]]


def asked(
    tmp_path: Path,
    test: Callable[[Broker, Ask], Awaitable[None]],
    *,
    keys: tuple[ClusterKey | None, ClusterKey | None] = (KEY, KEY),
    is_there: bool = True,
) -> None:
    """Hosts 1 and 2; the requests go to host 1. `is_there`: host 2 answers at its address."""

    async def main() -> None:
        volume = MemoryVolume()
        one, two = (make_broker(tmp_path, volume, host) for host in (1, 2))
        one.heartbeats.key, two.heartbeats.key = keys
        doors = Listener(one, TOKEN), Listener(two)
        try:
            for door in doors:
                await door.start([("127.0.0.1", 0)])
            two.own_slot.advertised = (f"127.0.0.1:{doors[1].ports[0]}",)
            if not is_there:
                await doors[1].close()
            for now_s in (1.0, 2.0):
                for broker in (one, two):
                    await broker.beat(now_s)
            base = f"http://127.0.0.1:{doors[0].ports[0]}/api/v1"
            async with aiohttp.ClientSession() as session:

                async def ask(
                    method: str, path: str, body: object = None, token: str = TOKEN
                ) -> tuple[int, dict[str, Any]]:
                    headers = {"Authorization": f"Bearer {token}"}
                    async with session.request(
                        method, base + path, json=body, headers=headers
                    ) as answer:
                        return answer.status, await answer.json(content_type=None)

                await test(two, ask)
        finally:
            for door in doors:
                await door.close()

    asyncio.run(main())


def test_an_order_for_another_host_reaches_its_agent_and_can_be_followed(tmp_path: Path) -> None:
    async def test(two: Broker, ask: Ask) -> None:
        status, order = await ask("POST", "/orders?host=2", {"kind": "start"})
        assert (status, order["state"]) == (200, "waiting")
        pending = two.orders.pending(asyncio.get_running_loop().time())
        assert pending is not None and pending.number == order["number"]
        assert await ask("GET", f"/orders/{order['number']}?host=2") == (200, order)

    asked(tmp_path, test)


def test_maintenance_of_another_host_names_who_set_it(tmp_path: Path) -> None:
    async def test(two: Broker, ask: Ask) -> None:
        wanted = {"on": True, "reason": "a new disk", "for_s": 3600}
        status, _ = await ask("PUT", "/maintenance/local?host=2", wanted)
        mode = two.modes.local_countdown.mode
        assert status == 200 and mode is not None
        assert (mode.owner, mode.reason) == ("api-token@host1", "a new disk")
        assert (await ask("PUT", "/maintenance/local?host=2", {"on": False}))[0] == 200
        assert two.modes.local_countdown.mode is None

    asked(tmp_path, test)


def test_without_the_token_nothing_is_passed_on(tmp_path: Path) -> None:
    async def test(two: Broker, ask: Ask) -> None:
        for method, path, body in (
            ("POST", "/orders?host=2", {"kind": "start"}),
            ("PUT", "/maintenance/local?host=2", {"on": True}),
            ("GET", "/orders/1?host=2", None),
        ):
            assert (await ask(method, path, body, "wrong"))[0] == 401
        assert two.orders.pending(asyncio.get_running_loop().time()) is None
        assert two.modes.local_countdown.mode is None

    asked(tmp_path, test)


def test_a_host_that_is_not_known_or_no_id_is_said(tmp_path: Path) -> None:
    async def test(two: Broker, ask: Ask) -> None:
        start = {"kind": "start"}
        assert (await ask("POST", "/orders?host=9", start))[0] == 404
        assert (await ask("POST", "/orders?host=x", start))[0] == 400
        assert (await ask("GET", "/orders/77?host=2"))[0] == 404

    asked(tmp_path, test)


def test_a_host_that_does_not_answer_is_named(tmp_path: Path) -> None:
    async def test(two: Broker, ask: Ask) -> None:
        status, found = await ask("POST", "/orders?host=2", {"kind": "start"})
        assert (status, found["title"]) == (502, "host2 cannot be asked")
        assert "127.0.0.1" in found["detail"]
        assert ": Connection refused; order there" in found["detail"]

    asked(tmp_path, test, is_there=False)


def test_a_host_with_another_key_takes_no_order(tmp_path: Path) -> None:
    async def test(two: Broker, ask: Ask) -> None:
        status, found = await ask("POST", "/orders?host=2", {"kind": "start"})
        assert status in (404, 502), found
        assert two.orders.pending(asyncio.get_running_loop().time()) is None

    asked(tmp_path, test, keys=(KEY, OTHER))


def test_without_a_cluster_key_it_is_said_that_there_is_none(tmp_path: Path) -> None:
    async def test(two: Broker, ask: Ask) -> None:
        status, found = await ask("POST", "/orders?host=2", {"kind": "start"})
        assert (status, found["title"]) == (409, "no cluster key")

    asked(tmp_path, test, keys=(None, None))

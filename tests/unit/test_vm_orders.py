# SPDX-License-Identifier: LGPL-2.1-or-later
"""Orders about one of several VMs: they name it, and go to the host that has it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from broker.api.socket import serve
from broker.broker import Broker
from broker.config.cluster_key import ClusterKey
from broker.daemon.exit_codes import ExitCode
from broker.exchange.orders import Orders
from broker.wire.status import NewOrder
from scoring.observation import Order, OrderKind
from scoring.vm.state import OrderAnswer
from tests.fakes.cluster_of_vms import DB, WEB, VmCluster
from tests.fakes.listener import Listener
from tests.unit import commands

KEY = ClusterKey(b"k" * 32)
Typed = Callable[..., Awaitable[tuple[int, str, str]]]


def on_host1(tmp_path: Path, test: Callable[[VmCluster, Typed], Awaitable[None]]) -> None:
    """Host 1, on whose command line is typed, runs the engine and web; host 2 runs db."""

    async def main() -> None:
        cluster = VmCluster(tmp_path)
        cluster.at[WEB] = 1
        config, secrets = tmp_path / "1.toml", tmp_path / "secrets.toml"
        config.write_text(config.read_text() + f'secrets = "{secrets}"\n')
        secrets.write_text(f'cluster-key = "{"6b" * 32}"\n')
        secrets.chmod(0o600)
        two = cluster.brokers[2]
        two.heartbeats.key = KEY
        listener = Listener(two)
        socket = await serve(cluster.brokers[1], str(tmp_path / "1.sock"))
        try:
            await listener.start([("127.0.0.1", 0)])
            two.own_slot.advertised = (f"127.0.0.1:{listener.ports[0]}",)
            for _ in range(3):
                await cluster.beat(asyncio.get_running_loop().time())

            async def typed(*words: str) -> tuple[int, str, str]:
                done = await asyncio.to_thread(commands.run, "ha-agent", "--config", config, *words)
                return done.returncode, done.stdout, done.stderr

            living = asyncio.create_task(live(cluster))
            await test(cluster, typed)
            living.cancel()
        finally:
            await listener.close()
            await socket.cleanup()

    asyncio.run(main())


async def live(cluster: VmCluster) -> None:
    """Typing takes seconds: the hosts go on meanwhile."""
    while True:
        await cluster.beat(asyncio.get_running_loop().time())
        await asyncio.sleep(0.3)


async def answered(
    broker: Broker, typed: Awaitable[tuple[int, str, str]], text: str = "so it is"
) -> tuple[Order, str]:
    """Type it, and let that host's agent answer `text`; the order, and what was said."""

    async def agent() -> Order:
        while (order := broker.orders.pending(asyncio.get_running_loop().time())) is None:
            await asyncio.sleep(0.01)
        broker.orders.answered([OrderAnswer(order.number, True, text)])
        return order

    taken = asyncio.create_task(agent())
    code, said, problem = await typed
    if code != 0:
        taken.cancel()
    assert (code, problem) == (0, ""), problem
    return await taken, said


def test_an_order_with_a_name_goes_to_the_host_that_has_the_vm(tmp_path: Path) -> None:
    async def test(cluster: VmCluster, typed: Typed) -> None:
        here, there = cluster.brokers[1], cluster.brokers[2]
        text = "web runs on host2 (id 2) now"
        order, said = await answered(here, typed("migrate", "web", "--to", "host2"), text)
        assert (order.kind, order.target, order.vm) == (OrderKind.MIGRATE, 2, WEB)
        assert said == f"{text}\n"
        earlier = "the VM runs on host 2 now"
        order, said = await answered(here, typed("migrate", "web"), earlier)
        assert (order.target, said) == (None, "web runs on host 2 now\n")
        order, said = await answered(there, typed("vm", "shutdown", "db", "--yes"))
        assert said == "db: so it is\n"
        assert (order.kind, order.target, order.vm) == (OrderKind.SHUTDOWN, None, DB)
        order, _ = await answered(there, typed("migrate", "2", "--cancel"))
        assert (order.kind, order.vm) == (OrderKind.CANCEL, DB)

    on_host1(tmp_path, test)


def test_without_a_name_it_is_the_engine_on_this_host(tmp_path: Path) -> None:
    async def test(cluster: VmCluster, typed: Typed) -> None:
        for words in (("vm", "poweroff", "--yes"), ("vm", "poweroff", "engine", "--yes")):
            order, said = await answered(
                cluster.brokers[1], typed(*words), "the VM's process is gone"
            )
            assert said == "the engine's process is gone\n"
            assert (order.kind, order.vm) == (OrderKind.POWER_OFF, 1)

    on_host1(tmp_path, test)


def test_an_order_that_cannot_be_given_says_why(tmp_path: Path) -> None:
    async def test(cluster: VmCluster, typed: Typed) -> None:
        code, _, problem = await typed("vm", "shutdown", "web")
        assert code == ExitCode.REFUSED
        assert "the cluster starts web again" in problem
        assert "have it stay down: ha-agent vm stop web" in problem
        code, _, problem = await typed("migrate", "nobody")
        assert code == ExitCode.USAGE and "there are: engine, db, web" in problem
        code, _, problem = await typed("migrate", "db", "--to", "host2")
        assert (code, problem) == (ExitCode.REFUSED, "ha-agent: db runs on host2 already\n")
        del cluster.at[WEB]
        for _ in range(2):
            await cluster.beat(asyncio.get_running_loop().time())
        code, _, problem = await typed("migrate", "web")
        assert code == ExitCode.REFUSED
        assert problem == "ha-agent: web is up on no host (ha-agent why web)\n"

    on_host1(tmp_path, test)


def test_the_state_of_an_order_says_which_vm_it_is_about() -> None:
    orders = Orders()
    number = orders.place(OrderKind.MIGRATE, 2, 100.0, DB).number
    found = orders.status(number, 100.0)
    assert found is not None and found.vm == DB
    orders.answered([OrderAnswer(number, True, "so")])
    found = orders.status(number, 100.0)
    assert found is not None and (found.vm, found.state) == (DB, "done")


def test_an_order_about_the_engine_is_one_that_an_earlier_broker_takes() -> None:
    assert msgspec.json.encode(NewOrder(OrderKind.START)) == b'{"kind":"start"}'
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"kind":"start","vm":129}', type=NewOrder)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Several VMs in what real brokers tell people and programs: status, API, metrics."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from agent.commands.why_vm import explain
from agent.status.text import as_text
from broker.api.metrics import Metrics
from broker.broker import Broker
from broker.registry.cache import Cached
from broker.status.vms_now import PLANS_FRESH_S
from broker.whiteboard.vm_lines import Memory
from broker.wire.exchange import VmReportOnWire
from broker.wire.status import ReasonOnWire, Status
from broker.wire.vms import VmEntry, VmList, VmWord
from scoring.vm_facts import Health, VmSpec, Want
from tests.fakes.broker import make_broker, record, report, up
from tests.fakes.cluster_of_vms import DB, GIB, RECORDS, WEB, VmCluster
from tests.fakes.listener import Listener
from tests.fakes.lockspace import FakeLockspace
from tests.fakes.slot_store import MemoryVolume


def lived(
    tmp_path: Path, test: Callable[[VmCluster], Awaitable[None]], given: VmCluster | None = None
) -> None:
    """Run a test on three hosts that have lived for some beats."""

    async def main() -> None:
        cluster = given or VmCluster(tmp_path)
        for now_s in (10.0, 11.0, 12.0):
            await cluster.beat(now_s)
        await test(cluster)

    asyncio.run(main())


def entry(status: Status, name: str) -> VmEntry:
    return next(vm for vm in status.vms if vm.name == name)


def metrics(broker: Broker, now_s: float) -> dict[tuple[str, ...], float]:
    text, _ = Metrics(broker, lambda: now_s).text("")
    return {
        (sample.name.removeprefix("ha_agent_"), *sample.labels.values()): sample.value
        for family in parse(text.decode())
        for sample in family.samples
    }


def test_every_host_finds_the_same_vms_and_the_same_that_would_have_no_place(
    tmp_path: Path,
) -> None:
    async def test(cluster: VmCluster) -> None:
        for broker in cluster.brokers.values():
            status = broker.status(12.0)
            assert [(vm.name, vm.state, vm.healthy, vm.host) for vm in status.vms] == [
                ("engine", VmWord.UP, True, 1),
                ("db", VmWord.UP, True, 2),
                ("web", VmWord.UP, True, 3),
            ]
            assert [each.text for each in status.n_plus_1] == [
                "if host2 dies, db has no place: 6 GiB short (needs 8, host3 has 2)"
            ]
            assert entry(status, "web").order == (2,)
            assert status.short == ()
            rooms = [(host.vms, host.free_mb, host.total_mb) for host in status.hosts.values()]
            assert rooms == [
                (1, 1.0 * GIB, 32.0 * GIB),
                (1, 10.0 * GIB, 32.0 * GIB),
                (1, 2.0 * GIB, 32.0 * GIB),
            ]

    lived(tmp_path, test)


def test_the_engine_s_own_definition_says_what_it_takes_of_a_host(tmp_path: Path) -> None:
    """The registry need not have the engine: then its agents' definition counts."""

    async def test(cluster: VmCluster) -> None:
        status = cluster.brokers[2].status(12.0)
        assert entry(status, "engine").memory_mb == 4 * GIB
        assert [each.text for each in status.n_plus_1] == [
            "if host1 dies, db has no place: 2 GiB short (needs 8, host2 has 6)"
        ]

    cluster = VmCluster(tmp_path)
    cluster.at, cluster.engine_mb = {1: 1, DB: 1, WEB: 3}, 4.0 * GIB
    lived(tmp_path, test, cluster)


def test_a_host_that_knows_of_no_vm_but_the_engine_is_named_with_the_way_out(
    tmp_path: Path,
) -> None:
    """An earlier version, or one whose storage.registry was forgotten: it has no part in the
    others' plans, and nobody would know why."""

    async def test(cluster: VmCluster) -> None:
        assert not any(host.engine_only for host in cluster.brokers[1].status(12.0).hosts.values())
        cluster.at = {1: 1, DB: 2}
        cluster.brokers[3].registry.cached = Cached()
        await cluster.beat(13.0)
        await cluster.beat(14.0)
        status = cluster.brokers[1].status(14.0)
        assert [n for n, host in status.hosts.items() if host.engine_only] == [3]
        said = " ".join(str(as_text(status)).split())
        assert said.count("ENGINE ONLY: host3 starts no VM but the engine: an earlier") == 1
        assert "host3: no, it starts no VM but the engine" in "\n".join(
            explain(status, entry(status, "db"))
        )
        cluster.alive = {1, 2}
        for now_s in range(15, 30):
            await cluster.beat(float(now_s))
        status = cluster.brokers[1].status(29.0)
        assert not status.hosts[3].engine_only, "it is dead, which is said already"

    lived(tmp_path, test)


def test_what_one_more_vm_would_leave_without_a_place_is_known_beforehand(tmp_path: Path) -> None:
    """By the plan that the hosts act on; what lacks a place already is no news."""
    more = record(4, "sso", 4 * GIB).spec()

    async def test(cluster: VmCluster) -> None:
        def found(spec: VmSpec) -> tuple[list[str], list[str]]:
            room = cluster.brokers[1].vms_now.room_for(spec, 12.0)
            assert room.known
            return [each.text for each in room.short], [each.text for each in room.n_plus_1]

        lost = "if host2 dies, sso has no place: 2 GiB short (needs 4, host3 has 2)"
        assert found(more) == ([], [lost])
        large = dataclasses.replace(more, memory_mb=16 * GIB)
        assert found(large) == (["sso has no place: 6 GiB short (needs 16, host2 has 10)"], [])
        assert found(dataclasses.replace(more, memory_mb=GIB)) == ([], [])
        nowhere = dataclasses.replace(more, apart=(1, DB, WEB))
        assert found(nowhere)[0] == ["sso has no place: no host may run it (needs 4 GiB)"]
        db = next(each.spec() for each in RECORDS if each.number == DB)
        assert found(db) == ([], []), "as it is"
        only = dataclasses.replace(record(WEB, "web", 2 * GIB).spec(), only=(3,))
        assert found(only)[1] == [
            "if host3 dies, web has no place: no host may run it (needs 2 GiB)"
        ]
        cluster.brokers[1].registry.cached = Cached()
        assert not cluster.brokers[1].vms_now.room_for(more, 12.0).known

    lived(tmp_path, test)


def test_a_host_that_is_about_to_join_the_lockspace_calls_no_vm_without_a_place(
    tmp_path: Path,
) -> None:
    """After a power cut of the site; but not for ever: 140 s are sanlock's longest, and twice."""

    async def test(cluster: VmCluster) -> None:
        broker = cluster.brokers[1]
        assert not broker.status(12.0).short and not broker.status(12.0).n_plus_1
        await cluster.beat(300.0)
        assert {each.name for each in broker.status(300.0).short} >= {"db", "web"}

    cluster = VmCluster(tmp_path)
    cluster.at = {}
    for broker in cluster.brokers.values():
        assert isinstance(broker.lockspace, FakeLockspace)
        broker.lockspace.joined = False
    lived(tmp_path, test, cluster)


def test_with_the_engine_alone_nothing_but_its_entry_is_new(tmp_path: Path) -> None:
    async def main() -> None:
        broker = make_broker(tmp_path, MemoryVolume())
        for now_s in (1.0, 2.0):
            up(broker, now_s)
            broker.take_report(report(), now_s)
            await broker.beat(now_s)
        status = broker.status(2.0)
        assert [(vm.name, vm.state, vm.host) for vm in status.vms] == [("engine", VmWord.UP, 1)]
        assert status.short == status.n_plus_1 == ()
        assert {host.vms for host in status.hosts.values()} == {None}
        assert as_text(status) == as_text(msgspec.structs.replace(status, vms=()))
        found = metrics(broker, 2.0)
        assert found["vm_up", "engine"] == 1
        assert not [key for key in found if key[0] in ("vms_without_place", "n_plus_1_short_bytes")]

    asyncio.run(main())


def test_a_dead_host_s_vm_is_unknown_and_then_without_a_place(tmp_path: Path) -> None:
    async def test(cluster: VmCluster) -> None:
        cluster.alive.discard(2)
        del cluster.at[DB]
        for now_s in (13.0, 14.0, 15.0, 16.0):
            await cluster.beat(now_s)
        status = cluster.brokers[1].status(16.0)
        db = entry(status, "db")
        assert (db.state, db.up) == (VmWord.UNKNOWN, None), "nothing proves that it is dead"
        assert "host2 (id 2) wrote nothing for 3 s" in db.reason
        assert [each.text for each in status.short] == [
            "db has no place: 6 GiB short (needs 8, host3 has 2)"
        ]
        assert "whether db is up is not known" in as_text(status)

    lived(tmp_path, test)


def test_a_vm_whose_lease_is_lost_is_no_vm_that_another_host_could_start(tmp_path: Path) -> None:
    async def test(cluster: VmCluster) -> None:
        await cluster.beat(13.0)
        await cluster.beat(14.0)
        broker = cluster.brokers[1]
        assert broker.status(14.0).vm_bounds[WEB].held == ""
        (web,) = (one for one in RECORDS if one.number == WEB)
        broker.lockspace.lost_leases = {web.resource: "nothing that can be read", "fence": "x"}
        status = broker.status(14.0)
        assert "in place of its lease" in status.vm_bounds[WEB].held
        assert status.vm_bounds[WEB].total_s is None
        assert "ha-agent vm rebuild" in entry(status, "web").refused
        (fence,) = status.lost_leases
        assert f"LEASE LOST: {fence}" in as_text(status)

    lived(tmp_path, test)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("lease-unknown", "who owns db's lease is not known: no answer"),
        ("equal-host-first", "host2 is to start it"),
    ],
)
def test_what_keeps_this_host_from_starting_a_vm_is_said(
    tmp_path: Path, code: str, reason: str
) -> None:
    """What is said is the agent's last reason, unless that is just whose turn it is."""

    async def test(cluster: VmCluster) -> None:
        del cluster.at[DB]
        why = "who owns db's lease is not known: no answer"
        reasons = (ReasonOnWire("lease-free", "db's lease is free"), ReasonOnWire(code, why))
        cluster.said[1] = (VmReportOnWire(DB, "EngineDown", 17, reasons=reasons),)
        await cluster.beat(13.0)
        await cluster.beat(14.0)
        assert entry(cluster.brokers[1].status(14.0), "db").reason == reason

    lived(tmp_path, test)


def test_a_vm_that_every_host_calls_down_waits_or_has_no_place(tmp_path: Path) -> None:
    async def test(cluster: VmCluster) -> None:
        del cluster.at[DB], cluster.at[WEB]
        await cluster.beat(13.0)
        await cluster.beat(14.0)
        status = cluster.brokers[1].status(14.0)
        assert (entry(status, "db").state, entry(status, "db").order) == (VmWord.WAITING, (2,))
        assert entry(status, "db").reason == "host2 is to start it"
        found = metrics(cluster.brokers[1], 14.0)
        assert (found["vm_up", "db"], found["vm_host_id", "db"]) == (0, 0)
        assert found["vms_without_place",] == 0
        # host2 has failed to start it: nobody else has the room, which is kept there.
        cluster.said[2] = (VmReportOnWire(DB, "EngineDown", 17, 1, barred_until_s=24.0),)
        await cluster.beat(15.0)
        await cluster.beat(16.0)
        for host in (1, 2):
            status = cluster.brokers[host].status(16.0)
            db = entry(status, "db")
            assert (db.state, list(db.barred), db.order) == (VmWord.WAITING, [2], (2,))
            assert db.barred[2] == pytest.approx(8.0, abs=1.1)
            assert db.reason == "it failed on host2, which starts it again after a pause"
        assert metrics(cluster.brokers[1], 16.0)["vms_without_place",] == 0

    lived(tmp_path, test)


def test_the_agent_s_own_reason_is_shown_on_its_host(tmp_path: Path) -> None:
    async def test(cluster: VmCluster) -> None:
        cluster.health[DB] = Health.BAD
        reason = ReasonOnWire("engine-starting", "it boots, 500 s at most")
        cluster.said[2] = (VmReportOnWire(DB, "EngineStarting", 17, reasons=(reason,)),)
        await cluster.beat(13.0)
        await cluster.beat(14.0)
        own = entry(cluster.brokers[2].status(14.0), "db")
        assert (own.state, own.reason) == (VmWord.BOOTING, "it boots, 500 s at most")
        assert entry(cluster.brokers[1].status(14.0), "db").state is VmWord.BOOTING

    lived(tmp_path, test)


@pytest.mark.parametrize(("code", "stays"), [("drain-waiting", True), ("drain-queued", False)])
def test_a_vm_that_does_not_leave_its_host_yet_says_why(
    tmp_path: Path, code: str, stays: bool
) -> None:
    """Beside the last reason, that it is well, which was shown, or nothing."""

    async def test(cluster: VmCluster) -> None:
        reasons = (
            ReasonOnWire("engine-healthy", "db is up and healthy here"),
            ReasonOnWire(code, "local maintenance: web is moved first"),
        )
        cluster.said[2] = (VmReportOnWire(DB, "EngineUp", 17, reasons=reasons),)
        await cluster.beat(13.0)
        await cluster.beat(14.0)
        own = entry(cluster.brokers[2].status(14.0), "db")
        assert (own.state, own.stays) == (VmWord.UP, stays)
        assert own.reason == "local maintenance: web is moved first"
        elsewhere = entry(cluster.brokers[1].status(14.0), "db")
        assert (elsewhere.reason, elsewhere.stays) == ("", False)

    lived(tmp_path, test)


def test_how_long_a_vm_has_been_where_it_is(tmp_path: Path) -> None:
    async def test(cluster: VmCluster) -> None:
        cluster.at[WEB] = 2
        for now_s in (13.0, 14.0, 20.0):
            await cluster.beat(now_s)
        status = cluster.brokers[1].status(20.0)
        assert entry(status, "db").at_least
        web = entry(status, "web")
        assert (web.host, web.at_least) == (2, False)
        assert web.for_s == pytest.approx(6.5, abs=0.6)

    lived(tmp_path, test)


def test_memory_that_shrinks_without_news_is_noticed_within_half_a_minute(tmp_path: Path) -> None:
    async def test(cluster: VmCluster) -> None:
        assert cluster.brokers[1].status(12.0).n_plus_1[0].has_mb == 2 * GIB
        cluster.vms[3].memory = Memory(32.0 * GIB, 1.0 * GIB, 0.0)
        for now_s in (13.0, 14.0, 12.0 + PLANS_FRESH_S, 13.0 + PLANS_FRESH_S):
            await cluster.beat(now_s)
        found = cluster.brokers[1].status(13.0 + PLANS_FRESH_S).n_plus_1
        assert [(each.if_dies, each.vm, each.has_mb) for each in found] == [
            (2, DB, 1 * GIB),
        ]

    lived(tmp_path, test)


def test_a_host_that_does_not_see_the_others_warns_of_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        cluster = VmCluster(tmp_path)
        await cluster.beat(10.0)
        status = cluster.brokers[1].status(10.0)
        assert status.n_plus_1 == (), "the others were not seen to live yet"

    asyncio.run(main())


def test_a_vm_that_somebody_stopped_and_one_that_is_damaged(tmp_path: Path) -> None:
    stopped = msgspec.structs.replace(RECORDS[1], want=Want.DOWN)
    cluster = VmCluster(tmp_path, (RECORDS[0], stopped))
    del cluster.at[WEB]
    for broker in cluster.brokers.values():
        cached = broker.registry.cached
        broker.registry.cached = dataclasses.replace(cached, damaged={DB: "its record is gone"})

    async def test(cluster: VmCluster) -> None:
        status = cluster.brokers[1].status(12.0)
        assert entry(status, "web").state is VmWord.OFF
        assert entry(status, "db").refused == "its record is gone"
        assert "1 of 1" not in as_text(status)
        found = metrics(cluster.brokers[1], 12.0)
        assert (found["vm_wanted", "web"], found["vm_up", "web"]) == (0, 0)

    lived(tmp_path, test, cluster)


def test_the_metrics_of_each_vm(tmp_path: Path) -> None:
    async def test(cluster: VmCluster) -> None:
        found = metrics(cluster.brokers[1], 12.0)
        for name, host in (("engine", 1), ("db", 2), ("web", 3)):
            assert found["vm_wanted", name] == found["vm_up", name] == 1
            assert found["vm_healthy", name] == 1
            assert found["vm_host_id", name] == host
        assert found["n_plus_1_short_bytes", "host2"] == 6 * 2**30
        assert found["n_plus_1_short_bytes", "host1"] == 0
        cluster.alive.discard(2)
        for now_s in (13.0, 14.0, 15.0, 16.0):
            await cluster.beat(now_s)
        found = metrics(cluster.brokers[1], 16.0)
        assert ("vm_up", "db") not in found and ("vm_host_id", "db") not in found
        assert ("n_plus_1_short_bytes", "host2") not in found

    lived(tmp_path, test)


def test_the_api_has_all_vms_and_each_by_name_or_number(tmp_path: Path) -> None:
    async def test(cluster: VmCluster) -> None:
        door = Listener(cluster.brokers[1], "")
        await door.start([("127.0.0.1", 0)])
        (port,) = door.ports
        base = f"http://127.0.0.1:{port}/api/v1/vms"
        try:
            async with aiohttp.ClientSession() as session:
                async with session.get(base) as answer:
                    found = msgspec.json.decode(await answer.read(), type=VmList)
                    assert [vm.name for vm in found.vms] == ["engine", "db", "web"]
                for wanted in ("db", "2"):
                    async with session.get(f"{base}/{wanted}") as answer:
                        vm = msgspec.json.decode(await answer.read(), type=VmEntry)
                        assert (vm.number, vm.name) == (2, "db")
                async with session.get(f"{base}/nobody") as answer:
                    assert answer.status == 404
        finally:
            await door.close()

    lived(tmp_path, test)


def test_what_a_host_s_death_would_cost_a_vm_is_said_by_every_host(tmp_path: Path) -> None:
    async def test(cluster: VmCluster) -> None:
        for broker in cluster.brokers.values():
            broker.board.storage_good_since_s = -100.0
            status = broker.status(12.0)
            assert sorted(status.vm_bounds) == [WEB], "db would have no place"
            bound = status.vm_bounds[WEB]
            assert (bound.held, bound.detect_s, bound.by) == ("", 3.5, "sanlock's host-dead time")
            assert bound.prove_s > 60 and (bound.total_s, bound.boot_s) == (None, None)
            words = "f host3 dies now, web answers in detect 3.5 + prove"
            assert f"i{words}" in as_text(status)
            assert any(
                line.startswith(f"I{words}") for line in explain(status, entry(status, "web"))
            )
            assert broker.status(12.5).vm_bounds[WEB] is bound, "it is kept while nothing changes"

    lived(tmp_path, test)


def test_the_bound_has_the_boot_that_was_seen_last(tmp_path: Path) -> None:
    async def test(cluster: VmCluster) -> None:
        del cluster.at[WEB]
        await cluster.beat(13.0)
        cluster.at[WEB], cluster.health[WEB] = 3, Health.BAD
        for now_s in (14.0, 15.0, 16.0):
            await cluster.beat(now_s)
        cluster.health[WEB] = Health.GOOD
        # Each host reads what the others published a moment before.
        for now_s in (17.0, 18.0):
            await cluster.beat(now_s)
        for broker in cluster.brokers.values():
            broker.board.storage_good_since_s = -100.0
            bound = broker.status(18.0).vm_bounds[WEB]
            assert bound.boot_s is not None and 3.0 <= bound.boot_s <= 5.0
            assert bound.total_s is not None and bound.total_s > bound.prove_s + bound.boot_s

    lived(tmp_path, test)

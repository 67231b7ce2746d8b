# SPDX-License-Identifier: LGPL-2.1-or-later
"""The notices of VMs without a place: after their patience, once, from one host, and when over."""

from __future__ import annotations

import asyncio
from pathlib import Path

from broker.events.notice import Notice
from broker.events.of_room import IF_DIES_S, NOW_S, RoomEvents
from broker.wire.kinds import Kind
from broker.wire.vms import WithoutPlace
from tests.fakes.cluster_of_vms import DB, VmCluster

DB_NOW = WithoutPlace(2, "db", 8192, 6144, 3, 2048, "db has no place: 6 GiB short")
DB_IF = WithoutPlace(2, "db", 8192, 6144, 3, 2048, "if host2 dies, db has no place", 2, "host2")


def said_of(*looks: tuple[float, tuple[WithoutPlace, ...]]) -> list[tuple[Kind, str]]:
    notices: list[Notice] = []
    events = RoomEvents(notices.append)
    for now_s, found in looks:
        events.look(found, now_s)
    return [(each.kind, each.detail) for each in notices]


def test_a_vm_without_a_place_is_told_after_ten_seconds_and_once() -> None:
    early = ((0.0, (DB_NOW,)), (NOW_S - 0.1, (DB_NOW,)))
    assert said_of(*early) == []
    late = (*early, (NOW_S, (DB_NOW,)), (NOW_S + 1, (DB_NOW,)))
    assert said_of(*late) == [(Kind.VM_WITHOUT_PLACE, DB_NOW.text)]


def test_what_is_over_before_its_patience_begins_anew() -> None:
    assert said_of((0.0, (DB_NOW,)), (5.0, ()), (6.0, (DB_NOW,)), (15.9, (DB_NOW,))) == []


def test_a_host_s_death_is_warned_of_after_a_minute_and_its_end_told() -> None:
    looks = ((0.0, (DB_IF,)), (IF_DIES_S, (DB_IF,)), (100.0, ()), (101.0, (DB_IF,)))
    assert said_of(*looks) == [(Kind.N_PLUS_1_SHORT, DB_IF.text)], "a moment is no end of it"
    over = (*looks, (200.0, ()), (200.0 + IF_DIES_S, ()))
    assert said_of(*over)[1:] == [
        (Kind.N_PLUS_1_GOOD, "db would have a place again after the death of host2")
    ]


def test_the_end_of_a_vm_without_a_place_is_told() -> None:
    looks = ((0.0, (DB_NOW,)), (NOW_S, (DB_NOW,)), (20.0, ()), (20.0 + NOW_S, ()))
    assert [kind for kind, _ in said_of(*looks)] == [Kind.VM_WITHOUT_PLACE, Kind.VM_PLACED]


def test_of_three_brokers_one_sends_it_and_all_show_it(tmp_path: Path) -> None:
    async def main() -> None:
        cluster = VmCluster(tmp_path)
        sent: dict[int, list[Notice]] = {host: [] for host in cluster.brokers}
        for host, broker in cluster.brokers.items():
            broker.feed._notify_people = sent[host].append
        for step in range(70):
            await cluster.beat(10.0 + step)
        kinds = {host: [n.kind for n in notices] for host, notices in sent.items()}
        assert kinds[1].count(Kind.N_PLUS_1_SHORT) == 1
        assert Kind.N_PLUS_1_SHORT not in kinds[2] + kinds[3]
        notice = next(n for n in sent[1] if n.kind is Kind.N_PLUS_1_SHORT)
        assert notice.detail == "if host2 dies, db has no place: 6 GiB short (needs 8, host3 has 2)"
        assert dict(notice.facts) == {
            "vm": "db",
            "host_id": 2,
            "host": "host2",
            "short_mb": 6144,
            "needs_mb": 8192,
        }
        for broker in cluster.brokers.values():
            assert [e.kind for e in broker.events.after(0).events].count("n-plus-1-short") == 1
        assert cluster.at[DB] == 2

    asyncio.run(main())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cable of the VM's host is out and its storage is fine, on real parts: the VM is served again
from another host. The fixture `lab` watches at 20 ms that no two QEMUs run the guest."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from . import ask, configs
from .cluster import Cluster
from .layout import host_id_of
from .moving import boots, order, others, settled, source_of
from .visitors import Visitors

#: The promise is 30 s; what is asserted leaves room for a machine that has other work.
SERVED_S = 75.0
SETTLED_S = 60.0


def reached(lab: Cluster, source: str) -> bool:
    """Whether both other hosts say that they reach the VM on `source`."""
    hosts = ask.status(lab, source).get("hosts", {})
    views = [hosts.get(str(host_id_of(host)), {}).get("outside") for host in others(lab, source)]
    return all(view is not None and view["bad_s"] is None for view in views)


@pytest.fixture
def source(lab: Cluster) -> Iterator[str]:
    """The host of a VM that both others reach; the cable is in again after the test."""
    home = source_of(lab)
    settled(lab, home, SETTLED_S)
    ask.until("the others reach the VM", 30, lambda: reached(lab, home))
    try:
        yield home
    finally:
        lab.heal(home)
        settled(lab, lab.wait_healthy(SETTLED_S), SETTLED_S)


@pytest.fixture
def one_network(shared_lab: Cluster) -> Iterator[None]:
    """Migrations go by the network that is cut."""
    for host in shared_lab.hosts:
        shared_lab.set_migration(host, configs.MIGRATION_BY_TLS)
    try:
        yield
    finally:
        for host in shared_lab.hosts:
            shared_lab.set_migration(
                host, configs.MIGRATION_BY_SOCKET.format(lab=shared_lab.layout)
            )


def served_elsewhere(lab: Cluster, source: str) -> float:
    """Pull the cable; the longest time that the VM's visitors had no answer."""
    with Visitors(lab.switch_pid) as visitors:
        time.sleep(1.0)
        lab.partition(source)
        ask.until("it is served from elsewhere", SERVED_S, lambda: _is_served(lab, source))
        time.sleep(1.0)
    return visitors.longest_gap_s()


def _is_served(lab: Cluster, source: str) -> bool:
    return lab.engine_host() not in (None, source) and lab.page_answers()


def events(lab: Cluster, host: str) -> str:
    """What happened on a host, and what of it was last, for who reads the measure."""
    told = order(lab, host, "events").stdout
    print("\n".join(told.splitlines()[-12:]))
    return told


def entered(lab: Cluster, host: str) -> dict[str, float]:
    """When that host entered each state last, UTC seconds since 1970."""
    lines = order(lab, host, "events", "--json").stdout
    found: dict[str, float] = {}
    for each in json.loads(lines)["events"]:
        if each["kind"] == "state-transition" and each["host"] == host:
            found[each["facts"]["to"]] = datetime.fromisoformat(each["time"]).timestamp()
    return found


def test_where_no_migration_gets_through_it_is_started_elsewhere(
    lab: Cluster, one_network: None, source: str
) -> None:
    before = boots(lab)
    gap_s = served_elsewhere(lab, source)
    left, came = entered(lab, source), entered(lab, lab.wait_healthy(SERVED_S))
    guest_s = left["EngineDown"] - left["EngineStop"] + came["EngineUp"] - came["EngineStarting"]
    print(
        f"cable out, no way to migrate: {gap_s:.1f} s without an answer, in {guest_s:.1f} s of them"
        " the guest shut down and booted"
    )
    assert boots(lab) == before + 1
    told = events(lab, source)
    assert "isolated" in told and "no way to migrate it" in told
    assert gap_s < SERVED_S


def test_where_migrations_have_a_network_of_their_own_it_moves(lab: Cluster, source: str) -> None:
    before = boots(lab)
    gap_s = served_elsewhere(lab, source)
    print(f"cable out, migrated: {gap_s:.1f} s without an answer")
    assert boots(lab) == before, "it was moved, not started"
    assert "migrating it to" in events(lab, source)
    assert gap_s < SERVED_S


def test_a_cable_that_is_back_in_time_changes_nothing(lab: Cluster, source: str) -> None:
    before = boots(lab)
    lab.partition(source)
    ask.until("it is missed", 14, lambda: not reached(lab, source))
    lab.heal(source)
    ask.during("the VM stays", 20, lambda: lab.engine_host() == source)
    ask.until("it is reached", 20, lambda: reached(lab, source))
    assert boots(lab) == before

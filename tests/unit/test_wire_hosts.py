# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts in JSON: the shape that agents, brokers and journals of all versions read."""

from __future__ import annotations

import gzip
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.journal.records import decode, encode
from broker.wire.hosts import LocalOnWire, PeerOnWire
from scoring.observation import FenceAsk, HostShutdown, LocalHost, PeerReport
from scoring.storage_word import StorageWord
from scoring.vm_facts import (
    ENGINE,
    Claim,
    DomainHere,
    EngineStatus,
    Health,
    Obstacle,
    OutsideView,
    PeerVm,
    Unfit,
    VmHere,
    VmStatus,
)

UP = EngineStatus(VmStatus.UP, Health.GOOD, "up", "why")
SEEN = OutsideView(3, 8, 40.5, 41.5)
ENGINE_HERE = VmHere(
    UP,
    7.5,
    lease_held=True,
    migrating_s=1.5,
    last_ran=9,
    config_up_to_date=False,
    unfit=(Unfit(Obstacle.HELD_BACK, "an overlay"),),
    domain=DomainHere(outdated=True),
    healthy_before=False,
    uplink_up=True,
    outside=SEEN,
)
LOCAL = LocalHost(
    4,
    (ENGINE_HERE, VmHere(UP, 8.5, number=2)),
    network=0.5,
    bridge_up=True,
    mem_free_mb=100.0,
    cpu_load=0.25,
    maintenance=True,
    fence_path_ok=False,
    lock_driver=True,
    shutdown=HostShutdown(6.5),
    way_out=True,
    total_mb=300.0,
    free_mb=200.0,
    free_huge_mb=50.0,
    reaches=frozenset({2}),
    may_restart=True,
    storage_lost_since_s=8.5,
    unwritten_since_s=7.5,
)
PEER = PeerReport(
    2,
    77,
    3400,
    {ENGINE: PeerVm(UP, "EngineUp", 9, 30.5, True, False), 5: PeerVm(UP, last_ran=3)},
    hostname="host2",
    maintenance=True,
    stopped=True,
    boot_id="boot",
    read_s=1.5,
    heartbeat_s=2.5,
    unanswered_since_s=3.5,
    renewal_s=4.5,
    renewal_timestamp=11,
    mem_free_mb=100.0,
    hears=frozenset({1}),
    machine_silent_since_s=6.5,
    machine_heard_s=7.5,
    storage_word=StorageWord(8.5, 21.5, is_empty=True, global_maintenance=False),
    touches=frozenset({3}),
    way_out=True,
    fence_ask=FenceAsk(75.0),
    claims=(Claim(5, 2, 2, 60.5),),
    speaks=2,
    registry=14,
    total_mb=300.0,
    free_mb=200.0,
    free_huge_mb=50.0,
    host_score=3300,
    reaches=frozenset({1}),
    reached={ENGINE: SEEN, 5: OutsideView(1, 2)},
    overdue_since_s=5.5,
)
FLAT_LOCAL = {
    "engine": {"vm": "up", "health": "good", "detail": "up", "reason": "why"},
    "engine_taken_s": 7.5,
    "lease_held": True,
    "migrating_s": 1.5,
    "last_ran": 9,
    "config_up_to_date": False,
    "unfit": [{"obstacle": "held-back", "text": "an overlay"}],
    "healthy_before": False,
    "uplink_up": True,
    "outside": {"owner": 3, "stay": 8, "good_s": 40.5, "bad_since_s": 41.5},
}
FLAT_PEER = {
    "engine": {"vm": "up", "health": "good", "detail": "up", "reason": "why"},
    "state": "EngineUp",
    "last_ran": 9,
    "moving_until_s": 30.5,
    "memory_short": True,
    "uplink_up": False,
    "outside": {"owner": 3, "stay": 8, "good_s": 40.5, "bad_since_s": 41.5},
}


def in_json(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(msgspec.json.encode(value))
    return found


def test_of_this_host_vm_1_stands_among_the_facts_of_the_host() -> None:
    there = in_json(LocalOnWire.of(LOCAL))
    assert {name: there[name] for name in FLAT_LOCAL} == FLAT_LOCAL
    assert there["domain"]["outdated"] is True
    assert [vm["number"] for vm in there["vms"]] == [2], "the others have records of their own"


def test_of_another_host_vm_1_stands_among_the_facts_of_the_host() -> None:
    there = in_json(PeerOnWire.of(PEER))
    assert {name: there[name] for name in FLAT_PEER} == FLAT_PEER
    assert set(there["vms"]) == {"5"} and set(there["reached"]) == {"5"}


@pytest.mark.parametrize(
    ("kind", "value"), [(LocalOnWire, LOCAL), (PeerOnWire, PEER)], ids=["this host", "another"]
)
def test_all_of_a_host_arrives(kind: Any, value: LocalHost | PeerReport) -> None:
    """No field of the example has its default, so that one which is left out is missed."""
    wire = kind.of(value)
    for each in fields(value):
        assert getattr(value, each.name) != each.default, f"the example says nothing of {each.name}"
    for field, default in zip(
        kind.__struct_fields__[-len(kind.__struct_defaults__) :],
        kind.__struct_defaults__,
        strict=True,
    ):
        assert getattr(wire, field) != default, f"the example says nothing of {field}"
    assert msgspec.json.decode(msgspec.json.encode(wire), type=kind).observed() == value


def test_a_host_that_says_nothing_of_vm_1_is_none() -> None:
    """What is not listed would count as down."""
    with pytest.raises(AssertionError):
        PeerReport(2, 1, 3400, {})
    with pytest.raises(AssertionError):
        LocalHost(1, (VmHere(UP, 1.0, number=2),))


def lost(old: Any, new: Any, where: str = "") -> list[str]:
    """Where something of the old value is not the same in the new one, which may have more keys."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [one for key in old for one in lost(old[key], new.get(key), f"{where}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [one for n, each in enumerate(old) for one in lost(each, new[n], f"{where}[{n}]")]
    return [] if old == new else [f"{where}: was {old}, is {new}"]


@pytest.mark.parametrize("host_id", [1, 3])
def test_a_journal_keeps_its_shape(host_id: int) -> None:
    """Journals of a cluster with VMs of the registry, as they were written when the decision's own
    types still had the shape of the JSON."""
    path = Path(__file__).parent / "journals" / f"flat-engine-host{host_id}.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    assert len(lines) > 40
    for line in lines:
        assert lost(json.loads(line), json.loads(encode(decode(line)))) == []

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leases that are lost, in words."""

from __future__ import annotations

import msgspec

from broker.config.sections import StorageSection
from broker.lockspace.lease_records import LeaseRecord
from broker.lockspace.lost_leases import LostLeases, lost_in, wanted_leases, why_lost
from broker.registry.record import VmRecord

DB = VmRecord(
    number=2, name="db", uuid="0" * 8 + "-1111-2222-3333-" + "4" * 12, generation=1, memory_mb=64
)
ENGINE = msgspec.structs.replace(DB, number=1, name="engine")
STORAGE = StorageSection(whiteboard="/s/w", leases="/s/leases", registry="/s/registry")


def test_each_lease_has_its_place() -> None:
    wanted = wanted_leases(STORAGE, {1: ENGINE, 2: DB})
    assert wanted == {STORAGE.resource: 1, "fence": 2, "registry": 3, DB.resource: 16}
    alone = wanted_leases(StorageSection(whiteboard="/s/w", leases="/s/leases"), {})
    assert sorted(alone.values()) == [1, 2]


def test_what_stands_in_the_place_of_a_lease() -> None:
    found = LeaseRecord("ours", "vm-a", 1, 1, True)
    assert why_lost(found, "ours", "vm-a") == ""
    assert why_lost(None, "ours", "vm-a") == "nothing that can be read"
    assert why_lost(found, "ours", "vm-b") == "lease vm-a"
    assert why_lost(found, "other", "vm-a") == "a lease of lockspace ours"


def test_a_lease_that_lies_elsewhere_is_not_lost() -> None:
    """The definition of the engine may name any place."""
    places = {1: None, 2: LeaseRecord("ours", "fence", 0, 0, False)}
    wanted = {"engine": 1, "fence": 2}
    assert lost_in(wanted, "ours", places.get) == {"engine": "nothing that can be read"}
    places[7] = LeaseRecord("ours", "engine", 1, 1, True)
    assert lost_in(wanted, "ours", places.get) == {}
    assert list(lost_in(wanted, "another", places.get)) == ["engine", "fence"]


def test_whom_a_lost_lease_concerns_and_what_to_do() -> None:
    nothing = "nothing that can be read"
    lost = LostLeases(STORAGE, dict.fromkeys((STORAGE.resource, "fence", DB.resource), nothing))
    assert "once it is down: ha-agent vm rebuild" in lost.of_vms({1: ENGINE, 2: DB})[2]
    assert list(lost.of_vms({1: ENGINE, 2: DB})) == [2]
    assert "ha-agent reinitialize-lockspace" in lost.of_engine
    assert [text.split(":")[0] for text in lost.others] == ["the lease fence"]
    none = LostLeases(STORAGE, {})
    assert (none.of_vms({2: DB}), none.of_engine, none.others) == ({}, "", ())

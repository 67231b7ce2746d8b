# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a host knows of the registry: read, kept over restarts, and what damage costs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from broker.config.cluster_key import ClusterKey
from broker.registry.cache import (
    HEADER_EVERY_S,
    RECORDS_FILE,
    WHOLE_EVERY_S,
    RegistryCache,
    newest_heard,
    no_registry,
    read_kept,
)
from broker.registry.record import VmRecord
from broker.registry.volume import DEFINITIONS_AT, REGISTRY_BYTES, Registry
from broker.whiteboard.signatures import Signatures, Unsigned
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.volume import VolumeError, VolumeFault
from tests.fakes.blocks import MemoryBlocks

CLUSTER = "7b3f"
SIGNATURES = Signatures(ClusterKey(b"k" * 32), Unsigned.IGNORE)
DB = VmRecord(
    number=2, name="db", uuid="0" * 8 + "-1111-2222-3333-" + "4" * 12, generation=0, memory_mb=8192
)
WEB = msgspec.structs.replace(DB, number=3, name="web", uuid="5" * 8 + DB.uuid[8:])


class Storage:
    """A registry in memory. `gone`: it cannot be opened."""

    def __init__(self) -> None:
        self.blocks, self.gone, self.opened = MemoryBlocks(REGISTRY_BYTES), False, 0
        self.registry = Registry(self.blocks, CLUSTER, SIGNATURES)
        self.registry.make()

    @contextlib.contextmanager
    def open(self) -> Iterator[MemoryBlocks]:
        self.opened += 1
        if self.gone:
            raise VolumeError(VolumeFault.MISSING, "/shared/registry", "opening: gone", "mount it")
        yield self.blocks

    def put(self, record: VmRecord, xml: bytes | None = b"<domain/>") -> VmRecord:
        return self.registry.put(record, xml, wall_s=1.0, by="host1")


def cache(storage: Storage, tmp_path: Path, cluster: str = CLUSTER) -> RegistryCache:
    return RegistryCache(storage.open, cluster, SIGNATURES, tmp_path / "vms")


def looked(one: RegistryCache, now_s: float = 0.0) -> RegistryCache:
    asyncio.run(one.look(now_s))
    return one


def test_a_host_knows_what_the_registry_holds(tmp_path: Path) -> None:
    storage = Storage()
    record = storage.put(DB, b"<domain>db</domain>")
    known = looked(cache(storage, tmp_path)).cached
    assert known.generation == 1 and known.records == {2: record}
    assert known.specs == (record.spec(),) and known.definitions == {2: "<domain>db</domain>"}
    assert known.damaged == {} and known.problem == ""
    assert known.named("db") == known.named("2") == record and known.named("3") is None


def test_without_a_registry_nothing_is_known_and_nothing_asked() -> None:
    assert looked(no_registry()).cached.specs == ()


def test_the_copy_survives_a_restart_and_the_storage(tmp_path: Path) -> None:
    storage = Storage()
    storage.put(DB)
    before = looked(cache(storage, tmp_path)).cached
    storage.gone = True
    after = looked(cache(storage, tmp_path)).cached
    assert after == replace(before, problem="registry /shared/registry: opening: gone; mount it")
    assert read_kept(tmp_path / "vms", CLUSTER) == before, "as the agent reads it"


def test_a_change_is_found_by_the_header_alone(tmp_path: Path) -> None:
    storage = Storage()
    storage.put(DB)
    one = looked(cache(storage, tmp_path))
    reads = storage.opened
    assert looked(one, HEADER_EVERY_S).cached.generation == 1
    assert storage.opened == reads + 1, "nothing but the header"
    storage.put(WEB)
    assert set(looked(one, 2 * HEADER_EVERY_S).cached.vms) == {2, 3}


def test_another_hosts_word_has_it_read_at_once(tmp_path: Path) -> None:
    storage = Storage()
    one, changed = cache(storage, tmp_path), asyncio.Event()

    async def story() -> None:
        running = asyncio.ensure_future(one.run())
        while one.cached.generation != 0 or not storage.opened:
            await asyncio.sleep(0)
        one.on_change = changed.set
        storage.put(DB)
        one.heard(newest_heard([{}, {"registry": "x"}, {"registry": "1"}]))
        await changed.wait()
        running.cancel()

    asyncio.run(asyncio.wait_for(story(), 5.0))
    assert one.cached.named("db") is not None


def test_a_definition_is_read_once(tmp_path: Path) -> None:
    storage = Storage()
    record = storage.put(DB)
    one = looked(cache(storage, tmp_path))
    storage.put(msgspec.structs.replace(record, priority=90), None)
    storage.blocks.blocks[DEFINITIONS_AT + 4 * 65536] = b"x" * SLOT_BYTES
    known = looked(one, WHOLE_EVERY_S).cached
    assert known.specs[0].priority == 90
    assert known.definitions == {2: "<domain/>"} and known.damaged == {}, "its digest is right"
    fresh = looked(cache(storage, tmp_path / "other")).cached
    assert fresh.definitions == {} and "definition of db is damaged" in fresh.damaged[2]


def test_a_removed_vm_is_known_no_more(tmp_path: Path) -> None:
    storage = Storage()
    record = storage.put(DB)
    one = looked(cache(storage, tmp_path))
    storage.put(msgspec.structs.replace(record, removed=True), None)
    known = looked(one, WHOLE_EVERY_S).cached
    assert known.specs == () and known.named("db") is None and known.damaged == {}
    assert [path.name for path in (tmp_path / "vms").iterdir()] == [RECORDS_FILE]


def ruined(storage: Storage) -> None:
    storage.blocks.blocks[2 * SLOT_BYTES] = b"x" * SLOT_BYTES


def unsigned(storage: Storage) -> None:
    head = storage.blocks.blocks[0]
    stranger = Registry(storage.blocks, CLUSTER, Signatures())
    stranger.put(storage.registry.read().records[2], None, 1.0, "stranger")
    storage.blocks.blocks[0] = head


def emptied(storage: Storage) -> None:
    del storage.blocks.blocks[2 * SLOT_BYTES]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (ruined, "its record in the registry cannot be read"),
        (unsigned, "its record in the registry is not signed"),
        (emptied, "its record is gone from the registry"),
    ],
)
def test_damage_costs_this_vms_next_start_and_nothing_else(
    tmp_path: Path, damage: Callable[[Storage], None], why: str
) -> None:
    storage = Storage()
    record, other = storage.put(DB), storage.put(WEB)
    one = looked(cache(storage, tmp_path))
    damage(storage)
    known = looked(one, WHOLE_EVERY_S).cached
    assert known.records[2] == record, "what runs is known as before"
    assert why in known.damaged[2] and "ha-agent vm define db FILE" in known.damaged[2]
    assert 3 not in known.damaged and known.records[3].uuid == other.uuid
    storage.put(record)
    assert looked(one, 3 * WHOLE_EVERY_S).cached.damaged == {}, "defined anew"


def test_an_older_record_that_was_put_back_does_not_count(tmp_path: Path) -> None:
    storage = Storage()
    record = storage.put(DB, b"<domain>old</domain>")
    old = storage.blocks.blocks[2 * SLOT_BYTES]
    newer = storage.put(record, b"<domain>new</domain>")
    one = looked(cache(storage, tmp_path))
    storage.blocks.blocks[2 * SLOT_BYTES] = old
    known = looked(one, WHOLE_EVERY_S).cached
    assert known.records[2] == newer and known.definitions[2] == "<domain>new</domain>"
    assert "is of generation 1, and 2 was read before" in known.damaged[2]


def test_an_older_copy_of_the_whole_volume_is_named(tmp_path: Path) -> None:
    storage = Storage()
    old = dict(storage.blocks.blocks)
    storage.put(DB)
    one = looked(cache(storage, tmp_path))
    storage.blocks.blocks = old
    known = looked(one, WHOLE_EVERY_S).cached
    assert known.generation == 1 and "an older copy of the volume?" in known.problem


def test_another_clusters_registry_is_named_and_changes_nothing(tmp_path: Path) -> None:
    storage = Storage()
    storage.put(DB)
    one = looked(cache(storage, tmp_path))
    storage.registry = Registry(storage.blocks, "other", SIGNATURES)
    storage.blocks.blocks.clear()
    storage.registry.make()
    known = looked(one, WHOLE_EVERY_S).cached
    assert "belongs to another cluster" in known.problem and set(known.vms) == {2}


def test_the_copy_of_another_cluster_is_not_used(tmp_path: Path) -> None:
    storage = Storage()
    storage.put(DB)
    looked(cache(storage, tmp_path))
    storage.gone = True
    assert looked(cache(storage, tmp_path, "another")).cached.vms == {}


@pytest.mark.parametrize("text", [b"", b"{", b'{"cluster": "7b3f"}', b"\xff\xfe"])
def test_a_copy_that_cannot_be_read_is_left(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "vms").mkdir()
    (tmp_path / "vms" / RECORDS_FILE).write_bytes(text)
    assert read_kept(tmp_path / "vms", CLUSTER).vms == {}


def test_a_copy_of_a_definition_that_was_changed_is_not_used(tmp_path: Path) -> None:
    storage = Storage()
    storage.put(DB)
    looked(cache(storage, tmp_path))
    next((tmp_path / "vms").glob("2-*.xml")).write_text("<other/>")
    known = read_kept(tmp_path / "vms", CLUSTER)
    assert known.definitions == {} and "copy of db's definition" in known.damaged[2]


def test_a_definition_that_this_host_must_not_start(tmp_path: Path) -> None:
    storage = Storage()
    storage.put(DB)
    one = cache(storage, tmp_path)
    one.refusal = lambda record, xml: f"{record.name}: not allowed"
    assert looked(one).cached.damaged == {2: "db: not allowed"}
    one.refusal = lambda record, xml: ""
    one.look_now()
    assert looked(one, 1.0).cached.damaged == {}
    assert read_kept(tmp_path / "vms", CLUSTER).damaged == {}, "a judgement is not kept"


def test_a_full_local_disk_costs_the_copy_only(tmp_path: Path) -> None:
    storage = Storage()
    storage.put(DB)
    (tmp_path / "vms").write_text("a file where the folder should be")
    assert set(looked(cache(storage, tmp_path)).cached.vms) == {2}

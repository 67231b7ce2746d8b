# SPDX-License-Identifier: LGPL-2.1-or-later
"""The registry of the protected VMs: what it holds, what it refuses, and a writer that dies."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.cluster_key import ClusterKey
from broker.registry.record import (
    DEFINITION_BYTES_MAX,
    PLACE_BYTES,
    PLACES,
    RecordTooLarge,
    RegistryError,
    VmRecord,
    decode_header,
    decode_record,
    encode,
)
from broker.registry.volume import REGISTRY_BYTES, Registry
from broker.whiteboard.signatures import Signatures, Unsigned
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.volume import Volume
from broker.wire.limits import VMS_MAX
from scoring.vm_facts import VmSpec, Want
from tests.fakes.blocks import Died, MemoryBlocks

CLUSTER = "7b3f"
DB = VmRecord(
    number=2, name="db", uuid="0" * 8 + "-1111-2222-3333-" + "4" * 12, generation=0, memory_mb=8192
)
KEY = ClusterKey(b"k" * 32)


def opened(volume: MemoryBlocks, key: ClusterKey | None = KEY, cluster: str = CLUSTER) -> Registry:
    return Registry(volume, cluster, Signatures(key, Unsigned.IGNORE))


def made(volume: MemoryBlocks | None = None) -> tuple[MemoryBlocks, Registry]:
    volume = MemoryBlocks(REGISTRY_BYTES) if volume is None else volume
    registry = opened(volume)
    registry.make()
    return volume, registry


def put(registry: Registry, record: VmRecord, xml: bytes | None = b"<domain/>") -> VmRecord:
    return registry.put(record, xml, wall_s=1_700_000_000.0, by="host1")


# --- what it holds ----------------------------------------------------------------------


def test_a_new_registry_is_empty() -> None:
    _, registry = made()
    assert registry.generation() == 0
    assert registry.read().vms == {}
    assert registry.read().free_numbers()[0] == 2, "1 is the engine's"


def test_a_vm_is_read_back_with_its_definition() -> None:
    volume, registry = made()
    written = put(registry, DB, b"<domain>db</domain>")
    contents = opened(volume).read()
    assert contents.named("db") == written == contents.vms[2]
    assert contents.generation == registry.generation() == written.generation == 1
    assert registry.definition(written) == b"<domain>db</domain>"
    assert written.definitions[0].by == "host1"
    assert contents.free_numbers()[0] == 3


def test_what_the_decision_needs_of_it() -> None:
    record = msgspec.structs.replace(
        DB, priority=90, after=(3,), apart=(4,), only=(1, 2), want=Want.DOWN, failback=True
    )
    assert record.spec() == VmSpec(
        2, "db", 8192, priority=90, after=(3,), apart=(4,), only=(1, 2), want=Want.DOWN,
        failback=True,
    )  # fmt: skip
    assert record.resource == "vm-00000000111122223333444444444444"


def test_settings_change_without_a_new_definition() -> None:
    _, registry = made()
    first = put(registry, DB)
    second = put(registry, msgspec.structs.replace(first, want=Want.DOWN), None)
    assert second.definitions == first.definitions and second.generation == 2
    assert registry.definition(second) == b"<domain/>"


def test_the_last_definitions_are_kept() -> None:
    _, registry = made()
    record = DB
    for n in range(PLACES + 2):
        record = put(registry, record, b"<domain>%d</domain>" % n)
    kept = [registry.definition(record, back) for back in range(PLACES)]
    assert kept == [b"<domain>%d</domain>" % n for n in (5, 4, 3, 2)]
    with pytest.raises(RegistryError, match="no such definition of db; see: vm history"):
        registry.definition(record, PLACES)


def test_a_removed_vm_leaves_its_number_to_who_comes_last() -> None:
    _, registry = made()
    put(registry, msgspec.structs.replace(put(registry, DB), removed=True), None)
    contents = registry.read()
    assert contents.vms == {} and contents.named("db") is None
    assert contents.free_numbers()[0] == 3 and contents.free_numbers()[-1] == 2


def test_a_definition_may_fill_its_place_and_no_more() -> None:
    _, registry = made()
    noise = os.urandom(PLACE_BYTES - 200)
    assert registry.definition(put(registry, DB, noise)) == noise
    with pytest.raises(RegistryError, match="take out its metadata"):
        put(registry, DB, os.urandom(PLACE_BYTES + 1))
    with pytest.raises(RegistryError, match="take out its metadata"):
        put(registry, DB, b" " * (DEFINITION_BYTES_MAX + 1))
    assert len(registry.definition(put(registry, DB, b" " * DEFINITION_BYTES_MAX))) > PLACE_BYTES


def test_rules_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    volume, registry = made()
    many = msgspec.structs.replace(
        DB,
        after=tuple(range(1, VMS_MAX)),
        apart=tuple(range(1, VMS_MAX)),
        together=tuple(range(1, VMS_MAX)),
        only=tuple(range(1000, 1256)),
        prefer=tuple(range(1000, 1256)),
    )
    with pytest.raises(RecordTooLarge):
        put(registry, many, None)
    assert registry.read().records == {} and volume.blocks.keys() >= {0}


def test_it_lies_on_a_real_volume(tmp_path: Path) -> None:
    path = tmp_path / "registry"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, REGISTRY_BYTES)
    with Volume(path) as volume:
        registry = Registry(volume, CLUSTER, Signatures(KEY))
        registry.make()
        last = msgspec.structs.replace(DB, number=VMS_MAX)
        written = put(registry, last, os.urandom(PLACE_BYTES - 200))
    with Volume(path, read_only=True) as volume:
        registry = Registry(volume, CLUSTER, Signatures(KEY))
        assert registry.read().vms == {VMS_MAX: written}
        assert len(registry.definition(written)) == PLACE_BYTES - 200


# --- what it refuses --------------------------------------------------------------------


def test_a_volume_that_is_too_small() -> None:
    with pytest.raises(RegistryError, match="is too small: 1048576 bytes, a registry takes 3460"):
        made(MemoryBlocks(1024 * 1024))


def test_a_volume_without_a_registry() -> None:
    registry = opened(MemoryBlocks(REGISTRY_BYTES))
    with pytest.raises(RegistryError, match="holds no registry; make one"):
        registry.read()


def test_a_volume_that_holds_something_else() -> None:
    volume = MemoryBlocks(REGISTRY_BYTES)
    volume.blocks[0] = b"LVM2".ljust(SLOT_BYTES, b"x")
    with pytest.raises(RegistryError, match="its header cannot be read"):
        opened(volume).make()
    assert volume.written == 0


def test_one_that_holds_vms_is_not_made_anew() -> None:
    volume, registry = made()
    opened(volume).make()
    put(registry, DB)
    with pytest.raises(RegistryError, match="holds VMs already"):
        opened(volume).make()


def test_one_of_another_cluster() -> None:
    volume, _ = made()
    with pytest.raises(RegistryError, match=r"belongs to another cluster; check storage\.registry"):
        opened(volume, cluster="other").read()


def test_one_of_a_later_version() -> None:
    volume, _ = made()
    header = decode_header(volume.blocks[0])
    assert header is not None
    volume.blocks[0] = encode(msgspec.structs.replace(header, version=2), 0, Signatures(KEY))
    with pytest.raises(RegistryError, match="is of version 2, this one reads 1; update"):
        opened(volume).read()


def test_a_header_that_a_stranger_wrote() -> None:
    volume, _ = made()
    with pytest.raises(RegistryError, match="not signed by this cluster's key"):
        opened(volume, ClusterKey(b"x" * 32)).read()


def test_a_record_that_a_stranger_wrote_decides_nothing() -> None:
    volume, registry = made()
    put(registry, DB)
    forged = msgspec.structs.replace(DB, number=3, name="web", generation=99)
    for signatures in (Signatures(None), Signatures(ClusterKey(b"x" * 32))):
        volume.blocks[3 * SLOT_BYTES] = encode(forged, 3, signatures)
        contents = registry.read()
        assert contents.refused == {3} and set(contents.vms) == {2} and contents.generation == 1
        assert 3 not in contents.free_numbers()


def test_without_a_cluster_key_all_counts() -> None:
    volume = MemoryBlocks(REGISTRY_BYTES)
    registry = opened(volume, None)
    registry.make()
    put(registry, DB)
    assert set(registry.read().vms) == {2}


def test_a_record_in_another_place_is_damage() -> None:
    volume, registry = made()
    put(registry, DB)
    volume.blocks[5 * SLOT_BYTES] = volume.blocks[2 * SLOT_BYTES]
    assert registry.read().damaged == {5}


@pytest.mark.parametrize("at", [0, 40, 4095])
def test_a_damaged_record_costs_that_vm_alone(at: int) -> None:
    volume, registry = made()
    put(registry, DB)
    web = msgspec.structs.replace(DB, number=3, name="web", uuid=DB.uuid.replace("0", "a"))
    put(registry, web)
    block = bytearray(volume.blocks[2 * SLOT_BYTES])
    block[at] ^= 0xFF
    volume.blocks[2 * SLOT_BYTES] = bytes(block)
    contents = registry.read()
    assert contents.damaged == {2} and set(contents.vms) == {3}
    assert 2 not in contents.free_numbers(), "its lease may be held"


def test_a_damaged_definition_is_not_handed_on_and_an_older_one_is() -> None:
    volume, registry = made()
    record = put(registry, put(registry, DB, b"<domain>old</domain>"), b"<domain>new</domain>")
    for offset in [o for o in volume.blocks if o >= 1024 * 1024]:
        if volume.blocks[offset] == volume.read_at(max(o for o in volume.blocks)):
            volume.blocks[offset] = bytes(SLOT_BYTES)
    with pytest.raises(RegistryError, match="definition of db is damaged; define it anew"):
        registry.definition(record)
    assert registry.definition(record, 1) == b"<domain>old</domain>"


def test_a_definition_that_unpacks_to_another_one_is_damaged() -> None:
    _, registry = made()
    record = put(registry, DB)
    wrong = msgspec.structs.replace(record.definitions[0], sha256="0" * 64)
    with pytest.raises(RegistryError, match="is damaged"):
        registry.definition(msgspec.structs.replace(record, definitions=(wrong,)))


def test_a_storage_that_does_not_keep_what_was_written() -> None:
    volume, registry = made()
    written = put(registry, DB)

    class Forgetful(MemoryBlocks):
        def write_at(self, offset: int, data: bytes) -> None:
            if offset not in self.lost:
                super().write_at(offset, data)

        lost: frozenset[int] = frozenset()

    forgetful = Forgetful(REGISTRY_BYTES)
    forgetful.blocks = dict(volume.blocks)
    forgetful.lost = frozenset({2 * SLOT_BYTES})
    with pytest.raises(RegistryError, match="record of db is not read as it was written"):
        put(opened(forgetful), msgspec.structs.replace(written, priority=1), None)
    forgetful.lost = frozenset(range(1024 * 1024, REGISTRY_BYTES, SLOT_BYTES))
    with pytest.raises(RegistryError, match="the VM is defined as before"):
        put(opened(forgetful), written, b"<domain>other</domain>")
    assert opened(forgetful).definition(written) == b"<domain/>"


@given(st.binary(max_size=SLOT_BYTES))
def test_no_bytes_make_the_reader_fail(data: bytes) -> None:
    volume, registry = made()
    volume.blocks[7 * SLOT_BYTES] = data.ljust(SLOT_BYTES, b"\0")
    assert registry.read().vms == {}
    assert decode_record(data, 7) is None and decode_header(data) is None


def test_a_record_that_repeats_a_place_is_damage() -> None:
    _, registry = made()
    record = put(registry, DB)
    twice = msgspec.structs.replace(record, definitions=record.definitions * 2)
    assert decode_record(encode(twice, 2), 2) is None


# --- a writer that dies -----------------------------------------------------------------


def test_wherever_the_writer_dies_the_vm_is_as_it_was_or_as_it_was_to_be() -> None:
    volume, registry = made()
    old = put(registry, DB, b"<domain>old</domain>")
    before, seen = dict(volume.blocks), set()
    xml = b"<domain>new</domain>" + os.urandom(3 * SLOT_BYTES).hex().encode()
    for writes in range(20):
        volume.blocks, volume.writes_left = dict(before), writes
        try:
            put(registry, replace_memory(old), xml)
        except Died:
            died = True
        else:
            died = False
        volume.writes_left = None
        found = registry.read().vms[2]
        is_new = found.memory_mb == 4096
        assert registry.definition(found) == (xml if is_new else b"<domain>old</domain>")
        assert is_new or found == old
        seen.add((died, is_new))
        # Whoever changes something next makes up for a header that was not written.
        later = put(registry, msgspec.structs.replace(found, priority=7), None)
        assert later.generation > found.generation
        assert registry.generation() == later.generation == registry.read().generation
    assert seen == {(True, False), (True, True), (False, True)}


def replace_memory(record: VmRecord) -> VmRecord:
    return msgspec.structs.replace(record, memory_mb=4096)


def test_wherever_the_making_stops_it_can_be_made_again() -> None:
    for writes in (0, 1, 60, VMS_MAX):
        volume = MemoryBlocks(REGISTRY_BYTES)
        volume.writes_left = writes
        with pytest.raises(Died):
            opened(volume).make()
        volume.writes_left = None
        opened(volume).make()
        assert opened(volume).read().vms == {}

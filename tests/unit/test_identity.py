# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a volume says that it is: written, read back, damaged, of another, and checked at each
opening by whoever opens it."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.sections import ClusterSection, Config, HostSection, StorageSection
from broker.main import StartError, check_storage
from broker.whiteboard import store as store_of
from broker.whiteboard.identity import (
    LEASES_UNIT,
    BadIdentity,
    Expected,
    Identity,
    VolumeKind,
    check_at,
    decode,
    encode,
    expected,
    problem,
)
from broker.whiteboard.layout import IDENTITY_SLOT
from broker.whiteboard.slot import EMPTY_SLOT
from broker.whiteboard.store import StorageTrouble, VolumeStore
from broker.whiteboard.volume import Volume, VolumeError, VolumeFault

CLUSTER = "11111111-2222-3333-4444-555555555555"
BOARD = "21111111-2222-3333-4444-555555555555"
LEASES = "31111111-2222-3333-4444-555555555555"
OURS = Identity(VolumeKind.WHITEBOARD, CLUSTER, BOARD, 1_800_000_000)
WANTED = Expected(VolumeKind.WHITEBOARD, CLUSTER, BOARD)


def sealed(lines: bytes) -> bytes:
    return (lines + b"end=%08x\n" % zlib.crc32(lines)).ljust(4096, b"\0")


def test_the_block_does_not_change_by_accident() -> None:
    lines = (
        b"ha-agent volume 1\nkind=whiteboard\ncluster=11111111-2222-3333-4444-555555555555\n"
        b"volume=21111111-2222-3333-4444-555555555555\nmade-at=1800000000\n"
    )
    assert encode(OURS) == sealed(lines)
    assert decode(encode(OURS)) == OURS
    more = sealed(lines.replace(b"made-at", b"note=kept\nmade-at"))
    assert decode(more) == OURS, "what a later version adds is ignored"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (EMPTY_SLOT, "has no identity; whiteboard 2111"),
        (b"", "ends before its identity: it has shrunk, or is another volume; whiteboard 2111"),
        (EMPTY_SLOT[:100], "ends before its identity: "),
    ],
)
def test_nothing_is_no_identity(raw: bytes, says: str) -> None:
    assert decode(raw) is None
    assert problem(raw, WANTED).startswith(says)


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"1|1|77".ljust(4096, b"\0"), "something else lies where"),
        (encode(OURS)[:512], "damaged or cut off"),
        (encode(OURS).replace(b"4444", b"4445", 1), "damaged or cut off"),
        (sealed(b"ha-agent volume 2\nkind=whiteboard\n"), "of a later version"),
        (sealed(b"ha-agent volume 1\nkind=whiteboard\n"), "cannot be read"),
        (sealed(b"ha-agent volume 1\nkind=disk\nmade-at=1\n"), "cannot be read"),
        (sealed(b"ha-agent volume 1\nkind=leases\nmade-at=1\ncluster=c\n"), "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_not_taken_for_ours(raw: bytes, what: str) -> None:
    with pytest.raises(BadIdentity, match=what):
        decode(raw)
    assert what in problem(raw, WANTED)


@given(st.binary(max_size=300), st.integers(0, 4095))
def test_any_bytes_are_survived(junk: bytes, at: int) -> None:
    raw = (encode(OURS)[:at] + junk + encode(OURS))[:4096]
    assert problem(raw, WANTED) == "" or "is expected" in problem(raw, WANTED)


@pytest.mark.parametrize(
    "found",
    [
        replace(OURS, cluster=LEASES),
        replace(OURS, volume=LEASES),
        replace(OURS, kind=VolumeKind.LEASES),
    ],
)
def test_another_volume_is_named_with_what_was_expected(found: Identity) -> None:
    said = problem(encode(found), WANTED)
    assert said == (
        f"is {found.kind} {found.volume} of cluster {found.cluster};"
        f" whiteboard {BOARD} of cluster {CLUSTER} is expected"
    )
    assert problem(encode(OURS), WANTED) == ""
    assert problem(encode(found), Expected(VolumeKind.WHITEBOARD)) == "", "no ids: as it was"


# --- who opens them ---------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A cluster whose two volumes carry their names."""
    board, leases = tmp_path / "whiteboard", tmp_path / "leases"
    for path, size in ((board, (IDENTITY_SLOT + 3) * 4096), (leases, 5 << 20)):
        with path.open("wb") as file:
            file.truncate(size)
    with Volume(board) as volume:
        volume.write_slot(IDENTITY_SLOT, encode(OURS))
    with Volume(leases) as volume:
        ours = Identity(VolumeKind.LEASES, CLUSTER, LEASES, 1)
        volume.write_at(LEASES_UNIT << 20, encode(ours))
    return Config(
        host=HostSection(id=1, name="one"),
        cluster=ClusterSection(id=CLUSTER),
        storage=StorageSection(
            whiteboard=str(board), leases=str(leases), whiteboard_id=BOARD, leases_id=LEASES
        ),
    )


def replaced_by_another(path: str) -> None:
    """A mount is gone, and below it lies the volume of some other cluster."""
    with Path(path).open("r+b") as file:
        data = file.read().replace(CLUSTER.encode(), b"0" * 8 + CLUSTER.encode()[8:])
        at = data.index(b"ha-agent volume")
        lines = data[at : data.index(b"end=", at)]
        file.seek(at)
        file.write(sealed(lines))


@pytest.mark.parametrize("name", ["whiteboard", "leases"])
def test_the_broker_does_not_start_on_another_volume(config: Config, name: str) -> None:
    check_storage(config)
    replaced_by_another(getattr(config.storage, name))
    with pytest.raises(StartError, match=f"storage.{name}: .* of cluster 00000000-2222"):
        check_storage(config)


def test_a_volume_with_larger_sectors_has_its_name_further_behind(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    with path.open("wb") as file:
        # The head of a delta lease: magic, version, flags, sector size (sanlock's src/leader.h).
        file.write(struct.pack("<IIII", 0x12212010, 0, 0, 4096))
        file.truncate(5 * (8 << 20))
    ours = Identity(VolumeKind.LEASES, CLUSTER, LEASES, 1)
    with Volume(path) as volume:
        volume.write_at(LEASES_UNIT * (8 << 20), encode(ours))
    check_at(str(path), Expected(VolumeKind.LEASES, CLUSTER, LEASES))


def test_a_volume_that_was_cut_off_is_not_taken(config: Config) -> None:
    wanted = expected(config, VolumeKind.LEASES)
    check_at(config.storage.leases, wanted)
    with Path(config.storage.leases).open("r+b") as file:
        file.truncate(3 << 20)
    with pytest.raises(VolumeError, match="ends before its identity") as error:
        check_at(config.storage.leases, wanted)
    assert error.value.fault is VolumeFault.OTHER_VOLUME
    assert str(error.value).startswith(f"{config.storage.leases}: ends before its identity")


def test_a_whiteboard_that_shrinks_while_it_is_open_is_noticed(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of it, this host's slot too, reads as before."""
    path = config.storage.whiteboard
    monkeypatch.setattr(store_of, "IDENTITY_AGAIN_S", 0.0)

    async def story() -> None:
        store = VolumeStore(path, 60.0, expected(config, VolumeKind.WHITEBOARD))
        await store.read([1])
        size = Path(path).stat().st_size
        os.truncate(path, 1 << 20)
        for _ in range(2):
            with pytest.raises(StorageTrouble, match="ends before its identity: it has shrunk"):
                await store.read([1])
            with pytest.raises(StorageTrouble, match="ends before its identity: it has shrunk"):
                await store.write(1, EMPTY_SLOT)
        assert Path(path).stat().st_size < size

    asyncio.run(story())


def test_each_opening_of_the_whiteboard_checks_anew(config: Config) -> None:
    """The volume is replaced while the broker runs: the next opening finds it."""
    path = config.storage.whiteboard

    async def story() -> None:
        store = VolumeStore(path, 5.0, expected(config, VolumeKind.WHITEBOARD))
        await store.write(1, EMPTY_SLOT)
        shutil.move(path, path + ".mounted")
        shutil.copy(path + ".mounted", path)
        replaced_by_another(path)
        for side in (store._reads, store._writes):
            if side._volume is not None:
                side._volume.close()
        with pytest.raises(StorageTrouble):
            await store.read([1])
        with pytest.raises(StorageTrouble):
            await store.write(1, EMPTY_SLOT)
        for _ in range(2):
            with pytest.raises(StorageTrouble, match="of cluster 00000000-2222"):
                await store.write(1, EMPTY_SLOT)
        shutil.move(path + ".mounted", path)
        await store.write(1, EMPTY_SLOT)

    asyncio.run(story())

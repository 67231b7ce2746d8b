# SPDX-License-Identifier: LGPL-2.1-or-later
"""When a host id was last renewed: newer words win, whoever tells them, in whatever order."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from broker.lockspace.delta_leases import read_delta_leases
from broker.lockspace.renewals import Renewal, Renewals
from broker.whiteboard.lease_sectors import DELTA_MAGIC
from broker.whiteboard.volume import Volume


async def nothing(host_ids: Iterable[int]) -> Mapping[int, tuple[int, int]]:
    return {}


def test_a_renewal_counts_from_when_it_was_first_seen() -> None:
    renewals = Renewals(nothing)
    renewals.learn({2: (1, 100)}, 10.0)
    renewals.learn({2: (1, 100)}, 11.0)
    assert renewals.renewal_s(2) == 10.0
    renewals.learn({2: (1, 120)}, 12.0)
    assert renewals.renewal_s(2) == 12.0
    assert renewals.renewal_s(3) is None


def test_who_looked_long_ago_takes_nothing_back() -> None:
    """sanlock's daemon tells what it saw up to 2 * io_timeout before the disk was read."""
    renewals = Renewals(nothing)
    renewals.learn({2: (3, 120)}, 10.0)
    for older in ((3, 100), (2, 500), (2, 0)):
        renewals.learn({2: older}, 11.0)
    assert renewals.table[2] == Renewal(3, 120, 10.0)


def test_a_release_is_the_last_of_its_generation_and_no_renewal() -> None:
    renewals = Renewals(nothing)
    renewals.learn({2: (3, 120)}, 10.0)
    renewals.learn({2: (3, 0)}, 11.0)
    renewals.learn({2: (3, 120)}, 12.0)
    assert renewals.table[2] == Renewal(3, 0, 11.0)
    assert renewals.renewal_s(2) is None
    renewals.learn({2: (4, 5)}, 13.0)
    assert renewals.renewal_s(2) == 13.0


def record(host_id: int, generation: int, timestamp: int, sector: int) -> bytes:
    """A delta lease as sanlock's src/leader.h lays it out; only what is looked at."""
    head = struct.pack("<IIIIQQQQ", DELTA_MAGIC, 0, 0, sector, 0, 0, host_id, generation)
    return (head.ljust(152, b"\0") + struct.pack("<Q", timestamp)).ljust(sector, b"\0")


def volume(tmp_path: Path, sector: int, leases: dict[int, bytes]) -> Volume:
    path = tmp_path / "leases"
    data = bytearray(2000 * sector)
    for place, lease in leases.items():
        data[(place - 1) * sector : place * sector] = lease
    path.write_bytes(data)
    return Volume(path, read_only=True)


@pytest.mark.parametrize("sector", [512, 4096])
def test_delta_leases_are_read_from_their_places(tmp_path: Path, sector: int) -> None:
    leases = {host: record(host, host + 1, 1000 + host, sector) for host in (1, 2, 9, 2000)}
    with volume(tmp_path, sector, leases) as opened:
        found = read_delta_leases(opened, [2, 9, 2000])
    assert found == {host: (host + 1, 1000 + host) for host in (1, 2, 9, 2000)}


def test_neighbours_in_the_same_block_come_for_nothing(tmp_path: Path) -> None:
    leases = {host: record(host, 1, host, 512) for host in (1, 8, 9, 16, 17)}
    with volume(tmp_path, 512, leases) as opened:
        assert set(read_delta_leases(opened, [9])) == {1, 8, 9, 16}


def test_what_is_no_delta_lease_of_its_place_is_left_out(tmp_path: Path) -> None:
    leases = {1: record(1, 1, 1, 512), 2: record(3, 1, 1, 512), 3: b"\xff" * 512}
    with volume(tmp_path, 512, leases) as opened:
        assert read_delta_leases(opened, [1, 2, 3]) == {1: (1, 1)}
    (tmp_path / "leases").write_bytes(b"\xff" * 8192)
    with Volume(tmp_path / "leases", read_only=True) as opened:
        assert read_delta_leases(opened, [1, 9]) == {}

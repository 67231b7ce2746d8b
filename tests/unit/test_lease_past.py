# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether another host has held the engine lease since a process here gave it back."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from broker.lockspace.delta_leases import PAXOS_MAGIC
from broker.lockspace.lease_past import LeasePast
from broker.whiteboard.lease_sectors import DELTA_MAGIC

ALIGN = 1 << 20
OURS, THEIRS = 1, 2


def volume(path: Path, owner: int, resource: str = "engine") -> str:
    """A lease volume as sanlock lays it out: a lockspace, and one resource behind it."""
    lockspace, lease = bytearray(4096), bytearray(4096)
    struct.pack_into("<I", lockspace, 0, DELTA_MAGIC)
    struct.pack_into("<I", lockspace, 12, 512)
    struct.pack_into("<I", lease, 0, PAXOS_MAGIC)
    struct.pack_into("<QQ", lease, 32, owner, 7)
    lease[104 : 104 + len(resource)] = resource.encode()
    data = bytearray(2 * ALIGN + 4096)
    data[:4096], data[ALIGN : ALIGN + 4096] = lockspace, lease
    path.write_bytes(data)
    return str(path)


def past(tmp_path: Path, leases: str, boot: str = "boot") -> LeasePast:
    return LeasePast(tmp_path / "state" / "engine-process", boot, leases, "engine", OURS)


def test_the_last_owner_tells_and_only_of_a_process_that_held_it(tmp_path: Path) -> None:
    for owner, outdated in ((OURS, False), (THEIRS, True), (0, None)):
        leases = volume(tmp_path / "leases", owner)
        ours = past(tmp_path, leases)
        assert ours.is_outdated(4711) is (None if owner == OURS else outdated)
        ours.holds(4711)
        assert ours.is_outdated(4711) is outdated
        assert ours.is_outdated(4712) is None, "received, or started without the lease: not known"


def test_it_is_remembered_over_a_restart_of_the_broker_and_not_over_one_of_the_host(
    tmp_path: Path,
) -> None:
    leases = volume(tmp_path / "leases", THEIRS)
    past(tmp_path, leases).holds(4711)
    assert past(tmp_path, leases).is_outdated(4711) is True
    assert past(tmp_path, leases, boot="another").is_outdated(4711) is None
    (tmp_path / "state" / "engine-process").write_text("damaged")
    assert past(tmp_path, leases).is_outdated(4711) is None


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\xff" * (2 * ALIGN)])
def test_what_cannot_be_read_is_not_known(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "leases").write_bytes(content)
    for leases in (str(tmp_path / "leases"), str(tmp_path / "none")):
        ours = past(tmp_path, leases)
        ours.holds(4711)
        assert ours.is_outdated(4711) is None
    other = volume(tmp_path / "other", THEIRS, resource="fence")
    ours = past(tmp_path, other)
    ours.holds(4711)
    assert ours.is_outdated(4711) is None


def test_a_state_that_cannot_be_written_is_told_and_costs_only_the_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leases = volume(tmp_path / "leases", THEIRS)
    (tmp_path / "state").write_text("a file, not a folder")
    ours = past(tmp_path, leases)
    ours.holds(4711)
    assert "cannot be written" in caplog.text
    assert ours.is_outdated(4711) is True

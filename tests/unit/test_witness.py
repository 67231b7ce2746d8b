# SPDX-License-Identifier: LGPL-2.1-or-later
"""What sanlock knows of the hosts, and how much of the lease budget is left."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from broker.lockspace.delta_leases import read_delta_leases
from broker.lockspace.hosts import HostRenewal, Witness, budget_s, look
from broker.whiteboard.volume import Volume
from scoring.lease_times import BUDGET_IO_TIMEOUTS

# --- other hosts --------------------------------------------------------------------------------


def test_a_renewal_is_new_when_its_timestamp_or_generation_is() -> None:
    table = look({}, [HostRenewal(1, 4, 100, "live"), HostRenewal(2, 1, 50, "live")], 10.0)
    table = look(table, [HostRenewal(1, 4, 120, "live"), HostRenewal(2, 1, 50, "live")], 20.0)
    assert table[1] == Witness("live", 4, 120, 20.0)
    assert table[2] == Witness("live", 1, 50, 10.0)
    table = look(table, [HostRenewal(1, 5, 120, "live"), HostRenewal(2, 1, 50, "fail")], 30.0)
    assert table[1].changed_s == 30.0, "another boot that shows the same number"
    assert table[2] == Witness("fail", 1, 50, 10.0), "how it stands is no renewal"


def test_a_host_that_sanlock_knows_no_more_falls_out() -> None:
    table = look({}, [HostRenewal(1, 1, 1, "live")], 1.0)
    assert look(table, [], 2.0) == {}


# --- the budget -----------------------------------------------------------------------------------


def test_the_budget_is_eight_io_timeouts_from_the_last_renewal_on() -> None:
    assert BUDGET_IO_TIMEOUTS == 8
    assert budget_s(100.0, 10.0, 100.0) == 80.0
    assert budget_s(100.0, 10.0, 115.0) == 65.0
    assert budget_s(100.0, 10.0, 400.0) == 0.0


def test_a_budget_is_unknown_with_its_renewal_and_never_above_its_whole() -> None:
    assert budget_s(None, 10.0, 5.0) is None
    # sanlock counts whole seconds: its timestamp may be a moment ahead.
    assert budget_s(101.0, 10.0, 100.5) == 80.0


# --- the renewals on disk -------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("sanlock") is None, reason="sanlock is not installed")
def test_what_sanlock_itself_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    path.write_bytes(bytes(8 << 20))
    subprocess.run(
        ["sanlock", "direct", "init", "-s", f"hosted-engine:0:{path}:0"],
        check=True,
        capture_output=True,
    )
    with Volume(path) as opened:
        assert 3 not in read_delta_leases(opened, [3]), "nobody has had the id"
    with path.open("r+b") as file:  # what acquiring it changes
        for at, number in ((32, 3), (40, 1), (152, 1638)):
            file.seek(2 * 512 + at)
            file.write(struct.pack("<Q", number))
    with Volume(path) as opened:
        assert read_delta_leases(opened, [3])[3] == (1, 1638)
    shown = subprocess.run(
        ["sanlock", "direct", "read_leader", "-s", f"hosted-engine:3:{path}:0"],
        capture_output=True,
        text=True,
    ).stdout
    assert "owner_id 3" in shown and "owner_generation 1" in shown and "timestamp 1638" in shown

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The driver of SCSI-3 reservations on a real target, with the real sg_persist (`make
test-storage`)."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from agent.fence.reservations import ScsiReservations
from agent.fence.storage_program import StorageFenceError

from .layout import CHECKOUT
from .scsi_target import SG_PERSIST, scsi_target

WITHIN_S = 60.0


@pytest.mark.storage
def test_a_dead_host_writes_no_more_until_its_next_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not SG_PERSIST.exists():
        subprocess.run([CHECKOUT / "scripts/setup", "--also", "sg3-utils"], check=False)
    if not SG_PERSIST.exists():
        pytest.skip("sg3-utils could not be installed")
    path = os.environ["PATH"]

    def at(host: int) -> ScsiReservations:
        monkeypatch.setenv("PATH", f"{tmp_path}/host{host}:{path}")
        return ScsiReservations(["/dev/vm1"], "a-cluster", host)

    def end_s() -> float:
        return time.monotonic() + WITHIN_S

    with scsi_target(tmp_path) as guest:
        with pytest.raises(StorageFenceError, match="the key of host 2 is not there"):
            at(2).find(1, "host1", end_s())
        for host in (1, 2):
            assert len(at(host).register(end_s())) == 1
            assert len(at(host).register(end_s())) == 1, "a boot may be a second one"
        assert guest.writes(1) and guest.writes(2)
        found = at(2).find(1, "host1", end_s())
        assert found == ("/dev/vm1",)
        assert guest.writes(1), "a check takes nothing away"
        at(2).cut(1, "host1", found, end_s())
        assert not guest.writes(1) and guest.reads(1) and guest.writes(2)
        assert at(2).find(1, "host1", end_s()) == ()
        with pytest.raises(StorageFenceError, match="the key of host 1 is not there"):
            at(1).find(2, "host2", end_s())
        at(1).register(end_s())
        assert guest.writes(1) and guest.writes(2)
        # The other way about: the reservation is host 2's by now.
        at(1).cut(2, "host2", at(1).find(2, "host2", end_s()), end_s())
        assert guest.writes(1) and not guest.writes(2)

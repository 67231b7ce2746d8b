# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Hypervisor's contract (tests/contract/qemu.py) on real QEMUs under real leases: the same
functions that the simulated one is held to."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import pytest

from scoring.observation import (
    MigrationCancelled,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)
from tests.contract import qemu

from . import ask
from .cluster import Cluster
from .layout import host_id_of

#: The contract boots no host and moves no VM, but a start under a lease that another host holds
#: takes sanlock's time.
pytestmark = pytest.mark.long

HEALTHY_S = 60.0


class LabQemu:
    """qemu.Site: the agent's own adapter, called in the hosts beside their daemons."""

    def __init__(self, lab: Cluster) -> None:
        self._lab = lab
        owner = lab.wait_healthy(HEALTHY_S)
        self.owner_id = host_id_of(owner)
        self._at = {True: owner, False: next(host for host in lab.hosts if host != owner)}

    def _ask(self, at_owner: bool, kind: type[Any], *words: str) -> Any:
        done = self._lab.sh(
            self._at[at_owner], [sys.executable, "-m", "tests.contract.ask", *words]
        )
        assert done.returncode == 0, done.stderr
        return msgspec.convert(json.loads(done.stdout), kind)

    def start(self, at_owner: bool) -> VmStartEnded:
        ended: VmStartEnded = self._ask(at_owner, VmStartEnded, "start")
        return ended

    def power_off(self, at_owner: bool) -> VmStopEnded:
        ended: VmStopEnded = self._ask(at_owner, VmStopEnded, "power-off")
        return ended

    def cancel_migration(self, at_owner: bool) -> MigrationCancelled:
        ended: MigrationCancelled = self._ask(at_owner, MigrationCancelled, "cancel")
        return ended

    def migrate(self, at_owner: bool, hostname: str) -> VmMigrationEnded:
        ended: VmMigrationEnded = self._ask(at_owner, VmMigrationEnded, "migrate", hostname)
        return ended


def in_maintenance(lab: Cluster, host: str) -> bool:
    return ask.state(lab, host) == "GlobalMaintenance"


@pytest.fixture
def quiet(lab: Cluster) -> Iterator[Cluster]:
    """Global maintenance: no agent acts on what is tried here."""
    host = lab.wait_healthy(HEALTHY_S)
    lab.sh(host, ["ha-agent", "maintenance", "global", "--for", "1h"])
    for each in lab.hosts:
        ask.until(f"{each} knows it", 20, partial(in_maintenance, lab, each))
    try:
        yield lab
    finally:
        lab.sh(host, ["ha-agent", "maintenance", "none"])


@pytest.mark.parametrize("promise", qemu.PROMISES)
def test_a_real_qemu(promise: Callable[[qemu.Site], None], quiet: Cluster) -> None:
    promise(LabQemu(quiet))

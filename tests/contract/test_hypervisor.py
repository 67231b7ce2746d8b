# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hypervisor: the VM through libvirt. What needs no process is asked of libvirt's test driver, the
rest (qemu.py) of the simulation here and of QEMU in the lab."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scoring.observation import (
    MigrationCancelled,
    StartResult,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)
from scoring.rules import Rules
from tests.contract import qemu
from tests.contract.real import RealHypervisor
from tests.contract.simulated import SimulatedHypervisor

Both = SimulatedHypervisor | RealHypervisor


@pytest.fixture(params=["simulated", "real"])
def site(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Both]:
    made: Both
    if request.param == "real":
        made = RealHypervisor(tmp_path, monkeypatch)
    else:
        made = SimulatedHypervisor()
    yield made
    made.close()


def test_what_does_not_run_is_stopped_already(site: Both) -> None:
    assert site.call(site.hypervisor.shut_down) == VmStopEnded(True)
    assert site.call(site.hypervisor.power_off) == VmStopEnded(True)


def test_a_vm_that_is_ended_is_gone(site: Both) -> None:
    site.run_here()
    assert site.call(site.hypervisor.power_off) == VmStopEnded(True)
    assert not site.runs()


def test_a_guest_is_asked_and_not_waited_for(site: Both) -> None:
    site.run_here()
    assert site.call(site.hypervisor.shut_down) == VmStopEnded(True)


def test_a_domain_is_disarmed_whether_it_runs_or_not(site: Both) -> None:
    assert site.call(lambda: site.hypervisor.disarm(True)).ok
    site.run_here()
    assert site.call(lambda: site.hypervisor.disarm(True)).ok
    assert site.runs()


def outcomes(site: Both) -> list[tuple[bool, str]]:
    """Whether each act went well, and its words."""
    started = site.call(site.hypervisor.start)
    stopped = [site.call(act) for act in (site.hypervisor.shut_down, site.hypervisor.power_off)]
    disarmed = site.call(lambda: site.hypervisor.disarm(False))
    cancelled = site.call(lambda: site.hypervisor.cancel_migration("an operator's order"))
    return [
        (started.result is StartResult.STARTED, started.detail),
        *((each.ok, each.detail) for each in stopped),
        (disarmed.ok, disarmed.detail),
        (cancelled.ok, cancelled.detail),
    ]


def test_a_libvirt_that_is_away_fails_every_act_in_its_own_words(site: Both) -> None:
    site.lose_libvirt()
    for ok, detail in outcomes(site):
        assert not ok and "Failed to connect socket to '" in detail


def test_a_libvirt_that_hangs_fails_every_act_in_its_deadline(site: Both) -> None:
    """The name of the thread, the call that hangs, and for how long. The real adapter begins no
    further call, and names the first; the simulated one waits each time."""
    site.hang_libvirt()
    found = outcomes(site)
    assert not any(ok for ok, _ in found)
    hangs = [detail.partition(" has not answered for ")[0] for _, detail in found]
    assert (hangs[0], hangs[-1]) == (
        "libvirt: starting the VM",
        "libvirt beside a migration: cancelling",
    )
    assert all(each.startswith("libvirt: ") for each in hangs[:-1])


def test_a_name_that_is_none_is_no_target(site: Both) -> None:
    """The name of a target comes from the whiteboard, where anybody may have written it."""
    for ended in (
        site.call(lambda: site.hypervisor.migrate(2, "a b?x=y")),
        site.call(lambda: site.hypervisor.ask_path(2, "a b?x=y")),
    ):
        assert not ended.ok
        assert ended.detail == "host 2 calls itself 'a b?x=y', which is no host name or address"


TOO_LONG = (
    f"cancelled, for it took more than {Rules().migration_timeout_s:g} s"
    " (libvirt.migration-timeout)"
)


# --- what QEMU shows -----------------------------------------------------------------------------


class SimulatedQemu:
    """qemu.Site: the VM runs on the second host."""

    owner_id = 2

    def __init__(self, site: SimulatedHypervisor) -> None:
        self._site = site
        site.run_elsewhere()
        self._at = {True: site.theirs, False: site.hypervisor}

    def start(self, at_owner: bool) -> VmStartEnded:
        return self._site.call(self._at[at_owner].start)

    def power_off(self, at_owner: bool) -> VmStopEnded:
        return self._site.call(self._at[at_owner].power_off)

    def cancel_migration(self, at_owner: bool) -> MigrationCancelled:
        return self._site.call(lambda: self._at[at_owner].cancel_migration("a test"))

    def migrate(self, at_owner: bool, hostname: str) -> VmMigrationEnded:
        return self._site.call(lambda: self._at[at_owner].migrate(9, hostname))


@pytest.fixture
def simulated() -> Iterator[SimulatedHypervisor]:
    made = SimulatedHypervisor()
    yield made
    made.close()


@pytest.mark.parametrize("promise", qemu.PROMISES)
def test_a_simulated_qemu(
    promise: Callable[[qemu.Site], None], simulated: SimulatedHypervisor
) -> None:
    promise(SimulatedQemu(simulated))


def test_a_simulated_migration_that_takes_too_long_says_so(
    simulated: SimulatedHypervisor,
) -> None:
    """The real one's words: tests/unit/test_hypervisor.py."""
    simulated.run_here()
    simulated.host.migration_s = 10_000.0  # seconds
    ended = simulated.call(lambda: simulated.hypervisor.migrate(2, simulated.other.name))
    assert ended.detail == TOO_LONG

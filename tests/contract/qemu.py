# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of the Hypervisor's contract only QEMU under its lease can show, as functions of a site: the
simulated one (test_hypervisor.py) and a host of the lab (tests/lab/test_hypervisor_contract.py)."""

from __future__ import annotations

from typing import Protocol

from scoring.observation import (
    MigrationCancelled,
    StartResult,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)

#: What libvirt 9.0 says (src/qemu/qemu_driver.c).
RUNS_ALREADY = "libvirt: Requested operation is not valid: domain is already running"
NO_JOB = "Requested operation is not valid: no job is active on the domain"
NOT_RUNNING = "Requested operation is not valid: domain is not running"


class Site(Protocol):
    """The VM runs on one host. `owner` acts there, `other` on a host where it does not run."""

    owner_id: int

    def start(self, at_owner: bool) -> VmStartEnded: ...
    def power_off(self, at_owner: bool) -> VmStopEnded: ...
    def cancel_migration(self, at_owner: bool) -> MigrationCancelled: ...
    def migrate(self, at_owner: bool, hostname: str) -> VmMigrationEnded: ...


def a_vm_that_runs_here_is_not_started_again(site: Site) -> None:
    assert site.start(True) == VmStartEnded(StartResult.FAILED, RUNS_ALREADY)


def a_vm_that_runs_elsewhere_is_not_started_and_says_whose_its_lease_is(site: Site) -> None:
    ended = site.start(False)
    assert ended == VmStartEnded(StartResult.LEASE_HELD, f"host {site.owner_id} owns it")


def what_does_not_run_here_is_stopped_already(site: Site) -> None:
    assert site.power_off(False) == VmStopEnded(True)


def where_no_migration_is_under_way_none_is_cancelled(site: Site) -> None:
    assert site.cancel_migration(True) == MigrationCancelled(False, NO_JOB)
    assert site.cancel_migration(False) == MigrationCancelled(False, NOT_RUNNING)


def a_migration_to_nobody_is_refused_and_names_it(site: Site) -> None:
    ended = site.migrate(True, "nobody.invalid")
    assert not ended.ok and "libvirt on nobody.invalid does not answer at " in ended.detail
    assert not ended.lasting


PROMISES = (
    a_vm_that_runs_here_is_not_started_again,
    a_vm_that_runs_elsewhere_is_not_started_and_says_whose_its_lease_is,
    what_does_not_run_here_is_stopped_already,
    where_no_migration_is_under_way_none_is_cancelled,
    a_migration_to_nobody_is_refused_and_names_it,
)

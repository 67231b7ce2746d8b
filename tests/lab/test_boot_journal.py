# SPDX-License-Identifier: LGPL-2.1-or-later
"""The journal that the guest keeps: does it tell when two guests run?"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from . import ask, boot_journal
from .boot_journal import Boot
from .conftest import new_cluster
from .layout import host_id_of

FIRST = Boot(1, "0c6ee8f4-0000-4000-8000-000000000001", 30.0, overtaken=False)
SECOND = Boot(2, "0c6ee8f4-0000-4000-8000-000000000002", 5.0, overtaken=False)


def test_one_boot_after_the_other_is_no_doubt() -> None:
    assert boot_journal.doubts([FIRST, SECOND]) == []


@pytest.mark.parametrize(
    "boots",
    [
        [replace(FIRST, overtaken=True), SECOND],
        [FIRST, replace(SECOND, boot_id=FIRST.boot_id)],
        [SECOND],
        [FIRST, replace(SECOND, number=3)],
    ],
)
def test_whatever_one_guest_after_the_other_does_not_write_is_a_doubt(boots: list[Boot]) -> None:
    assert boot_journal.doubts(boots)


@pytest.mark.long
def test_two_guests_that_run_at_once_are_told(able: None) -> None:
    """Two hosts start it without the lease that keeps a second one out."""
    with new_cluster() as cluster:
        cluster.up(2, bmc=False, daemons=False)
        for host in cluster.hosts:
            layout = cluster.layout.host(host_id_of(host))
            lease = re.compile(r"<lease>.*</lease>", re.DOTALL)
            copy = layout.directory / "without-lease.xml"
            copy.write_text(lease.sub("", layout.definition.read_text()))
            started = cluster.sh(host, ["virsh", "create", str(copy)])
            assert started.returncode == 0, started.stderr
            ask.until("a guest has booted", 60, lambda: boot_journal.read(cluster))
        ask.until("the journal tells", 60, lambda: boot_journal.doubts(boot_journal.read(cluster)))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines with the package and systemd are rebooted and powered off in order, with a VM that
serves a page: nobody who asks for it notices, as long as another machine can take it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import guest

from .machine import UNITS, UP_SECONDS_MAX, Machine, machines, status_of, why_not
from .wired import MIGRATION, Switch, configure, lay_guest, switch

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no machine can be made: {why_not()}")

#: Draining, the rest of the system, a boot, joining the lockspace.
SHUTDOWN_SECONDS_MAX = 120.0
JOIN_SECONDS_MAX = 120.0
#: 8 * io_timeout + 60 s.
HOST_DEAD_S = 68.0
#: Short patience, and no address for a migration.
LITTLE_PATIENCE = """[timing]
host-shutdown-grace = 15
"""


@pytest.fixture
def wire() -> Iterator[Switch]:
    with switch() as made:
        yield made


@pytest.fixture
def three(release: str, directory: Path) -> Iterator[list[Machine]]:
    yield from machines(release, directory, 3)


@pytest.fixture
def pair(release: str, directory: Path) -> Iterator[list[Machine]]:
    yield from machines(release, directory, 2)


def form(
    made: list[Machine], wire: Switch, package: Path, more: str = MIGRATION, obeys: bool = True
) -> None:
    """A cluster of these, units enabled, the VM on the first and its page answered."""
    image = guest.build()
    lay_guest(made[0].shared, image)
    for machine in made:
        wire.plug(machine)
        machine.install(package)
        configure(machine, image, len(made), more, obeys)
    made[0].make_storage()
    # QEMU's own user reads the guest's kernel there.
    made[0].must("chmod", "0775", "/srv/ha")
    for machine in made:
        machine.must("systemctl", "enable", "--now", *UNITS)
        made[0].wait("the VM", lambda: "up and healthy" in status_of(made[0]), UP_SECONDS_MAX)
        machine.wait("a fit host", lambda m=machine: is_fit(m), JOIN_SECONDS_MAX)  # type: ignore[misc]


def is_fit(machine: Machine) -> bool:
    """Whether the machine could run the VM, by its own word."""
    own = [
        line for line in machine.run("ha-agent", "--status").stdout.splitlines() if line[:1] == "*"
    ]
    return bool(own) and " 3400 " in own[0]


def owner(made: list[Machine]) -> Machine:
    """The machine on which the VM's process is."""
    found = [machine for machine in made if machine.first and machine.engine_pid() is not None]
    assert len(found) == 1, found
    return found[0]


def said(machine: Machine) -> str:
    """What the unit of the last boot said."""
    return machine.run(
        "journalctl", "--no-pager", "-o", "cat", "-u", "ha-agent-host-shutdown"
    ).stdout


def test_each_of_three_machines_is_rebooted_in_turn_and_no_request_fails(
    three: list[Machine], wire: Switch, package: Path
) -> None:
    for machine in three:
        machine.keep_journal()
    form(three, wire, package)
    moves = 0
    with wire.asking() as answers:
        for machine in three:
            had_it = machine is owner(three)
            moves += had_it
            machine.ends("reboot", SHUTDOWN_SECONDS_MAX)
            other = next(m for m in three if m is not machine)
            other.wait(
                "its word on that",
                lambda o=other, m=machine: f"SHUT DOWN: {m.name} was shut down" in status_all(o),  # type: ignore[misc]
                UP_SECONDS_MAX,
            )
            shown = status_all(other)
            assert "healthy on" in shown and f"{machine.name} is silent" not in shown, shown
            machine.boot()
            wire.plug(machine)
            machine.wait("a fit host", lambda m=machine: is_fit(m), JOIN_SECONDS_MAX)  # type: ignore[misc]
            assert "the host id is given back" in said(machine), said(machine)
        # The one that has the VM now was not asked yet whether it can let it go.
        last = owner(three)
        last.ends("poweroff", SHUTDOWN_SECONDS_MAX)
        time.sleep(3.0)
        moves += 1
    print(f"requests {len(answers.seen)}, failed {len(answers.failed)}, {moves} moves,")
    print(f"longest without an answer {answers.longest_gap_s():.2f} s")
    assert moves >= 2 and len(answers.seen) > 300
    assert answers.failed == []


def status_all(machine: Machine) -> str:
    return machine.run("ha-agent", "--status").stdout


def test_a_guest_that_does_not_shut_down_is_ended_and_started_elsewhere(
    pair: list[Machine], wire: Switch, package: Path
) -> None:
    """Nothing can be migrated, and the guest takes no notice: its page answers until the grace is
    over, its lease is free with its process, and the other machine starts it."""
    first, second = pair
    first.keep_journal()
    form(pair, wire, package, LITTLE_PATIENCE, obeys=False)
    assert owner(pair) is first
    with wire.asking() as answers:
        began_s = time.monotonic()
        first.ends("poweroff", SHUTDOWN_SECONDS_MAX)
        off_s = time.monotonic() - began_s
        second.wait("the VM", lambda: "up and healthy" in status_of(second), UP_SECONDS_MAX)
        up_s = time.monotonic() - began_s
    print(f"off after {off_s:.1f} s, up elsewhere after {up_s:.1f} s,")
    print(f"longest without an answer {answers.longest_gap_s():.2f} s")
    assert off_s > 15.0, "the guest had its grace"
    assert answers.longest_gap_s() < HOST_DEAD_S, "and not sanlock's time for a dead host"


def test_stopping_the_units_of_a_machine_that_stays_up_moves_nothing(
    pair: list[Machine], wire: Switch, package: Path
) -> None:
    """Law 6: a stop, a restart, a removal of the package is no shutdown."""
    form(pair, wire, package)
    first = owner(pair)
    pid = first.engine_pid()
    unit = "ha-agent-host-shutdown"
    assert first.show(unit, "ActiveState") == "active"
    first.must("systemctl", "stop", unit)
    assert "nothing is done: this host is not shutting down" in said(first)
    first.must("systemctl", "restart", *UNITS)
    first.wait("its unit", lambda: first.show(unit, "ActiveState") == "active")
    first.must("systemctl", "stop", *UNITS)
    assert first.show(unit, "ActiveState") == "inactive", "it goes with the broker"
    assert first.engine_pid() == pid
    first.must("systemctl", "start", *UNITS)
    first.wait("its unit", lambda: first.show(unit, "ActiveState") == "active")
    first.must("dpkg", "-r", "ha-agent")
    assert first.engine_pid() == pid

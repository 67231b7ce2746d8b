# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/operations.md, "Upgrading", word for word, from the package of an earlier version and back
to it, on two machines with systemd. The VM is the same process all the time."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import earlier_version
from tests.lab.quickstart_page import Command, commands_of

from .machine import (
    RELEASES,
    ROOT,
    UNITS,
    Machine,
    bring_up,
    machines,
    status_of,
    why_not,
)
from .site import Site

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no machine can be made: {why_not()}")

PAGE = "operations.md"
KEY = f'cluster-key = "{"5" * 64}"\n'
TRUST = 'unsigned = "trust"\n'
CONFIGURATION = "/etc/ha-agent/ha-agent.toml"


@pytest.fixture
def two(release: str, directory: Path) -> Iterator[list[Machine]]:
    yield from machines(release, directory, 2)


@pytest.fixture
def earlier(release: str, directory: Path) -> Path:
    """The earlier version's package, made by its own code."""
    clone = directory / "earlier"
    git = ["git", "clone", "-q", "--shared", "--no-checkout", str(ROOT), str(clone)]
    subprocess.run(git, check=True)
    subprocess.run(["git", "checkout", "-q", earlier_version.COMMIT], check=True, cwd=clone)
    made = subprocess.run(
        [sys.executable, "packaging/build.py", "deb", RELEASES[release]],
        cwd=clone,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.split()[-1])


def test_each_host_is_upgraded_and_goes_back_under_the_same_process_of_the_vm(
    two: list[Machine], package: Path, earlier: Path
) -> None:
    first, second = two
    made = Site(two)
    for machine in two:
        machine.install(earlier)
        machine.write("/etc/ha-agent/secrets.toml", KEY)
        machine.must("systemd-tmpfiles", "--create", "ha-agent.conf")
        machine.must("systemctl", "enable", *UNITS)
        for name, source in (("ha-agent", package), ("ha-agent-earlier", earlier)):
            shutil.copy(source, f"/proc/{machine.first}/root/root/{name}.deb")
    pid = bring_up(first)
    second.configure()
    second.must("systemctl", "start", *UNITS)
    second.wait("the VM seen", lambda: "healthy on host1" in status_of(second))

    up, back = commands_of(PAGE, "Upgrading")[:-1], commands_of(PAGE, "Upgrading")[-1]
    assert [command.host for command in up] == ["host2", "host2", "host1", "host1"]
    assert back.text.endswith("./ha-agent-earlier.deb")
    seen = set()
    for command in up:
        made.type(command)
        assert first.engine_pid() == pid
        if command.host == "host2":
            seen |= wrong_of(second)
    first.wait("both", lambda: "NOT SIGNED" not in wrong_of(first))
    # This configuration has no fence device and more; nothing else is wrong meanwhile.
    assert "NOT SIGNED" in seen
    assert seen - wrong_of(first) == {"NOT SIGNED"}, seen
    assert "NO IDENTITY" in wrong_of(first) and "CONFIG DRIFT" not in wrong_of(first)

    for machine in two:
        trusted(machine, True)
        machine.must("systemctl", "reload", "ha-broker")
    for machine in (second, first):
        trusted(machine, False)
        made.type(Command(machine.name, back.text, back.output))
        machine.wait("the VM", lambda m=machine: "healthy on host1" in status_of(m))  # type: ignore[misc]
        assert first.engine_pid() == pid
        assert machine.show("ha-agent", "ActiveState") == "active"
        failed = machine.must("systemctl", "list-units", "--failed", "--plain", "--no-legend")
        assert "ha-agent" not in failed, failed


def wrong_of(machine: Machine) -> set[str]:
    """What the status calls wrong: the words in capitals of each line."""
    status = machine.run("ha-agent", "--status").stdout
    return set(re.findall(r"^  ([A-Z][A-Z ]+[A-Z])(?=:| of )", status, re.MULTILINE))


def trusted(machine: Machine, is_set: bool) -> None:
    """The line of the page, put into the configuration or taken out."""
    text = machine.must("cat", CONFIGURATION).replace(TRUST, "")
    given = text.replace("[storage]\n", f"[storage]\n{TRUST}") if is_set else text
    machine.write(CONFIGURATION, given)

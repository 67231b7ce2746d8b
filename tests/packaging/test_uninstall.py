# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/uninstall.md, word for word, on three machines with systemd: one leaves while the VM runs
there, then the others. Each host is then what it was before the package."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.lab.quickstart_page import Command, commands, commands_of

from .machine import Machine, why_not
from .site import Site, site

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=f"no machine can be made: {why_not()}"),
    pytest.mark.skipif(shutil.which("ipmi_sim") is None, reason="ipmi_sim is not installed"),
    pytest.mark.skipif(shutil.which("bindfs") is None, reason="bindfs is not installed"),
]

PAGE = "uninstall.md"
FIT_SECONDS_MAX = 150.0
#: Each file below /etc with its digest. Not among them: the second last states of the user
#: database, and what libvirt notes of a VM, which `domains` shows.
FILES = r"""
cd /etc && find . -type f ! -name '*-' ! -path './libvirt/qemu/*' ! -path './ha-agent/*' \
  ! -name '.pwd.lock' -exec sha256sum {} + | sort -k 2
find /etc/systemd -type l | sort
"""
DOMAINS = "virsh list --all --name; virsh list --all --name | xargs -rn1 virsh dumpxml --inactive"


def as_it_is(machine: Machine) -> dict[str, list[str]]:
    """What an administrator finds on a host."""
    asked = {
        "files": FILES,
        "ports": "systemctl list-sockets --all --no-legend | awk '{print $1}'",
        "units": "systemctl list-unit-files --state=enabled --no-legend",
        "domains": DOMAINS,
    }
    return {what: machine.must("sh", "-c", words).splitlines() for what, words in asked.items()}


def changes(before: list[str], after: list[str]) -> set[str]:
    return set(before) ^ set(after)


def on(command: Command, names: dict[str, str]) -> Command:
    """The command on the host that plays the page's."""
    return dataclasses.replace(command, host=names[command.host])


def test_each_host_that_has_left_is_what_it_was(
    release: str, directory: Path, package: Path
) -> None:
    with site(release, directory, count=3) as made:
        before = {machine.name: as_it_is(machine) for machine in made.machines}
        set_up(made, package)

        # The VM's host leaves; the VM runs on, and cannot be started there again.
        first = made.machines[0]
        for command in commands_of(PAGE, "One host of several"):
            made.type(command)
        (owner,) = [each for each in made.machines if each.engine_pid() is not None]
        pid = owner.engine_pid()
        assert owner is not first
        assert first.run("virsh", "start", "HostedEngine").returncode != 0
        check(first, before[first.name])

        (other,) = [each for each in made.machines if each not in (first, owner)]
        assert owner.engine_pid() == pid
        names = {"host1": owner.name, "host2": other.name}
        for command in commands_of(PAGE, "The whole cluster"):
            made.type(on(command, names))
            if "shutdown" in command.text:
                owner.wait("the end of the VM", lambda: owner.engine_pid() is None)
        check(other, before[other.name])
        check(owner, before[owner.name], keeps_the_vm=True)


def set_up(made: Site, package: Path) -> None:
    """The quick start, and a third host in the same way as the second one."""
    for machine in made.machines:
        shutil.copy(package, f"/proc/{machine.first}/root/root/ha-agent.deb")
    steps = commands()
    invite = next(step for step in steps if step.text == "ha-agent invite")
    for step in steps:
        made.type(step)
    second = [step for step in steps if step.host == "host2"]
    for step in (invite, *(dataclasses.replace(step, host="host3", output=()) for step in second)):
        made.type(step)
    third = made.machines[2]
    third.wait("a fit host", lambda: "ready (EngineDown)" in own_line(third), FIT_SECONDS_MAX)


def own_line(machine: Machine) -> str:
    """The machine's line of its status."""
    lines = machine.run("ha-agent", "--status").stdout.splitlines()
    return next((line for line in lines if line.startswith("*")), "")


def check(machine: Machine, before: dict[str, list[str]], keeps_the_vm: bool = False) -> None:
    """The host is what it was, but for the VM: it is in libvirt's hands on the last host alone."""
    after = as_it_is(machine)
    for what in ("files", "ports", "units"):
        assert changes(before[what], after[what]) == set(), (machine.name, what)
    assert machine.run("id", "ha-agent").returncode != 0
    assert machine.run("ls", "/etc/ha-agent", "/var/lib/ha-agent").stdout == ""
    assert ("HostedEngine" in after["domains"]) is keeps_the_vm, after["domains"]
    locks = machine.run("sanlock", "client", "status").stdout
    assert not any(line.startswith(("s ", "r ")) for line in locks.splitlines()), locks

# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/quickstart.md, word for word, on two clean machines with systemd and the package: its
commands are taken from the page, and nothing in them is replaced but addresses, the password and
the token. Then the VM is moved live over TLS, and the plug of its host is pulled."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.quickstart_page import Command, commands, commands_for_devices

from .machine import ROOT, Machine, status_of, why_not
from .site import Site, site
from .wired import inside

COMMANDS_MAX = 10
#: A patience: that the fence device proved the death is looked up in the events.
TAKEOVER_SECONDS_MAX = 600.0

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=f"no machine can be made: {why_not()}"),
    pytest.mark.skipif(shutil.which("ipmi_sim") is None, reason="ipmi_sim is not installed"),
    pytest.mark.skipif(shutil.which("bindfs") is None, reason="bindfs is not installed"),
]


@pytest.mark.parametrize("way", [commands, commands_for_devices])
def test_the_page_has_at_most_ten_commands_and_no_editor(way: Callable[[], list[Command]]) -> None:
    found = way()
    assert len(found) <= COMMANDS_MAX, [each.text for each in found]
    assert {each.host for each in found} == {"host1", "host2"}
    words = {each.text.split()[0] for each in found}
    assert words == {"apt", "ha-agent", "systemctl"}, "nothing is edited by hand"


def type_all(made: Site, package: Path, found: list[Command]) -> None:
    """From bare machines to the promise of the page's last line."""
    for machine in made.machines:
        shutil.copy(package, f"/proc/{machine.first}/root/root/ha-agent.deb")
    began_s = time.monotonic()
    for command in found:
        made.type(command)
        print(f"[{time.monotonic() - began_s:5.0f} s] {command.host}# {command.text}")
    status = made.machines[1].run("ha-agent", "--status").stdout
    promise = re.search(r"if host1 dies now, .*", status)
    assert promise is not None and "(proof by its fence device)" in promise[0], promise
    print(f"quick start: {time.monotonic() - began_s:.0f} s, {len(found)} commands")
    print(promise[0])


def taken_over(dead: Machine, heir: Machine) -> None:
    """Pull the plug of the VM's host, and wait for the VM on the other one."""
    name = dead.name
    heir.wait("a fit host", lambda: f"if {name} dies now" in heir.run("ha-agent", "status").stdout)
    dead.cut()
    cut_s = time.monotonic()
    healthy = f"healthy on {heir.name}"
    heir.wait("the takeover", lambda: healthy in status_of(heir), TAKEOVER_SECONDS_MAX)
    assert f"{name} is proven off" in heir.must("ha-agent", "events")
    print(f"after the power cut of {name}: {healthy} in {time.monotonic() - cut_s:.0f} s")


def test_the_quick_start_on_block_devices_word_for_word_then_a_power_cut(
    release: str, directory: Path, package: Path
) -> None:
    with site(release, directory, devices=True) as made:
        first, second = made.machines
        type_all(made, package, commands_for_devices())
        for machine in made.machines:
            for number in made.devices.values():
                node = f"/dev/loop{number}"
                shown = ("stat", "-c", "%U:%G %a", node)
                assert machine.must(*shown).strip() == "ha-agent:sanlock 660"
                # As after a boot: the node is anew, and udev is told of it.
                machine.must("rm", node)
                machine.must("mknod", "-m", "0600", node, "b", "7", str(number))
                machine.must("udevadm", "trigger", "--settle", "--action=change", node)
                assert machine.must(*shown).strip() == "ha-agent:sanlock 660"
            doctor = machine.run("ha-agent", "doctor").stdout
            assert "cannot both write" not in doctor, doctor
        taken_over(first, second)


def test_the_quick_start_word_for_word_then_a_live_move_by_tls_and_a_power_cut(
    release: str, directory: Path, package: Path
) -> None:
    with site(release, directory) as made:
        type_all(made, package, commands())
        moved_and_taken_over(*made.machines)


def moved_and_taken_over(first: Machine, second: Machine) -> None:
    """What the page promises beside: a live move by TLS, ports, then a power cut."""
    for machine in (first, second):
        shown = machine.must("ha-agent", "certificates", "show")
        assert shown.count("ends in 36") == 4, shown
        timers = machine.must("systemctl", "list-timers", "--all")
        assert "ha-agent-certificates.timer" in timers
    done = first.run("ha-agent", "migrate", "--to", "host2")
    assert done.returncode == 0, done.stdout + done.stderr + first.journal()
    second.wait("the VM", lambda: "healthy on host2" in status_of(second))
    assert (first.engine_pid(), second.engine_pid() is not None) == (None, True)

    # A renewal: libvirt uses the new certificate without a restart, and answers.
    said = second.must("ha-agent", "certificates", "renew", "--now")
    assert "libvirtd uses it now" in said or "when it is started" in said, said
    ask = ("virsh", "-c", "qemu+tls://host2/system", "hostname")
    assert "host2" in first.must(*ask)

    # What listens is what the page of the ports has.
    for machine in (first, second):
        assert unknown_ports(machine) == set()

    taken_over(second, first)


def unknown_ports(machine: Machine) -> set[str]:
    """What the machine listens at for others, and docs/network.md does not have. UDP ports of the
    kernel's choice are those from which a broker asks."""
    page = (ROOT / "docs" / "network.md").read_text()
    known = set()
    for kind, low, high in re.findall(r"^\| (tcp|udp) (\d+)(?: to (\d+))? \|", page, re.MULTILINE):
        known |= {(kind, port) for port in range(int(low), int(high or low) + 1)}
    chosen = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = set()
    for line in inside(machine.first, "ss", "-Hlntu").splitlines():
        kind, _, _, _, local, *_ = line.split()
        address, _, text = local.rpartition(":")
        asks = kind == "udp" and int(text) >= chosen
        if not asks and not address.startswith("127.") and address != "[::1]":
            found.add((kind, int(text)))
    return {f"{kind} {port}" for kind, port in found - known}

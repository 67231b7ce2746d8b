# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/quickstart.md, word for word, on two clean machines with systemd and the package: its
commands are taken from the page, and nothing in them is replaced but addresses, the password and
the token. Then the VM is moved live over TLS, and the plug of its host is pulled."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab import guest
from tests.lab.quickstart_page import PASSWORD, Command, commands, fits

from .machine import RELEASES, ROOT, Machine, base, packages_of, status_of, why_not
from .wired import GATEWAY, GUEST, Switch, configure_host, inside, lay_guest, switch

COMMANDS_MAX = 10
#: For the line of the status that a page promises: the lockspace, a boot of an emulated guest.
STATUS_SECONDS_MAX = 150.0
#: With proof by the fence device; without it sanlock's 140 s would have to pass.
TAKEOVER_SECONDS_MAX = 90.0

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=f"no machine can be made: {why_not()}"),
    pytest.mark.skipif(shutil.which("ipmi_sim") is None, reason="ipmi_sim is not installed"),
    pytest.mark.skipif(shutil.which("bindfs") is None, reason="bindfs is not installed"),
]


@pytest.fixture
def wire() -> Iterator[Switch]:
    with switch() as made:
        yield made


@dataclass(slots=True)
class Site:
    """Two machines on one switch, a folder that both mount, and a BMC for each."""

    machines: list[Machine]
    token: str = ""
    _ends: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def put(self, command: Command) -> str:
        """The command as it is typed here: other addresses, and what was printed before."""
        text = command.text.replace("TOKEN", self.token).replace("10.0.0.20", GUEST)
        return text.replace("192.0.2.", "10.77.0.")

    def type(self, command: Command) -> None:
        """Type it, as a person would: a status is looked at again until it says what the page
        says."""
        (machine,) = [each for each in self.machines if each.name == command.host]
        until_s = time.monotonic() + STATUS_SECONDS_MAX
        while True:
            words = ("bash", "-c", f"cd && {self.put(command)}")
            done = machine.run(*words, typed=f"{PASSWORD}\n")
            good = done.returncode == 0 and fits(done.stdout, command.output or ("…",))
            if good or "--status" not in command.text or time.monotonic() > until_s:
                break
            time.sleep(0.5)
        said = f"{command.host}# {command.text}\n{done.stdout}{done.stderr}"
        assert good, f"{said}\n{machine.journal()}"
        if command.text == "ha-agent invite":
            self.token = done.stdout.strip()
        print(said)


@pytest.fixture
def site(release: str, directory: Path, wire: Switch) -> Iterator[Site]:
    real = directory / "storage"
    real.mkdir(mode=0o755)
    lay_guest(real, guest.build())
    root = base(release, packages_of(RELEASES[release]))
    with contextlib.ExitStack() as ends:
        made = []
        for number in (1, 2):
            shared = directory / f"mount{number}"
            shared.mkdir()
            mount: list[str | Path] = [
                "bindfs",
                "-o",
                "allow_other",
                real,
                shared,
            ]
            subprocess.run(mount, check=True, capture_output=True)
            ends.callback(subprocess.run, ["umount", "-l", str(shared)], capture_output=True)
            machine = Machine(root, directory / f"host{number}", number, shared)
            made.append(machine)
            ends.callback(machine.cut)
            machine.boot()
            wire.plug(machine)
            inside(machine.first, "ip", "route", "add", "default", "via", GATEWAY)
            configure_host(machine, 2)
        for machine in made:
            address = f"10.77.0.10{machine.host}"
            wire.ip("addr", "add", f"{address}/24", "dev", "switch")
            ends.callback(end, machine.serve_bmc(address, PASSWORD, wire.pid))
        yield Site(made)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_the_page_has_at_most_ten_commands_and_no_editor() -> None:
    found = commands()
    assert len(found) <= COMMANDS_MAX, [each.text for each in found]
    assert {each.host for each in found} == {"host1", "host2"}
    words = {each.text.split()[0] for each in found}
    assert words == {"apt", "ha-agent", "systemctl"}, "nothing is edited by hand"


def test_the_quick_start_word_for_word_then_a_live_move_by_tls_and_a_power_cut(
    site: Site, package: Path
) -> None:
    first, second = site.machines
    for machine in site.machines:
        shutil.copy(package, f"/proc/{machine.first}/root/root/ha-agent.deb")
    began_s = time.monotonic()
    for command in commands():
        site.type(command)
        print(f"[{time.monotonic() - began_s:5.0f} s] {command.host}# {command.text}")
    promise = re.search(r"if host1 dies now, .*", second.run("ha-agent", "--status").stdout)
    assert promise is not None and "(proof by its fence device)" in promise[0], promise
    print(f"quick start: {time.monotonic() - began_s:.0f} s, {len(commands())} commands")
    print(promise[0])

    for machine in site.machines:
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
    for machine in site.machines:
        assert unknown_ports(machine) == set()

    first.wait("a fit host", lambda: "if host2 dies now" in first.run("ha-agent", "status").stdout)
    second.cut()
    cut_s = time.monotonic()
    first.wait("the takeover", lambda: "healthy on host1" in status_of(first), TAKEOVER_SECONDS_MAX)
    print(f"after the power cut of host2: healthy on host1 in {time.monotonic() - cut_s:.0f} s")


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

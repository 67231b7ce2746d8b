# SPDX-License-Identifier: LGPL-2.1-or-later
"""The deb in a clean Debian with systemd as its first process: installed, started, watched,
reloaded, restarted, upgraded, removed; and a power cut among two such machines. The VM is a
real QEMU under a real lease, and no step but the power cut may touch it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .machine import (
    PROVEN_TAKEOVER_SECONDS_MAX,
    UNITS,
    UP_SECONDS_MAX,
    Machine,
    MachineError,
    bring_up,
    form_cluster,
    is_up,
    machines,
    status_of,
    why_not,
)

#: What the broker serves, and a word of each.
PAGES = {
    "/": "<html",
    "/dashboard.js": "fetch",
    "/dashboard.css": "{",
    "/metrics": "ha_agent_engine_up",
    "/api/v1/status": '"engine"',
    "/api/v1/openapi.json": '"openapi"',
}
FETCH = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
#: 8 * io_timeout + 60 s until sanlock calls the host dead, and some to start the VM.
TAKEOVER_SECONDS_MAX = 68.0 + 60.0

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no machine can be made: {why_not()}")


@pytest.fixture
def one(release: str, directory: Path) -> Iterator[Machine]:
    for (machine,) in machines(release, directory, 1):
        yield machine


@pytest.fixture
def two(release: str, directory: Path) -> Iterator[list[Machine]]:
    yield from machines(release, directory, 2)


def repacked(package: Path, to: Path, version: str, postinst: str = "") -> Path:
    """The package as another version with other defaults, and with another postinst where one is
    given."""
    root = to / "repacked"
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-R", package, root], check=True)
    control = root / "DEBIAN" / "control"
    lines = control.read_text().splitlines()
    control.write_text(
        "".join(f"Version: {version}\n" if x.startswith("Version:") else f"{x}\n" for x in lines)
    )
    with (root / "usr/share/ha-agent/ha-agent.toml").open("a") as defaults:
        defaults.write(f"# of {version}\n")
    if postinst:
        (root / "DEBIAN" / "postinst").write_text(postinst)
    made = to / f"{version}.deb"
    pack: list[str | Path] = ["dpkg-deb", "-Zgzip", "-z1", "-b", root, made]
    subprocess.run(pack, check=True, stdout=subprocess.DEVNULL)
    return made


def test_the_units_from_installation_to_removal(one: Machine, package: Path) -> None:
    said = one.install(package)
    assert "neither enabled nor started" in said
    for unit in UNITS:
        assert one.run("systemctl", "is-enabled", unit).stdout == "disabled\n"
        assert one.show(unit, "ActiveState") == "inactive"
    units = (*UNITS, "ha-agent-host-shutdown")
    verify = one.run("systemd-analyze", "verify", *(f"{unit}.service" for unit in units))
    assert "man " in verify.stderr or verify.stderr == "", "the pages need man, else it is clean"
    assert [x for x in verify.stderr.splitlines() if "Command 'man" not in x] == []
    assert "ha-agent.toml: no such file" in one.run("ha-agent", "--status").stderr
    assert one.must("ls", "/etc/ha-agent") == "", "what is configured is no file of the package"

    # Started: ready after the first beat, as their own user.
    pid = bring_up(one)
    for unit in UNITS:
        assert one.show(unit, "ActiveState") == "active"
        main = one.show(unit, "MainPID")
        assert one.must("stat", "-c", "%U", f"/proc/{main}").strip() == "ha-agent"
    assert "storage ok" in one.show("ha-broker", "StatusText")
    assert "EngineUp" in one.show("ha-agent", "StatusText")
    # Ping without privileges, and the pid file under libvirt's folder, work for that user.
    assert json.loads(one.must("ha-agent", "--status", "--json"))["network"] == ""
    assert "NO KEY: " in one.must("ha-agent", "--status"), "this configuration has none"
    # What is installed answers, the page and the figures as well; the host is fit but for what
    # this machine has not: a watchdog device, KVM, a second host.
    assert one.run("ha-agent", "check-liveliness").returncode == 0
    assert json.loads(one.must("ha-agent", "config", "show", "--json"))
    checks = json.loads(one.run("ha-agent", "doctor", "--json").stdout)["checks"]
    failed = {check["name"] for check in checks if check["verdict"] == "fail"}
    assert failed <= {"accelerator", "watchdog"}, checks
    for resource, word in PAGES.items():
        assert word in one.must("python3", "-c", FETCH, f"http://127.0.0.1:8765{resource}")

    # QEMU is in a control group of libvirt's.
    assert "ha-agent.service" not in one.must("cat", f"/proc/{pid}/cgroup")

    # The journal knows which line is a warning.
    journal = ("journalctl", "-u", "ha-agent", "-o", "cat")
    said = one.must(*journal, "-p", "warning")
    assert "/etc/libvirt/qemu.conf cannot be read" in said
    change = "-> EngineUp because"
    assert change in one.must(*journal) and change not in said

    # Reloaded: the good file is taken, the bad one told and not.
    good = one.must("cat", "/etc/ha-agent/ha-agent.toml")
    one.write("/etc/ha-agent/ha-agent.toml", good + '[daemon]\nlog-level = "debug"\n')
    one.must("systemctl", "reload", *UNITS)
    one.wait("the reload", lambda: one.journal().count("is read anew") == 2)
    one.write("/etc/ha-agent/ha-agent.toml", good + "[scores]\n")
    one.must("systemctl", "reload", *UNITS)
    one.wait("the line", lambda: "unknown key scores" in one.show("ha-broker", "StatusText"))
    one.write("/etc/ha-agent/ha-agent.toml", good)
    one.must("systemctl", "reload", *UNITS)

    # Watched: one that does nothing any more is ended and started again; so is one that dies.
    one.write("/run/systemd/system/ha-broker.service.d/t.conf", "[Service]\nWatchdogSec=3\n")
    one.must("systemctl", "daemon-reload")
    one.must("systemctl", "restart", "ha-broker")
    one.kill("ha-broker", "SIGSTOP")
    one.wait("the watchdog", lambda: one.show("ha-broker", "NRestarts") == "1")
    one.kill("ha-agent", "SIGKILL")
    one.wait("the restart", lambda: one.show("ha-agent", "NRestarts") == "1")
    one.wait("both", lambda: is_up(one))

    # Wrongly configured it is not tried again and again.
    one.write("/etc/ha-agent/ha-agent.toml", good + "[scores]\n")
    assert one.run("systemctl", "restart", "ha-broker").returncode != 0
    assert one.show("ha-broker", "ActiveState") == "failed"
    one.write("/etc/ha-agent/ha-agent.toml", good)
    one.must("systemctl", "start", "ha-broker")

    # Stopped and removed: the VM runs on, and what is left is said.
    one.must("systemctl", "stop", *UNITS)
    one.must("systemctl", "start", *UNITS)
    assert one.engine_pid() == pid
    said = one.must("dpkg", "-r", "ha-agent")
    assert "left as they are" in said
    assert one.engine_pid() == pid
    assert one.run("ls", "/usr/lib/ha-agent").returncode != 0
    assert one.must("ls", "/etc/ha-agent").split() == ["engine.xml", "ha-agent.toml"]
    assert f"p {pid}" in one.must("sanlock", "client", "status")
    one.must("dpkg", "-P", "ha-agent")
    assert one.run("ls", "/etc/ha-agent").returncode != 0
    assert one.engine_pid() == pid


def test_upgrades_and_installations_that_broke_off(
    one: Machine, package: Path, directory: Path
) -> None:
    # Unpacked and no further, then configured half, then well.
    one.install(package, "--unpack")
    with pytest.raises(MachineError, match="post-installation script"):
        one.install(repacked(package, directory, "0.0.1", "#!/bin/sh\nexit 1\n"))
    one.install(package)
    pid = bring_up(one)

    # Upgraded and downgraded with the VM running: new processes, the same VM. The defaults are
    # others, the configuration is an edited one: dpkg does not ask (it could not, without a
    # terminal), and leaves neither that nor anything beside it.
    configured = one.must("cat", "/etc/ha-agent/ha-agent.toml")
    for version in ("99.0", "0.0.2"):
        before = [one.show(unit, "MainPID") for unit in UNITS]
        one.install(repacked(package, directory, version))
        after = [one.show(unit, "MainPID") for unit in UNITS]
        assert not set(before) & set(after), "the daemons run what is installed"
        one.wait("the VM", lambda: is_up(one))
        assert one.engine_pid() == pid
        assert one.must("cat", "/etc/ha-agent/ha-agent.toml") == configured
        assert one.must("ls", "/etc/ha-agent").split() == ["engine.xml", "ha-agent.toml"]

    # Installed over units that are enabled but stopped: it starts nothing.
    one.must("systemctl", "stop", *UNITS)
    one.must("systemctl", "enable", *UNITS)
    one.install(repacked(package, directory, "99.1"))
    assert {one.show(unit, "ActiveState") for unit in UNITS} == {"inactive"}
    assert one.run("systemctl", "is-enabled", "ha-agent").stdout == "enabled\n"


def test_a_power_cut_among_machines_of_units(two: list[Machine], package: Path) -> None:
    """No BMC: sanlock's own verdict is waited for. The host that was cut boots into its place."""
    first, second = two
    form_cluster(two, package, bmc=False)
    first.cut()
    second.wait("the takeover", lambda: is_up(second), TAKEOVER_SECONDS_MAX)
    pid = second.engine_pid()
    first.boot()
    first.wait("its units", lambda: "healthy on host2" in status_of(first), UP_SECONDS_MAX)
    assert first.engine_pid() is None
    assert second.engine_pid() == pid


@pytest.mark.skipif(shutil.which("ipmi_sim") is None, reason="ipmi_sim is not installed")
def test_a_power_cut_with_a_bmc_is_taken_over_without_privileges(
    two: list[Machine], package: Path
) -> None:
    """Asking the BMC, holding the fence lease and freeing the dead host's id are the user
    ha-agent's to do in the unit's sandbox. Quicker than sanlock's own verdict could be."""
    first, second = two
    form_cluster(two, package, bmc=True)
    first.cut()
    second.wait("the takeover", lambda: is_up(second), PROVEN_TAKEOVER_SECONDS_MAX)

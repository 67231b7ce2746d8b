# SPDX-License-Identifier: LGPL-2.1-or-later
"""The RPM, installed by rpm on machines with systemd, and a power cut among them.

The machines are Debian's: no EL or Fedora can be had here. So rpm finds none of what the package
requires in its own database (--nodeps), what EL's systemd does after an installation is done by
hand, and the libraries are Debian 13's. What is real: rpm, its scripts, users, modes and paths, the
units, the code and what it bundles.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from .machine import (
    PROVEN_TAKEOVER_SECONDS_MAX,
    ROOT,
    UNITS,
    Machine,
    form_cluster,
    is_up,
    machines,
    why_not,
)

SPEC = (ROOT / "packaging" / "rpm" / "ha-agent.spec").read_text()
#: Names of packages as Fedora's and EL 10's repositories have them (BaseOS, AppStream, CRB, EPEL),
#: from the projects' own documents: none of the repositories can be asked here.
KNOWN = {
    "libvirt-daemon-driver-qemu",
    "libvirt-daemon-plugin-sanlock",
    "libvirt-lock-sanlock",
    "python3",
    "python3-aiohttp",
    "python3-cryptography",
    "python3-dateutil",
    "python3-dns",
    "python3-jinja2",
    "python3-libvirt",
    "python3-msgspec",
    "python3-regex",
    "python3-sanlock",
    "sanlock",
    "sanlock-lib",
    "systemd",
}


def required() -> set[str]:
    """The names that the package requires."""
    found = set()
    for line in re.findall(r"^Requires:\s+(.*)$", SPEC, re.MULTILINE):
        for part in line.strip("()").split(" or "):
            found.add(part.split()[0])
    return found


def test_each_requirement_is_a_package_s_name_of_fedora_and_el() -> None:
    assert required() == KNOWN


def test_each_library_of_ours_is_required_or_bundled() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[>=<]", each)[0] for each in project["dependencies"]}
    bundled = set(tomllib.loads((ROOT / "packaging/targets.toml").read_text())["rpm"]["bundled"])
    names = {"dnspython": "dns", "rich": "rich"}
    recommended = set(re.findall(r"^Recommends:\s+python3-(\S+)", SPEC, re.MULTILINE))
    there = {name.removeprefix("python3-") for name in required()} | recommended
    assert {names.get(each, each) for each in wanted - bundled} - there == set()


@pytest.fixture
def two(directory: Path) -> Iterator[list[Machine]]:
    yield from machines("trixie", directory, 2, ("rpm",))


@pytest.mark.skipif(bool(why_not()), reason=f"no machine can be made: {why_not()}")
@pytest.mark.skipif(shutil.which("ipmi_sim") is None, reason="ipmi_sim is not installed")
def test_what_rpm_installed_survives_a_power_cut_and_is_removed(
    two: list[Machine], rpms: dict[str, Path]
) -> None:
    first, second = two
    form_cluster(two, rpms["noarch"], bmc=True)
    query = first.must("rpm", "-q", "ha-agent").strip()
    assert rpms["noarch"].name == f"{query}.rpm"
    # What rpm laid is as the package says, its users' files too.
    verify = first.run("rpm", "-V", "--nodeps", "ha-agent").stdout
    assert [x for x in verify.splitlines() if "ha-agent.toml" not in x] == []
    for unit in UNITS:
        main = first.show(unit, "MainPID")
        assert first.must("stat", "-c", "%U", f"/proc/{main}").strip() == "ha-agent"
    first.cut()
    second.wait("the takeover", lambda: is_up(second), PROVEN_TAKEOVER_SECONDS_MAX)
    pid = second.engine_pid()
    second.must("systemctl", "disable", "--now", *UNITS)
    second.must("rpm", "-e", "--nodeps", "ha-agent")
    assert second.run("ls", "/usr/lib/ha-agent").returncode != 0
    assert second.engine_pid() == pid, "the VM runs on"

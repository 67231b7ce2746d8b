# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts leave and come back while the VM runs on: join, leave, clean-metadata, a race for an id."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from broker.daemon.exit_codes import ExitCode

from .cluster import Cluster

pytestmark = pytest.mark.long

#: io_timeout 2: 8 * 2 + 60 until sanlock holds a host for dead.
DEAD_SECONDS_MAX = 100.0


@pytest.fixture
def copies(lab: Cluster) -> Path:
    """What an administrator copies from a member."""
    folder = lab.directory / "copies"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("ha-agent.toml", "secrets.toml", "engine.xml"):
        shutil.copy(lab.config_path("host1").with_name(name), folder)
    return folder


def command(lab: Cluster, host: str, *words: str, code: int = ExitCode.OK) -> str:
    done = lab.sh(host, ["ha-agent", *words])
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def host_ids(lab: Cluster, host: str) -> dict[str, int]:
    """Host id by name, as the status shows it."""
    hosts = json.loads(lab.sh(host, ["ha-agent", "--status", "--json"]).stdout)["hosts"]
    return {found["hostname"]: int(host_id) for host_id, found in hosts.items()}


def other_hosts(lab: Cluster) -> tuple[str, str]:
    """The hosts without the VM."""
    one, two = (host for host in lab.hosts if host != lab.engine_host())
    return one, two


def stop(lab: Cluster, host: str) -> None:
    for daemon in ("agent", "broker"):
        lab.stop(host, daemon)


def start(lab: Cluster, host: str) -> None:
    for daemon in ("broker", "agent"):
        lab.start(host, daemon)


def test_a_host_leaves_another_is_forgotten_and_both_come_back(lab: Cluster, copies: Path) -> None:
    owner = lab.engine_host()
    assert owner is not None
    pids = lab.census().engines(owner)
    one, two = other_hosts(lab)
    until_s = time.monotonic() + 20.0
    while set(old := host_ids(lab, owner)) != set(lab.hosts):  # each has joined and writes
        assert time.monotonic() < until_s, old
        time.sleep(0.2)
    configs = {host: lab.config_path(host).read_text() for host in (one, two)}
    seconds = {}
    try:
        # Both commands are refused: the one host runs the VM, the other one lives.
        assert "runs here; move it away first" in command(lab, owner, "leave", code=11)
        assert "lives: it writes its slot" in command(lab, owner, "clean-metadata", two, code=11)
        assert "stop both first" in command(lab, one, "leave", code=11)

        stop(lab, one)
        command(lab, one, "leave")
        command(lab, one, "leave")
        lab.cut(two)
        assert "does not hold host" in command(lab, owner, "clean-metadata", two, code=11)
        began_s = time.monotonic()
        while lab.sh(owner, ["ha-agent", "clean-metadata", two]).returncode != 0:
            assert time.monotonic() - began_s < DEAD_SECONDS_MAX
            time.sleep(2.0)
        seconds["gone for sanlock"] = time.monotonic() - began_s
        until_s = time.monotonic() + 5.0
        while set(host_ids(lab, owner)) != {owner}:
            assert time.monotonic() < until_s, host_ids(lab, owner)
            time.sleep(0.1)

        # Both at once, wanting the same id; the loser gets an error, and then another id.
        lab.power_on(two)
        lab.wait_booted(two)
        stop(lab, two)
        race = [
            subprocess.Popen(
                argv,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for argv, environment in (
                lab.sh_command(host, ["ha-agent", "join", "--from", str(copies), "--host-id", "9"])
                for host in (one, two)
            )
        ]
        began_s = time.monotonic()
        answers = {host: p.communicate() for host, p in zip((one, two), race, strict=True)}
        seconds["race"] = time.monotonic() - began_s
        codes = {host: p.returncode for host, p in zip((one, two), race, strict=True)}
        assert sorted(codes.values()) == [ExitCode.OK, ExitCode.LOCKSPACE], answers
        winner, loser = sorted(codes, key=lambda host: codes[host])
        assert "host id 9 is another host's" in answers[loser][1]
        command(lab, loser, "join", "--from", str(copies))
        for host in (winner, loser):
            start(lab, host)
        until_s = time.monotonic() + 20.0
        while set(found := host_ids(lab, owner)) != set(lab.hosts):
            assert time.monotonic() < until_s, found
            time.sleep(0.2)
        assert found[winner] == 9
        assert found[loser] == old[loser], "free again, and its file still names it"
    finally:
        # The other tests know the hosts by their ids.
        for host in (one, two):
            if not lab.is_on(host):
                lab.power_on(host)
                lab.wait_booted(host)
            stop(lab, host)
            lab.sh(host, ["ha-agent", "leave"])
            lab.config_path(host).write_text(configs[host])
            start(lab, host)
    print("seconds:", {name: round(value, 1) for name, value in seconds.items()})
    assert lab.census().engines(owner) == pids, "the VM was not touched"

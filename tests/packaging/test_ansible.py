# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Ansible role on two machines with systemd: from bare hosts to a protected VM, twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .machine import DEFINITION, RELEASES, ROOT, Machine, machines, why_not

ROLE = ROOT / "packaging" / "ansible"
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
PLAY_SECONDS_MAX = 300.0


def play(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "LANG": "C.UTF-8",
        "ANSIBLE_CONNECTION_PLUGINS": str(Path(__file__).parent / "ansible_connection"),
        "ANSIBLE_ROLES_PATH": str(ROLE / "roles"),
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PIPELINING": "1",
    }
    return subprocess.run(
        [PLAYBOOK, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROLE,
        timeout=PLAY_SECONDS_MAX,
    )


def test_the_role_s_syntax_is_what_ansible_takes() -> None:
    done = play("-i", "inventory.example.yml", "site.yml", "--syntax-check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr


#: firewalld as it was told: it has the service once somebody added it, and notes each call.
FIREWALL = """#!/bin/sh
echo "$*" >>{folder}/calls
case "$*" in
  --state) [ -e {folder}/runs ] ;;
  *--query-service=ha-agent) [ -e {folder}/open ] ;;
  *--add-service=ha-agent) touch {folder}/open ;;
esac
"""


def test_the_firewall_is_opened_once_and_only_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, playbook = tmp_path / "bin" / "firewall-cmd", tmp_path / "play.json"
    program.parent.mkdir()
    program.write_text(FIREWALL.format(folder=tmp_path))
    program.chmod(0o755)
    tasks = ROLE / "roles" / "ha_agent" / "tasks" / "firewall.yml"
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    steps = [{"ansible.builtin.import_tasks": str(tasks)}]
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": steps}]))

    def called() -> list[str]:
        (tmp_path / "calls").write_text("")
        python = f"ansible_python_interpreter={sys.executable}"
        done = play("-i", "localhost,", "-c", "local", "-e", python, playbook)
        assert done.returncode == 0, done.stdout + done.stderr
        return (tmp_path / "calls").read_text().splitlines()

    assert called() == ["--state"], "another firewall is its administrator's"
    (tmp_path / "runs").touch()
    asked = ["--state", "--permanent --query-service=ha-agent"]
    assert called() == [*asked, "--permanent --add-service=ha-agent", "--reload"]
    assert called() == asked


@pytest.fixture
def pair(directory: Path) -> Iterator[list[Machine]]:
    yield from machines("bookworm", directory, 2, ("python3-apt",))


def recap(done: subprocess.CompletedProcess[str], host: str) -> dict[str, int]:
    line = re.search(rf"^{host} +: (.*)$", done.stdout, re.MULTILINE)
    assert line is not None, done.stdout + done.stderr
    return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", line[1])}


@pytest.mark.skipif(bool(why_not()), reason=f"no machine can be made: {why_not()}")
def test_the_role_makes_a_cluster_of_bare_hosts_and_a_second_time_changes_nothing(
    pair: list[Machine], debs: dict[str, Path], directory: Path
) -> None:
    first, second = pair
    xml = re.sub(r"<lease>.*?</lease>", "", DEFINITION, flags=re.DOTALL)
    first.write("/root/vm.xml", xml)
    first.must("chown", "root:root", "/srv/ha")
    hosts = {
        machine.name: {
            "ansible_connection": "nsenter",
            "ansible_become": False,
            "ansible_nsenter_pid": machine.first,
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        for machine in pair
    }
    given = {
        "ha_agent_package": str(debs[RELEASES["bookworm"]]),
        "ha_agent_answers": {
            "storage": "/srv/ha",
            "local": True,
            "domain": "/root/vm.xml",
            "io-timeout": 1,
            "bridge": "-",
            "network-targets": ["127.0.0.1"],
            "migration-uri": "-",
            "listen": "-",
        },
        "ha_agent_fence_devices": [{"host": 9, "address": "192.0.2.9", "username": "admin"}],
        "ha_agent_fence_passwords": {"9": "secret-word"},
    }
    inventory = directory / "inventory.json"
    inventory.write_text(json.dumps({"ha_agent": {"hosts": hosts, "vars": given}}))
    done = play("-i", inventory, "site.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "secret-word" not in done.stdout + done.stderr
    for machine in pair:
        assert recap(done, machine.name)["failed"] == 0
        assert recap(done, machine.name)["changed"] > 0
        for unit in ("ha-broker", "ha-agent"):
            assert machine.show(unit, "ActiveState") == "active"
            assert machine.must("systemctl", "is-enabled", unit).strip() == "enabled"
    made = first.must("cat", "/etc/ha-agent/ha-agent.toml")
    assert made.startswith("# Configuration of ha-broker"), "the packages' commented one, filled in"
    pids = [machine.engine_pid() for machine in pair]
    assert sum(pid is not None for pid in pids) == 1, "on whichever host was ready first"
    status = json.loads(second.must("ha-agent", "--status", "--json"))
    assert {host["hostname"] for host in status["hosts"].values()} == {"host1", "host2"}
    assert second.must("stat", "-c", "%U:%G %a", "/etc/ha-agent/secrets.toml").strip() == (
        "root:ha-agent 640"
    )
    assert second.run("sh", "-c", "ls -d /tmp/ha-agent.*").returncode != 0, "the copies are gone"

    again = play("-i", inventory, "site.yml")
    assert again.returncode == 0, again.stdout + again.stderr
    for machine in pair:
        assert recap(again, machine.name)["changed"] == 0, again.stdout
    assert [machine.engine_pid() for machine in pair] == pids

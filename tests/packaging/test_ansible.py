# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Ansible role on two machines with systemd: from bare hosts to a protected VM, twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.quickstart_page import PASSWORD, Command, commands_by_ansible, fits

from .machine import RELEASES, ROOT, why_not
from .site import Site, site, with_addresses

ROLE = ROOT / "packaging" / "ansible"
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
PLAY_SECONDS_MAX = 1800.0


def environment() -> dict[str, str]:
    """The controller's, with this environment's Ansible first."""
    return {
        **{name: os.environ[name] for name in ("HOME",) if name in os.environ},
        "PATH": f"{PLAYBOOK.parent}:{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "ANSIBLE_CONNECTION_PLUGINS": str(Path(__file__).parent / "ansible_connection"),
        "ANSIBLE_ROLES_PATH": str(ROLE / "roles"),
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PIPELINING": "1",
    }


def play(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PLAYBOOK, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
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


def recap(said: str, host: str) -> dict[str, int]:
    line = re.search(rf"^{host} +: (.*)$", said, re.MULTILINE)
    assert line is not None, said
    return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", line[1])}


@pytest.mark.skipif(bool(why_not()), reason=f"no machine can be made: {why_not()}")
@pytest.mark.skipif(shutil.which("ipmi_sim") is None, reason="ipmi_sim is not installed")
@pytest.mark.skipif(shutil.which("bindfs") is None, reason="bindfs is not installed")
def test_the_quick_start_by_ansible_word_for_word_and_a_second_time_changes_nothing(
    debs: dict[str, Path], directory: Path
) -> None:
    """The commands are the page's, and in the example nothing is replaced but addresses and
    passwords. That the hosts are entered by their namespaces stands beside it, as it would in a
    configuration of ssh."""
    folder = directory / "sources" / "packaging" / "ansible"
    shutil.copytree(ROLE, folder)
    shutil.copy(debs[RELEASES["bookworm"]], folder / "ha-agent.deb")
    here, *there = commands_by_ansible()
    assert (here.host, here.text) == ("controller", "cd packaging/ansible")
    with site("bookworm", directory, ("python3-apt",)) as made:
        (folder / "host_vars").mkdir()
        for machine in made.machines:
            way = {
                "ansible_connection": "nsenter",
                "ansible_nsenter_pid": machine.first,
                "ansible_python_interpreter": "/usr/bin/python3",
                "ansible_become": False,
            }
            (folder / "host_vars" / f"{machine.name}.json").write_text(json.dumps(way))
        for command in there:
            if command.host != "controller":
                made.type(command)
            elif "ansible-playbook" not in command.text:
                controller(folder, command)
            else:
                inventory = folder / "inventory.yml"
                text = with_addresses(inventory.read_text())
                inventory.write_text(text.replace("PASSWORD", PASSWORD))
                began_s = time.monotonic()
                said = controller(folder, command)
                print(f"{command.text}: {time.monotonic() - began_s:.0f} s")
        assert not re.search(rf"\b{PASSWORD}\b", said)
        check_hosts(made, said)
        pids = [machine.engine_pid() for machine in made.machines]
        (play_again,) = [each for each in there if "ansible-playbook" in each.text]
        again = controller(folder, play_again)
        for machine in made.machines:
            assert recap(again, machine.name)["changed"] == 0, again
        assert [machine.engine_pid() for machine in made.machines] == pids


def controller(folder: Path, command: Command) -> str:
    """What a command of the page printed, typed in the folder of the role."""
    done = subprocess.run(
        ["bash", "-c", command.text],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=folder,
        timeout=PLAY_SECONDS_MAX,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert fits(done.stdout, command.output or ("…",)), done.stdout
    return done.stdout + done.stderr


def check_hosts(made: Site, said: str) -> None:
    """The services run and stay, one host has the VM, and nothing secret is left behind."""
    for machine in made.machines:
        assert recap(said, machine.name)["failed"] == 0
        assert recap(said, machine.name)["changed"] > 0
        for unit in ("ha-broker", "ha-agent"):
            assert machine.show(unit, "ActiveState") == "active"
            assert machine.must("systemctl", "is-enabled", unit).strip() == "enabled"
    _, second = made.machines
    assert sum(machine.engine_pid() is not None for machine in made.machines) == 1
    status = json.loads(second.must("ha-agent", "--status", "--json"))
    assert {host["hostname"] for host in status["hosts"].values()} == {"host1", "host2"}
    assert second.must("stat", "-c", "%U:%G %a", "/etc/ha-agent/secrets.toml").strip() == (
        "root:ha-agent 640"
    )
    assert second.run("sh", "-c", "ls -d /tmp/ha-agent.*").returncode != 0, "the copies are gone"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""An incident goes round: played, recorded by an agent's journal, replayed, told as a
scenario, and played again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import agent.beat
from agent.commands.replay import run
from agent.journal.records import FILE_NAME, Journal
from broker.daemon.exit_codes import ExitCode
from scoring.decide import Decision
from scoring.observation import Observation
from scoring.state import AgentState
from tests.simulation.scenario import Player, parse

STORIES = {
    "power cut": """
        power off owner
        expect engine healthy within 60
        wait 20
        power on last
        expect last in EngineDown within 120
    """,
    "global maintenance": """
        maintenance global on
        wait 20
        kill qemu owner
        wait 30
        maintenance global off
        expect engine healthy within 120
    """,
    "a dead VM": """
        kill qemu owner
        expect engine healthy within 60
    """,
}

#: What the registry holds before the stories of its VMs.
VMS = """
    vm db memory 2048 priority 70 prefer host1
    vm web memory 1024 after db apart db
    vm idle memory 512 want down
    expect vm db healthy within 100
    expect vm web healthy within 100
    wait 20
"""
STORIES_OF_VMS = {
    "a VM of the registry dies": """
        kill qemu db
        expect vm db healthy within 60
    """,
    "a VM is wanted down, and up again": """
        stop web
        wait 40
        start web
        expect vm web healthy within 60
    """,
}
#: What the story that is told must say.
SAID = {
    "a VM of the registry dies": ("kill qemu db",),
    "a VM is wanted down, and up again": (
        "vm web after db apart db want down",
        "vm web after db apart db want up",
    ),
}


class _Recorder:
    """Hands every decision of one host to its journal."""

    def __init__(self, directory: Path, host_id: int) -> None:
        self.journal, self._host_id = Journal(directory), host_id
        self.problem = ""

    def note(
        self, before: AgentState, observation: Observation, now_s: float, decision: Decision
    ) -> None:
        if observation.local.host_id == self._host_id:
            self.journal.note(before, observation, now_s, decision)
            # The virtual clock runs away from the writer's thread.
            self.journal.flush(10)


def told_again(name: str, begin: str, story: str, witness: int, tmp_path: Path) -> str:
    """The incident as the witness's journal tells it, once the story was played."""
    recorder = _Recorder(tmp_path, witness)
    original = agent.beat.Agent.__init__

    def with_journal(self: agent.beat.Agent, *args: object, **named: object) -> None:
        named["journal"] = recorder
        original(self, *args, **named)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent.beat.Agent, "__init__", with_journal)
        text = f"# {name}\nhosts 3\nexpect engine healthy within 150\nwait 30\n{begin}"
        Player(parse(name, f"{text}\n{story}\nwait 90\n")).play()
    told = tmp_path / "incident.txt"
    assert run(str(tmp_path / FILE_NAME), as_json=True, scenario_path=str(told)) == ExitCode.OK
    return told.read_text()


@pytest.mark.parametrize("witness", [1, 2, 3])
@pytest.mark.parametrize("name", STORIES)
def test_an_incident_goes_round(name: str, witness: int, tmp_path: Path) -> None:
    """From the journal of each of the hosts, the one that the trouble befell among them."""
    told = told_again(name, "", STORIES[name], witness, tmp_path)
    Player(parse(name, told)).play()
    assert not any(line.startswith("vm ") for line in told.splitlines()), "there is the engine only"


@pytest.mark.parametrize("witness", [1, 2])
@pytest.mark.parametrize("name", STORIES_OF_VMS)
def test_an_incident_of_a_vm_of_the_registry_goes_round(
    name: str, witness: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = told_again(name, VMS, STORIES_OF_VMS[name], witness, tmp_path)
    assert "vm db memory 2048 priority 70 want down" in told
    assert "apart db" in told and "after db" in told
    for said in SAID[name]:
        assert said in told
    Player(parse(name, told)).play()
    (*_, last) = capsys.readouterr().out.splitlines()
    assert json.loads(last)["vms"] == {"2": "db", "3": "web", "4": "idle"}

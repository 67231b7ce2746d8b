# SPDX-License-Identifier: LGPL-2.1-or-later
"""An incident goes round: played, recorded by an agent's journal, replayed, told as a
scenario, and played again."""

from __future__ import annotations

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


@pytest.mark.parametrize("witness", [1, 2, 3])
@pytest.mark.parametrize("name", STORIES)
def test_an_incident_goes_round(
    name: str, witness: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the journal of each of the hosts, the one that the trouble befell among them."""
    recorder = _Recorder(tmp_path, witness)
    original = agent.beat.Agent.__init__

    def with_journal(self: agent.beat.Agent, *args: object, **named: object) -> None:
        named["journal"] = recorder
        original(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(agent.beat.Agent, "__init__", with_journal)
    story = (
        f"# {name}\nhosts 3\nexpect engine healthy within 150\nwait 30\n{STORIES[name]}\nwait 90\n"
    )
    Player(parse(name, story)).play()
    monkeypatch.undo()

    told = tmp_path / "incident.txt"
    assert run(str(tmp_path / FILE_NAME), as_json=True, scenario_path=str(told)) == ExitCode.OK
    Player(parse(told.name, told.read_text())).play()

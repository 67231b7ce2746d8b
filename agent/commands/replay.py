# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent replay FILE`: makes the decisions of a journal again and compares them.

The state, the actions, the score and the codes of the reasons are compared. The sentences are not:
an earlier version may have used other words for the same decision."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from agent.journal import incident
from agent.journal.records import Damaged, Record, plain, read
from agent.terminal import in_json
from agent.terminal.errors import CommandError
from broker.daemon.exit_codes import ExitCode
from scoring.decide import decide
from scoring.state import AgentState


def run(path: str, as_json: bool, scenario_path: str | None = None) -> int:
    """Print each decision with its reasons; `scenario_path`: write the incident there.

    OK when all are as recorded, FAILED when one is not, FILE when some lines of the journal
    could not be read (all others are replayed). CommandError where none can.
    """
    code = ExitCode.OK
    state: AgentState | None = None
    count = different = passed_over = 0
    records: list[Record] = []
    try:
        for record in read(Path(path)):
            if record.after_damage and record.state is None:
                passed_over += 1
                continue
            state = record.state if record.state is not None else state
            if state is None:
                raise Damaged(f"{path}: its first record has no state to begin with")
            state, again = _again(state, record)
            count += 1
            records.append(record)
            differs = _decided(again) != _decided(record.decision)
            different += differs
            _print(record, again, differs, as_json)
    except Damaged as error:
        if not count:
            text = f"{error}; nothing of it can be replayed: is it a journal of ha-agent?"
            raise CommandError(ExitCode.FILE, text) from None
        text = f"ha-agent: {error}; replayed without it"
        if passed_over:
            text += f", and without {passed_over} records behind it that need what was lost"
        print(text, file=sys.stderr)
        code = ExitCode.FILE
    except OSError as error:
        raise CommandError(ExitCode.FILE, f"{path}: cannot be read: {error.strerror}") from None
    if scenario_path is not None and state is not None:
        text = incident.scenario(records, state.rules.timing.suspect_after)
        try:
            Path(scenario_path).write_text(text)
        except OSError as error:
            text = f"{scenario_path}: cannot be written: {error.strerror}"
            raise CommandError(ExitCode.FILE, text) from None
    if not as_json:
        print(f"{count} decisions replayed, {different} came out differently")
    return ExitCode.FAILED if different else code


def _again(state: AgentState, record: Record) -> tuple[AgentState, dict[str, Any]]:
    decision = decide(state, record.observation, record.now_s)
    # Through JSON, as the recorded decision went.
    return decision.state, json.loads(json.dumps(plain(decision)))


def _decided(decision: dict[str, Any]) -> dict[str, Any]:
    """The decision without its words: `evidence` of an action, and the text of a reason."""
    actions = [{k: v for k, v in act.items() if k != "evidence"} for act in decision["actions"]]
    reasons = [(code, *about) for code, _, *about in decision["reasons"]]
    return {**decision, "actions": actions, "reasons": reasons}


def _print(record: Record, again: dict[str, Any], differs: bool, as_json: bool) -> None:
    names = {spec.number: spec.name for spec in record.observation.specs}
    if as_json:
        line = {"wall": record.wall_s, "decision": again, "same": not differs}
        if names:
            line["vms"] = names
        if differs:
            line["recorded"] = record.decision
        in_json.show_line(line)
        return
    when = datetime.fromtimestamp(record.wall_s).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    print(f"{when}  {again['state']}, score {again['score']}")
    for code, text, *about in again["reasons"]:
        # Without a number it is about the engine, 0 is the host.
        vm = f"{names.get(about[0], f'VM {about[0]}')}: " if about and about[0] else ""
        print(f"    {vm}{code}: {text}")
    for action in again["actions"]:
        print(f"    -> {action}")
    if differs:
        print(f"    DIFFERS from what was recorded: {json.dumps(record.decision)}")

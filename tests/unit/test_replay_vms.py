# SPDX-License-Identifier: LGPL-2.1-or-later
"""A replay names the VM that a reason is about."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.commands import replay
from agent.journal.records import Record
from scoring.vm_facts import VmSpec
from tests.unit.builders import observe


def test_a_reason_says_which_vm_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    seen = replace(observe(), specs=(VmSpec(2, "db", 8192),))
    reasons = [["engine-healthy", "up"], ["no-place", "no host has room", 2], ["x", "host", 0]]
    again = {
        "state": "EngineUp",
        "score": 3400,
        "actions": [],
        "reasons": [*reasons, ["y", "z", 9]],
    }
    replay._print(Record(0.0, 1.0, seen, again), again, differs=False, as_json=False)
    said = capsys.readouterr().out.splitlines()[1:]
    assert said == [
        "    engine-healthy: up",
        "    db: no-place: no host has room",
        "    x: host",
        "    VM 9: y: z",
    ]

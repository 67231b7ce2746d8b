# SPDX-License-Identifier: LGPL-2.1-or-later
"""Journals that earlier versions wrote are still replayed, and every decision comes out the same,
but for those that were changed on purpose since.

The files were recorded by the code that wrote them, in a simulated cluster of three hosts:
`one-state-*` before hosts and VMs were kept apart, when the state was one record. Host 1 takes over
from a host that lost its power, runs the VM, and is drained; host 2 then has the VM, which hangs.
`flat-engine-*` before VM 1 had a record of its own in the decision, with two VMs of the registry: a
host without its cable, one that loses its power, and a drain.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from agent.commands.replay import run
from agent.journal.records import read
from broker.daemon.exit_codes import ExitCode

#: How many decisions of a journal come out differently, and why. An id that was freed gave every
#: missing VM, also one whose lease another dead host held; now each lease is asked for its owner.
CHANGED = {"flat-engine-host1.jsonl.gz": 6}
FILES = sorted((Path(__file__).parent / "journals").glob("*.jsonl.gz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_journal_of_before_is_replayed(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(gzip.decompress(path.read_bytes()))
    changed = CHANGED.get(path.name, 0)
    assert run(str(journal), as_json=False) == (ExitCode.FAILED if changed else ExitCode.OK)
    assert f", {changed} came out differently" in capsys.readouterr().out


def test_they_tell_of_all_that_matters(tmp_path: Path) -> None:
    """A takeover, a start and a migration: a journal of quiet beats would replay anyhow."""
    assert len(FILES) >= 2
    acts = set()
    for path in FILES:
        journal = tmp_path / path.name
        journal.write_bytes(gzip.decompress(path.read_bytes()))
        acts |= {act["kind"] for record in read(journal) for act in record.decision["actions"]}
    assert acts >= {"AskLease", "AskPower", "TakeFenceLease", "FreeHostId"}
    assert len(acts) >= 8

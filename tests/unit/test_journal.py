# SPDX-License-Identifier: LGPL-2.1-or-later
"""The flight recorder: what was decided comes out again, bit for bit, or it is said where not."""

from __future__ import annotations

import json
import random
import resource
from pathlib import Path

import pytest

from agent.commands.replay import run
from agent.journal import records as journal_module
from agent.journal.records import FILE_BYTES_MAX, FILE_NAME, Damaged, Journal, plain, read
from agent.main import _parser
from agent.terminal.errors import CommandError
from broker.daemon.exit_codes import ExitCode
from scoring.decide import decide
from scoring.observation import (
    FenceLeaseAnswer,
    FenceOwnerAnswer,
    HostIdFreed,
    Observation,
    Outcome,
    StartResult,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)
from scoring.state import AgentState
from tests.unit.builders import (
    BOOTING,
    DIED,
    DOWN,
    NOW_S,
    RULES,
    UNKNOWN,
    UP,
    free_lease,
    lease_of,
    local,
    observe,
    off,
    peer,
)


def observation(chance: random.Random, now_s: float) -> Observation:
    """Anything at all, outcomes of every kind among it."""
    outcomes: list[Outcome] = [
        VmStartEnded(chance.choice(list(StartResult)), "détail"),
        VmStopEnded(chance.random() < 0.5),
        VmMigrationEnded(2, chance.random() < 0.5),
        free_lease(now_s),
        lease_of(2, now_s),
        off(2, now_s),
        FenceLeaseAnswer(True, now_s),
        FenceOwnerAnswer(lease_of(3, now_s)),
        HostIdFreed(2, True),
    ]
    return observe(
        local(chance.choice([UP, DOWN, DOWN, DIED, BOOTING, UNKNOWN]), engine_taken_s=now_s),
        peers=(peer(2, timestamp=chance.randrange(3)), peer(3, timestamp=int(now_s))),
        global_maintenance=chance.choice([False, False, False, True, None]),
        fence_devices=frozenset({2, 3}),
        outcomes=tuple(chance.sample(outcomes, chance.randrange(3))),
    )


def write(directory: Path, beats: int, seed: int = 1) -> Path:
    """A journal of so many beats of a restless world."""
    chance, journal, state = random.Random(seed), Journal(directory), AgentState(RULES)
    for number in range(beats):
        now_s = NOW_S + number
        seen = observation(chance, now_s)
        decision = decide(state, seen, now_s)
        journal.note(state, seen, now_s, decision)
        state = decision.state
        if number % 100 == 0:
            journal.flush(5)
    journal.flush(5)
    assert not journal.lost
    return directory / FILE_NAME


@pytest.mark.parametrize("seed", range(5))
def test_what_was_recorded_replays_bit_for_bit(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, 300, seed)
    assert run(str(path), as_json=False) == ExitCode.OK
    assert "0 came out differently" in capsys.readouterr().out


def test_a_record_survives_the_way_through_json(tmp_path: Path) -> None:
    chance = random.Random(3)
    state = AgentState(RULES)
    for number in range(100):
        seen = observation(chance, NOW_S + number)
        decision = decide(state, seen, NOW_S + number)
        record = journal_module.Record(1.0, NOW_S + number, seen, plain(decision), state)
        again = journal_module.decode(journal_module.encode(record))
        assert again.observation == seen
        assert again.state == state
        state = decision.state


def test_a_changed_decision_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, 50)
    lines = path.read_bytes().splitlines(keepends=True)
    record = json.loads(lines[10])
    record["decision"]["score"] += 1
    lines[10] = json.dumps(record).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    assert run(str(path), as_json=False) == ExitCode.FAILED
    out = capsys.readouterr().out
    assert out.count("DIFFERS") == 1
    assert "1 came out differently" in out


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"{}\n", b"[" * 9999 + b"\n", b'{"v": 9}\n'])
def test_behind_a_damage_all_that_does_not_need_it_is_replayed(
    tmp_path: Path, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, 50)
    lines = path.read_bytes().splitlines(keepends=True)
    stateless = next(n for n in range(20, len(lines)) if b'"state":{"rules"' not in lines[n])
    again = next((n for n in range(stateless, 50) if b'"state":{"rules"' in lines[n]), len(lines))
    path.write_bytes(b"".join(lines[:stateless]) + damage + b"".join(lines[stateless:]))
    assert run(str(path), as_json=False) == ExitCode.FILE
    captured = capsys.readouterr()
    count = len(lines) - (again - stateless)
    assert f"{count} decisions replayed, 0 came out differently" in captured.out
    assert f"line {stateless + 1}" in captured.err
    assert f"without {again - stateless} records behind it" in captured.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\xff\xfe\n", "is no JSON"),
        (b"[" * 9999 + b"\n", "is no JSON"),
        (b'{"v": 1}', "is cut short"),
        (b'{"v": 9}\n', "is of version 9, and this program reads version 1"),
        (b"[]\n", "is no record: it is JSON of another shape"),
        (b'{"v": 1}\n', "is no record: it lacks '"),
        (b'{"v": 1, "wall": "x", "now": 0, "decision": {}, "observation": {}}\n', "another shape"),
        (b'{"v": 1, "wall": NaN, "now": 1e999}\n', "is no JSON"),
        (b" " * (FILE_BYTES_MAX + 1), "is longer than a journal: not read on"),
    ],
)
def test_what_is_wrong_with_a_line_is_a_sentence(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(line)
    with pytest.raises(Damaged) as caught:
        list(read(path))
    assert str(caught.value).startswith(f"{path} line 1 ") and said in str(caught.value)
    assert "Error" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"<domain>\n</domain>\n", b"\xff\0" * 900, b"{}"])
def test_a_file_that_is_no_journal_is_refused_as_one(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "some.xml"
    path.write_bytes(raw)
    with pytest.raises(CommandError, match="is it a journal of ha-agent") as caught:
        run(str(path), as_json=True)
    assert caught.value.code is ExitCode.FILE


def test_a_file_without_an_end_is_not_read_for_ever() -> None:
    with pytest.raises(Damaged, match="longer than a journal"):
        list(read(Path("/dev/zero")))


def test_of_a_journal_cut_short_all_but_the_last_record_is_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, 50)
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    assert run(str(path), as_json=False) == ExitCode.FILE
    captured = capsys.readouterr()
    assert "cut short" in captured.err
    records = data.count(b"\n")
    assert f"{records - 1} decisions replayed" in captured.out


def test_after_a_cut_the_next_agent_s_records_are_whole(tmp_path: Path) -> None:
    path = write(tmp_path, 20)
    data = path.read_bytes()
    lines = data.count(b"\n")
    path.write_bytes(data[:-10])
    write(tmp_path / "next", 20, seed=2)
    more = (tmp_path / "next" / FILE_NAME).read_bytes().count(b"\n")
    write(tmp_path, 20, seed=2)
    found = []
    with pytest.raises(Damaged, match=f"line {lines}"):
        for record in read(path):
            found.append(record)
    assert len(found) == lines - 1 + more


def test_a_disk_that_was_full_for_a_while_costs_what_was_not_written_alone(tmp_path: Path) -> None:
    """A torn record must not cost the records after it."""
    journal, state = Journal(tmp_path), AgentState(RULES)
    chance = random.Random(4)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = write(tmp_path / "whole", 90, seed=4)
    for number in range(90):
        if number == 30:
            size = (tmp_path / FILE_NAME).stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1500, limits[1]))
        if number == 60:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert str(tmp_path / FILE_NAME) in journal.problem
        seen = observation(chance, NOW_S + number)
        decision = decide(state, seen, NOW_S + number)
        journal.note(state, seen, NOW_S + number, decision)
        state = decision.state
        journal.flush(5)
    assert journal.lost > 0
    assert journal.problem == ""
    kept = {record.now_s for record in read(tmp_path / FILE_NAME)}
    lost = {record.now_s for record in read(whole)} - kept
    assert len(lost) == journal.lost
    assert all(NOW_S + 30 <= now_s < NOW_S + 60 for now_s in lost)
    assert run(str(tmp_path / FILE_NAME), as_json=True) == ExitCode.OK


def test_quiet_beats_are_written_once_a_minute(tmp_path: Path) -> None:
    """Each written beat can be checked by itself, whatever lies between."""
    journal, state = Journal(tmp_path), AgentState(RULES)
    for number in range(600):
        now_s = NOW_S + number
        seen = observe(local(UP, engine_taken_s=now_s), peers=(peer(2, timestamp=number),))
        decision = decide(state, seen, now_s)
        journal.note(state, seen, now_s, decision)
        state = decision.state
    journal.flush(5)
    records = list(read(tmp_path / FILE_NAME))
    assert 10 <= len(records) <= 16
    assert run(str(tmp_path / FILE_NAME), as_json=True) == ExitCode.OK


def test_files_are_bounded_and_each_can_be_read_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "FILE_BYTES_MAX", 20_000)
    write(tmp_path, 400)
    files = sorted(tmp_path.iterdir())
    assert len(files) == journal_module.FILES_MAX
    for file in files:
        assert file.stat().st_size <= 30_000
        assert run(str(file), as_json=True) == ExitCode.OK


def test_a_disk_that_cannot_be_written_loses_records_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    journal, state = Journal(tmp_path / "file"), AgentState(RULES)
    seen = observe()
    journal.note(state, seen, NOW_S, decide(state, seen, NOW_S))
    journal.flush(5)
    assert journal.lost == 1
    assert journal.problem.startswith(f"{tmp_path / 'file' / FILE_NAME}: ")


def test_the_command_line_knows_replay() -> None:
    assert _parser().parse_args(["replay", "file", "--json"]).file == "file"

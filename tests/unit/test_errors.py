# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each room's errors stand on one base, and a command ends on any of them in one line."""

from __future__ import annotations

import ast
import builtins
import json
from functools import cache
from pathlib import Path

import pytest

import agent.main
from broker.client.quick import BrokerDown
from broker.config.errors import ConfigError
from broker.daemon.errors import HaError
from broker.daemon.exit_codes import ExitCode
from broker.peers.errors import BadAnswer
from broker.whiteboard.errors import WhiteboardError
from tests.unit.source import parsed, read, statements

ROOT = Path(__file__).parents[2]
BUILTIN = {
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}
#: Files that raise an error of the language, and why it is right there. OSError is not looked at:
#: it means the same wherever it is raised, and names the file.
MSGSPEC = "msgspec makes a ValidationError of it, which names the key"
CALLER = "a check of one value, whose callers name where it stands"
SAME = "the same file takes it"
BARE = {
    "agent/storage/bounded.py": "a bug in the child process stays a bug here, with its traceback",
    "agent/registry/settings.py": SAME,
    "agent/setup/toml_text.py": SAME,
    "agent/status/read.py": "the status is then decoded by the real structures",
    "broker/config/addresses.py": CALLER,
    "broker/config/fence_relations.py": MSGSPEC,
    "broker/config/notify_relations.py": MSGSPEC,
    "broker/config/patterns.py": CALLER,
    "broker/config/storage_fence.py": MSGSPEC,
    "broker/daemon/bounded_search.py": CALLER,
    "broker/notify/render.py": SAME,
    "broker/whiteboard/engine_status.py": SAME,
    "scoring/timing.py": MSGSPEC,
}


@cache
def nodes() -> tuple[tuple[str, ast.AST], ...]:
    """Every class and every raise of every file, with the file's name."""
    return tuple(
        (str(path.relative_to(ROOT)), node)
        for package in ("scoring", "broker", "agent")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in statements(parsed(read(path)))
        if isinstance(node, ast.ClassDef | ast.Raise)
    )


@cache
def errors() -> dict[str, list[tuple[str, list[str]]]]:
    """The public error classes of each room, with the names of their bases."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    known = set(BUILTIN) | {"HaError"}
    classes = [
        (name, node)
        for name, node in nodes()
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    while True:
        more = [
            (name, node)
            for name, node in classes
            if node.name not in known
            and any(isinstance(base, ast.Name) and base.id in known for base in node.bases)
        ]
        if not more:
            return found
        for name, node in more:
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            found.setdefault(str(Path(name).parent), []).append((node.name, bases))
        known |= {node.name for _, node in more}


def test_every_error_stands_below_the_root() -> None:
    for room, classes in errors().items():
        for name, bases in classes:
            if name != "HaError":
                assert not BUILTIN.intersection(bases), f"{room}: {name} is an error of its own"


def test_every_room_has_one_base() -> None:
    for room, classes in errors().items():
        bases = [name for name, bases in classes if "HaError" in bases]
        # The building blocks stand on the root itself.
        assert len(bases) <= 1, f"{room}: {bases}"


def test_no_error_of_the_language_is_raised_but_where_it_is_taken() -> None:
    bare = {
        name
        for name in BUILTIN
        if not issubclass(getattr(builtins, name), OSError | AssertionError)
    }
    found = {
        name
        for name, node in nodes()
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id in bare
    }
    assert found - set(BARE) == set(), "raise the room's own error"
    assert set(BARE) - found == set(), "mended: take it off the list"


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.terminal.hanging.run_in_child", lambda: None)


@pytest.mark.usefixtures("_in_this_process")
@pytest.mark.parametrize(
    ("error", "code", "json_code"),
    [
        (WhiteboardError, ExitCode.STORAGE, "storage"),
        (ConfigError, ExitCode.CONFIG, "not-configured"),
        (BrokerDown, ExitCode.BROKER_DOWN, "broker-down"),
        (BadAnswer, ExitCode.FAILED, "failed"),
    ],
)
def test_an_error_that_no_command_takes_is_one_line_all_the_same(
    error: type[HaError],
    code: ExitCode,
    json_code: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> int:
        raise error("host3 cannot be read")

    monkeypatch.setattr("agent.verbs.run", fail)
    monkeypatch.setattr("sys.argv", ["ha-agent", "--json", "status"])
    with pytest.raises(SystemExit) as ended:
        agent.main.main()
    out, err = capsys.readouterr()
    assert ended.value.code == code
    assert err == "ha-agent: host3 cannot be read\n"
    assert json.loads(out)["error"] == {"code": json_code, "message": "host3 cannot be read"}


@pytest.mark.usefixtures("_in_this_process")
def test_a_file_that_a_command_needs_and_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`storage grow` looks at the whiteboard's kind before anything else."""
    monkeypatch.setattr("agent.verbs.run", lambda *_: Path("/nowhere/whiteboard").stat())
    monkeypatch.setattr("sys.argv", ["ha-agent", "storage", "grow", "--vms", "3"])
    with pytest.raises(SystemExit) as ended:
        agent.main.main()
    assert ended.value.code == ExitCode.FILE
    assert capsys.readouterr().err == "ha-agent: /nowhere/whiteboard: No such file or directory\n"

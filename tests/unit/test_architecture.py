# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rooms, and who may enter which: agent -> broker (few doors) -> scoring -> nothing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: The rooms of the broker that the agent may enter: none has a life of its own until it is called.
BROKER_DOORS = {"client", "config", "daemon", "lockspace", "peers", "registry", "vm"} | {
    "whiteboard",
    "wire",
}
#: Nothing in scoring/ may know the time, the outside world, or who listens.
NOT_IN_SCORING = {"time", "datetime", "asyncio", "logging", "os", "socket", "random", "threading"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module in ("broker", "agent", "scoring"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", files("scoring"), ids=str)
def test_scoring_imports_the_standard_library_only_and_no_effects(path: Path) -> None:
    for name in imports(path):
        top = name.partition(".")[0]
        assert top == "scoring" or top in sys.stdlib_module_names, name
        assert top not in NOT_IN_SCORING, name


@pytest.mark.parametrize("path", files("broker"), ids=str)
def test_the_broker_does_not_know_the_agent(path: Path) -> None:
    assert not [name for name in imports(path) if name.split(".")[0] in ("agent", "tests")]


@pytest.mark.parametrize("path", files("agent"), ids=str)
def test_the_agent_enters_the_broker_by_its_doors(path: Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] != "tests", name
        if parts[0] == "broker" and len(parts) > 1:
            assert parts[1] in BROKER_DOORS, name


@pytest.mark.parametrize("path", files("scoring") + files("broker") + files("agent"), ids=str)
def test_every_file_has_a_docstring_and_a_licence_line(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# SPDX-License-Identifier: LGPL-2.1-or-later\n"), path
    if path.stat().st_size > 100:
        assert ast.get_docstring(ast.parse(text)), path

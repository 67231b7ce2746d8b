# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rooms, and who may enter which: agent -> broker (few doors) -> scoring -> nothing.

Each rule is a function of a file's text, so that a planted violation shows that it catches one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.unit.source import parsed, read, statements

ROOT = Path(__file__).parents[2]
PACKAGES = ("scoring", "broker", "agent")
#: The rooms of the broker that the agent may enter: none has a life of its own until it is called.
BROKER_DOORS = {"client", "config", "daemon", "lockspace", "peers", "registry", "vm"} | {
    "whiteboard",
    "wire",
}
#: What scoring/ may import of the standard library: nothing of it knows the time, the outside
#: world, or who listens.
PURE = {"__future__", "collections", "dataclasses", "enum", "functools", "itertools", "math"} | {
    "types",
    "typing",
}
#: The functions of the language that reach the outside world, or code that no import names.
EFFECTS = {"open", "print", "input", "exec", "eval", "compile", "breakpoint", "__import__"}
#: Imports that no rule can see, and why each is right there.
BY_NAME = {"agent/fence/ipmi.py": "pyghmi, under a patience of its own; no module of the project"}


@cache
def imports(text: str) -> tuple[str, ...]:
    """The modules that a file imports; a relative import begins with its dots."""
    return tuple(_imports(text))


def _imports(text: str) -> Iterator[str]:
    for node in statements(parsed(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            if node.module in PACKAGES:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def breaches(name: str, text: str) -> list[str]:
    """What a file of this name imports or calls although its package must not."""
    package = name.partition("/")[0]
    found = [one for one in imports(text) if not _may_import(package, one)]
    if name not in BY_NAME:
        found += [one for one in imports(text) if one.partition(".")[0] == "importlib"]
    if package == "scoring":
        calls = (node.func for node in ast.walk(parsed(text)) if isinstance(node, ast.Call))
        found += [one.id for one in calls if isinstance(one, ast.Name) and one.id in EFFECTS]
    return found


def _may_import(package: str, module: str) -> bool:
    top, _, rest = module.partition(".")
    if not top or top == "tests":
        return False
    match package:
        case "scoring":
            return top == "scoring" or top in PURE
        case "broker":
            return top != "agent"
        case _:
            return top != "broker" or not rest or rest.partition(".")[0] in BROKER_DOORS


def headless(text: str) -> list[str]:
    """What the head of a file lacks."""
    licence = text.startswith("# SPDX-License-Identifier: LGPL-2.1-or-later\n")
    tree = parsed(text)
    docstring = not tree.body or ast.get_docstring(tree)
    return ["licence"] * (not licence) + ["docstring"] * (not docstring)


@cache
def files() -> dict[str, str]:
    """The text of each file of the product, by its name."""
    return {
        str(path.relative_to(ROOT)): read(path)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@pytest.mark.parametrize("name", files())
def test_each_package_imports_only_what_it_may(name: str) -> None:
    assert breaches(name, files()[name]) == []


@pytest.mark.parametrize("name", files())
def test_every_file_has_a_docstring_and_a_licence_line(name: str) -> None:
    assert headless(files()[name]) == []


def test_the_imports_by_name_are_still_there() -> None:
    used = {name for name, text in files().items() if "importlib" in imports(text)}
    assert used == set(BY_NAME)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("scoring/vm/a.py", "import time"),
        ("scoring/vm/a.py", "from time import monotonic"),
        ("scoring/a.py", "import subprocess"),
        ("scoring/a.py", "from pathlib import Path"),
        ("scoring/a.py", "import msgspec"),
        ("scoring/a.py", "from broker.wire import limits"),
        ("scoring/a.py", "def f() -> None:\n    from agent import ports"),
        ("scoring/a.py", "x = open('/etc/hosts')"),
        ("scoring/a.py", "x = __import__('time')"),
        ("broker/api/a.py", "import agent.main"),
        ("broker/api/a.py", "from agent import ports"),
        ("broker/api/a.py", "from tests.unit import builders"),
        ("broker/daemon/a.py", "from ..monitors import vm"),
        ("broker/daemon/a.py", "from . import worker"),
        ("broker/daemon/a.py", "import importlib"),
        ("broker/daemon/a.py", "from importlib.util import find_spec"),
        ("agent/vm/a.py", "from broker.monitors import vm"),
        ("agent/vm/a.py", "import broker.beat"),
        ("agent/vm/a.py", "from broker import broker"),
        ("agent/vm/a.py", "if TYPE_CHECKING:\n    from broker.api import v1"),
        ("agent/vm/a.py", "import tests.fakes"),
    ],
)
def test_a_planted_breach_is_found(name: str, line: str) -> None:
    assert breaches(name, line) != []


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ('"""What it is."""\n', ["licence"]),
        ("# SPDX-License-Identifier: LGPL-2.1-or-later\nX = 1\n", ["docstring"]),
        ("# SPDX-License-Identifier: LGPL-2.1-or-later\n", []),
        ("X = 1\n", ["licence", "docstring"]),
    ],
)
def test_a_file_without_its_head_is_found(text: str, lacks: list[str]) -> None:
    assert headless(text) == lacks

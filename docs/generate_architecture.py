# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python docs/generate_architecture.py`: writes the picture into docs/architecture.md.

It is drawn from the imports of the code: a box for each room, an arrow from a room to each room
that it enters. An arrow that a path of other arrows makes clear is left out. A test fails while
page and code differ.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn from the imports -->\n", "<!-- end of the picture -->\n"
PACKAGES = ("scoring", "broker", "agent")
#: Files beside the rooms that the rooms stand on; the other files beside them are the wiring.
GROUND = {
    "scoring": (
        "vm_facts",
        "observation",
        "decision",
        "rules",
        "timing",
        "lease_times",
        "storage_word",
    ),
    "broker": (),
    "agent": ("ports",),
}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str, root: Path = ROOT) -> str:
    """The room that a module is in: its folder; of a file beside the folders its package, or
    `PACKAGE.*` where it is of the ground."""
    package, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    if first and (root / package / first).is_dir():
        return f"{package}.{first}"
    return f"{package}.*" if first in GROUND[package] else package


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The project's modules that a file imports when it runs; not those for its types alone."""
    for node in _imports(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (n if n in known else node.module for n in names if node.module in known)


@cache
def _imports(path: Path) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """The import statements of a file."""
    found = _statements(ast.parse(path.read_text()).body)
    return tuple(node for node in found if isinstance(node, ast.Import | ast.ImportFrom))


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Every statement, those inside others too; none of `if TYPE_CHECKING`. An import is a
    statement, so that expressions, most of a tree, need no look."""
    for node in body:
        test = getattr(node, "test", None)
        if isinstance(node, ast.If) and isinstance(test, ast.Name) and test.id == "TYPE_CHECKING":
            continue
        yield node
        for inner in ("body", "handlers", "cases", "orelse", "finalbody"):
            yield from _statements(getattr(node, inner, ()))


@cache
def arrows(root: Path = ROOT) -> dict[str, dict[str, set[str]]]:
    """For each room the rooms that it enters, each with the modules that do so."""
    known = modules(root)
    found: dict[str, dict[str, set[str]]] = {room_of(module, root): {} for module in known}
    for module, path in known.items():
        here = room_of(module, root)
        for other in imported(path, known):
            if (there := room_of(other, root)) != here:
                found[here].setdefault(there, set()).add(module)
    return found


def picture(root: Path = ROOT) -> str:
    """The rooms and their arrows, for Mermaid."""
    found = {room: set(others) for room, others in arrows(root).items()}
    lines = ["```mermaid", "flowchart TD"]
    for package in PACKAGES:
        lines.append(f"  subgraph {package}")
        for room in sorted(found):
            if room.split(".")[0] == package:
                lines.append(f"    {_box(room)}[{_title(room)}]")
        lines.append("  end")
    for room in sorted(found):
        lines += [
            f"  {_box(room)} --> {_box(other)}"
            for other in sorted(found[room])
            if not _is_clear(found, room, other)
        ]
    return "\n".join([*lines, "```"]) + "\n"


def _box(room: str) -> str:
    return room.replace(".*", "_ground").replace(".", "_") if "." in room else f"{room}_files"


def _title(room: str) -> str:
    package, _, name = room.partition(".")
    if name == "*":
        return ", ".join(GROUND[package])
    return name or f"{package}/*.py"


def _is_clear(found: dict[str, set[str]], room: str, other: str) -> bool:
    """Whether another way leads from `room` to `other`."""
    seen, ahead = {room}, [each for each in found[room] if each != other]
    while ahead:
        here = ahead.pop()
        if here == other:
            return True
        if here not in seen:
            seen.add(here)
            # Through a circle every room would be clear: such a pair keeps its arrow.
            ahead += [each for each in found[here] if room not in found[each]]
    return False


def rooms(root: Path = ROOT) -> str:
    """What lives in each room: the first sentence of its `__init__.py`."""
    lines = ["| room | what lives there |", "| --- | --- |"]
    for room in sorted(arrows(root)):
        if "." in room and not room.endswith("*"):
            folder = room.replace(".", "/")
            text = ast.get_docstring(ast.parse((root / folder / "__init__.py").read_text())) or ""
            first = " ".join(text.partition("\n\n")[0].split())
            lines.append(f"| `{folder}/` | {first} |")
    return "\n".join(lines) + "\n"


def rendered(text: str) -> str:
    """The page with its picture drawn anew."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}{picture()}\n{rooms()}{END}{tail}"


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    FILE.write_text(rendered(FILE.read_text()))

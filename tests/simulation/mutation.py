# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which changes of the fencing code does a story of a whole cluster notice?

One change at a time is made in memory (a comparison, an `and`, a `not`, a truth or a number), and
the stories of preconditions.py are told that run through the changed line, the shortest
first, until one does not hold any more: the change is killed then. What no story notices
survives; unit tests may hold it all the same (`make mutation`).

What has been found is kept in a file, a line for each change, and is not run again while the line
of code is the same; a survivor is, where a story runs through it that did not then. Equal lines of
several functions, and equal words within one, are changes of their own.
"""

from __future__ import annotations

import ast
import copy
import importlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import msgspec

from tests.simulation.scenario import Player, parse

#: What may be asked about.
MODULES = {
    name: f"scoring.hosts.{name}"
    for name in ("evidence", "takeover", "last_look", "fencing", "switch_on")
} | {"agent_last_look": "agent.last_look"}
_COMPARED: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


class Kept(msgspec.Struct, frozen=True):
    """What became of one change. `killer`: the story that noticed it; "": none, or none runs
    through it (`stories` 0). `text`: the line of code. `function`, `nth`: see Change. `told`: the
    stories that run through it."""

    module: str
    line: int
    change: str
    text: str
    stories: int
    killer: str
    function: str = ""
    nth: int = 0
    told: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """`node`: the how-manieth node of the tree; `line`: where it is, from 1 on; `function`: in
    which function, with its class; `nth`: which one of those that read the same there, from 0 on.
    """

    node: int
    line: int
    what: str
    function: str
    nth: int


def changes(source: str) -> Iterator[Change]:
    """All changes of the functions of a file. A text is none: people read it."""
    tree = ast.parse(source)
    inside = dict(_functions_of_nodes(tree))
    for text in (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)):
        for node in ast.walk(text):
            inside.pop(id(node), None)
    lines = source.splitlines()
    met: Counter[tuple[str, str, str]] = Counter()
    for number, node in enumerate(ast.walk(tree)):
        what = _change_of(node)
        if id(node) in inside and what:
            assert isinstance(node, ast.expr)
            key = inside[id(node)], lines[node.lineno - 1].strip(), what
            yield Change(number, node.lineno, what, key[0], met[key])
            met[key] += 1


def _functions_of_nodes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The id of each node within a function, with that function's name behind its class's."""

    def walk(node: ast.AST, names: tuple[str, ...], is_inside: bool) -> Iterator[tuple[int, str]]:
        if is_inside:
            yield id(node), ".".join(names)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names, is_inside = (*names, node.name), isinstance(node, ast.FunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, names, is_inside)

    return walk(tree, (), False)


def _change_of(node: ast.AST) -> str:
    """The change of a node in words; "": it is not changed."""
    match node:
        case ast.Compare():
            return f"{ast.unparse(node)}: compared otherwise"
        case ast.BoolOp():
            return f"{ast.unparse(node)}: and <-> or"
        case ast.UnaryOp(op=ast.Not()):
            return f"{ast.unparse(node)}: without not"
        case ast.Constant(value=bool(value)):
            return f"{value} -> {not value}"
        case ast.Constant(value=int(value) | float(value)):
            return f"{value} -> {value + 1}"
        case _:
            return ""


def changed(source: str, change: Change, path: str) -> CodeType:
    """The file with that change, compiled."""
    tree = ast.parse(source)
    node = list(ast.walk(tree))[change.node]
    match node:
        case ast.Compare():
            node.ops = [_COMPARED[type(op)]() for op in node.ops]
        case ast.BoolOp():
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        case ast.UnaryOp():
            _become(node, ast.IfExp(node.operand, ast.Constant(True), ast.Constant(False)))
        case ast.Constant(value=bool(value)):
            node.value = not value
        case ast.Constant(value=int(value) | float(value)):
            node.value = value + 1
    return compile(ast.fix_missing_locations(tree), path, "exec")


def _become(node: ast.AST, other: ast.AST) -> None:
    place = {name: getattr(node, name) for name in ("lineno", "col_offset")}
    node.__class__ = other.__class__
    node.__dict__.clear()
    node.__dict__.update(copy.copy(other.__dict__) | place)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    for one in vars(module).values():
        if getattr(one, "__module__", None) != module.__name__:
            continue
        members = vars(one).values() if isinstance(one, type) else (one,)
        for each in members:
            found = each.fget if isinstance(each, property) else each
            if isinstance(found, FunctionType):
                yield found


def _codes(code: CodeType) -> Iterator[CodeType]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from _codes(each)


def put_in(module: ModuleType, code: CodeType) -> None:
    """Let the module's functions be those of that code; whoever has imported one has them too."""
    by_name = {each.co_qualname: each for each in _codes(code)}
    for function in _functions(module):
        new = by_name.get(function.__code__.co_qualname)
        if new is not None and new.co_freevars == function.__code__.co_freevars:
            function.__code__ = new


@dataclass(slots=True)
class Story:
    """A story by its name; `lines`: what it runs through, by file; `cpu_s`: what it took."""

    name: str
    text: str
    lines: dict[str, set[int]]
    cpu_s: float = 0.0

    def tell(self) -> None:
        """Raises what it ends with where it does not hold."""
        Player(parse("story.txt", f"# {self.name}.\n{self.text}")).play()

    def follow(self, files: Sequence[str]) -> None:
        """Tell it once and remember which lines of these files it runs through."""
        self.lines = {file: set() for file in files}

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            self.lines[frame.f_code.co_filename].add(frame.f_lineno)
            return line

        def call(frame: FrameType, event: str, argument: Any) -> Any:
            return line if frame.f_code.co_filename in self.lines else None

        began_s = time.process_time()
        sys.settrace(call)
        try:
            self.tell()
        finally:
            sys.settrace(None)
        self.cpu_s = time.process_time() - began_s


def run(
    names: Sequence[str],
    stories: Sequence[Story],
    kept: Path,
    only: str,
    cpu_minutes: float,
    say: Callable[[str], None],
) -> list[Kept]:
    """Try all changes of these of MODULES that are not in the file `kept` yet; what is known then.

    `only`: changes in functions with that in their name alone; "": all.
    """
    lines = kept.read_bytes().splitlines() if kept.exists() else []
    known = [msgspec.json.decode(line, type=Kept) for line in lines]
    modules = {name: importlib.import_module(MODULES[name]) for name in names}
    files = {name: str(module.__file__) for name, module in modules.items()}
    until_s = time.process_time() + 60.0 * cpu_minutes
    for story in stories:
        story.follow([*files.values()])
    found: list[Kept] = []
    for name, module in modules.items():
        source = Path(files[name]).read_text()
        for change in _wanted(source, only):
            text = source.splitlines()[change.line - 1].strip()
            through = _through(stories, files[name], change)
            before = _known(known, name, change, text)
            told = {story.name for story in through}
            if before is None or (not before.killer and not told <= {*before.told}):
                if time.process_time() > until_s:
                    say(f"{name}:{change.line}: the time is over")
                    return found
                before = _try(name, module, source, change, text, through, files[name])
                with kept.open("ab") as file:
                    file.write(msgspec.json.encode(before) + b"\n")
            found.append(before)
            say(f"{name}:{before.line}: {before.change}: {before.killer or 'SURVIVES'}")
    return found


def _wanted(source: str, only: str) -> Iterator[Change]:
    ranges = [
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and only in node.name
    ]
    for change in changes(source):
        if any(first <= change.line <= last for first, last in ranges):
            yield change


def _known(known: Sequence[Kept], name: str, change: Change, text: str) -> Kept | None:
    for one in reversed(known):
        its = (one.module, one.function, one.change, one.text, one.nth)
        if its == (name, change.function, change.what, text, change.nth):
            return one
    return None


def _through(stories: Sequence[Story], file: str, change: Change) -> list[Story]:
    """The stories that run through the changed line, the shortest first."""
    through = (story for story in stories if change.line in story.lines[file])
    return sorted(through, key=lambda story: story.cpu_s)


def _try(
    name: str,
    module: ModuleType,
    source: str,
    change: Change,
    text: str,
    through: Sequence[Story],
    file: str,
) -> Kept:
    put_in(module, changed(source, change, file))
    killer = ""
    try:
        for story in through:
            try:
                story.tell()
            except Exception as error:  # whatever it ends with: it does not hold any more
                killer = f"{story.name} ({type(error).__name__})"
                break
    finally:
        put_in(module, compile(source, file, "exec"))
    told = tuple(story.name for story in through)
    function, nth = change.function, change.nth
    return Kept(name, change.line, change.what, text, len(through), killer, function, nth, told)

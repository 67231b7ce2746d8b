# SPDX-License-Identifier: LGPL-2.1-or-later
"""The house: which room may enter which, how large things may be, and the page that draws it."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import tree_sitter_javascript
from tree_sitter import Language, Node, Parser

from tests.unit.source import parsed, read, statements

ROOT = Path(__file__).parents[2]
HOUSE: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "generate_architecture.py"))
#: From the ground up: a room enters those before it. `PACKAGE.*` are the files beside the rooms
#: on which they stand; the last of each package are those that wire them.
ORDER = {
    "scoring": ["scoring.*", "scoring.hosts", "scoring.vm", "scoring"],
    "broker": [
        "broker.daemon",
        "broker.wire",
        "broker.config",
        "broker.client",
        "broker.vm",
        "broker.whiteboard",
        "broker.registry",
        "broker.lockspace",
        "broker.monitors",
        "broker.peers",
        "broker.maintenance",
        "broker.this_host",
        "broker.events",
        "broker.notify",
        "broker.exchange",
        "broker.status",
        "broker.api",
        "broker",
    ],
    "agent": [
        "agent.*",
        "agent.terminal",
        "agent.fence",
        "agent.leases",
        "agent.storage",
        "agent.vm",
        "agent.registry",
        "agent.journal",
        "agent.status",
        "agent.certificates",
        "agent.invite",
        "agent.setup",
        "agent.ovirt",
        "agent.commands",
        "agent.doctor",
        "agent",
    ],
}
#: What runs in a browser.
SCRIPTS = [*(ROOT / "broker" / "api").rglob("*.js"), *(ROOT / "packaging").rglob("*.js")]
#: Arrows that still climb: there are none any more, and none may come.
CLIMBS: set[tuple[str, str]] = set()
#: What is larger than it should be, and how large: this list may only shrink.
FILE_LINES, FUNCTION_LINES, PARAMETERS = 500, 70, 8
LARGER = {"packaging/build.py": 539, "broker/api/page/dashboard.js": 1103}
#: The kinds of functions in JavaScript's tree, as its grammar calls them.
SCRIPT_FUNCTIONS = {
    "arrow_function",
    "function_declaration",
    "function_expression",
    "generator_function",
    "generator_function_declaration",
    "method_definition",
}


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {room for rooms in ORDER.values() for room in rooms}
    assert set(HOUSE["arrows"]()) == rooms


def climbs(arrows: dict[str, dict[str, set[str]]]) -> set[tuple[str, str]]:
    """The arrows that lead to a room above their own."""
    return {
        (room, other)
        for room, others in arrows.items()
        for other in others
        for order in ORDER.values()
        if room in order and other in order and order.index(other) > order.index(room)
    }


def circles(imports: dict[str, set[str]]) -> list[str]:
    """The modules from which imports lead back to themselves; those for types alone are none."""
    found = []
    for start in imports:
        reached, ahead = set(), [*imports[start]]
        while ahead:
            module = ahead.pop()
            if module not in reached:
                reached.add(module)
                ahead += imports.get(module, ())
        found += [start] * (start in reached)
    return found


def sizes(name: str, text: str) -> dict[str, int]:
    """What is above its limit in a file of this name."""
    found = {}
    if (lines := text.count("\n")) > FILE_LINES:
        found[name] = lines
    for node in statements(parsed(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES:
                found[f"{name}:{node.name}"] = lines
            given = node.args
            count = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs) - 1
            if node.name == "__init__" and count > PARAMETERS:
                found[f"{name}:__init__()"] = count
    return found


def script_sizes(name: str, text: str) -> dict[str, int]:
    """What is above its limit in a script of this name, by the grammar of JavaScript."""
    tree = Parser(Language(tree_sitter_javascript.language())).parse(text.encode())
    assert not tree.root_node.has_error, f"{name} is no JavaScript that the grammar knows"
    found = {}
    if (lines := text.count("\n")) > FILE_LINES:
        found[name] = lines
    ahead = [tree.root_node]
    while ahead:
        node = ahead.pop()
        ahead += node.children
        lines = node.end_point.row - node.start_point.row + 1
        if node.type in SCRIPT_FUNCTIONS and lines > FUNCTION_LINES:
            found[f"{name}:{_script_name(node)}"] = lines
    return found


def _script_name(node: Node) -> str:
    """The function's own name, or that of the constant which it is; for another one, its line."""
    own = node.child_by_field_name("name")
    if own is None and node.parent is not None and node.parent.type == "variable_declarator":
        own = node.parent.child_by_field_name("name")
    if own is None or own.text is None:
        return f"line {node.start_point.row + 1}"
    return own.text.decode()


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = HOUSE["modules"]()
    imports = {name: {*HOUSE["imported"](path, modules)} - {name} for name, path in modules.items()}
    assert circles(imports) == []


def test_no_room_enters_one_above_it() -> None:
    now = climbs(HOUSE["arrows"]())
    assert now - CLIMBS == set(), "a new arrow that climbs"
    assert CLIMBS - now == set(), "mended: take it off the list"


def test_nothing_grows_above_its_limit() -> None:
    now: dict[str, int] = {}
    tools = [*(ROOT / "packaging").glob("*.py"), *(ROOT / "docs").glob("*.py")]
    for path in (*HOUSE["modules"]().values(), *tools):
        now |= sizes(str(path.relative_to(ROOT)), read(path))
    for path in SCRIPTS:
        now |= script_sizes(str(path.relative_to(ROOT)), read(path))
    assert {name: size for name, size in now.items() if size > LARGER.get(name, 0)} == {}
    shrunk = {name: now.get(name) for name, size in LARGER.items() if now.get(name, 0) < size}
    assert shrunk == {}, "smaller than the list says: write the new size, or take it off"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1\n" * 501, {"a.py": 501}),
        ("def f() -> None:\n" + "    x = 1\n" * 70, {"a.py:f": 71}),
        ("class A:\n    async def f(self) -> None:\n" + "        x = 1\n" * 70, {"a.py:f": 71}),
        (
            "class A:\n    def __init__(self, a, b, /, c, d, e, f, *, g, h, i): ...\n",
            {"a.py:__init__()": 9},
        ),
        ("class A:\n    def __init__(self, a, b, /, c, d, e, f, *, g, h): ...\n", {}),
    ],
)
def test_what_is_too_large_is_found(text: str, found: dict[str, int]) -> None:
    assert sizes("a.py", text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1;\n" * 501, {"a.js": 501}),
        ("function f() {\n" + "  x = 1;\n" * 69 + "}\n", {"a.js:f": 71}),
        ("function f() {\n" + "  x = '}'; // }\n" * 68 + "}\n", {}),
        ("const f = async () => {\n" + "  x = `${1}`;\n" * 69 + "};\n", {"a.js:f": 71}),
        ("function* f() {\n" + "  yield 1;\n" * 69 + "}\n", {"a.js:f": 71}),
        ("class A {\n  f() {\n" + "    x = 1;\n" * 69 + "  }\n}\n", {"a.js:f": 71}),
        ("g(() => {\n" + "  x = 1;\n" * 69 + "});\n", {"a.js:line 1": 71}),
    ],
)
def test_what_is_too_large_in_a_script_is_found(text: str, found: dict[str, int]) -> None:
    assert script_sizes("a.js", text) == found


def test_every_script_of_the_product_is_looked_at() -> None:
    names = {path.name for path in SCRIPTS}
    assert names == {"dashboard.js", "ha-agent.js"}


def test_a_planted_arrow_that_climbs_is_found(tmp_path: Path) -> None:
    """An arrow inside a function counts; one for types alone does not."""
    for folder in ("broker/daemon", "broker/monitors", "broker/peers"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "broker/monitors/vm.py").touch()
    (tmp_path / "broker/peers/table.py").touch()
    worker = tmp_path / "broker/daemon/worker.py"
    worker.write_text(
        "def f() -> None:\n    from broker.monitors import vm\n"
        "if TYPE_CHECKING:\n    from broker.peers import table\n"
    )
    assert climbs(HOUSE["arrows"](tmp_path)) == {("broker.daemon", "broker.monitors")}


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]


def test_the_page_draws_what_the_imports_say() -> None:
    page = HOUSE["FILE"].read_text()
    assert page == HOUSE["rendered"](page), "python docs/generate_architecture.py"


def places() -> dict[str, list[str]]:
    """The rows of the page's last table: what is new -> the files and folders that it touches."""
    table = HOUSE["FILE"].read_text().partition("## Where to add what")[2]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", table, re.M)[2:]
    return {new: re.findall(r"`([^` ]+(?:/|\.py|\.md))`", where) for new, where in rows}


def test_what_is_new_touches_at_most_four_places_and_each_of_them_exists() -> None:
    found = places()
    wanted = ("monitor", "config key", "fact", "verb", "reason", "fence driver", "notice")
    assert all(any(word in new for new in found) for word in wanted), list(found)
    for new, touched in found.items():
        assert 1 <= len(touched) <= 4, (new, touched)
        assert [place for place in touched if not (ROOT / place).exists()] == [], new


# Each process that runs tests side by side makes this list: not from the imports of all files.
@pytest.mark.parametrize(
    "room", [r for rooms in ORDER.values() for r in rooms if "." in r and "*" not in r]
)
def test_every_room_says_what_lives_in_it(room: str) -> None:
    init = ROOT / room.replace(".", "/") / "__init__.py"
    tree = ast.parse(init.read_text())
    assert ast.get_docstring(tree), init


def test_what_the_status_command_loads_stays_light() -> None:
    """`ha-agent --status` passes these rooms: an import there would be paid for at each call."""
    for room in ("broker/config", "broker/client", "broker/wire", "agent/status"):
        body = ast.parse((ROOT / room / "__init__.py").read_text()).body
        assert all(isinstance(node, ast.Expr) for node in body), room


def test_no_test_file_is_imported() -> None:
    """What several of them make is in tests/fakes, in builders.py, or in a module beside them."""
    statement = re.compile(r"^ *(?:from +(\S+) +)?import +(\([^)]*\)|[^\n]*)", re.MULTILINE)
    found = [
        f"{path.relative_to(ROOT)}: {module} {names}"
        for path in (ROOT / "tests").rglob("*.py")
        for module, names in statement.findall(path.read_text())
        if re.search(r"(?:^|[ .(])test_", f"{module} {names}")
    ]
    assert found == []

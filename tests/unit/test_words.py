# SPDX-License-Identifier: LGPL-2.1-or-later
"""The words of the source and of the documents: plain, the field's, read once.

docs/glossary.md has one word for one thing. What is counted here may only shrink: where a room has
fewer than its number, the number is wrong too.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from tests.unit.source import parsed, read, statements

ROOT = Path(__file__).parents[2]
#: How no docstring and no comment begins: the reader does not know yet what it is about.
RIDDLES = re.compile(r"(Of|The same|It|Its|They|Their|Those|And|But|Or|Nor|Neither|Once a)\b")
#: A status is published, a line is logged, a person is notified, a fact is known or remembered, a
#: page shows it: "told" is all of these, and so none. "gone by" stands for used, or in force.
WORDS = {
    "told": re.compile(r"(?<![a-z])(?:un)?told(?![a-z])", re.IGNORECASE),
    "tell": re.compile(r"(?<![a-z])(?:tells?|telling|teller)(?![a-z])", re.IGNORECASE),
    "gone by": re.compile(r"\b(?:gone|goes?|going|went)\s+by\b(?! itself)", re.IGNORECASE),
}
#: What is left of the words, by room or document: these tables may only shrink.
LEFT: dict[str, dict[str, int]] = {
    "told": {
        "broker/api": 3,
        "broker/exchange": 1,
        "broker/notify": 1,
        "broker/status": 1,
        "broker/wire": 4,
        "agent": 2,
        "docs/metrics.md": 1,
        "docs/status.md": 2,
    },
    # In agent/fence it is a command of Ceph.
    "tell": {"agent/ovirt": 2, "agent/fence": 1},
    "gone by": {},
}
HOMELY_LEFT: set[str] = set()
#: Names that are homely where the field has one.
HOMELY = re.compile(
    r"_?(Hands?|Lookout|\w*Seer|Reacher|Behind|Tally|Door|Doorway|FrontDoor|Guest|(Un)?[Tt]old\w*|\w*Teller)"
)


def sources() -> list[Path]:
    return [p for top in ("scoring", "broker", "agent") for p in sorted((ROOT / top).rglob("*.py"))]


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def texts(path: Path) -> list[str]:
    """The docstrings of a file, and its comments; comment lines that follow each other are one."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = [node for node in statements(parsed(read(path))) if isinstance(node, kinds)]
    found = [text for node in nodes if (text := ast.get_docstring(node)) is not None]
    lines = [line.strip() for line in read(path).splitlines()]
    for is_comment, block in groupby(lines, key=lambda line: line.startswith("#")):
        if is_comment:
            found.append(" ".join(line.lstrip("#:").strip() for line in block))
    return found


def places() -> Iterator[tuple[str, Path]]:
    """Each file with what it is counted under: its room, or the document."""
    for path in sources() + documents():
        place = path if path.suffix == ".md" else path.parent
        yield str(place.relative_to(ROOT)), path


def counted(word: str) -> dict[str, int]:
    """How often a word stands in each room, and in each document."""
    found: Counter[str] = Counter()
    for place, path in places():
        found[place] += len(WORDS[word].findall(read(path)))
    return {place: count for place, count in found.items() if count}


def riddles() -> dict[str, list[str]]:
    """The texts of each file that begin as one, those of the tests among them."""
    files = [*sources(), *sorted((ROOT / "tests").rglob("*.py"))]
    found = {path: [text for text in texts(path) if RIDDLES.match(text)] for path in files}
    return {str(path.relative_to(ROOT)): begun for path, begun in found.items() if begun}


def homely() -> set[str]:
    """The types whose names are."""
    return {
        node.name
        for path in sources()
        for node in statements(parsed(read(path)))
        if isinstance(node, ast.ClassDef) and HOMELY.fullmatch(node.name)
    }


def test_no_text_begins_as_a_riddle() -> None:
    assert riddles() == {}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_says_too_little_becomes_rarer(word: str) -> None:
    assert counted(word) == LEFT[word]


def test_no_type_has_a_homely_name() -> None:
    assert homely() == HOMELY_LEFT


@pytest.mark.parametrize(
    "text, first",
    [
        ('"""Of a host."""\n', "Of a host."),
        ("#: Of a host, and\n#: of a VM.\nx = 1\n", "Of a host, and of a VM."),
        ('def f() -> None:\n    """The same for a VM."""\n', "The same for a VM."),
        ('def f() -> None:\n    """Those that are up."""\n', "Those that are up."),
        ("# It is a part of the status.\n", "It is a part of the status."),
    ],
)
def test_a_riddle_is_found(text: str, first: str, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(text)
    (found,) = [text for text in texts(path) if RIDDLES.match(text)]
    assert found == first

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The source that tests read: each file is parsed once in a process, and walked no further than
needed. A walk over all nodes (`ast.walk`) costs ten times what one over the statements does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

#: What of a statement holds further statements.
INNER = ("body", "handlers", "cases", "orelse", "finalbody")


@cache
def parsed(text: str) -> ast.Module:
    """The syntax tree of a file's text; do not change it."""
    return ast.parse(text)


@cache
def read(path: Path) -> str:
    """The text of a file that does not change while the tests run."""
    return path.read_text()


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """The tree itself, and all statements in it: imports, classes, functions, raises are all
    statements. No expression has a statement inside."""
    yield tree
    for name in INNER:
        for node in getattr(tree, name, ()):
            yield from statements(node)

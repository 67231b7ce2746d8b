# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rows of text for a terminal."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from typing import TextIO

#: A column that is narrower than this is of no use for words.
COLUMN_MIN = 16


def wants_colour() -> bool:
    """Whether to use colours: on a terminal that can, unless https://no-color.org is asked for."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "", "dumb")


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest cell, a line for each row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def wrapped(line: str, width: int | None, indent: int) -> list[str]:
    """A line in parts of at most `width` columns, broken between words; later parts begin after
    `indent` columns, or fewer where too few would be left. `width` None: the line as it is."""
    if width is None or len(line) <= width:
        return [line]
    hanging = indent if width - indent >= COLUMN_MIN else min(4, width // 4)
    return textwrap.wrap(
        line, max(width, 1), subsequent_indent=" " * hanging, break_on_hyphens=False
    )


def say(line: str, indent: int = 0, to: TextIO | None = None, colour: str = "") -> None:
    """Print a line (to standard output); on a terminal it goes on below, after `indent` columns,
    between two words. `colour`: the terminal's code for it; "": none."""
    stream = sys.stdout if to is None else to
    # A terminal that does not know its width says 0.
    width = os.get_terminal_size(stream.fileno()).columns or None if stream.isatty() else None
    text = "\n".join(wrapped(line, width, indent))
    print(f"\x1b[{colour}m{text}\x1b[0m" if colour else text, file=stream, flush=True)

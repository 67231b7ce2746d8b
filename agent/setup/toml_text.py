# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes keys in the text of a TOML file and keeps its comments. Pure.

It is made for this program's own files: one key a line, `[table]` lines of their own, and keys that
stand after a # with their default, as in the commented file that the packages install.
"""

from __future__ import annotations

import json
import re

Value = bool | int | float | str | tuple[str, ...]


def with_keys(text: str, values: dict[str, Value | None]) -> str:
    """The text with each `table.key` (or top-level `key`) set; None: the key is removed."""
    for name, value in values.items():
        table, _, key = name.rpartition(".")
        text = _with_key(text, table, key, value)
    return text


def _with_key(text: str, table: str, key: str, value: Value | None) -> str:
    lines = text.splitlines()
    start, end = _table(lines, table)
    line = f"{key} = {written(value)}" if value is not None else ""
    active = re.compile(rf"\s*{re.escape(key)}\s*=")
    commented = re.compile(rf"#\s*{re.escape(key)}\s*=")
    for pattern in (active, commented):
        for place in range(start, end):
            if pattern.match(lines[place]):
                if value is None:
                    if pattern is active:
                        lines[place] = f"#{lines[place].lstrip()}"
                else:
                    lines[place] = line
                return "\n".join(lines) + "\n"
    if value is None:
        return text
    if start > len(lines):
        lines += ["", f"[{table}]"] if lines else [f"[{table}]"]
        lines.append(line)
    else:
        while end > start and not lines[end - 1].strip():
            end -= 1
        lines.insert(end, line)
    return "\n".join(lines) + "\n"


def _table(lines: list[str], table: str) -> tuple[int, int]:
    """The first line after the table's head, and the line of the next head; both after the end
    where the table does not exist."""
    heads = [n for n, line in enumerate(lines) if re.match(r"\s*#?\[", line)]
    if not table:
        first = heads[0] if heads else len(lines)
        return 0, first
    for place in heads:
        if lines[place].split("#")[0].strip() == f"[{table}]":
            return place + 1, next((n for n in heads if n > place), len(lines))
    return len(lines) + 1, len(lines) + 1


def written(value: Value) -> str:
    """A value as TOML: JSON's strings, numbers and arrays are TOML's too."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)

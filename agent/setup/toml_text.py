# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes keys in the text of a TOML file and keeps all else as it is written. Pure.

tomlkit finds a key in any form of the file. But it does not know the form of the file that the
packages install: every key stands there as a comment with its default, below its explanation. A key
that is set for the first time must replace that comment.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import MutableMapping
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Comment, InlineTable

from agent.terminal.errors import CommandError
from broker.daemon.exit_codes import ExitCode
from broker.daemon.foreign_toml import tables

Value = bool | int | float | str | tuple[str, ...]


def with_keys(text: str, values: dict[str, Value | None]) -> str:
    """The text with each `table.key` (or top-level `key`) set; None: the key is removed.

    CommandError where the text is no TOML, or has no place for such a key.
    """
    for name, value in values.items():
        text = _with_key(text, name, value)
    return text


def _with_key(text: str, name: str, value: Value | None) -> str:
    *path, key = name.split(".")
    try:
        found = _found(tables(text), path, key)
    except tomllib.TOMLDecodeError as error:
        raise CommandError(ExitCode.CONFIG, f"the file is not TOML: {error}") from None
    plain = list(value) if isinstance(value, tuple) else value
    if found == plain and type(found) is type(plain):
        return text
    try:
        made = _changed(text, path, key, value)
        is_there = _found(tables(made), path, key) == plain
    except (TOMLKitError, tomllib.TOMLDecodeError, TypeError) as error:
        raise _refusal(name, error) from None
    if not is_there:
        raise _refusal(name, "it stands where no program can change it")
    return made


def _changed(text: str, path: list[str], key: str, value: Value | None) -> str:
    """The text with one key changed. TypeError where what should hold it is no table."""
    document = tomlkit.parse(text)
    table: Any = document
    for name in path:
        if name not in table:
            if value is None:
                return text
            table[name] = tomlkit.table()
        table = table[name]
        if not isinstance(table, MutableMapping):
            raise TypeError(f"{name} is no table")
    plain = list(value) if isinstance(value, tuple) else value
    if value is None:
        if key in table:
            _remove(table, key)
    elif key not in table and (line := _commented(table, key)) is not None:
        line.trivia.comment = f"{key} = {written(value)}"
    else:
        table[key] = plain
    return document.as_string()


def _body(table: Any) -> list[Any]:
    """The lines of a table, comments too; empty where it has none of its own."""
    if isinstance(table, InlineTable):
        return []
    return getattr(getattr(table, "value", table), "body", None) or getattr(table, "body", [])


def _commented(table: Any, key: str) -> Comment | None:
    """The line of a table that has the key behind a #."""
    for _, item in _body(table):
        if isinstance(item, Comment):
            if item.trivia.comment.startswith("#["):
                return None  # an example of another table begins
            if re.match(rf"#\s*{re.escape(key)}\s*=", item.trivia.comment):
                return item
    return None


def _remove(table: Any, key: str) -> None:
    """Put the key behind a #, where its value is on one line; else take it away."""
    value = table[key].as_string()
    places = [n for n, (one, _) in enumerate(_body(table)) if one is not None and one.key == key]
    del table[key]
    if places and "\n" not in value:
        line = tomlkit.comment("")
        line.trivia.comment = f"#{key} = {value}"
        _body(table)[places[0]] = (None, line)


def _found(data: Any, path: list[str], key: str) -> Any:
    """The value of a key; None: it is not there."""
    for name in path:
        data = data.get(name) if isinstance(data, dict) else None
    return data.get(key) if isinstance(data, dict) else None


def _refusal(name: str, why: object) -> CommandError:
    return CommandError(ExitCode.CONFIG, f"{name} cannot be set: {why}; write it by hand")


def written(value: Value) -> str:
    """A value as TOML: JSON's strings, numbers and arrays are TOML's too."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)

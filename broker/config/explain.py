# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is wrong in the configuration file, in the file's own words. Pure."""

from __future__ import annotations

import difflib
import re
from typing import Any, get_args, get_type_hints

import msgspec
from msgspec import Struct


def explain(message: str, file: type[Struct]) -> str:
    """msgspec's message with the key as the file spells it and a suggestion."""
    text, _, where = message.partition(" - at `$")
    key = where.rstrip("`").lstrip(".").replace("[...]", "")
    unknown = re.search(r"unknown field `(.*)`", text)
    if unknown is not None:
        name = unknown.group(1)
        near = difflib.get_close_matches(name, _known_keys(key, file), 1)
        full = f"{key}.{name}" if key else name
        return f"unknown key {full}" + (f"; did you mean {near[0]}?" if near else "")
    missing = re.search(r"missing required field `(.*)`", text)
    if missing is not None:
        full = f"{key}.{missing.group(1)}" if key else missing.group(1)
        return f"{full} is missing"
    return f"{key or 'the file'}: {text}"


def _known_keys(section: str, file: type[Struct]) -> list[str]:
    """The keys a table of the file may have."""
    kind: Any = file
    for part in filter(None, re.sub(r"\[[0-9]+\]", "", section).split(".")):
        kind = get_type_hints(kind).get(part.replace("-", "_"))
        kind = next((a for a in get_args(kind) if isinstance(a, type)), kind)
    if not (isinstance(kind, type) and issubclass(kind, Struct)):
        return []
    return [item.encode_name for item in msgspec.structs.fields(kind)]

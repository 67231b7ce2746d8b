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
    return f"{key or 'the file'}: {in_words(text)}"


def in_words(text: str) -> str:
    """msgspec's sentence about one value as an administrator reads it: what the value must be. A
    sentence that is not known stays as it is."""
    kinds = re.fullmatch(r"Expected `(.*)`, got `(.*)`", text)
    if kinds is not None:
        if kinds.groups() == ("int", "float"):
            return "must be a whole number"
        wanted = [_kind(one) for one in kinds.group(1).split(" | ") if one != "null"]
        return f"must be {' or '.join(wanted)}, not {_FOUND.get(kinds.group(2), kinds.group(2))}"
    pattern = re.fullmatch(r"Expected `str` matching regex '(.*)'", text)
    if pattern is not None:
        return _pattern_in_words(pattern.group(1).replace("\\\\", "\\"), text)
    bound = re.fullmatch(r"Expected `(.*)` (of length )?(>=|<=|>|<) ([-+.e0-9]+)", text)
    if bound is not None:
        kind, of_length, sign, limit = bound.groups()
        number = f"{float(limit):g}" if float(limit) < 1e6 else f"{float(limit):.0f}"
        if of_length and sign == ">=" and number == "1":
            return "must not be empty"
        unit = "" if not of_length else " characters" if kind == "str" else " values"
        return f"must {'have' if of_length else 'be'} {_SIGNS[sign]} {number}{unit}"
    return text


_SIGNS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_KINDS = {
    "str": "text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": 'a list, such as ["a", "b"]',
    "object": "a table",
}
_FOUND = {**_KINDS, "str": "text", "array": "a list"}
#: What the patterns of the configuration's types ask for; a list of words needs no entry.
_PATTERNS = {
    "^/": "must begin with / (an absolute path)",
    "^$|^/": "must be empty, or begin with / (an absolute path)",
    r"^$|^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$": "must be a UUID in small letters",
    r"^$|^[0-9A-Fa-f-]{32,36}$": "must be a UUID",
    r"^[A-Za-z0-9._-]{1,48}$": "must be 1 to 48 letters, digits, dots, _ or -",
    r"^$|^[A-Za-z0-9_-]{1,32}$": "must be at most 32 letters, digits, _ or -",
    r"^([A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+)?$": "must be a full host name (ha1.example.org)",
    "^$|^([0-9A-Fa-f]{2}:?){32}$": "must be a SHA-256 fingerprint (64 hexadecimal digits)",
    "^$|^(/.*/)?fence_[A-Za-z0-9_]+$": "must be a program fence_..., with or without its path",
}


def _kind(name: str) -> str:
    return _KINDS.get(name, name)


def _pattern_in_words(pattern: str, text: str) -> str:
    words = re.fullmatch(r"\^\(([A-Za-z0-9_|-]+)\)\$", pattern)
    if words is None:
        return _PATTERNS.get(pattern, text)
    *most, last = words.group(1).split("|")
    return f"must be {', '.join(most)} or {last}" if most else f"must be {last}"


def _known_keys(section: str, file: type[Struct]) -> list[str]:
    """The keys a table of the file may have."""
    kind: Any = file
    for part in filter(None, re.sub(r"\[[0-9]+\]", "", section).split(".")):
        kind = get_type_hints(kind).get(part.replace("-", "_"))
        kind = next((a for a in get_args(kind) if isinstance(a, type)), kind)
    if not (isinstance(kind, type) and issubclass(kind, Struct)):
        return []
    return [item.encode_name for item in msgspec.structs.fields(kind)]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python docs/generate_config.py`: prints the commented default configuration file.

Tables, keys and defaults are broker/config/sections.py's and scoring/timing.py's; what each key is
for comes from the tables of docs/configuration.md, which a test holds to the same code. Each key
stands in the file with its default, behind a #; a required key, and a key without a default, with
an example. The packages install what this prints.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import inspect

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from broker.config.sections import Config  # noqa: E402
from scoring.timing import Timing  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"
WIDTH = 90
HEAD = """\
Configuration of ha-broker and ha-agent, the same file for both: ha-agent.toml(5). Every key
stands here with its default; remove the # before what you change. An unknown key is an
error. The daemons read a changed file at: systemctl reload ha-broker ha-agent
"""
#: What to write where the code has no default.
EXAMPLES = {
    "host.id": 1,
    "storage.whiteboard": "/path/on/shared/storage/whiteboard",
    "storage.leases": "/path/on/shared/storage/leases",
}
#: The pattern of a setting that is one of a few words.
ENUMERATION = re.compile(r"\^\([a-z|]+\)\$")
#: The row of the page for all keys of its table that have none of their own.
OTHERS = "KIND, each other one"


@dataclass(frozen=True, slots=True)
class Setting:
    """One key. `default`: as TOML, None where there is none. `range`, `meaning`: prose."""

    key: str
    default: str | None
    example: str
    required: bool
    range: str
    unit: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the file; `repeated`: an array of tables."""

    name: str
    repeated: bool
    meaning: str
    settings: tuple[Setting, ...]

    @property
    def head(self) -> str:
        """Its line in the file."""
        return f"[[{self.name}]]" if self.repeated else f"[{self.name}]"


def tables() -> list[Table]:
    """Every table of the file, in the code's order."""
    whole = inspect.type_info(Config)
    assert isinstance(whole, inspect.StructType)
    found: list[Table] = []
    for section in whole.fields:
        assert isinstance(section.type, inspect.StructType)
        _collect(found, section.encode_name, section.type, repeated=False)
    return found


def _collect(found: list[Table], name: str, table: inspect.StructType, repeated: bool) -> None:
    place = len(found)
    settings = []
    head = f"[[{name}]]" if repeated else f"[{name}]"
    meaning, rows = _page().get(head, ("", {}))
    for field in table.fields:
        kind = field.type
        if isinstance(kind, inspect.VarTupleType) and isinstance(
            kind.item_type, inspect.StructType
        ):
            _collect(found, f"{name}.{field.encode_name}", kind.item_type, repeated=True)
            continue
        if isinstance(kind, inspect.StructType):
            _collect(found, f"{name}.{field.encode_name}", kind, repeated=False)
            continue
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        elif default is msgspec.NODEFAULT and not field.required:
            # UNSET in the file: what scoring/timing.py says.
            default = getattr(Timing(), field.name)
        row = rows.get(field.encode_name) or rows.get(OTHERS) or ("", "", "not described yet")
        limits, unit, purpose = row
        known = default is not None and default is not msgspec.NODEFAULT
        example = EXAMPLES.get(f"{name}.{field.encode_name}", _example(kind))
        settings.append(
            Setting(
                field.encode_name,
                _toml(default) if known else None,
                _toml(example),
                field.required,
                _words(kind) or limits,
                unit,
                purpose,
            )
        )
    found.insert(place, Table(name, repeated, meaning, tuple(settings)))


def _page() -> dict[str, tuple[str, dict[str, tuple[str, str, str]]]]:
    """The introduction of each table in docs/configuration.md, with range, unit and meaning of
    each key; OTHERS stands for the keys of its table that have no row."""
    parts = re.split(r"^## +`(\[.*\])`$", PAGE.read_text(), flags=re.MULTILINE)
    found = {}
    for head, text in zip(parts[1::2], parts[2::2], strict=True):
        text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
        before = text.partition("\n|")[0]
        rows = {}
        for line in re.findall(r"^\| `.*$", text, re.MULTILINE):
            key, _, _, limits, unit, meaning = (
                cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))
            )
            rows[plain(key)] = (plain(limits), plain(unit).replace("–", ""), plain(meaning))
        found[head] = (plain(before), rows)
    return found


def plain(text: str) -> str:
    """Markdown as prose on one line."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(text.replace("`", "").replace(r"\|", "|").split())


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False)


def _words(kind: inspect.Type) -> str:
    """The range of a setting that is one of a few words, from the code; empty for another one."""
    match kind:
        case inspect.StrType(pattern=str(pattern)) if ENUMERATION.fullmatch(pattern):
            return " or ".join(re.findall("[a-z]+", pattern))
    return ""


def _example(kind: inspect.Type) -> object:
    match kind:
        case inspect.UnionType(types=types):
            return _example(types[0])
        case inspect.IntType(ge=low):
            return low or 0
        case inspect.StrType(pattern="^/"):
            return "/path"
        case inspect.StrType():
            return "..."
    return 0


def rendered() -> str:
    """The whole file."""
    lines = _comment(HEAD)
    for table in tables():
        lines += ["", *_comment(table.meaning)]
        lines.append(f"#{table.head}" if table.repeated else table.head)
        for setting in table.settings:
            known = "default" if setting.default is not None else "example"
            if setting.required:
                known = "required"
            limits = f" ({setting.range})" if setting.range else ""
            lines += _comment(f"{setting.meaning}{limits}")
            value = setting.example if setting.default is None else setting.default
            unit = f", {setting.unit}" if setting.unit else ""
            note = "" if known == "default" and not unit else f"  # {known}{unit}"
            lines.append(f"#{setting.key} = {value}{note}")
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), WIDTH)]


if __name__ == "__main__":
    sys.stdout.write(rendered())

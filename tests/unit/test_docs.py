# SPDX-License-Identifier: LGPL-2.1-or-later
"""The documents say what the code does: every key, field, exit code, reason and state is in
its page, with the code's own type, default and range; every relative link leads somewhere."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from broker.config.fence_relations import TYPES
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.events.ring import Extra
from broker.peers.asker import Trouble
from broker.vm.domain_facts import Differs
from broker.wire.events import Event, EventList
from broker.wire.lacking import LackingStatus
from broker.wire.notify import NotifyStatus, TransportStatus
from broker.wire.status import (
    STATUS_VERSION,
    Bound,
    CertificateStatus,
    DifferenceStatus,
    EngineSummary,
    FenceLogEntry,
    FencePathStatus,
    HostStatus,
    MigrationStatus,
    ModeStatus,
    MonitorStatus,
    PenaltyOnWire,
    ReasonOnWire,
    Status,
    StorageStatus,
    Times,
    WhatRanStatus,
    WitnessStatus,
)
from broker.wire.vms import VmEntry, VmWord, WithoutPlace
from scoring.decision import Code
from scoring.timing import Timing
from scoring.vm.state import StateName
from scoring.vm_facts import EngineStatus
from tests.unit.documents import DOCS, anchor, rows, sections

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

#: Heading in docs/status.md -> the structure whose fields its table lists.
STATUS_TABLES: dict[str, type] = {
    "The whole": Status,
    "lacking": LackingStatus,
    "certificates": CertificateStatus,
    "engine": EngineSummary,
    "hosts": HostStatus,
    "witnesses": WitnessStatus,
    "mode": ModeStatus,
    "engine_status": EngineStatus,
    "penalties": PenaltyOnWire,
    "reasons": ReasonOnWire,
    "storage": StorageStatus,
    "fence_log": FenceLogEntry,
    "fence_paths": FencePathStatus,
    "bound": Bound,
    "monitors": MonitorStatus,
    "times": Times,
    "migration": MigrationStatus,
    "differences": DifferenceStatus,
    "what_ran": WhatRanStatus,
    "vms": VmEntry,
    "short": WithoutPlace,
    "notify": NotifyStatus,
    "transports": TransportStatus,
}


# --- docs/configuration.md -----------------------------------------------------------------


def settings() -> dict[str, list[list[str]]]:
    """Key, type, default and range of every setting, by its table of the file."""
    found: dict[str, list[list[str]]] = {}
    whole = inspect.type_info(Config)
    assert isinstance(whole, inspect.StructType)
    for section in whole.fields:
        assert isinstance(section.type, inspect.StructType)
        _collect(found, section.encode_name, section.type)
    return found


def _collect(
    found: dict[str, list[list[str]]], name: str, table: inspect.StructType, repeated: bool = False
) -> None:
    mine = found.setdefault(f"[[{name}]]" if repeated else f"[{name}]", [])
    for field in table.fields:
        kind = _without_none(field.type)
        if isinstance(kind, inspect.VarTupleType) and isinstance(
            kind.item_type, inspect.StructType
        ):
            _collect(found, f"{name}.{field.encode_name}", kind.item_type, repeated=True)
            continue
        if isinstance(kind, inspect.StructType):
            _collect(found, f"{name}.{field.encode_name}", kind)
            continue
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        elif default is msgspec.NODEFAULT and not field.required:
            # UNSET in the file: what scoring/timing.py says.
            default = getattr(Timing(), field.name)
        mine.append([f"`{field.encode_name}`", _type(kind), _default(default), _range(kind)])


def _without_none(kind: inspect.Type) -> inspect.Type:
    if not isinstance(kind, inspect.UnionType):
        return kind
    (only,) = (part for part in kind.types if not isinstance(part, inspect.NoneType))
    return only


def _type(kind: inspect.Type) -> str:
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "integer"
        case inspect.FloatType():
            return "number"
        case inspect.VarTupleType():
            return "list of strings"
        case inspect.StrType():
            return "string"
        case inspect.DictType():
            return "table"
    raise AssertionError(f"a kind of setting that the page has no word for: {kind}")


def _default(value: object) -> str:
    if value is msgspec.NODEFAULT:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    if isinstance(value, float):
        return f"{value:g}"
    return f"`{json.dumps(value)}`" if isinstance(value, str | list | dict) else f"{value}"


def _range(kind: inspect.Type) -> str:
    match kind:
        case inspect.BoolType():
            return ""
        case inspect.IntType(ge=low, le=high) | inspect.FloatType(gt=None, ge=low, le=high):
            return f"{low}..{high}"
        case inspect.FloatType(gt=low, le=high):
            return f"above {low}, up to {high}"
        case inspect.VarTupleType(item_type=item):
            return f"each {_range(item)}"
        case inspect.StrType(pattern="^/"):
            return "an absolute path"
        case inspect.StrType(pattern="^$|^/"):
            return "an absolute path, or empty"
        case inspect.StrType(pattern=str(pattern)) if pattern == f"^({'|'.join(TYPES)})$":
            return "one of the [kinds](fencing.md#kinds)"
        case inspect.StrType(pattern=str(pattern)) if re.fullmatch(r"\^\(?[a-z|]+\)?\$", pattern):
            return " or ".join(f"`{word}`" for word in re.findall("[a-z]+", pattern))
        case inspect.StrType(pattern=str(pattern)) if "{1,48}" in pattern:
            return "1..48 of `A-Z a-z 0-9 . _ -`"
        case inspect.StrType(pattern=str(pattern)) if pattern.endswith(("{32,36}$", "{12}$")):
            return "a UUID, or empty"
        case inspect.StrType(pattern=str(pattern)) if "{1,32}" in pattern:
            return "empty, or 1..32 of `A-Z a-z 0-9 _ -`"
        case inspect.StrType(pattern=str(pattern)) if "{32}" in pattern:
            return "empty, or 64 hex digits, colons allowed"
        case inspect.StrType(pattern=str(pattern)) if "fence_" in pattern:
            return "empty, or `fence_…`, a path before it allowed"
        case inspect.DictType(value_type=inspect.StrType()):
            return "strings"
        case inspect.DictType():
            return "strings, integers, true or false"
        case inspect.StrType(min_length=None, max_length=int(high)):
            return f"up to {high} characters"
        case inspect.StrType(min_length=int(low), max_length=int(high)):
            return f"{low}..{high} characters"
        case inspect.StrType(pattern=None):
            return ""
    raise AssertionError(f"a range that the page has no word for: {kind}")


#: The row that stands for all keys of its table that have no row of their own: they are alike.
OTHERS = "`KIND`, each other one"


@pytest.mark.parametrize("table", settings())
def test_every_setting_is_described_with_its_type_default_and_range(table: str) -> None:
    described = [row[:4] for row in rows(sections(DOCS / "configuration.md").get(table, ""))]
    own = [row[0] for row in described]
    found = [row if row[0] in own else [OTHERS, *row[1:]] for row in settings()[table]]
    if OTHERS in own:
        found = [row for at, row in enumerate(found) if row not in found[:at]]
    assert described == found


def test_no_table_of_settings_is_described_that_does_not_exist() -> None:
    described = {name for name in sections(DOCS / "configuration.md") if name.startswith("[")}
    assert described == set(settings())


def test_every_kind_of_fence_device_is_described() -> None:
    table = sections(DOCS / "fencing.md")["Kinds"]
    assert [row[0] for row in rows(table)] == [f"`{kind}`" for kind in TYPES]


# --- docs/status.md ------------------------------------------------------------------------


def field_names(structure: type) -> list[str]:
    info = inspect.type_info(structure)
    assert isinstance(info, inspect.StructType | inspect.DataclassType)
    return [field.encode_name for field in info.fields]


@pytest.mark.parametrize("heading", STATUS_TABLES)
def test_every_field_of_the_status_is_described_in_order(heading: str) -> None:
    text = sections(DOCS / "status.md")[heading]
    assert [row[0] for row in rows(text)] == [
        f"`{name}`" for name in field_names(STATUS_TABLES[heading])
    ]


def test_every_word_for_a_vm_is_described() -> None:
    page = sections(DOCS / "status.md")["vms"].partition("| `state` | means |")[2]
    described = re.findall(r"^\| `([a-z-]+)` \|", page, re.M)
    assert described == [word.value for word in VmWord]


def test_every_monitor_is_described_with_its_unit() -> None:
    """Both are class variables of the monitors."""
    named = re.compile(r'^    name = "(\w+)"\n    unit = "(\w*)"$', re.MULTILINE)
    files = (ROOT / "broker" / "monitors").glob("*.py")
    known = sorted(found for path in files for found in named.findall(path.read_text()))
    page = sections(DOCS / "status.md")["monitors"].partition("The monitors:")[2]
    assert [row[:2] for row in rows(page)] == [[f"`{name}`", unit or "–"] for name, unit in known]
    assert known


def test_the_example_status_has_the_documented_shape_and_version() -> None:
    (example,) = re.findall(r"```json\n(\{\n.*?\n\})\n```", (DOCS / "status.md").read_text(), re.S)
    status = msgspec.json.decode(example, type=Status)
    assert status.version == STATUS_VERSION
    assert json.loads(example) == json.loads(msgspec.json.encode(status)), "no field left out"


@pytest.mark.parametrize(("heading", "structure"), [("The answer", EventList), ("An event", Event)])
def test_every_field_of_an_event_is_described_in_order(heading: str, structure: type) -> None:
    text = sections(DOCS / "events.md")[heading]
    assert [row[0] for row in rows(text)] == [f"`{name}`" for name in field_names(structure)]


def test_every_kind_of_event_that_is_no_notice_is_described() -> None:
    page = (DOCS / "events.md").read_text()
    assert set(re.findall(r"^\| `([a-z]+-[a-z]+)` \|", page, re.M)) == {one.value for one in Extra}


def test_every_exit_code_is_described() -> None:
    table = rows(sections(DOCS / "status.md")["Exit codes"])
    described = {row[0]: row[1] for row in table}
    wanted = {str(code.value): f"`{code.name}`" for code in ExitCode}
    assert wanted.items() <= described.items()


# --- docs/reasons.md, docs/states.md ----------------------------------------------------------


def test_every_reason_has_its_entry_and_no_other_is_there() -> None:
    found = re.findall(r"^### (.*)$", (DOCS / "reasons.md").read_text(), re.MULTILINE)
    assert sorted(found) == sorted(code.value for code in (*Code, *Differs, *Trouble))


@pytest.mark.parametrize("code", [*Code, *Differs, *Trouble])
def test_every_reason_says_what_to_do(code: Code | Differs | Trouble) -> None:
    assert "*What to do:*" in sections(DOCS / "reasons.md")[code.value]


def test_every_state_is_described() -> None:
    table = rows(sections(DOCS / "states.md")["What each state does"])
    assert sorted(row[0] for row in table) == sorted(f"`{state}`" for state in StateName)


def test_the_state_diagram_is_current() -> None:
    made: dict[str, Any] = runpy.run_path(str(DOCS / "generate_states.py"))
    page = (DOCS / "states.md").read_text()
    assert made["rewritten"](page) == page, "run: python docs/generate_states.py"


# --- all pages -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, place_in = target.partition("#")
        place = (page.parent / path) if path else page
        assert place.exists(), f"{target}: is not there"
        if place_in:
            names = {anchor(title) for title in sections(place)}
            assert place_in in names, f"{target}: no such heading"


#: A file of the repository, by its path; not `NNNN-what.md` or another placeholder.
_FILE = re.compile(
    r"`((?:scoring|broker|agent|tests|docs|packaging|scripts)/[a-z0-9_./-]+\.[a-z]+)`"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = set(_FILE.findall(page.read_text()))
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_every_decision_record_has_a_number_of_its_own() -> None:
    names = sorted(path.name for path in (DOCS / "decisions").glob("*.md"))
    numbers = [name[:4] for name in names]
    assert all(re.fullmatch("[0-9]{4}", number) for number in numbers)
    assert len(set(numbers)) == len(numbers)
    for name in names:
        chapters = sections(DOCS / "decisions" / name)
        assert {"Context", "Decision", "Alternatives", "Consequences"} <= set(chapters), name


# --- docs/security.md ------------------------------------------------------------------------


def test_each_line_of_the_security_page_names_tests_that_exist() -> None:
    """A line without a test would be a promise that nothing holds."""
    lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in (DOCS / "security.md").read_text().splitlines()
        if line.startswith("|") and not line.startswith("| ---")
    ]
    heads = [at for at, cells in enumerate(lines) if cells[:2] == ["who", "what he tries"]]
    assert len(heads) >= 4
    for cells in lines[heads[0] :]:
        assert len(cells) == 5, cells[:2]
        if cells[0] == "who":
            assert cells[4] == "held by"
            continue
        named = re.findall(r"`([^`]+)`", cells[4])
        assert named, cells[:2]
        for each in named:
            assert _is_there(each), f"{cells[1]}: {each}"


def _is_there(named: str) -> bool:
    """A test by file and name, or a measurement."""
    bench = re.fullmatch(r"python -m tests\.bench (\w+)", named)
    if bench is not None:
        known = (ROOT / "tests" / "bench" / "__main__.py").read_text()
        return f'    "{bench[1]}": ' in known
    file, _, name = named.partition("::")
    path = ROOT / file if "/" in file else ROOT / "tests" / "unit" / file
    return bool(name) and re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE) is not None


def test_the_help_of_the_measurements_names_each_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.bench import __main__ as bench

    monkeypatch.setattr("sys.argv", ["bench", "--help"])
    with pytest.raises(SystemExit):
        bench.main()
    told = set(re.findall(r"\w+", capsys.readouterr().out))
    # What main() hands on before it reads any option of its own.
    own = {"fencing", "takeover", "migration", "rest", "scale", "storages", "vms"}
    assert own <= told and set(bench.MINUTES) <= told
    assert set(bench.OWN_OPTIONS) == own

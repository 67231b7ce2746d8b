# SPDX-License-Identifier: LGPL-2.1-or-later
"""The decisions of an earlier version: its own scoring/, out of git, as one more pure function.

`decide` has the shape of this version's. What it is given is put into the earlier version's types,
what that decides into this one's: fields by their name, where both have them. So a host that goes
by it does not see what came later, and gives no order that came later. What carries the decision
out (the agent, its hands, its last look), and the broker, are this version's; all of the earlier
version's code runs in the lab (tests/lab/test_upgrade.py).
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from types import ModuleType
from typing import Any

import scoring.decide
import scoring.decision
import scoring.hosts.score
import scoring.hosts.state
import scoring.observation
import scoring.rules
import scoring.state
import scoring.timing
import scoring.vm.score
import scoring.vm.state
import scoring.vm_facts
from broker.wire.hosts import LocalOnWire, PeerOnWire
from scoring.decide import Decision
from scoring.hosts.state import HostState
from scoring.observation import LocalHost, Observation, PeerReport
from scoring.rules import Rules
from scoring.state import AgentState
from scoring.vm.state import VmState
from scoring.vm_facts import ENGINE
from tests import earlier_version
from tests.earlier_version import NotToBeHad

__all__ = ["NotToBeHad", "counterparts", "decide", "field_names", "into", "must_be_had", "of_then"]

#: What the earlier scoring/ is called here.
NAME = f"scoring_{earlier_version.COMMIT[:7]}"
_IMPORT = re.compile(r"^(\s*(?:from|import)\s+)scoring\b", re.MULTILINE)
#: Where this version's types are, and the earlier one's.
_NOW = (
    scoring.vm_facts,
    scoring.observation,
    scoring.decision,
    scoring.decide,
    scoring.state,
    scoring.hosts.state,
    scoring.vm.state,
    scoring.rules,
    scoring.timing,
    scoring.hosts.score,
    scoring.vm.score,
)
_THEN = ("observation", "decision", "state", "rules", "timing", "score")
#: What has another name today.
_RENAMED = {
    "StartEngine": "StartVm",
    "ShutdownEngine": "ShutDownVm",
    "PowerOffEngine": "PowerOffVm",
    "MigrateEngine": "MigrateVm",
    "EngineStartEnded": "VmStartEnded",
    "EngineStopEnded": "VmStopEnded",
    "EngineMigrationEnded": "VmMigrationEnded",
}
_NAMES_OF_THEN = {now: then for then, now in _RENAMED.items()}
#: The types that have the earlier version's fields, where those of the decision have others.
_FLAT: Mapping[str, type] = {"LocalHost": LocalOnWire, "PeerReport": PeerOnWire}
_DECIDED = {kind: name for name, kind in _FLAT.items()}
_MISSING = object()
_PLAIN = frozenset({int, float, str, bool, type(None)})


class _Sources(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports the earlier scoring/ under its other name."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != NAME or self._path(fullname) is None:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def is_package(self, fullname: str) -> bool:
        return (self._path(fullname) or "").endswith("/__init__.py")

    def get_source(self, fullname: str) -> str:
        path = self._path(fullname)
        if path is None:
            raise ImportError(fullname)
        return _IMPORT.sub(rf"\1{NAME}", self._files[path])

    def _path(self, fullname: str) -> str | None:
        stem = fullname.replace(NAME, "scoring", 1).replace(".", "/")
        return next((p for p in (f"{stem}/__init__.py", f"{stem}.py") if p in self._files), None)


@functools.cache
def _earlier() -> tuple[ModuleType, ...]:
    """The earlier version's modules: `decide`, and those of its types. Raises NotToBeHad."""
    sys.meta_path.append(_Sources(earlier_version.sources("scoring")))
    return tuple(importlib.import_module(f"{NAME}.{name}") for name in ("decide", *_THEN))


def must_be_had() -> None:
    """Raises NotToBeHad where this clone does not have the earlier version."""
    _earlier()


def of_then() -> _Types:
    """The earlier version's types."""
    return _Types(_earlier()[1:])


def counterparts() -> Iterator[tuple[type, type | None]]:
    """Each dataclass of the earlier version's modules, and what stands for it today."""
    for module in _earlier()[1:]:
        for name, kind in vars(module).items():
            if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.__name__:
                yield kind, _FLAT.get(name) or _TODAY.named(name)


def decide(state: AgentState, observation: Observation, now_s: float) -> Decision:
    """What the earlier version decides. Pure, as what it stands for."""
    then = of_then()
    # The earlier version's state is one record: what it knows of hosts and of its VM.
    known = {each.name for each in fields(then.named("AgentState"))} - {"rules"}
    parts = {**_by_name(state.host, then), **_by_name(state.engine, then)}
    flat = {name: value for name, value in parts.items() if name in known}
    memory = then.named("AgentState")(rules=into(state.rules, then), **flat)
    decision = _earlier()[0].decide(memory, into(observation, then), now_s)
    after = _by_name(decision.state, _TODAY)
    # The earlier version's rules are a part of this one's.
    state = AgentState(state.rules, _part(HostState, after), {ENGINE: _part(VmState, after)})
    rest = {each.name: getattr(decision, each.name) for each in fields(decision)}
    del rest["state"]
    return Decision(state, **{name: into(value, _TODAY) for name, value in rest.items()})


def _by_name(value: Any, types: _Types) -> dict[str, Any]:
    """The fields of a record in other types, without those that have no counterpart there."""
    given = {each.name: into(getattr(value, each.name), types) for each in fields(value)}
    return {name: each for name, each in given.items() if each is not _MISSING}


def _part(kind: Any, given: Mapping[str, Any]) -> Any:
    """A record of those of the fields that it has."""
    return kind(**{each.name: given[each.name] for each in fields(kind) if each.name in given})


class _Types:
    """The types of some modules, by name."""

    def __init__(self, modules: Sequence[ModuleType]) -> None:
        self._modules = tuple(modules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Types) and self._modules == other._modules

    def __hash__(self) -> int:
        return hash(self._modules)

    def named(self, name: str) -> Any:
        """The type of that name, or of the name that it has there; None: there is none."""
        names = {name, _RENAMED.get(name, name), _NAMES_OF_THEN.get(name, name)}
        kinds = (getattr(module, each, None) for module in self._modules for each in names)
        return next((kind for kind in kinds if isinstance(kind, type)), None)


_TODAY = _Types(_NOW)


def field_names(kind: Any) -> tuple[str, ...]:
    """The fields of a dataclass, or of a Struct."""
    if is_dataclass(kind):
        return tuple(each.name for each in fields(kind))
    return tuple(kind.__struct_fields__)


@functools.lru_cache(maxsize=512)
def _plan(kind: type, types: _Types) -> tuple[Any, tuple[str, ...]]:
    """The type that stands for a dataclass there, and the fields that both have."""
    there = types.named(_DECIDED.get(kind, kind.__name__))
    if there is None:
        return None, ()
    names = set(field_names(kind))
    return there, tuple(each.name for each in fields(there) if each.name in names)


@functools.lru_cache(maxsize=64)
def _rules_into(value: Rules, types: _Types) -> Any:
    """The rules in other types, remembered since they hardly ever change."""
    return _into_type(value, types)


def _into_type(value: Any, types: _Types) -> Any:
    there, names = _plan(type(value), types)  # type: ignore[arg-type]  # a class can be hashed
    if there is None:
        return _MISSING
    given = {name: into(getattr(value, name), types) for name in names}
    # What has no counterpart there is as if it had never been, but for what must be there.
    given = {name: each for name, each in given.items() if each is not _MISSING}
    try:
        return there(**given)
    except TypeError:
        return _MISSING


def into(value: Any, types: _Types) -> Any:
    """The value in other types; _MISSING where they have nothing of the kind."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Enum):
        there = types.named(type(value).__name__)
        known = there is not None and value.value in there._value2member_map_
        return there(value.value) if known else _MISSING
    if isinstance(value, Rules):
        return _rules_into(value, types)
    # The earlier version knew one VM, as the JSON between broker and agent still has it.
    if isinstance(value, LocalHost):
        return _into_type(LocalOnWire.of(value), types)
    if isinstance(value, PeerReport):
        return _into_type(PeerOnWire.of(value), types)
    if is_dataclass(value):
        return _into_type(value, types)
    if isinstance(value, Mapping):
        pairs = {key: into(each, types) for key, each in value.items()}
        return {key: each for key, each in pairs.items() if each is not _MISSING}
    assert isinstance(value, tuple | frozenset), value
    inner = (into(each, types) for each in value)
    return type(value)(each for each in inner if each is not _MISSING)

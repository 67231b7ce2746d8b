# SPDX-License-Identifier: LGPL-2.1-or-later
"""The flight recorder: observations and decisions of this agent, for `ha-agent replay`.

Rules of this file:

1. A record holds the whole input of `decide`, so that it can be checked by itself: the
   observation, the time, and the state too, where the record before it is not of the beat
   before.
2. Every beat with news is written (another state, an action, an outcome, other reasons),
   and one beat a minute otherwise: some 3 MB a day, in FILES_MAX files of FILE_BYTES_MAX.
3. A thread of its own writes, behind a bounded queue. A disk that hangs costs records, and a log
   line says so; it never delays a decision.
4. Nothing secret is in an observation, so nothing secret is here.
5. A write that fails half way (a full disk, a power cut) costs the records that were not
   written, and no others: an incomplete line is cut off or ended, and the next record
   holds its state.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from broker.daemon.atomic_file import append_lines
from broker.daemon.errors import HaError, why
from broker.daemon.foreign import sentence
from broker.wire.hosts import LocalOnWire, PeerOnWire
from scoring.decide import Decision
from scoring.decision import MigrateVm, PowerOffVm, Reason, ShutDownVm, StartVm
from scoring.hosts.state import HostState
from scoring.observation import Observation, Outcome, VmMigrationEnded, VmStartEnded, VmStopEnded
from scoring.state import AgentState
from scoring.vm_facts import ENGINE

log = logging.getLogger("ha-agent.journal")

VERSION = 1
FILE_NAME = "journal.jsonl"
FILE_BYTES_MAX = 4 * 2**20
FILES_MAX = 8
QUIET_S = 60.0
QUEUE_MAX = 256

#: The names in a journal of what is called otherwise in the code: those of the first journals.
_NAMES: dict[type[Any], str] = {
    StartVm: "StartEngine",
    ShutDownVm: "ShutdownEngine",
    PowerOffVm: "PowerOffEngine",
    MigrateVm: "MigrateEngine",
    VmStartEnded: "EngineStartEnded",
    VmStopEnded: "EngineStopEnded",
    VmMigrationEnded: "EngineMigrationEnded",
}


def _name(kind: type[Any]) -> str:
    return _NAMES.get(kind, kind.__name__)


#: All kinds of outcomes: with one missing, a record could be written and not read again.
_OUTCOMES: dict[str, type[Outcome]] = {_name(kind): kind for kind in get_args(Outcome)}


class Damaged(HaError):
    """Lines are no records: the file, the first one's number, and the reason."""


class NoRecord(Damaged):
    """One line is no record. str(): what it "is" or "has", to go on behind "line 7"."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One decision as it was made. `state` None: the state that the record before it left.

    `wall_s`: seconds since the epoch, for people only. `decision`: in the form of `plain`.
    `after_damage`: the lines before it could not be read, so that without a state of its own it
    cannot be replayed.
    """

    wall_s: float
    now_s: float
    observation: Observation
    decision: dict[str, Any]
    state: AgentState | None = None
    after_damage: bool = False


def plain(decision: Decision) -> dict[str, Any]:
    """A decision as plain data: the result that a replay must have."""
    return {
        "state": decision.state.engine.name.value,
        "actions": [_with_kind(action) for action in decision.actions],
        "reasons": [_reason(reason) for reason in decision.reasons],
        "score": decision.score.value,
        "penalties": [[p.name, p.points] for p in decision.score.penalties],
    }


def _reason(reason: Reason) -> list[Any]:
    """A reason has its number where it is about another VM than the engine."""
    said: list[Any] = [reason.code.value, reason.text]
    return said if reason.vm == ENGINE else [*said, reason.vm]


def _with_kind(value: Any) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(value)
    if fields.get("vm") == ENGINE:
        del fields["vm"]
    if fields.get("timeout_s", ...) is None:
        del fields["timeout_s"]
    return {"kind": _name(type(value)), **fields}


def encode(record: Record) -> bytes:
    """A record as one line of JSON."""
    seen = record.observation
    observation = {field.name: getattr(seen, field.name) for field in dataclasses.fields(seen)}
    observation["local"] = LocalOnWire.of(seen.local)
    observation["peers"] = tuple(map(PeerOnWire.of, seen.peers))
    observation["outcomes"] = [_with_kind(outcome) for outcome in seen.outcomes]
    line = {
        "v": VERSION,
        "wall": round(record.wall_s, 3),
        "now": record.now_s,
        "observation": msgspec.to_builtins(observation, str_keys=True),
        "decision": record.decision,
    }
    if record.state is not None:
        line["state"] = msgspec.to_builtins(record.state, str_keys=True)
    return json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Record:
    """The record in a line; NoRecord where it is none."""
    if not line.endswith(b"\n"):
        raise NoRecord(
            "is cut short: the power or the disk failed while it was written, or the file is a part"
            " of a journal"
        )
    try:
        data = json.loads(line, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        raise NoRecord("is no JSON") from None
    try:
        return _decoded(data)
    except msgspec.ValidationError as error:
        raise NoRecord(f"is no record of this version: {sentence(error)}") from None
    except KeyError as error:
        raise NoRecord(f"is no record: it lacks {sentence(error)}") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise NoRecord("is no record: it is JSON of another shape") from None


def _finite(text: str) -> float:
    """A number of a record; NoRecord for one that no clock and no sample ever had: the core does
    not reckon with it."""
    value = float(text)
    if not math.isfinite(value):
        raise NoRecord("is no JSON: a number in it is not finite")
    return value


def _decoded(data: dict[str, Any]) -> Record:
    if data["v"] != VERSION:
        version = sentence(data["v"], 20)
        raise NoRecord(f"is of version {version}, and this program reads version {VERSION}")
    state = data.get("state")
    return Record(
        wall_s=float(data["wall"]),
        now_s=float(data["now"]),
        observation=_observation(data["observation"]),
        decision=dict(data["decision"]),
        state=None if state is None else _state(state),
    )


def _state(data: dict[str, Any]) -> AgentState:
    if "vms" not in data:
        data = _apart(data)
    return msgspec.convert(data, AgentState, strict=False)


def _apart(data: dict[str, Any]) -> dict[str, Any]:
    """A state as it was written before hosts and VMs were apart, in today's shape: all in one."""
    of_hosts = {field.name for field in dataclasses.fields(HostState)}
    host = {name: value for name, value in data.items() if name in of_hosts}
    vm = {name: value for name, value in data.items() if name not in of_hosts}
    return {"rules": vm.pop("rules"), "host": host, "vms": {ENGINE: vm}}


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Observation)


def _observation(data: dict[str, Any]) -> Observation:
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(Observation):
        if field.name == "outcomes":
            fields["outcomes"] = tuple(_outcome(dict(one)) for one in data["outcomes"])
        elif field.name == "local":
            fields["local"] = msgspec.convert(data["local"], LocalOnWire, strict=False).observed()
        elif field.name == "peers":
            peers = msgspec.convert(data["peers"], tuple[PeerOnWire, ...], strict=False)
            fields["peers"] = tuple(peer.observed() for peer in peers)
        elif field.name in data:
            hint = _hints()[field.name]
            fields[field.name] = msgspec.convert(data[field.name], hint, strict=False)
    return Observation(**fields)


def _outcome(data: dict[str, Any]) -> Outcome:
    kind = data.pop("kind")
    if kind not in _OUTCOMES:
        raise NoRecord(f"has an outcome that this version does not know: {sentence(kind, 40)}")
    return msgspec.convert(data, _OUTCOMES[kind])


def read(path: Path) -> Iterator[Record]:
    """The readable records of one file in order; at the end Damaged, where some lines were no
    records. A line longer than a journal is the last that is read."""
    damage: list[str] = []
    after_damage = False
    with path.open("rb") as file:
        for number in count(1):
            line = file.readline(FILE_BYTES_MAX + 1)
            if not line:
                break
            if len(line) > FILE_BYTES_MAX:
                damage.append(f"{path} line {number} is longer than a journal: not read on")
                break
            try:
                record = decode(line)
            except NoRecord as error:
                damage.append(f"{path} line {number} {error}")
                after_damage = True
                continue
            after_damage = after_damage and record.state is None
            yield dataclasses.replace(record, after_damage=after_damage)
    if damage:
        more = f"; and {len(damage) - 1} more lines" if len(damage) > 1 else ""
        raise Damaged(f"{damage[0]}{more}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Line:
    """One record for the thread: whether it begins a new file, and whether it must be on the disk
    before the next. `has_state`: it can be replayed without the record before it."""

    data: bytes
    new_file: bool
    sync: bool
    has_state: bool


class Journal:
    """Writes records to `directory`/journal.jsonl and its older siblings .1, .2, …"""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self._queue: queue.Queue[_Line] = queue.Queue(QUEUE_MAX)
        self._thread: threading.Thread | None = None
        self._last: tuple[str, tuple[tuple[str, int], ...]] = ("", ())
        self._written_s = float("-inf")
        self._contiguous = False
        self._file_bytes = self._path.stat().st_size if self._path.exists() else 0
        #: A record was not written: what follows is of use only from one with a state on.
        self._gap = False
        #: A record was lost: later ones are of use only from one with a state on.
        self.lost = 0
        #: Why decisions are not recorded now; empty while they are.
        self.problem = ""

    def note(
        self, before: AgentState, observation: Observation, now_s: float, decision: Decision
    ) -> None:
        """Record one decision; never blocks, never raises."""
        codes = tuple((reason.code.value, reason.vm) for reason in decision.reasons)
        kind = (decision.state.engine.name.value, codes)
        news = kind != self._last or decision.actions or observation.outcomes
        self._last = kind
        if not news and now_s - self._written_s < QUIET_S:
            self._contiguous = False
            return
        record = Record(time.time(), now_s, observation, plain(decision))
        line = encode(record)
        new_file = self._file_bytes + len(line) > FILE_BYTES_MAX
        has_state = new_file or self._gap or not self._contiguous
        if has_state:
            # Each file must be readable by itself.
            line = encode(dataclasses.replace(record, state=before))
        self._file_bytes = len(line) if new_file else self._file_bytes + len(line)
        self._written_s, self._contiguous = now_s, True
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
            self._thread.start()
        try:
            # A decision with an action must be on the disk before the power can fail: it will be
            # asked for.
            self._queue.put_nowait(_Line(line, new_file, bool(decision.actions), has_state))
        except queue.Full:
            self.lost += 1
            self._contiguous = False

    def flush(self, timeout_s: float) -> None:
        """Wait until all recorded decisions are written, at most so long."""
        until_s = time.monotonic() + timeout_s
        while self._queue.unfinished_tasks and time.monotonic() < until_s:
            time.sleep(0.01)

    def _work(self) -> None:
        while True:
            line = self._queue.get()
            try:
                if self._gap and not line.has_state:
                    self.lost += 1
                    continue
                self._write(line)
                self._gap, self.problem = False, ""
            except OSError as error:
                self.lost += 1
                self._gap = True
                if not self.problem:
                    log.warning("%s: %s; decisions are not in the journal", self._path, error)
                self.problem = f"{self._path}: {why(error)}: decisions are not recorded"
            finally:
                self._queue.task_done()

    def _write(self, line: _Line) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        if line.new_file and self._path.exists():
            for number in range(FILES_MAX - 2, 0, -1):
                old = self._path.with_name(f"{FILE_NAME}.{number}")
                if old.exists():
                    old.replace(self._path.with_name(f"{FILE_NAME}.{number + 1}"))
            self._path.replace(self._path.with_name(f"{FILE_NAME}.1"))
        append_lines(self._path, line.data, line.sync)

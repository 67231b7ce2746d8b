# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent score FILE|-`: the score for the given samples, with its parts.

One JSON object, or an array of them:

    {"state": "EngineDown",                  any state's name
     "score": {"base-score": 3400, ...},     weights, optional
     "vm_memory_mb": 4096,
     "retries": 0,
     "config_up_to_date": true,
     "history": [{"t": 0, "cpu_load": 0.2}], all load points; t in seconds
     "sample": {"network": 1.0, "bridge": true, "mem_free_mb": 8000, "cpu_load": 0.2}}

A missing or null value is unknown and costs nothing. Without `history` the sample's cpu_load counts
as the load of the whole window.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from agent.terminal import in_json
from agent.terminal.errors import CommandError
from broker.config.explain import in_words
from broker.config.sections import ScoreSection
from broker.config.values import Fraction
from broker.daemon.exit_codes import ExitCode
from scoring.hosts.score import HostSamples, mean_load
from scoring.rules import Weights
from scoring.vm.score import Score, VmSamples, score
from scoring.vm.state import StateName

NotNegative = Annotated[float, Meta(ge=0)]


class _Given(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the shapes: a misspelt key must not look like an unknown sample."""


class LoadPoint(_Given, frozen=True):
    """The load per CPU at a moment, without the engine VM's own share."""

    t: float
    cpu_load: NotNegative | None = None


class GivenSample(_Given, frozen=True):
    """The newest samples."""

    network: Fraction | None = None
    bridge: bool | None = None
    mem_free_mb: NotNegative | None = None
    cpu_load: NotNegative | None = None


class Question(_Given, frozen=True):
    """One host to score."""

    state: StateName
    sample: GivenSample = GivenSample()
    score: ScoreSection = ScoreSection()
    vm_memory_mb: NotNegative = 0
    retries: Annotated[int, Meta(ge=0)] = 0
    config_up_to_date: bool | None = None
    history: tuple[LoadPoint, ...] | None = None


def answer(question: Question) -> Score:
    """The score of one question."""
    sample = question.sample
    load = sample.cpu_load
    if question.history is not None:
        points = sorted(((point.t, point.cpu_load) for point in question.history), key=_time)
        load = mean_load(points)
    return score(
        HostSamples(sample.network, sample.bridge, load),
        VmSamples(
            question.state,
            sample.mem_free_mb,
            question.vm_memory_mb,
            question.config_up_to_date,
            question.retries,
        ),
        Weights(**msgspec.structs.asdict(question.score)),
    )


def _time(point: tuple[float, float | None]) -> float:
    return point[0]


def run(path: str, as_json: bool) -> int:
    """Print the score(s); CommandError names the field that does not fit."""
    given = _parse(_read(path), "standard input" if path == "-" else path)
    if isinstance(given, list):
        questions = [_question(item, f"[{place}]") for place, item in enumerate(given)]
    else:
        questions = [_question(given, "")]
    answers = [answer(question) for question in questions]
    if as_json:
        in_json.show_all([_shape(one) for one in answers], isinstance(given, list))
    else:
        print("\n\n".join(as_text(one) for one in answers))
    return ExitCode.OK


def as_text(one: Score) -> str:
    """The score and a line for each part."""
    lines = [f"score {one.value}"]
    lines += [f"  -{part.points:<5} {part.name}: {part.why}" for part in one.penalties]
    lines += [f"  unknown: {name} (costs nothing)" for name in one.unknown]
    return "\n".join(lines)


def _shape(one: Score) -> dict[str, Any]:
    parts = [{"name": p.name, "points": p.points, "why": p.why} for p in one.penalties]
    return {"score": one.value, "penalties": parts, "unknown": list(one.unknown)}


def _read(path: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise CommandError(ExitCode.FILE, f"{path}: cannot be read: {error.strerror}") from None


def _parse(text: bytes, name: str) -> Any:
    try:
        # Not msgspec: it would call a NaN bad JSON and not say where it is.
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(ExitCode.FAILED, f"{name}: is not JSON: {error}") from None


def _question(item: Any, place: str) -> Question:
    try:
        _refuse_not_finite(item, place)
        return msgspec.convert(item, Question)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$")
        field = f"{place}{where.rstrip('`')}".lstrip(".") or "the input"
        raise CommandError(ExitCode.FAILED, f"{field}: {in_words(text)}") from None
    except (_NotFinite, RecursionError) as error:
        raise CommandError(ExitCode.FAILED, str(error)) from None


class _NotFinite(Exception):
    pass


def _refuse_not_finite(item: Any, place: str) -> None:
    if isinstance(item, float) and not math.isfinite(item):
        raise _NotFinite(
            f"{place.lstrip('.') or 'the input'}: {item} is not a number to count with"
        )
    if isinstance(item, dict):
        for key, value in item.items():
            _refuse_not_finite(value, f"{place}.{key}")
    elif isinstance(item, list):
        for index, value in enumerate(item):
            _refuse_not_finite(value, f"{place}[{index}]")

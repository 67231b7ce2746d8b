# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a host lacks, whichever VM it would run.

A VM's score on a host is the base score, less what the host lacks, less what that VM lacks there
(scoring/vm/score.py). The first of the two is here, and is the same for all VMs:

    network     1600  int((1 - fraction of passed network tests) * 1600)
    bridge       600  management bridge down
    load    0..1000   linear in the mean load per CPU, from 0.4 to 0.9, int, clamped
    fence-path     0  the host's own fence device cannot be reached; ours, 0 unless configured

A sample that is unknown costs nothing and is said to be unknown: a question that was not answered
is no reason to move a VM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

from scoring.rules import Weights


@dataclass(frozen=True, slots=True)
class Penalty:
    """One part of what a score lacks. `name` is stable; `why` is for people."""

    name: str
    points: int
    why: str


@dataclass(frozen=True, slots=True)
class Lack:
    """What is missing, before it is cut at 0; `unknown` names unanswered samples."""

    parts: tuple[Penalty, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostSamples:
    """Samples of the host; None is unknown. `network`: fraction of passed tests; `cpu_load`: the
    mean per CPU."""

    network: float | None = None
    bridge_up: bool | None = None
    cpu_load: float | None = None
    fence_path_ok: bool | None = None


def load_penalty(load: float, weights: Weights) -> int:
    """Points for a mean load per CPU: 0 up to the minimum, all from the maximum on."""
    low, high, most = (
        weights.cpu_load_penalty_min,
        weights.cpu_load_penalty_max,
        weights.cpu_load_score_penalty,
    )
    if load >= high:
        return most
    if load <= low:
        return 0
    return int((load - low) / (high - low) * most)


def mean_load(points: Sequence[tuple[float, float | None]]) -> float | None:
    """Time-weighted (trapezoidal) mean of (seconds, load) points in order of time.

    An interval counts only when the load at both its ends is known; without any such
    interval the mean is not known (None). Summed from the newest to the oldest, as the
    reference does: the last bit may decide about a point.
    """
    area = span_s = 0.0
    for (t0, a), (t1, b) in pairwise(reversed(points)):
        if a is not None and b is not None:
            area += (t0 - t1) * (a + b) / 2
            span_s += t0 - t1
    return area / span_s if span_s > 0 else None


def host_lacks(given: HostSamples, weights: Weights) -> Lack:
    """By the table at the head of this file."""
    parts: list[Penalty] = []
    unknown: list[str] = []
    network = number(given.network)
    if network is None:
        unknown.append("network")
    else:
        passed = max(0.0, min(1.0, network))
        points = int((1 - passed) * weights.network_score_penalty)
        parts.append(Penalty("network", points, f"{passed:.0%} of the network tests pass"))
    if given.bridge_up is None:
        unknown.append("bridge")
    elif not given.bridge_up:
        parts.append(
            Penalty("bridge", weights.mgmt_bridge_score_penalty, "the management bridge is down")
        )
    load = number(given.cpu_load)
    if load is None:
        unknown.append("load")
    else:
        points = load_penalty(load, weights)
        parts.append(Penalty("load", points, f"mean load {load:.2f} per CPU without the engine VM"))
    if given.fence_path_ok is False and weights.fence_path_score_penalty:
        why = "the fence device of this host cannot be reached"
        parts.append(Penalty("fence-path", weights.fence_path_score_penalty, why))
    return Lack(tuple(parts), tuple(unknown))


def number(sample: float | None) -> float | None:
    """The sample; None where it is no number (NaN, infinite), which says as little."""
    return sample if sample is not None and isfinite(sample) else None

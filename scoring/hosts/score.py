# SPDX-License-Identifier: LGPL-2.1-or-later
"""The penalties of a host, which are the same for every VM.

A VM's score on a host is the base score, less the penalties of the host, less the penalties of that
VM there (scoring/vm/score.py). The two are kept apart, so that a fault of a host is counted once
and in the same way for all its VMs. The penalties of a host:

    network     1600  int((1 - fraction of passed network tests) * 1600)
    bridge       600  management bridge down
    load    0..1000   linear in the mean load per CPU, from 0.4 to 0.9, int, clamped
    fence-path     0  the host's own fence device cannot be reached (not in the reference; 0 unless
                      configured)

A sample that is unknown costs no points and is listed as unknown: a question that was not answered
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
    """Points that one fact takes from the score. `name` is stable; `why` is for people."""

    name: str
    points: int
    why: str


@dataclass(frozen=True, slots=True)
class Lack:
    """All penalties of a host or of a VM, before the score is cut at 0. `unknown`: the names of the
    samples that are not known."""

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
    """The penalty for a mean load per CPU: 0 up to the minimum, the whole from the maximum on."""
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

    An interval counts only if the load at both its ends is known; without any such interval the
    mean is not known (None). The sum runs from the newest to the oldest point, as the reference's
    does: the last bit of a float may decide about one point of the score.
    """
    area = span_s = 0.0
    for (t0, a), (t1, b) in pairwise(reversed(points)):
        if a is not None and b is not None:
            area += (t0 - t1) * (a + b) / 2
            span_s += t0 - t1
    return area / span_s if span_s > 0 else None


def host_lacks(given: HostSamples, weights: Weights) -> Lack:
    """The penalties of the table at the head of this file."""
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
    """The sample; None, that is unknown, also where it is NaN or infinite."""
    return sample if sample is not None and isfinite(sample) else None

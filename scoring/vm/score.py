# SPDX-License-Identifier: LGPL-2.1-or-later
"""How fit a host is to run the engine VM: one number, and why it is not higher.

The rules and the key names are oVirt hosted engine's, so that a score means the same in
both (its agent's `score` section and constants):

    network     1600  int((1 - fraction of passed network tests) * 1600)
    bridge       600  management bridge down
    memory       400  free memory below the VM's; not while the VM is up here (EngineUp,
                      EngineUpBadHealth), not in global maintenance
    load    0..1000   linear in the mean load per CPU, from 0.4 to 0.9, int, clamped
    config      1000  this host's VM definition is older than the shared one
    retries   50 each failed starts; with more than 3 the score is 0

The score is never below 0. It is 0 in LocalMaintenance, EngineUnexpectedlyDown,
ReinitializeFSM and AgentStopped. A sample that is unknown costs nothing and is said to
be unknown: a question that was not answered is no reason to move a VM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

from scoring.rules import Weights
from scoring.timing import START_RETRIES_MAX
from scoring.vm.state import StateName


@dataclass(frozen=True, slots=True)
class ScoreInput:
    """What the score depends on; None is unknown. Load is the mean per CPU, memory in MiB.
    `last_failure`: why the last of `retries` failed, where that is known."""

    state: StateName
    network: float | None = None
    bridge_up: bool | None = None
    mem_free_mb: float | None = None
    vm_memory_mb: float = 0
    cpu_load: float | None = None
    config_up_to_date: bool | None = None
    retries: int = 0
    last_failure: str = ""
    fence_path_ok: bool | None = None


@dataclass(frozen=True, slots=True)
class Penalty:
    """One part of what a score lacks. `name` is stable; `why` is for people."""

    name: str
    points: int
    why: str


@dataclass(frozen=True, slots=True)
class Score:
    """`value` is base minus the penalties, never below 0; `unknown` names unanswered samples.

    The penalties always add up to base - value: where the plain sum would go below 0
    the last parts are cut; a state that makes the score 0 is the only part.
    """

    value: int
    penalties: tuple[Penalty, ...] = ()
    unknown: tuple[str, ...] = ()


#: States in which the VM's memory is already taken here, or nothing may be started.
_MEMORY_NOT_ASKED = frozenset(
    {StateName.ENGINE_UP, StateName.ENGINE_UP_BAD_HEALTH, StateName.GLOBAL_MAINTENANCE}
)

_ZERO_STATES = {
    StateName.LOCAL_MAINTENANCE: ("local-maintenance", "this host is in local maintenance"),
    StateName.ENGINE_UNEXPECTEDLY_DOWN: ("unexpected-down", "the engine VM died here unexpectedly"),
    StateName.REINITIALIZE_FSM: ("reinitializing", "the agent has just started and looks around"),
    StateName.AGENT_STOPPED: ("stopped", "the agent was stopped"),
}


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


def score(given: ScoreInput, weights: Weights) -> Score:
    """The host's score with its parts, by the rules at the head of this file."""
    if given.state in _ZERO_STATES:
        name, why = _ZERO_STATES[given.state]
        return Score(0, (Penalty(name, weights.base_score, why),))

    parts: list[Penalty] = []
    unknown: list[str] = []

    if given.config_up_to_date is None:
        unknown.append("config")
    elif not given.config_up_to_date:
        parts.append(
            Penalty(
                "config",
                weights.not_uptodate_config_penalty,
                "this host's VM definition is older than the shared one",
            )
        )

    network = _number(given.network)
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

    load = _number(given.cpu_load)
    if load is None:
        unknown.append("load")
    else:
        points = load_penalty(load, weights)
        parts.append(Penalty("load", points, f"mean load {load:.2f} per CPU without the engine VM"))

    if given.state not in _MEMORY_NOT_ASKED:
        free_mb = _number(given.mem_free_mb)
        if free_mb is None:
            unknown.append("memory")
        elif free_mb < given.vm_memory_mb:
            parts.append(
                Penalty(
                    "memory",
                    weights.free_memory_score_penalty,
                    f"{free_mb:.0f} MiB free, the VM needs {given.vm_memory_mb:.0f}",
                )
            )

    if given.fence_path_ok is False and weights.fence_path_score_penalty:
        why = "the fence device of this host cannot be reached"
        parts.append(Penalty("fence-path", weights.fence_path_score_penalty, why))

    last = f"; the last: {given.last_failure}" if given.last_failure else ""
    if given.retries > START_RETRIES_MAX:
        why = f"{given.retries} failed starts, pausing{last}"
        parts.append(Penalty("retries", weights.base_score, why))
    elif given.retries > 0:
        points = weights.engine_retry_score_penalty * given.retries
        parts.append(Penalty("retries", points, f"{given.retries} failed start(s){last}"))

    return _cut_at_zero(parts, weights.base_score, tuple(unknown))


def _number(sample: float | None) -> float | None:
    """The sample; None where it is no number (NaN, infinite), which says as little."""
    return sample if sample is not None and isfinite(sample) else None


def _cut_at_zero(parts: list[Penalty], base: int, unknown: tuple[str, ...]) -> Score:
    """Take the parts off the base in order; what would go below 0 is cut, empty parts fall out."""
    left = base
    kept: list[Penalty] = []
    for part in parts:
        points = min(part.points, left)
        left -= points
        if points:
            kept.append(Penalty(part.name, points, part.why))
    return Score(left, tuple(kept), unknown)

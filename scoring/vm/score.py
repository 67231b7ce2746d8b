# SPDX-License-Identifier: LGPL-2.1-or-later
"""How fit a host is to run a VM: one number, and why it is not higher.

The rules and the key names are oVirt hosted engine's, so that a score means the same in
both (its agent's `score` section and constants). It is the base score, less what the host lacks
(scoring/hosts/score.py), less what this VM lacks there:

    config      1000  this host's VM definition is older than the shared one
    memory       400  free memory below the VM's; not while the VM is up here (EngineUp,
                      EngineUpBadHealth), not in global maintenance
    retries   50 each failed starts; with more than 3 the score is 0

The score is never below 0. It is 0 in LocalMaintenance, EngineUnexpectedlyDown,
ReinitializeFSM and AgentStopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scoring.hosts.score import HostSamples, Lack, Penalty, host_lacks, number
from scoring.rules import Weights
from scoring.timing import START_RETRIES_MAX
from scoring.vm.state import StateName


@dataclass(frozen=True, slots=True)
class VmSamples:
    """What of a VM's score is its own; None is unknown. Memory in MiB. `last_failure`: why the last
    of `retries` failed, where that is known."""

    state: StateName
    mem_free_mb: float | None = None
    vm_memory_mb: float = 0
    config_up_to_date: bool | None = None
    retries: int = 0
    last_failure: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """`value` is base minus the penalties, never below 0; `unknown` names unanswered samples.

    The penalties always add up to base - value: where the plain sum would go below 0
    the last parts are cut; a state that makes the score 0 is the only part.
    """

    value: int
    penalties: tuple[Penalty, ...] = ()
    unknown: tuple[str, ...] = ()


#: In this order the parts are published, and taken off the base.
ORDER = ("config", "network", "bridge", "load", "memory", "fence-path", "retries")
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


def score(host: HostSamples, vm: VmSamples, weights: Weights) -> Score:
    """A VM's score on a host with its parts, by the rules at the head of this file."""
    if vm.state in _ZERO_STATES:
        name, why = _ZERO_STATES[vm.state]
        return Score(0, (Penalty(name, weights.base_score, why),))
    of_host, of_vm = host_lacks(host, weights), vm_lacks(vm, weights)
    parts = sorted((*of_host.parts, *of_vm.parts), key=lambda part: ORDER.index(part.name))
    unknown = sorted((*of_host.unknown, *of_vm.unknown), key=ORDER.index)
    return _cut_at_zero(parts, weights.base_score, tuple(unknown))


def vm_lacks(given: VmSamples, weights: Weights) -> Lack:
    """By the table at the head of this file, in a state that does not make the score 0."""
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
    if given.state not in _MEMORY_NOT_ASKED:
        free_mb = number(given.mem_free_mb)
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
    last = f"; the last: {given.last_failure}" if given.last_failure else ""
    if given.retries > START_RETRIES_MAX:
        why = f"{given.retries} failed starts, pausing{last}"
        parts.append(Penalty("retries", weights.base_score, why))
    elif given.retries > 0:
        points = weights.engine_retry_score_penalty * given.retries
        parts.append(Penalty("retries", points, f"{given.retries} failed start(s){last}"))
    return Lack(tuple(parts), tuple(unknown))


def _cut_at_zero(parts: Sequence[Penalty], base: int, unknown: tuple[str, ...]) -> Score:
    """Take the parts off the base in order; what would go below 0 is cut, empty parts fall out."""
    left = base
    kept: list[Penalty] = []
    for part in parts:
        points = min(part.points, left)
        left -= points
        if points:
            kept.append(Penalty(part.name, points, part.why))
    return Score(left, tuple(kept), unknown)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""How fit a host is to run a VM: one number, and the reasons why it is not higher.

Every host compares the scores of all hosts, so they must be computed alike everywhere. The rules
and the key names are those of oVirt's hosted engine (its agent's `score` section and constants), so
that a score means the same in both. The score is the base score, less the penalties of the host
(scoring/hosts/score.py), less the penalties of this VM there:

    config      1000  this host's VM definition is older than the shared one
    memory       400  less free memory than the VM needs; not counted while the VM is up here
                      (EngineUp, EngineUpBadHealth), nor in global maintenance
    retries   50 each failed starts; after more than 3 the score is 0

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
    """Samples of one VM on a host; None is unknown. Memory in MiB. `retries`: its failed starts;
    `last_failure`: why the last one failed, if that is known."""

    state: StateName
    mem_free_mb: float | None = None
    vm_memory_mb: float = 0
    config_up_to_date: bool | None = None
    retries: int = 0
    last_failure: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """The score and its parts. `value`: the base score minus the penalties, never below 0.
    `unknown`: the names of the samples that are not known.

    The penalties always add up to base - value: if the score would be below 0, the last penalties
    are cut. In a state that makes the score 0, that state is the only penalty.
    """

    value: int
    penalties: tuple[Penalty, ...] = ()
    unknown: tuple[str, ...] = ()


#: The order in which the penalties are published and subtracted.
ORDER = ("config", "network", "bridge", "load", "memory", "fence-path", "retries")
#: States without a penalty for memory: the VM has its memory here already, or nothing may start.
_MEMORY_NOT_COUNTED = frozenset(
    {StateName.ENGINE_UP, StateName.ENGINE_UP_BAD_HEALTH, StateName.GLOBAL_MAINTENANCE}
)

#: The states in which the score is 0, with the name and the sentence of the penalty.
ZERO_STATES = {
    StateName.LOCAL_MAINTENANCE: ("local-maintenance", "this host is in local maintenance"),
    StateName.ENGINE_UNEXPECTEDLY_DOWN: ("unexpected-down", "the engine VM died here unexpectedly"),
    StateName.REINITIALIZE_FSM: ("reinitializing", "the agent has just started and looks around"),
    StateName.AGENT_STOPPED: ("stopped", "the agent was stopped"),
}


def score(host: HostSamples, vm: VmSamples, weights: Weights) -> Score:
    """The score of a host for a VM, by the rules at the head of this file."""
    if vm.state in ZERO_STATES:
        name, why = ZERO_STATES[vm.state]
        return Score(0, (Penalty(name, weights.base_score, why),))
    of_host, of_vm = host_lacks(host, weights), vm_lacks(vm, weights)
    parts = sorted((*of_host.parts, *of_vm.parts), key=lambda part: ORDER.index(part.name))
    unknown = sorted((*of_host.unknown, *of_vm.unknown), key=ORDER.index)
    return _cut_at_zero(parts, weights.base_score, tuple(unknown))


def vm_lacks(given: VmSamples, weights: Weights) -> Lack:
    """The penalties of the table at the head of this file, in a state that does not make the score
    0."""
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
    if given.state not in _MEMORY_NOT_COUNTED:
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
    """Subtract the penalties in order; cut what would make the score negative, and drop penalties
    of 0 points."""
    left = base
    kept: list[Penalty] = []
    for part in parts:
        points = min(part.points, left)
        left -= points
        if points:
            kept.append(Penalty(part.name, points, part.why))
    return Score(left, tuple(kept), unknown)

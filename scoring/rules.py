# SPDX-License-Identifier: LGPL-2.1-or-later
"""The settings of the decisions, which must be the same on every host of a cluster.

Each host decides by itself, so hosts with different settings would disagree: two would each find
the other one better, or wait for each other. The broker compares the settings of all hosts
(broker/config/agreement.py) and reports a difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scoring.timing import Timing

#: From the order to move the VM until its outcome, beside the time that the migration itself may
#: take: the target is asked first (10 s), and cancelling takes a moment (30 s).
MIGRATION_EXTRA_S = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Penalties in points under the reference's key names (`base-score` is base_score, …).

    `fence_path_score_penalty` is ours: this host's own fence device cannot be reached.
    """

    base_score: int = 3400
    network_score_penalty: int = 1600
    not_uptodate_config_penalty: int = 1000
    mgmt_bridge_score_penalty: int = 600
    free_memory_score_penalty: int = 400
    cpu_load_score_penalty: int = 1000
    engine_retry_score_penalty: int = 50
    fence_path_score_penalty: int = 0
    cpu_load_penalty_min: float = 0.4
    cpu_load_penalty_max: float = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """All settings of `decide`.

    `vm_memory_mb`: memory of the engine VM in MiB. `move_threshold`: a healthy VM moves
    only to a host that scores this much more (the reference's 800 points).
    `io_timeout_s`: sanlock's; a host that was off
    needs at least twice as long to join the lockspace again, so that a power reading no
    older than this still proves its host id unused. `fence_power_off`: a silent host that is
    still on is switched off; `fence_power_on`: and on again once its VM runs elsewhere.
    `fences_per_hour`: so many over the whole cluster, at most.
    `migration_timeout_s`: a migration that takes longer is cancelled. `leave_isolated`: a VM that
    nobody reaches because its host is cut off is reported, and left where it is. `balance`: a VM of
    the registry leaves the fullest host for one with clearly more memory free.
    """

    weights: Weights = field(default_factory=Weights)
    timing: Timing = field(default_factory=Timing)
    vm_memory_mb: float = 0
    move_threshold: int = 800
    io_timeout_s: float = 10.0
    fence_power_off: bool = True
    fence_power_on: bool = True
    fences_per_hour: int = 3
    migration_timeout_s: float = 300.0
    leave_isolated: bool = False
    balance: bool = False

    @property
    def migration_within_s(self) -> float:
        """At most so long a move takes, from its order until its outcome is known."""
        return self.migration_timeout_s + MIGRATION_EXTRA_S

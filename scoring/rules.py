# SPDX-License-Identifier: LGPL-2.1-or-later
"""The settings of the decisions, which must be the same on every host of a cluster.

Each host decides by itself, so hosts with different settings would disagree: two would each find
the other one better, or wait for each other. The broker compares the settings of all hosts
(broker/config/agreement.py) and reports a difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scoring.timing import Timing

#: The part of a move that is not the migration itself: first the target is asked (10 s), and at the
#: end a cancellation may be needed (30 s).
MIGRATION_EXTRA_S = 40.0


def timeout_key(is_own: bool) -> str:
    """The name of the setting that limits a migration: the VM's own, or the configuration's."""
    return "its own migration-timeout" if is_own else "libvirt.migration-timeout"


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

    `vm_memory_mb`: memory of the engine VM in MiB. `move_threshold`: a healthy VM moves only to a
    host that scores this much more (the reference's 800 points). `io_timeout_s`: sanlock's. A host
    that was off needs at least twice this time to join the lockspace again; so a power reading that
    is no older than this still proves that its host id is unused. `fence_power_off`: a silent host
    whose power reads on is switched off. `fence_power_on`: it is switched on again once its VM runs
    elsewhere. `fences_per_hour`: how many hosts of the whole cluster may be switched off within an
    hour. `migration_timeout_s`: a migration that takes longer is cancelled. `leave_isolated`: a VM
    that nobody reaches because its host is cut off is reported, but stays where it is. `balance`: a
    VM of the registry leaves the fullest host for one with clearly more free memory.
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

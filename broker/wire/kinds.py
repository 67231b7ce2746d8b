# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kinds of notices, each with its severity: a closed set. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum


class Severity(IntEnum):
    """How soon a person should look: at leisure, today, now."""

    INFO = 0
    WARNING = 1
    CRITICAL = 2

    @property
    def word(self) -> str:
        """The name in configuration, messages and templates."""
        return self.name.lower()


class Kind(StrEnum):
    """What a notice is about; each is a key of `[notify.rules]`, TEST apart."""

    STATE_TRANSITION = "state-transition"
    FAILOVER_STARTED = "failover-started"
    FAILOVER_DONE = "failover-done"
    FENCE_ATTEMPTED = "fence-attempted"
    FENCE_PROVEN = "fence-proven"
    FENCE_FAILED = "fence-failed"
    FENCE_HELD_BACK = "fence-held-back"
    FENCE_ASKED = "fence-asked"
    FENCE_SWITCHED_ON = "fence-switched-on"
    WAS_SWITCHED_OFF = "was-switched-off"
    FENCE_PATH_UNPROVEN = "fence-path-unproven"
    FENCE_PATH_PROVEN = "fence-path-proven"
    LEASE_BUDGET_LOW = "lease-budget-low"
    LEASE_BUDGET_GOOD = "lease-budget-good"
    MAINTENANCE_ENDS_SOON = "maintenance-ends-soon"
    MAINTENANCE_OVER = "maintenance-over"
    CONFIG_REFUSED = "config-refused"
    VM_UNPROTECTED = "vm-unprotected"
    START_FAILED = "start-failed"
    VM_DIFFERS = "vm-differs"
    VM_AS_RECORDED = "vm-as-recorded"
    START_HELD_BACK = "start-held-back"
    VM_PAUSED = "vm-paused"
    VM_OUTDATED = "vm-outdated"
    MEMORY_IMAGE = "memory-image"
    AUTOSTART = "autostart"
    LEFTOVER_VM = "leftover-vm"
    NEVER_HEALTHY = "never-healthy"
    CANNOT_START = "cannot-start"
    CAN_START = "can-start"
    ENGINE_UNKNOWN = "engine-unknown"
    ENGINE_KNOWN = "engine-known"
    OTHER_STORAGE = "other-storage"
    SAME_STORAGE = "same-storage"
    SLOT_NOT_COUNTED = "slot-not-counted"
    ISOLATED = "isolated"
    ISOLATION_HELD_BACK = "isolation-held-back"
    DRAIN_STUCK = "drain-stuck"
    PEER_SILENT = "peer-silent"
    PEER_STOPPED = "peer-stopped"
    PEER_BACK = "peer-back"
    AGENT_SILENT = "agent-silent"
    AGENT_BACK = "agent-back"
    VM_UP = "vm-up"
    VM_DOWN = "vm-down"
    VM_WITHOUT_PLACE = "vm-without-place"
    VM_PLACED = "vm-placed"
    N_PLUS_1_SHORT = "n-plus-1-short"
    N_PLUS_1_GOOD = "n-plus-1-good"
    TEST = "test"


_S = Severity
SEVERITY: Mapping[Kind, Severity] = {
    Kind.STATE_TRANSITION: _S.INFO,
    Kind.FAILOVER_STARTED: _S.CRITICAL,
    Kind.FAILOVER_DONE: _S.CRITICAL,
    Kind.FENCE_ATTEMPTED: _S.CRITICAL,
    Kind.FENCE_PROVEN: _S.CRITICAL,
    Kind.FENCE_FAILED: _S.CRITICAL,
    Kind.FENCE_HELD_BACK: _S.CRITICAL,
    Kind.FENCE_ASKED: _S.CRITICAL,
    Kind.FENCE_SWITCHED_ON: _S.INFO,
    Kind.WAS_SWITCHED_OFF: _S.CRITICAL,
    Kind.FENCE_PATH_UNPROVEN: _S.WARNING,
    Kind.FENCE_PATH_PROVEN: _S.INFO,
    Kind.LEASE_BUDGET_LOW: _S.CRITICAL,
    Kind.LEASE_BUDGET_GOOD: _S.INFO,
    Kind.MAINTENANCE_ENDS_SOON: _S.WARNING,
    Kind.MAINTENANCE_OVER: _S.WARNING,
    Kind.CONFIG_REFUSED: _S.WARNING,
    Kind.VM_UNPROTECTED: _S.CRITICAL,
    Kind.START_FAILED: _S.CRITICAL,
    Kind.VM_DIFFERS: _S.WARNING,
    Kind.VM_AS_RECORDED: _S.INFO,
    Kind.START_HELD_BACK: _S.CRITICAL,
    Kind.VM_PAUSED: _S.WARNING,
    Kind.VM_OUTDATED: _S.CRITICAL,
    Kind.MEMORY_IMAGE: _S.WARNING,
    Kind.AUTOSTART: _S.WARNING,
    Kind.LEFTOVER_VM: _S.WARNING,
    Kind.NEVER_HEALTHY: _S.CRITICAL,
    Kind.CANNOT_START: _S.WARNING,
    Kind.CAN_START: _S.INFO,
    Kind.ENGINE_UNKNOWN: _S.CRITICAL,
    Kind.ENGINE_KNOWN: _S.INFO,
    Kind.OTHER_STORAGE: _S.CRITICAL,
    Kind.SAME_STORAGE: _S.INFO,
    Kind.SLOT_NOT_COUNTED: _S.CRITICAL,
    Kind.ISOLATED: _S.CRITICAL,
    Kind.ISOLATION_HELD_BACK: _S.CRITICAL,
    Kind.DRAIN_STUCK: _S.WARNING,
    Kind.PEER_SILENT: _S.CRITICAL,
    Kind.PEER_STOPPED: _S.INFO,
    Kind.PEER_BACK: _S.INFO,
    Kind.AGENT_SILENT: _S.CRITICAL,
    Kind.AGENT_BACK: _S.INFO,
    Kind.VM_UP: _S.INFO,
    Kind.VM_DOWN: _S.WARNING,
    Kind.VM_WITHOUT_PLACE: _S.CRITICAL,
    Kind.VM_PLACED: _S.INFO,
    Kind.N_PLUS_1_SHORT: _S.WARNING,
    Kind.N_PLUS_1_GOOD: _S.INFO,
    # Above every threshold: a test must be sent by each channel.
    Kind.TEST: _S.CRITICAL,
}
assert set(SEVERITY) == set(Kind)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an agent remembers of one VM from one beat to the next, and which state may follow which.

The state names are oVirt hosted engine's. TRANSITIONS is the whole truth about the machine's
shape: scoring/vm/machine.py refuses (asserts) any other step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from scoring.observation import LeaseAnswer, MigrationPath, Order
from scoring.timing import NEVER_S
from scoring.vm_facts import Claim


class StateName(StrEnum):
    """The reference's state names; the value is what is published on the whiteboard."""

    REINITIALIZE_FSM = "ReinitializeFSM"
    ENGINE_DOWN = "EngineDown"
    ENGINE_START = "EngineStart"
    ENGINE_STARTING = "EngineStarting"
    ENGINE_UP = "EngineUp"
    ENGINE_UP_BAD_HEALTH = "EngineUpBadHealth"
    ENGINE_STOP = "EngineStop"
    ENGINE_FORCE_STOP = "EngineForceStop"
    ENGINE_MAYBE_AWAY = "EngineMaybeAway"
    ENGINE_UNEXPECTEDLY_DOWN = "EngineUnexpectedlyDown"
    ENGINE_MIGRATING_AWAY = "EngineMigratingAway"
    LOCAL_MAINTENANCE = "LocalMaintenance"
    GLOBAL_MAINTENANCE = "GlobalMaintenance"
    UNKNOWN_LOCAL_VM_STATE = "UnknownLocalVmState"
    AGENT_STOPPED = "AgentStopped"


_S = StateName
_EVERYWHERE = {_S.GLOBAL_MAINTENANCE, _S.UNKNOWN_LOCAL_VM_STATE, _S.AGENT_STOPPED}

#: state -> states that may follow (staying is always possible).
TRANSITIONS: Mapping[StateName, frozenset[StateName]] = {
    # AgentStopped is the end: where nothing may follow, nothing does.
    name: frozenset((_EVERYWHERE | after) - {name} if after else ())
    for name, after in {
        _S.REINITIALIZE_FSM: {_S.LOCAL_MAINTENANCE, _S.ENGINE_STARTING, _S.ENGINE_DOWN},
        _S.ENGINE_DOWN: {_S.LOCAL_MAINTENANCE, _S.ENGINE_STARTING, _S.ENGINE_START},
        _S.ENGINE_START: {_S.ENGINE_STARTING, _S.ENGINE_DOWN, _S.LOCAL_MAINTENANCE},
        _S.ENGINE_STARTING: {
            _S.ENGINE_UP,
            _S.ENGINE_MIGRATING_AWAY,
            _S.ENGINE_FORCE_STOP,
            _S.ENGINE_MAYBE_AWAY,
            _S.ENGINE_UNEXPECTEDLY_DOWN,
            _S.ENGINE_STOP,
        },
        _S.ENGINE_UP: {
            _S.ENGINE_MAYBE_AWAY,
            _S.ENGINE_UNEXPECTEDLY_DOWN,
            _S.ENGINE_STOP,
            _S.ENGINE_MIGRATING_AWAY,
            _S.ENGINE_UP_BAD_HEALTH,
        },
        _S.ENGINE_UP_BAD_HEALTH: {
            _S.ENGINE_UP,
            _S.ENGINE_MAYBE_AWAY,
            _S.ENGINE_UNEXPECTEDLY_DOWN,
            _S.ENGINE_STOP,
            _S.ENGINE_MIGRATING_AWAY,
        },
        _S.ENGINE_STOP: {
            _S.LOCAL_MAINTENANCE,
            _S.ENGINE_FORCE_STOP,
            _S.ENGINE_DOWN,
            _S.REINITIALIZE_FSM,
        },
        _S.ENGINE_FORCE_STOP: {_S.LOCAL_MAINTENANCE, _S.ENGINE_DOWN, _S.REINITIALIZE_FSM},
        _S.ENGINE_MAYBE_AWAY: {
            _S.LOCAL_MAINTENANCE,
            _S.ENGINE_STARTING,
            _S.ENGINE_DOWN,
            _S.ENGINE_UNEXPECTEDLY_DOWN,
        },
        _S.ENGINE_UNEXPECTEDLY_DOWN: {
            _S.LOCAL_MAINTENANCE,
            _S.ENGINE_STARTING,
            _S.ENGINE_DOWN,
        },
        _S.ENGINE_MIGRATING_AWAY: {
            _S.ENGINE_DOWN,
            _S.ENGINE_MAYBE_AWAY,
            _S.REINITIALIZE_FSM,
        },
        _S.LOCAL_MAINTENANCE: {_S.REINITIALIZE_FSM},
        _S.GLOBAL_MAINTENANCE: {_S.LOCAL_MAINTENANCE, _S.REINITIALIZE_FSM},
        _S.UNKNOWN_LOCAL_VM_STATE: {_S.LOCAL_MAINTENANCE, _S.REINITIALIZE_FSM},
        _S.AGENT_STOPPED: set(),
    }.items()
}


@dataclass(frozen=True, slots=True)
class OrderAnswer:
    """What became of the operator's order `number`. `ok` None: under way."""

    number: int
    ok: bool | None
    text: str


@dataclass(frozen=True, slots=True)
class MoveProblem:
    """Why the last moves of our own to a host failed: so many in a row, the last one for `why`;
    `lasting`, `everywhere`: see VmMigrationEnded."""

    why: str
    lasting: bool = False
    tries: int = 1
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """This host's own claim on the room for the VM on some host (scoring/vm/room.py).

    `sweep`: the last reading of all slots that it was judged by; `waited`: so many readings it has
    waited for others to give way. `granted`: the VM may be brought there. `used`: a start or a
    migration was begun on it. `shown_s`: since when that host shows the VM.
    """

    claim: Claim
    sweep: int = 0
    waited: int = 0
    granted: bool = False
    used: bool = False
    shown_s: float | None = None


@dataclass(frozen=True, slots=True)
class VmState:
    """The memory of one VM's state machine. `VmState()` is the first one.

    `since_s`: when `name` was entered. `acted_s`: when the last start, stop or migration
    of the VM ended; samples of it older than that are stale. `acting`: such an action is
    under way. `stop_asked`: the guest was asked to shut down in this state.
    `missing_since_s`: since when no live host reports the VM up. `better_since_s`:
    since when some live host scores enough more to move the VM there. `ahead`: the hosts
    whose turn to start the VM is before this one's, since `ahead_since_s`.
    `startable_since_s`: since when nothing but their turn keeps this host from a start.
    `move_failed_s`: when a move of our own to each host last failed, and `move_problems`: why,
    while that host lives.
    `moving_to`: the host that the VM is being migrated to; `moving_until_s`: that migration is
    over by then; `asking_cancel`: one that this agent did not begin is being cancelled, and
    `cancelled_s`: when any last was.
    `last_failure`: why the last of the failed starts did, empty where none is counted.
    `order`: an operator's, under way; `order_since_s`: since when it asks for the lease;
    `asking_path`: libvirt on another host is being asked whether it answers, and `path` is what it
    answered last. `isolated`: this EngineStop is for nobody reaching the VM here.
    `cancelling`: the number of the order to cancel a migration, under way; `answers`: to the
    last orders, the newest last.
    `uplink_down_s`: since when the VM's bridges have no carrier (None: they have, or not known).
    `disarming`: libvirt is being asked to forget an autostart or a memory image; `disarmed_s`:
    when it was last asked.
    `leftover_ended_s`: when a process that was left here was last ended.
    `unstopped_since_s`: since when ending the VM's process here has failed; `asks_off`: this host
    asks the others to switch it off for that.
    `held`: this host's claim on the room for it; `no_claim_until_s`: none is made before.
    `waits_since_s`: since when it could start but for VMs that come before it (`after`).
    `locked_since_s`: since when no start gets the lock of the VM's image; `locked_s`: when the last
    one did not, and `locked_by`: who may have it.
    """

    name: StateName = StateName.REINITIALIZE_FSM
    since_s: float | None = None
    acted_s: float = NEVER_S
    acting: bool = False
    stop_asked: bool = False
    missing_since_s: float | None = None
    better_since_s: float | None = None
    move_failed_s: Mapping[int, float] = field(default_factory=dict)
    lease: LeaseAnswer | None = None
    asking_lease: bool = False
    ahead: tuple[int, ...] = ()
    ahead_since_s: float = NEVER_S
    startable_since_s: float | None = None
    retries: int = 0
    last_failure_s: float = NEVER_S
    last_ran: int = 0
    moving_to: int | None = None
    moving_until_s: float | None = None
    asking_cancel: bool = False
    cancelled_s: float | None = None
    last_failure: str = ""
    order: Order | None = None
    order_since_s: float | None = None
    cancelling: int | None = None
    answers: tuple[OrderAnswer, ...] = ()
    disarming: bool = False
    disarmed_s: float = NEVER_S
    leftover_ended_s: float = NEVER_S
    asking_path: bool = False
    path: MigrationPath | None = None
    isolated: bool = False
    uplink_down_s: float | None = None
    move_problems: Mapping[int, MoveProblem] = field(default_factory=dict)
    unstopped_since_s: float | None = None
    asks_off: bool = False
    held: Held | None = None
    no_claim_until_s: float = NEVER_S
    waits_since_s: float | None = None
    locked_since_s: float | None = None
    locked_s: float = NEVER_S
    locked_by: str = ""

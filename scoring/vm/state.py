# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent's memory about one VM from one beat to the next, and the table of its states.

Other hosts read the state from this host's slot and rely on what may follow it. So the table
TRANSITIONS is complete: scoring/vm/machine.py asserts that it takes no other step. The state names
are those of oVirt's hosted engine.
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

#: State -> the states that may follow it. Every state may also stay.
TRANSITIONS: Mapping[StateName, frozenset[StateName]] = {
    # AgentStopped is the end: no state follows it, not even those that follow all others.
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
    """The answer to the operator's order `number`. `ok`: done or refused (None: under way)."""

    number: int
    ok: bool | None
    text: str


@dataclass(frozen=True, slots=True)
class MoveProblem:
    """Why the agent's own last moves to a host failed. `tries`: how many in a row; `why`: the cause
    of the last one. `lasting`, `everywhere`: see VmMigrationEnded."""

    why: str
    lasting: bool = False
    tries: int = 1
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """This host's own claim on memory for the VM on some host (scoring/vm/room.py).

    `sweep`: the last reading of all slots by which it was judged. `waited`: for how many readings
    it has waited for other claims to be withdrawn. `granted`: the VM may be brought to that host.
    `used`: a start or a migration was begun with it. `shown_s`: since when that host shows the VM.
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

    `since_s`: when `name` was entered. `acting`: a start, stop or migration of the VM is under way.
    `acted_s`: when the last one ended; older samples of the VM are stale. `stop_asked`: the guest
    was asked to shut down in this state. `missing_since_s`: since when no live host reports the VM
    up. `better_since_s`: since when a live host scores enough more to move the VM there. `ahead`:
    the hosts that may start the VM before this one, since `ahead_since_s`. `startable_since_s`:
    since when only their turn keeps this host from a start. `retries`: the failed starts that
    count; `last_failure_s`, `last_failure`: when and why the last one failed.
    `move_failed_s`: when the agent's own last move to each host failed; `move_problems`: why, while
    that host lives. `moving_to`: the host to which the VM is being migrated, until `moving_until_s`
    at the latest. `asking_cancel`: a migration that this agent did not begin is being cancelled;
    `cancelled_s`: when a migration was last cancelled. `asking_path`: libvirt on another host is
    being asked whether it answers; `path`: its last answer. `isolated`: this EngineStop is due to
    isolation; `sick`: to the VM's health. `uplink_down_s`: since when the VM's bridges have no
    carrier (None: they have, or it is not known). `unjudged_since_s`: since when the VM is up here
    and its health is not known (None: it is known).
    `order`: an operator's order that is under way; `order_since_s`: since when it waits.
    `cancelling`: the number of the order to cancel a migration, under way. `answers`: the answers
    to the last orders, the newest last.
    `disarming`: libvirt is being asked to remove an autostart or a memory image; `disarmed_s`: when
    it was last asked. `leftover_ended_s`: when a leftover process was last ended.
    `unstopped_since_s`: since when ending the VM's process here has failed; `asks_off`: this host
    asks the others to switch it off for that. `given_up_since_s`: since when the VM is being ended
    here because this host alone has lost the storage.
    `held`: this host's claim on memory for the VM; `no_claim_until_s`: no claim is made before.
    `waits_since_s`: since when the VM waits only for the VMs of its `after`. `locked_since_s`:
    since when every start fails for the lock of the VM's image; `locked_s`: when the last one did;
    `locked_by`: which process may have the lock.
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
    sick: bool = False
    uplink_down_s: float | None = None
    unjudged_since_s: float | None = None
    move_problems: Mapping[int, MoveProblem] = field(default_factory=dict)
    unstopped_since_s: float | None = None
    asks_off: bool = False
    given_up_since_s: float | None = None
    held: Held | None = None
    no_claim_until_s: float = NEVER_S
    waits_since_s: float | None = None
    locked_since_s: float | None = None
    locked_s: float = NEVER_S
    locked_by: str = ""

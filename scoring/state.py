# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the agent carries from one beat to the next, and which state may follow which.

The state names are oVirt hosted engine's. TRANSITIONS is the whole truth about the
machine's shape: `decide` refuses (asserts) any other step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from scoring.observation import LeaseAnswer, MigrationPath, Order, PowerAnswer
from scoring.rules import Rules


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


#: Before any time a monotonic clock shows; finite, so that a state can be written as JSON.
NEVER_S = -1.0e12


@dataclass(frozen=True, slots=True)
class Seen:
    """A peer's timestamp, and when this host first saw it at that value.

    `changed`: it was seen to change at least once, so the peer lived at `since_s`. A peer
    that never changed since we look may have been dead all along.
    """

    timestamp: int
    since_s: float
    changed: bool = False


@dataclass(frozen=True, slots=True)
class Takeover:
    """How far the taking over from one silent, lease-owning host has come.

    `offs`: the last power readings that all say "off" from a proven device, at most two,
    at least Timing.power_reread apart. `asking_power`, `taking_fence`, `switching_off`,
    `freeing`: that action is under way, its outcome has not come. `not_before_s`: pause after a
    failure. `not_off`: readings in a row that were not "off". `attempts`: orders to switch it
    off; `ordered_s`: when the last one was taken; `gave_up`: the log was told that they come to
    nothing. `tries`: orders, those that were withdrawn among them; `next_order_s`: no other is
    given before. `withdrawn`: why what is under way must not be done any more; empty: it must.
    `renewal`: its host id's generation and timestamp on disk, first seen so at `renewal_since_s`.
    `freed_s`: when its host id was freed. `refused`: the fence lease was not given; `fence_owner`:
    who owns it, as it was last answered, `asking_owner`: that is being asked; `fencer`: what is
    known of the silent host that owns it (scoring/hosts/dead_fencer.py).
    """

    host_id: int
    since_s: float
    offs: tuple[PowerAnswer, ...] = ()
    power: PowerAnswer | None = None
    fence_since_s: float | None = None
    asking_power: bool = False
    taking_fence: bool = False
    switching_off: bool = False
    freeing: bool = False
    freed_s: float | None = None
    not_before_s: float = 0.0
    problem: str = ""
    not_off: int = 0
    attempts: int = 0
    ordered_s: float | None = None
    gave_up: bool = False
    tries: int = 0
    next_order_s: float = 0.0
    withdrawn: str = ""
    renewal: tuple[int, int] | None = None
    renewal_since_s: float | None = None
    refused: bool = False
    fence_owner: LeaseAnswer | None = None
    asking_owner: bool = False
    fencer: Takeover | None = None


@dataclass(frozen=True, slots=True)
class OrderAnswer:
    """What became of the operator's order `number`. `ok` None: under way."""

    number: int
    ok: bool | None
    text: str


@dataclass(frozen=True, slots=True)
class MoveProblem:
    """Why the last moves of our own to a host failed: so many in a row, the last one for `why`;
    `lasting`: see EngineMigrationEnded."""

    why: str
    lasting: bool = False
    tries: int = 1


@dataclass(frozen=True, slots=True)
class AgentState:
    """The memory of the state machine. `AgentState(rules)` is the first one.

    `since_s`: when `name` was entered. `acted_s`: when the last start, stop or migration
    of the VM ended; engine samples older than that are stale. `acting`: such an action is
    under way. `stop_asked`: the guest was asked to shut down in this state.
    `missing_since_s`: since when no live host reports the engine up. `better_since_s`:
    since when some live host scores enough more to move the VM there. `ahead`: the hosts
    whose turn to start the VM is before this one's, since `ahead_since_s`.
    `startable_since_s`: since when nothing but their turn keeps this host from a start.
    `switching_on`: the host that is being switched on again, `on_withdrawn`: why it must not be any
    more; `switched_on_s`: when each host was last told to be. `move_failed_s`: when a move of our
    own to each host last failed, and `move_problems`: why, while that host lives.
    `moving_to`: the host that the VM is being migrated to; `moving_until_s`: that migration is
    over by then; `asking_cancel`: one that this agent did not begin is being told to end, and
    `cancelled_s`: when any was last told so.
    `last_failure`: why the last of the failed starts did, empty where none is counted.
    `order`: an operator's, under way; `order_since_s`: since when it asks for the lease;
    `asking_path`: libvirt on another host is being asked whether it answers, and `path` is what it
    answered last. `isolated`: this EngineStop is for nobody reaching the VM here.
    `cancelling`: the number of the order to cancel a migration, under way; `answers`: to the
    last orders, the newest last.
    `uplink_down_s`: since when the VM's bridges have no carrier (None: they have, or not known).
    `disarming`: libvirt is being told to forget an autostart or a memory image; `disarmed_s`:
    when it was last told so.
    `leftover_ended_s`: when a process that was left here was last ended.
    `unstopped_since_s`: since when ending the VM's process here has failed; `asks_off`: this host
    asks the others to switch it off for that.
    """

    rules: Rules = field(default_factory=Rules)
    name: StateName = StateName.REINITIALIZE_FSM
    since_s: float | None = None
    acted_s: float = NEVER_S
    acting: bool = False
    stop_asked: bool = False
    seen: Mapping[int, Seen] = field(default_factory=dict)
    missing_since_s: float | None = None
    better_since_s: float | None = None
    move_failed_s: Mapping[int, float] = field(default_factory=dict)
    lease: LeaseAnswer | None = None
    asking_lease: bool = False
    takeover: Takeover | None = None
    ahead: tuple[int, ...] = ()
    ahead_since_s: float = NEVER_S
    startable_since_s: float | None = None
    retries: int = 0
    last_failure_s: float = NEVER_S
    last_ran: int = 0
    switching_on: int | None = None
    on_withdrawn: str = ""
    switched_on_s: Mapping[int, float] = field(default_factory=dict)
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

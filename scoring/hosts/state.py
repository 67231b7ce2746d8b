# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent's memory about the hosts, its own included, from one beat to the next.

A host dies once, however many VMs ran on it. If each VM had its own memory of that death, two of
them would ask the fence device and free the host id twice. So the last changes of the slots, the
takeover from a dead host and its switching on are remembered here, once. The memory about each VM
is in scoring/vm/state.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scoring.observation import LeaseAnswer, PowerAnswer


@dataclass(frozen=True, slots=True)
class Seen:
    """A peer's timestamp, and when this host first saw it at that value.

    `changed`: the timestamp was seen to change at least once, so the peer lived at `since_s`. A
    peer without any change may have been dead all the time. `by_word`: `since_s` is the time of the
    write, as the peer says in a signed answer, and not the time of the first read here.
    """

    timestamp: int
    since_s: float
    changed: bool = False
    by_word: bool = False


@dataclass(frozen=True, slots=True)
class Takeover:
    """How far the takeover from one silent host that owns a lease has come.

    `offs`: the last power readings, at most two and at least Timing.power_reread apart, that all
    say "off" from a proven device. `power`: the last reading. `asking_power`, `taking_fence`,
    `switching_off`, `freeing`, `asking_owner`: that action is under way; its outcome has not come.
    `not_before_s`: the end of the pause after the failed step `problem`. `not_off`: how many
    readings in a row were not "off". `attempts`: the orders to switch the host off that were given.
    `ordered_s`: when the last one was accepted. `gave_up`: the fence log has it that they fail.
    `tries`: all orders, the withdrawn ones included. `next_order_s`: the next one is not given
    before. `withdrawn`: why the action that is under way must not be carried out any more (empty:
    it may). `renewal`: generation and timestamp of its host id on disk, first seen at
    `renewal_since_s`. `freed_s`: when its host id was freed. `fence_since_s`: since when this agent
    holds the fence lease. `refused`: the fence lease was not given. `fence_owner`: the last answer
    about the fence lease's owner. `fencer`: the takeover from that owner, if it is silent
    (scoring/hosts/dead_fencer.py). `is_early`: the host is not suspected yet
    (scoring/hosts/early.py); `lease`: a lease that it owns, by an answer of that time.
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
    lease: LeaseAnswer | None = None
    is_early: bool = False


@dataclass(frozen=True, slots=True)
class HostState:
    """`seen`: each peer's last change. `takeover`: from the host that is pursued now.
    `switching_on`: the host that is being switched on again. `on_withdrawn`: why that must not be
    done any more. `switched_on_s`: when each host was last ordered to be switched on.
    `early_over_s`: when the last false alarm about each host ended (scoring/hosts/early.py).
    `aside`: takeovers from other hosts that a VM waits for; they have their next turn later.
    """

    seen: Mapping[int, Seen] = field(default_factory=dict)
    takeover: Takeover | None = None
    switching_on: int | None = None
    on_withdrawn: str = ""
    switched_on_s: Mapping[int, float] = field(default_factory=dict)
    early_over_s: Mapping[int, float] = field(default_factory=dict)
    aside: Mapping[int, Takeover] = field(default_factory=dict)

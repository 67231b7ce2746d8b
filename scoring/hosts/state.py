# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an agent remembers of the hosts, its own among them, from one beat to the next.

A host dies once, however many VMs ran on it. So who lives, the taking over from a dead host and
switching it on again are remembered here, once; what becomes of each VM is in scoring/vm/state.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scoring.observation import LeaseAnswer, PowerAnswer


@dataclass(frozen=True, slots=True)
class Seen:
    """A peer's timestamp, and when this host first saw it at that value.

    `changed`: it was seen to change at least once, so the peer lived at `since_s`. A peer
    that never changed since we look may have been dead all along. `by_word`: `since_s` is when the
    peer wrote it, by its own signed word, and not when it was read here.
    """

    timestamp: int
    since_s: float
    changed: bool = False
    by_word: bool = False


@dataclass(frozen=True, slots=True)
class Takeover:
    """How far the taking over from one silent, lease-owning host has come.

    `offs`: the last power readings that all say "off" from a proven device, at most two,
    at least Timing.power_reread apart. `asking_power`, `taking_fence`, `switching_off`,
    `freeing`: that action is under way, its outcome has not come. `not_before_s`: pause after a
    failure. `not_off`: readings in a row that were not "off". `attempts`: orders to switch it
    off; `ordered_s`: when the last one was taken; `gave_up`: it was logged that they come to
    nothing. `tries`: orders, those that were withdrawn among them; `next_order_s`: no other is
    given before. `withdrawn`: why what is under way must not be done any more; empty: it must.
    `renewal`: its host id's generation and timestamp on disk, first seen so at `renewal_since_s`.
    `freed_s`: when its host id was freed. `refused`: the fence lease was not given; `fence_owner`:
    who owns it, as it was last answered, `asking_owner`: that is being asked; `fencer`: what is
    known of the silent host that owns it (scoring/hosts/dead_fencer.py). `is_early`: it is not
    suspected yet (scoring/hosts/early.py); `lease`: a lease that it owns, as it was answered then.
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
    """`seen`: of each peer. `takeover`: from the one dead host that is pursued now. `switching_on`:
    the host that is being switched on again, `on_withdrawn`: why it must not be any more;
    `switched_on_s`: when each host was last ordered to be. `early_over_s`: when readings of a
    host's power that had begun before its suspicion came to nothing.
    """

    seen: Mapping[int, Seen] = field(default_factory=dict)
    takeover: Takeover | None = None
    switching_on: int | None = None
    on_withdrawn: str = ""
    switched_on_s: Mapping[int, float] = field(default_factory=dict)
    early_over_s: Mapping[int, float] = field(default_factory=dict)

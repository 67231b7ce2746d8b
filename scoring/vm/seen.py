# SPDX-License-Identifier: LGPL-2.1-or-later
"""One VM as it is seen in one beat: here, and on another host.

An observation says everything of a host in one record, as one slot does. What of it is about a VM
is picked out here and nowhere else: the rest of this room asks `VmTurn.here` and `VmTurn.at`, and
does not know where a VM's facts stand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from scoring.observation import (
    DomainHere,
    EngineStatus,
    Health,
    LocalHost,
    OutsideView,
    PeerReport,
    Unfit,
    VmStatus,
)
from scoring.vm.state import ENGINE

#: A VM that nobody says anything of: unknown is not down.
NOT_KNOWN = EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN, "unknown", "nothing is known of it")


@dataclass(frozen=True, slots=True)
class VmHere:
    """A VM on this host; the fields are those of LocalHost. `report`: whether it is up, and how it
    is; `taken_s`: when that was sampled."""

    report: EngineStatus
    taken_s: float
    lease_held: bool | None = None
    migrating_s: float | None = None
    last_ran: int = 0
    config_up_to_date: bool | None = None
    unfit: tuple[Unfit, ...] = ()
    domain: DomainHere = field(default_factory=DomainHere)
    healthy_before: bool = True
    uplink_up: bool | None = None
    outside: OutsideView | None = None


class PeerVm(NamedTuple):
    """A VM by the word of another host; the fields are those of PeerReport. Made for each host and
    beat, so of the kind that costs least."""

    report: EngineStatus
    state: str = ""
    last_ran: int = 0
    moving_until_s: float | None = None
    memory_short: bool = False
    uplink_up: bool | None = None
    outside: OutsideView | None = None


def here(local: LocalHost, number: int) -> VmHere:
    """What this host's samples say of a VM; of any but the engine nothing is said as yet."""
    if number != ENGINE:
        return VmHere(NOT_KNOWN, local.engine_taken_s)
    return VmHere(
        local.engine,
        local.engine_taken_s,
        local.lease_held,
        local.migrating_s,
        local.last_ran,
        local.config_up_to_date,
        local.unfit,
        local.domain,
        local.healthy_before,
        local.uplink_up,
        local.outside,
    )


def at(peer: PeerReport, number: int) -> PeerVm:
    """What another host's slot says of a VM; of any but the engine nothing is said as yet."""
    if number != ENGINE:
        return PeerVm(NOT_KNOWN)
    return PeerVm(
        peer.engine,
        peer.state,
        peer.last_ran,
        peer.moving_until_s,
        peer.memory_short,
        peer.uplink_up,
        peer.outside,
    )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plans which host asks the VM from outside, how often, and which host is in doubt. Pure.

Rules of this file:

1. The best standby asks every `outside_interval`, the other live hosts less often; all of them as
   often as the best as soon as one of them misses an answer.
2. A host in doubt checks whether its own network works. In doubt is a host that misses the VM or
   waits for its answer longer than usual; and the VM's own host while another host misses the VM,
   or while its uplink has no carrier. The check goes on for STAYS_S, so that the VM is not started
   again on a host where nobody would reach it.
3. A VM beside the engine is asked by ASKERS_MAX hosts, others for each VM, and by all as soon as
   one of them misses an answer: many VMs on many hosts would be many questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from broker.monitors.outside import Place
from broker.wire.status import HostStatus
from scoring.hosts.liveness import Liveness
from scoring.observation import PeerReport
from scoring.timing import Timing
from scoring.vm.seen import at
from scoring.vm_facts import ENGINE, OutsideView, PeerVm, VmStatus

STAYS_S = 120.0
#: How many hosts ask a VM beside the engine while none of them misses an answer.
ASKERS_MAX = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """`place`: where the VM is to be asked, None: nowhere; `every_s`: how often. `is_in_doubt`:
    this host needs to know whether its own network leads anywhere."""

    place: Place | None
    every_s: float
    is_in_doubt: bool


class OutsideWatch:
    """Gets the live hosts each beat."""

    def __init__(self, host_id: int, number: int = ENGINE) -> None:
        self._host_id, self._number = host_id, number
        self._doubt_s = float("-inf")

    def plan(
        self,
        live: Iterable[PeerReport],
        own_score: int,
        own_stay: int | None,
        own_view: OutsideView | None,
        uplink_up: bool | None,
        timing: Timing,
        now_s: float,
        is_late: bool = False,
    ) -> Plan:
        """This host's plan until the next beat. `own_stay`: the stay of the VM that is up here,
        None: it is not. `is_late`: the VM elsewhere has not answered this host's question yet."""
        peers = list(live)
        said = {peer.host_id: at(peer, self._number) for peer in peers}
        owner = _owner(said) if own_stay is None else None
        place = None if owner is None else Place(owner, said[owner].last_ran)
        here = place if own_stay is None else Place(self._host_id, own_stay)
        missed = any(_misses(its.outside, here) for its in said.values())
        misses = _misses(own_view, here)
        if self._number == ENGINE:
            standbys = [(-p.score, p.host_id) for p in peers if p.host_id != owner]
            is_best = (-own_score, self._host_id) <= min(standbys, default=(1, 0))
        else:
            askers = self._askers([p.host_id for p in peers if p.host_id != owner])
            is_best = askers[0] == self._host_id
            if not missed and self._host_id not in askers:
                place = None
        is_often = is_best or missed or misses
        cut = own_stay is not None and (missed or uplink_up is False)
        if misses or cut or (is_late and own_stay is None):
            self._doubt_s = now_s
        return Plan(
            place,
            timing.outside_interval if is_often else timing.outside_seldom,
            now_s - self._doubt_s < STAYS_S,
        )

    def _askers(self, others: list[int]) -> list[int]:
        """The hosts that ask the VM while none misses an answer; the first one asks often."""
        hosts = sorted((*others, self._host_id))
        first = self._number % len(hosts)
        return [*hosts[first:], *hosts[:first]][:ASKERS_MAX]


def reached(
    where: HostStatus | None, hosts: Iterable[HostStatus], missed_after_s: float
) -> bool | None:
    """Whether the live hosts that ask the VM on `where` as its users do have its answer. False:
    none had one for so long. None: it is up nowhere, none of them ever had one from there, or
    none has asked of late."""
    if where is None:
        return None
    views = [
        host.outside
        for host in hosts
        if host.outside is not None
        and host.outside.owner == where.host_id
        and host.liveness != Liveness.SILENT.value
    ]
    ages = [view.good_age_s for view in views if view.good_age_s is not None]
    if not ages:
        return None
    if min(ages) < missed_after_s:
        return True
    return False if any(view.bad_s is not None for view in views) else None


def _owner(said: Mapping[int, PeerVm]) -> int | None:
    """The host where the VM is up, the healthy one where two claim it."""
    up = [(its.report.health.value != "good", host) for host, its in said.items() if _is_up(its)]
    return min(up)[1] if up else None


def _is_up(its: PeerVm) -> bool:
    return its.report.vm is VmStatus.UP


def _misses(view: OutsideView | None, place: Place | None) -> bool:
    """Whether the host had an answer of the VM in this place, and has none now."""
    return (
        view is not None
        and place is not None
        and (view.owner, view.stay) == (place.owner, place.stay)
        and view.good_s is not None
        and view.bad_since_s is not None
    )

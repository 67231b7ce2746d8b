# SPDX-License-Identifier: LGPL-2.1-or-later
"""How this host reaches the VM on another one, and whether its own network leads anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from broker.config.in_force import InForce
from broker.monitors.watched import Watched
from broker.peers.outside_watch import OutsideWatch
from broker.registry.record import VmRecord
from scoring.observation import PeerReport
from scoring.vm_facts import OutsideView, VmHere, VmStatus


class Outside:
    """Decides each beat where the VM is asked from here, and how often."""

    def __init__(self, in_force: InForce, watched: Watched) -> None:
        self._in_force, self._watched = in_force, watched
        self._watch = OutsideWatch(in_force.host_id)
        self._vms: dict[int, OutsideWatch] = {}
        #: A VM beside the engine makes it worth knowing whether this host's network leads anywhere.
        self._vms_in_doubt = False
        #: Since when this host's network leads somewhere, without a break.
        self._way_out_since_s: float | None = None

    @property
    def is_watched(self) -> bool:
        """Whether this host asks the VM elsewhere at all."""
        return self._watched.outside is not None and self._watched.way_out is not None

    def look(
        self, live: Iterable[PeerReport], own_score: int, own_stay: int | None, now_s: float
    ) -> None:
        """Decide for this beat. `own_stay`: see OutsideWatch.plan."""
        outside, way_out = self._watched.outside, self._watched.way_out
        assert outside is not None and way_out is not None, "look while is_watched"
        plan = self._watch.plan(
            live,
            own_score,
            own_stay,
            outside.seen,
            self._watched.runner.value("uplink"),
            self._in_force.timing,
            now_s,
            outside.is_late(now_s),
        )
        if outside.watch(plan.place, plan.every_s):
            self._watched.runner.wake(outside.name)
        if way_out.ask(plan.is_in_doubt or self._vms_in_doubt):
            self._watched.runner.wake(way_out.name)
        since_s = now_s if self._way_out_since_s is None else self._way_out_since_s
        self._way_out_since_s = since_s if self.way_out() else None

    def look_at_vms(
        self,
        live: Iterable[PeerReport],
        here: Iterable[VmHere],
        records: Mapping[int, VmRecord],
        now_s: float,
    ) -> None:
        """Decide the same of the VMs beside the engine; called before `look`. `here`: each of them
        on this host."""
        outside = self._watched.vms_outside
        if outside is None:
            return
        peers, doubts, seen = tuple(live), [], outside.seen
        vms = {vm.number: vm for vm in here}
        for number in self._vms.keys() - vms.keys():
            del self._vms[number]
        outside.keep(set(vms))
        for number, vm in vms.items():
            watch = self._vms.setdefault(number, OutsideWatch(self._in_force.host_id, number))
            plan = watch.plan(
                peers,
                0,
                vm.last_ran if vm.report.vm is VmStatus.UP else None,
                seen.get(number),
                vm.uplink_up,
                self._in_force.timing,
                now_s,
                outside.is_late(number, now_s),
            )
            outside.watch(records[number], plan.place, plan.every_s)
            doubts.append(plan.is_in_doubt)
        self._vms_in_doubt = any(doubts)

    @property
    def vms_seen(self) -> Mapping[int, OutsideView]:
        """How this host reaches the VMs beside the engine on other hosts, by number."""
        return {} if self._watched.vms_outside is None else self._watched.vms_outside.seen

    @property
    def seen(self) -> OutsideView | None:
        """How this host reaches the VM on another one; None: nothing is known."""
        return None if self._watched.outside is None else self._watched.outside.seen

    def way_out(self) -> bool | None:
        """Whether this host's network leads anywhere; None: not asked, or unknown. Without a
        network test the carrier of its own uplink decides."""
        if self._watched.way_out is None or not self._watched.way_out.is_asked:
            return None
        value: bool | None = self._watched.runner.value("way_out")
        given = self._in_force.config.network
        is_tested = given.test == "dns" or (given.test != "none" and given.targets)
        if value is None and not is_tested and self._watched.runner.value("uplink"):
            return True
        return value

    def way_out_for_others(self, now_s: float) -> bool | None:
        """The published value. It is good only once the VM was asked over the good network: where
        all networks come back at once, no host may count on an old result about another one."""
        value, since_s = self.way_out(), self._way_out_since_s
        steady_s = self._in_force.config.health.timeout + self._in_force.timing.outside_interval
        is_steady = since_s is not None and now_s - since_s >= steady_s
        return value if not value or is_steady else None

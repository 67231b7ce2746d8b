# SPDX-License-Identifier: LGPL-2.1-or-later
"""Gives the broker's view to the event detectors, once a beat; the changes that they find become
events, counts, and notices to people."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from broker.config.in_force import InForce
from broker.events.availability import FILE_NAME, Availability
from broker.events.counts import EventCounts
from broker.events.detector import EventDetector, HostGlance
from broker.events.history import History
from broker.events.kept import KeptEvents
from broker.events.notice import Notice
from broker.events.of_peers import PeerEvents
from broker.events.of_room import RoomEvents
from broker.events.ring import Events
from broker.monitors.runner import Verdict
from broker.peers.table import Table
from broker.peers.vm_place import PlaceSince, VmPlace
from broker.this_host import disks_shown
from broker.this_host.facts import ThisHost
from broker.vm import healthy_once
from broker.whiteboard import lines as slot_lines
from scoring.lease_times import BUDGET_IO_TIMEOUTS
from scoring.vm_facts import Health, VmStatus

#: How many records of the fence log the status shows.
FENCE_LOG_SHOWN = 10


class EventFeed:
    """`counts`: how often what happened; `history`: the scores of the last day; `availability`: of
    the VM; `events`: what happened; `place_since`: since when the VM is where it is."""

    def __init__(
        self,
        in_force: InForce,
        table: Table,
        this_host: ThisHost,
        kept: KeptEvents | None,
        notify_people: Callable[[Notice], None],
    ) -> None:
        """`kept`: the file that keeps events over restarts; the availability is kept beside it."""
        self._in_force, self._table = in_force, table
        self._this_host = this_host
        self._notify_people = notify_people
        self.counts, self.history, self.place_since = EventCounts(), History(), PlaceSince()
        self.availability = Availability(None if kept is None else kept.path.with_name(FILE_NAME))
        self.events = Events(this_host.wall, in_force.host_id, in_force.host_name, kept=kept)
        self._peer_events = PeerEvents(self.events, in_force.host_id, in_force.host_name)
        self._peer_events.started()
        vm = in_force.config.vm.name
        #: Which VMs have no place, or would have none after the death of a host.
        self.room = RoomEvents(lambda notice: self.detector.say_once(notice))
        self.detector = EventDetector(
            self._pass_on, in_force.host_id, in_force.host_name, self.events.add, vm
        )

    def _pass_on(self, notice: Notice) -> None:
        """Count a notice, add it to the events, and send it to people."""
        self.counts.take(notice, asyncio.get_running_loop().time())
        self.events.add(notice)
        self._notify_people(notice)

    def name_vms(self, names: Mapping[int, str]) -> None:
        """What the VMs beside the engine are called from now on, by number."""
        self.detector.vms.names = self._peer_events.vm_names = names

    def look(self, place: VmPlace, now_s: float) -> None:
        """Show the detectors the state after a beat. `place`: where the VM is."""
        hosts = self._glances(now_s)
        self.detector.look(hosts, self._this_host.agent.silent_s(now_s), now_s)
        self._look_at_slots(hosts)
        self._look_at_this_host(now_s)
        self.detector.vms.look(self._this_host.vms.samples(now_s))
        self.detector.vms.differences(self._this_host.vms.differences)
        self._remember(place, now_s)

    def _glances(self, now_s: float) -> dict[int, HostGlance]:
        table, this_host = self._table, self._this_host
        engine, taken_s = this_host.vm.status(now_s)
        this_host.sick_vm.look(engine, this_host.healthy_once.known, now_s)
        this_host.sick_vm.look_at_vms(this_host.vms.wanted_here(now_s), now_s)
        own = HostGlance(
            self._in_force.host_name, None, True, False, engine.vm is VmStatus.UP, taken_s
        )
        hosts, blind = {self._in_force.host_id: own}, table.is_blind(now_s)
        for host, report in table.members.reports.items():
            if (seen := table.seen.get(host)) is not None:
                hosts[host] = HostGlance(
                    name=report.hostname,
                    silent_s=now_s - seen.since_s if host in table.silent else None,
                    lived=seen.changed,
                    stopped=report.stopped,
                    shut_down=bool(slot_lines.host_shutdown_of(report)),
                    up=report.engine_status.vm is VmStatus.UP,
                    known_s=seen.since_s,
                    is_known=not blind,
                    vms=self._vms_at(host) if host in table.silent else (),
                )
        return hosts

    def _vms_at(self, host: int) -> tuple[str, ...]:
        """The names of the VMs beside the engine that are up there by that host's own slot."""
        names = self.detector.vms.names
        peer = next((each for each in self._table.published() if each.host_id == host), None)
        if peer is None or not names:
            return ()
        up = (number for number, vm in peer.vms.items() if vm.report.vm is VmStatus.UP)
        return tuple(names[number] for number in sorted(up) if number in names)

    def _look_at_slots(self, hosts: dict[int, HostGlance]) -> None:
        table, board = self._table, self._table.board
        names = {host: glance.name for host, glance in hosts.items()}
        self.detector.storage_of_others(names, table.same_storage.judgement.others)
        shown = {host: report.hostname for host, report in board.reports.items()}
        self.detector.slots_not_counted(shown, table.members.why_not)
        self._peer_events.look(
            table.members.reports,
            board.global_maintenance is not None,
            board.global_mode,
            self._this_host.modes.in_force,
            board.fence_log.last(FENCE_LOG_SHOWN) if board.fence_log.known else None,
        )

    def _look_at_this_host(self, now_s: float) -> None:
        this_host = self._this_host
        in_use = this_host.disks.in_use()
        self.detector.differences(
            None if in_use is None else disks_shown.differences(in_use), this_host.disks.held
        )
        budget_max_s = BUDGET_IO_TIMEOUTS * self._in_force.io_timeout_s
        runs_vms = bool(this_host.may_run(now_s))
        self.detector.budget(this_host.lockspace_budget_s(now_s), budget_max_s, runs_vms)
        proof = this_host.monitors.latest.get("can_start")
        if proof is not None and proof.verdict is not Verdict.UNKNOWN:
            self.detector.can_start(proof.problem)

    def _remember(self, place: VmPlace, now_s: float) -> None:
        """Keep all hosts' scores, where the VM is, and since when."""
        table, this_host = self._table, self._this_host
        this_host.healthy_once.look(
            this_host.vm.status(now_s)[0].health is Health.GOOD,
            [
                report.extra.get(healthy_once.LINE, "")
                for report in table.members.reports.values()
                if report.extra_trusted
            ],
        )
        is_blind = table.is_blind(now_s)
        own_score = 0 if this_host.is_unheard(now_s) else this_host.score(now_s)
        scores: dict[int, int | None] = {self._in_force.host_id: own_score}
        for host, report in table.members.reports.items():
            is_known = not is_blind and host not in table.silent
            scores[host] = report.score if is_known else None
        where = place.host if place.up else 0
        self.history.take(scores, None if place.up is None else where, now_s)
        is_there = place.up and place.healthy is not False
        self.availability.take(is_there, self._this_host.wall(), now_s)
        self.place_since.look(place, now_s)
        self.detector.place(place, table.name_of(place.host), is_blind, now_s)

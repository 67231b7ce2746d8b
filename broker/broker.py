# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's parts, wired together, and what a turn on the storage does in which order.

Each part lives in the room of its purpose and takes what it needs; here is no rule of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from broker.beat import Beat
from broker.config.cluster_key import ClusterKey
from broker.config.in_force import InForce
from broker.config.sections import Config
from broker.daemon import kernel_boot
from broker.daemon.news import News
from broker.events.feed import EventFeed
from broker.events.kept import KeptEvents
from broker.exchange.asked import Asked
from broker.exchange.view import Exchange
from broker.lockspace.freeing_before import FREEING_FILE, freeing_before
from broker.lockspace.lost_leases import wanted_leases
from broker.lockspace.own_id_guard import OwnIdGuard
from broker.lockspace.port import Lockspace
from broker.maintenance.host_shutdown import ShuttingDown
from broker.maintenance.keeper import Keeper
from broker.maintenance.modes import Modes
from broker.monitors.watched import PUBLISHED_AT_ONCE, Watched
from broker.notify.notices import Notices
from broker.peers.asker import Heartbeats
from broker.peers.closer_look import CloserLook
from broker.peers.machine import Reach
from broker.peers.question_gate import QuestionGate
from broker.peers.table import Table
from broker.registry.cache import RegistryCache, newest_heard, no_registry
from broker.status.bound_now import BoundNow
from broker.status.of_cluster import Beside, ClusterStatus
from broker.status.of_peer import PeerStatus
from broker.status.switched_off import SwitchedOff
from broker.status.vms_now import VmsNow
from broker.this_host.facts import Machine, ThisHost
from broker.this_host.place_seen import PlaceSeen
from broker.this_host.sign_of_life import SignOfLife
from broker.this_host.slot import OwnSlot
from broker.whiteboard.board import Board
from broker.whiteboard.lines import log_entry
from broker.whiteboard.signatures import Unsigned
from broker.wire.acknowledged import Acknowledged
from broker.wire.exchange import Report, View
from broker.wire.status import Status
from scoring.vm_facts import VmStatus


@dataclass(frozen=True, slots=True)
class Given:
    """What differs between a host and a test of one. `boot_id`: of this boot of the host, None: the
    kernel's. `wall`: UTC seconds since 1970. `freeing_left`: see freeing_before, None: by the
    agent's file. `registry`: None: there is none. `reach`: asks other
    machines; None: none is asked."""

    boot_id: str | None = None
    wall: Callable[[], float] = time.time
    freeing_left: Callable[[], int | None] | None = None
    registry: RegistryCache | None = None
    reach: Reach | None = None

    def machine(self, state_dir: Path) -> Machine:
        """The machine; values that were not given come from the kernel and the agent's file."""
        boot_id = kernel_boot.boot_id() if self.boot_id is None else self.boot_id
        freeing_left = self.freeing_left or partial(freeing_before, state_dir / FREEING_FILE)
        return Machine(boot_id, self.wall, freeing_left)


class Broker:
    """Everything a host knows and publishes; the API and the beat work on its parts."""

    def __init__(
        self,
        config: Config,
        board: Board,
        lockspace: Lockspace,
        watched: Watched,
        given: Given | None = None,
        heartbeats: Heartbeats | None = None,
        notices: Notices | None = None,
        kept: KeptEvents | None = None,
    ) -> None:
        """`heartbeats`: None: no question is asked over the network, and none answered.
        `notices`: the notifications; None: as configured. `kept`: keeps events over restarts."""
        given = given or Given()
        state_dir = Path(config.daemon.state_dir)
        self.in_force, self.news = InForce(config), News()
        self.board, self.lockspace, self.monitors = board, lockspace, watched.runner
        self.registry, self._vms = given.registry or no_registry(), watched.vms
        self.heartbeats = heartbeats or Heartbeats(config.host.id, None, None)
        self.notices = Notices.of(config, given.wall) if notices is None else notices
        machine = given.machine(state_dir)
        self.heartbeats.boot_id = machine.boot_id
        board.signatures.boot_heard = self.heartbeats.boot_heard
        # The other hosts.
        self.table = Table(self.in_force, board, lockspace, self.heartbeats, given.reach)
        self.members, self.same_storage = self.table.members, self.table.same_storage
        #: Admits questions for a heartbeat.
        self.gate = QuestionGate(config.host.id)
        self._closer_look = CloserLook(self.in_force, self.table, self.gate)
        # This host.
        self.modes = Modes(state_dir / "local-maintenance.json", given.wall, machine.boot_id)
        shutdown = ShuttingDown()
        self.this_host = ThisHost(
            self.in_force, watched, self.table, self.registry, self.modes, shutdown, machine
        )
        self.own_slot = OwnSlot(self.in_force, self.this_host, board, self.table)
        self.sign_of_life = SignOfLife(
            self.in_force, self.table, self.this_host, self.own_slot, self.gate
        )
        self._own_id = OwnIdGuard(self.in_force, board, lockspace, machine.boot_id)
        self.place = PlaceSeen(self.in_force, self.table, self.this_host)
        # Events, exchange and status.
        self.feed = EventFeed(self.in_force, self.table, self.this_host, kept, self.notices.notify)
        self.events, self.counts, detector = self.feed.events, self.feed.counts, self.feed.detector
        self.history, self.availability = self.feed.history, self.feed.availability
        self.keeper = Keeper(
            self.in_force,
            self.table,
            self._own_id,
            self.modes,
            shutdown,
            lambda now_s: self.this_host.is_drained(now_s),
            detector,
            self.news,
        )
        own = self.this_host, self.own_slot, self._own_id
        self.exchange = Exchange(
            self.in_force, self.table, *own, detector, self.news, self.registry
        )
        self.orders = self.exchange.orders
        self.asked = Asked(self.in_force, self.table, self.this_host, detector, self.news)
        turns = self._publish_and_read, self._read_again
        self.beats = Beat(self.in_force, self.news.to_publish, *turns, self._after)
        self.lateness, self.durations = self.beats.lateness, self.beats.durations
        self._switched_off = SwitchedOff(board.fence_log, config.host.id, state_dir)
        self.vms_now, self.shown = self._shown()
        self._owns_slot = False
        self._connect()

    def _shown(self) -> tuple[VmsNow, ClusterStatus]:
        bound = BoundNow(self.in_force, self.table, self.this_host, self.own_slot, self.exchange)
        vms = VmsNow(
            self.in_force,
            self.table,
            self.this_host,
            self.place,
            self.exchange,
            self.registry,
            self.feed.place_since,
        )
        return vms, ClusterStatus(
            self.in_force,
            self.table,
            self.this_host,
            self.place,
            self.feed,
            PeerStatus(self.in_force, self.table, self.gate, self.this_host.vms),
            bound,
            Beside(
                self.lateness,
                lambda now_s: self.notices.status(now_s),
                lambda: self._switched_off.shown(self.own_slot.previous_boot_id),
                self.news,
                vms,
            ),
        )

    def _connect(self) -> None:
        """Connect the callbacks: the parts wake each other by these."""

        def monitor_changed(name: str) -> None:
            if name in PUBLISHED_AT_ONCE:
                self.news.publish()
            elif name == "health":
                # Health is a part of the VM's status.
                self.monitors.wake("engine")

        self.members.lease_owner = lambda: self.this_host.agent.lease_asked(
            asyncio.get_running_loop().time()
        )
        self.monitors.on_change = monitor_changed
        self.heartbeats.on_change = self.table.machine.on_change = self.news.announce
        self.registry.on_change = self._registry_changed
        self.lockspace.wanted_leases = lambda: wanted_leases(
            self.in_force.config.storage, self.registry.cached.vms
        )
        self._registry_changed()

    def _registry_changed(self) -> None:
        if self._vms is not None:
            self._vms.watch(self.registry.cached)
        known = self.registry.cached.records
        self.feed.name_vms({number: one.name for number, one in known.items()})
        # What this host knows of the registry stands in its slot.
        self.news.publish()

    # --- the configuration --------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.in_force.config

    def reconfigure(self, config: Config) -> None:
        """Use another configuration from the next beat on."""
        self.in_force.use(config)
        self.same_storage.reconfigure(config)
        self.board.signatures.wanted = Unsigned(config.storage.unsigned)
        self.members.base_score = config.score.base_score
        self.this_host.healthy_once.reconfigure(config.health)
        self.news.publish()

    def use_key(self, key: ClusterKey | None) -> None:
        """Use the present secrets file for signing and accepting. A first key, or a removed one,
        needs a restart."""
        if self.heartbeats.key is not None and key is not None:
            self.heartbeats.key = self.board.signatures.key = key

    def refuse_config(self, problem: str) -> None:
        """The present configuration file cannot be used: show it, and send a notice."""
        self.in_force.problem = problem
        self.feed.detector.config_refused(problem)

    # --- the beat -----------------------------------------------------------------------

    async def run(self) -> None:
        """Beat for ever."""
        await self.beats.run()

    async def beat(self, now_s: float, until_s: float | None = None) -> None:
        """One beat: see Beat.once."""
        await self.beats.once(now_s, until_s)

    async def _publish_and_read(self, now_s: float) -> None:
        board, agent = self.board, self.this_host.agent
        # Before sanlock has given us this id the slot may be another host's.
        self._owns_slot = self._owns_slot or self.lockspace.joined is True
        if self.own_slot.started or await self.own_slot.take_up():
            # Out on request: the slot that it has written all along it goes on with.
            self._owns_slot = self._owns_slot or (self._own_id.is_out and self.own_slot.was_ours)
            if self._owns_slot:
                report, (freeing, is_fencer) = agent.last, agent.freeing()
                # From here on the slot may hold either line; the old one announces nothing any
                # more.
                if freeing != agent.announced:
                    agent.announced = None
                await board.write(self.own_slot.make(now_s), now_s)
                if not board.write_problem:
                    self.own_slot.is_acknowledged()
                    agent.published_beat = agent.published_beat if report is None else report.beat
                    agent.announced = freeing if is_fencer else None
            await self.read(now_s)
            await self.this_host.disks.look(self.this_host.vm.owns(now_s), agent.last_ran)
        board.journal(now_s)
        await board.put_cluster_right(now_s)
        await self.keeper.end_what_is_over(now_s)

    async def _read_again(self, now_s: float) -> None:
        before = self.table.hands(), self.table.overdue()
        await self.read(now_s, second_look=True)
        if (self.table.hands(), self.table.overdue()) != before:
            # A host that waits for another one to release the VM need not wait for the beat, nor
            # its heir to ask for its power.
            self.news.announce()

    async def read(self, now_s: float, second_look: bool = False) -> None:
        """Read everybody's slots; a peer that falls silent or comes back is news."""
        board, before, joined = self.board, self.board.own, self.lockspace.joined
        board.in_use = self.lockspace_ids()
        sweep = board.sweep
        await board.read(now_s, second_look)
        if board.sweep != sweep:
            self.this_host.vms.read_back()
        self.members.look(now_s)
        if self._own_id.look(self.members.reports, joined, now_s):
            self.keeper.give_back_id(now_s)
        if not self._owns_slot:
            self._own_id.check_slot(before, board.own)
        if self.table.look(now_s):
            self.news.announce()
        self.registry.heard(
            newest_heard(r.extra for r in self.members.reports.values() if r.extra_trusted)
        )
        self._closer_look.look(self._own_id.freed_by, second_look, now_s)
        self.table.watch(self.this_host.agent.watched(now_s))
        self.same_storage.look(self.table.seen, now_s)

    def lockspace_ids(self) -> frozenset[int]:
        """Host ids that somebody has joined the lockspace under, as far as this host knows."""
        table, witnesses = self.lockspace.renewals.table, self.lockspace.witnesses
        named = {host for host, found in witnesses.items() if found.state != "free"}
        return frozenset(named | {host for host, found in table.items() if found.timestamp})

    def _after(self, now_s: float) -> None:
        this_host, outside = self.this_host, self.this_host.outside
        if outside.is_watched:
            is_up = this_host.vm.status(now_s)[0].vm is VmStatus.UP
            stay = this_host.agent.last_ran if is_up else None
            vms, known = this_host.vms.here(now_s), self.registry.cached.vms
            outside.look_at_vms(self.table.live(), vms, known, now_s)
            outside.look(self.table.live(), this_host.score(now_s), stay, now_s)
        this_host.vms.look_at_health(now_s)
        this_host.vms.look_at_disks(now_s)
        looked = self.place.look(now_s)
        self.feed.look(looked.place, now_s)
        self.feed.room.look(self.vms_now.without_place(looked, now_s), now_s)
        record = self._switched_off.unreported(self.own_slot.previous_boot_id)
        if record is not None:
            self.feed.detector.was_switched_off(record.by_name, record.ordered, record.text)
        self.news.announce()

    # --- what agent, people and programs ask most ---------------------------------------

    def take_report(self, report: Report, now_s: float) -> None:
        """The agent's report in."""
        self.exchange.take_report(report, now_s)

    def view(self, now_s: float) -> View:
        """What the agent decides on."""
        return self.exchange.view(now_s)

    def acknowledge(self) -> Acknowledged:
        """Somebody has read why this host was switched off; OSError where that cannot be kept."""
        record = self._switched_off.acknowledge(self.own_slot.previous_boot_id)
        self.news.announce()
        return Acknowledged(None if record is None else log_entry(record))

    def status(self, now_s: float) -> Status:
        """The cluster for people and scripts."""
        return self.shown.now(now_s)

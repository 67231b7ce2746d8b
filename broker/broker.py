# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's own life: each beat it publishes this host and reads all others.

It publishes as long as it lives, agent or not: a host whose agent is silent is a live host
with score 0, and says so. What a slot says of the VM is the broker's own sample, never
the agent's word.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import operator
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace as replace_local
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from msgspec.structs import replace

from broker.api.answers import encode
from broker.config import agreement
from broker.config.cluster_key import ClusterKey
from broker.config.sections import Config, system_uuid
from broker.daemon import kernel_boot
from broker.daemon.histogram import Histogram
from broker.events.history import History
from broker.events.kept import KeptEvents
from broker.events.lookout import HostGlance, Lookout
from broker.events.notice import Notice
from broker.events.ring import Events, PeerEvents
from broker.events.tally import Tally
from broker.exchange.orders import Orders
from broker.lockspace.freeing_before import FREEING_FILE, freeing_before
from broker.lockspace.hosts import BUDGET_IO_TIMEOUTS, budget_s
from broker.lockspace.own_id import OwnId
from broker.lockspace.port import Lockspace, LockspaceError
from broker.maintenance.host_shutdown import Scene, ShuttingDown
from broker.maintenance.modes import Modes, mode_status
from broker.monitors import MonitorRunner, Verdict
from broker.monitors.network_verdict import (
    NetworkVerdict,
    TargetResult,
    publish,
    published,
    verdict,
)
from broker.monitors.outside import OutsideMonitor
from broker.monitors.way_out import WayOutMonitor
from broker.notify.notices import Notices
from broker.peers.asker import Heartbeats
from broker.peers.datagram import answer_bytes
from broker.peers.fence_paths import fence_paths, path_lines
from broker.peers.heartbeat import Heartbeat, signed
from broker.peers.members import Members
from broker.peers.outside_watch import OutsideWatch, reached
from broker.peers.question_gate import QuestionGate, Refusal
from broker.peers.refusal_log import RefusalLog
from broker.peers.same_storage import SameStorage
from broker.peers.seen_hosts import MOVING, seen_peers
from broker.peers.vm_place import (
    LEASE_OLD_S,
    LeaseOwner,
    OwnReads,
    PlaceSince,
    SeenHost,
    VmPlace,
    vm_place,
)
from broker.status.bound import NOT_RUNNING, Picture, bound_of, heirs_of
from broker.status.monitors import shown_monitors
from broker.status.switched_off import SwitchedOff
from broker.this_host import disks_shown
from broker.this_host.disks_record import DisksRecord
from broker.this_host.sick_vm import SickVm
from broker.vm import healthy_once
from broker.vm.healthy_once import HealthyOnce
from broker.vm.in_the_way import in_the_way
from broker.whiteboard import lines as slot_lines
from broker.whiteboard import room as slot_room
from broker.whiteboard.board import Board
from broker.whiteboard.fence_log import LogRecord
from broker.whiteboard.lines import Freeing
from broker.whiteboard.mode import Mode
from broker.whiteboard.signatures import (
    COUNTER_LINE,
    COUNTER_WALL_MAX,
    GOOD,
    Unsigned,
    counter_of,
    next_counter,
)
from broker.whiteboard.slot import LEFT_OUT_KEY, TIMESTAMP_TAKEN_MAX, SlotReport, fit_hostname
from broker.whiteboard.store import StorageTrouble
from broker.wire.status import (
    STATUS_VERSION,
    Bound,
    FenceNote,
    FencePathStatus,
    HostShutdownStatus,
    HostStatus,
    Maintenance,
    MeasuredOnWire,
    MigrationStatus,
    NewOrder,
    OutsideStatus,
    PenaltyOnWire,
    Report,
    Status,
    StorageStatus,
    Times,
    View,
    WitnessStatus,
)
from broker.wire.what_ran import WhatRan
from scoring.decision import Code
from scoring.hosts.fence_ask import told
from scoring.hosts.liveness import Liveness, is_blind, liveness_known, look
from scoring.observation import (
    DETAIL_MIGRATION_SOURCE,
    DomainHere,
    EngineStatus,
    FenceAsk,
    FenceStep,
    Health,
    LocalHost,
    Observation,
    Obstacle,
    OnHostShutdown,
    Order,
    OutsideView,
    PeerReport,
    Unfit,
    VmStatus,
)
from scoring.state import Seen, StateName

log = logging.getLogger("ha-broker")

#: An agent that has not reported for so many beats is silent: its host gets score 0.
AGENT_SILENT_BEATS = 5
#: So many changes of our slot by somebody else mean that he has our host id.
FOREIGN_WRITES_MAX = 2
#: A status is made anew when it is asked for after so long, if nothing has changed.
STATUS_FRESH_S = 0.2
#: The bound is made anew after so long, where nothing has changed.
BOUND_FRESH_S = 10.0
#: Records of the fence log that the status shows.
FENCE_LOG_SHOWN = 10
#: Why the lockspace is not joined at first.
LOG_NOT_READ = "the fence log, where a freeing of this host's id would stand, was not read yet"
#: An engine sample older than this says nothing any more.
SAMPLE_OLD_S = 15.0
#: Monitors whose news the others, or this host's agent, wait for.
_PUBLISHED_AT_ONCE = frozenset({"engine", "what_runs", "outside", "way_out", "uplink"})
#: A slot that stands still for so long is looked at more closely, before it is suspected.
QUIET_BEATS = 1.5
#: An answer over the network counts for the others for so long.
HEARS_BEATS = 3
#: One that has stood still for longer is asked over the network no more often than others.
QUIET_MAX_S = 600.0


class NotUnderWay(Exception):
    """There is nothing of that kind in the fence log to be closed."""


class EngineSampler(Protocol):
    """What the engine monitor tells beside its status."""

    lease_held: bool | None
    migration: MigrationStatus | None
    facts: DomainHere


class Broker:
    """Everything a host knows and publishes; the API and the beat work on it."""

    def __init__(
        self,
        config: Config,
        board: Board,
        lockspace: Lockspace,
        monitors: MonitorRunner,
        engine: EngineSampler,
        boot_id: str | None = None,
        wall: Callable[[], float] = time.time,
        heartbeats: Heartbeats | None = None,
        notices: Notices | None = None,
        kept: KeptEvents | None = None,
        outside: OutsideMonitor | None = None,
        way_out: WayOutMonitor | None = None,
        freeing_left: Callable[[], int | None] | None = None,
    ) -> None:
        """`boot_id`: of this boot of the host; None: the kernel's. `wall`: UTC seconds since
        1970. `heartbeats`: None: no question is asked over the network, and none answered.
        `notices`: who is told; None: as configured. `kept`: where events outlive the broker.
        `outside`, `way_out`: those among the monitors; None: there are none. `freeing_left`: see
        freeing_before; None: by the agent's file."""
        self.config = config
        self.board = board
        self.lockspace = lockspace
        self.monitors = monitors
        self._engine = engine
        self._outside, self._way_out = outside, way_out
        self._outside_watch = OutsideWatch(config.host.id)
        #: Since when this host's network leads somewhere, without a break.
        self._way_out_since_s: float | None = None
        self.heartbeats = heartbeats or Heartbeats(config.host.id, None, None)
        #: Whose questions for a heartbeat are answered.
        self.gate = QuestionGate(config.host.id)
        self._refusals = RefusalLog()
        board.signatures.boot_heard = self.heartbeats.boot_heard
        #: Whose word counts.
        self.members = Members(
            board,
            lockspace,
            self.heartbeats,
            float(config.storage.io_timeout),
            config.score.base_score,
        )
        self.members.lease_owner = self._owner_asked
        #: Whether the others write to the storage that is read here.
        self.same_storage = SameStorage(config, board, self.heartbeats, lockspace)
        #: Whoever has something to tell calls `notices.tell`.
        self.notices = Notices.of(config, wall) if notices is None else notices
        #: What has happened here, counted.
        self.tally = Tally()
        #: Everybody's scores of the last day.
        self.history = History()
        #: What happened, for the command line, the dashboard and the API.
        self.events = Events(wall, config.host.id, config.host_name, kept=kept)
        self._peer_events = PeerEvents(self.events, config.host.id, config.host_name)
        self._peer_events.started()
        self._lookout = Lookout(self._tell, config.host.id, config.host_name, self.events.add)
        #: Why the configuration file as it is now is not gone by; empty when it is.
        self.config_problem = ""
        #: When the file that is gone by was changed last, UTC seconds since 1970.
        self.config_file_s: float | None = None
        #: Since when the engine is where it is, and as healthy as it is.
        self._place = PlaceSince()
        #: How late each beat began, against its plan.
        self.lateness = Histogram()
        #: How long each beat took, its reads and writes of the storage included.
        self.durations = Histogram()
        #: Called after each completed beat.
        self.on_beat: Callable[[], None] = lambda: None
        self._timing, self._rules = config.timing_rules(), config.rules(0)
        self._agreed, self._agreed_lines = agreement.agreed(config), agreement.published(config)
        self._system_uuid = system_uuid(config)
        self._boot_id = kernel_boot.boot_id() if boot_id is None else boot_id
        self.heartbeats.boot_id = self._boot_id
        self._previous_boot_id = ""
        self._timestamp = 0
        #: The counter of the last slot that was made.
        self._counter = 0
        self._last_ran = 0
        self._seen: dict[int, Seen] = {}
        self._known_peers: dict[
            int, tuple[SlotReport, Seen | None, slot_lines.Others, PeerReport]
        ] = {}
        self._advertised = config.advertised()
        self._heartbeat_at = config.heartbeat_advertised() if self.heartbeats.key else ()
        self.orders = Orders()
        self._report: Report | None = None
        self._told_beat = 0
        #: The host whose id is freed without the fence lease, by this host's slot on the storage.
        self._announced: int | None = None
        #: The same of a process that an earlier agent has left; asked anew while there is one.
        self._look_for_freeing = freeing_left or partial(
            freeing_before, Path(config.daemon.state_dir) / FREEING_FILE
        )
        self._freeing_left = self._look_for_freeing()
        self._reported_s = float("-inf")
        self._wall = wall
        self.disks = DisksRecord(board, config.host.id, config.host_name, wall)
        self.disks.in_use = lambda: self.monitors.value("what_runs")
        self._switched_off = SwitchedOff(
            self.board.fence_log, config.host.id, Path(config.daemon.state_dir)
        )
        self._modes = Modes(Path(config.daemon.state_dir) / "local-maintenance.json", wall)
        self._shutdown = ShuttingDown()
        self._sick_vm = SickVm()
        self._healthy_once = HealthyOnce(
            Path(config.daemon.state_dir) / "healthy-once", config.health
        )
        self._started = False
        self._owns_slot = False
        #: The slot was this very host's when the broker began.
        self._found_own_slot = False
        self._foreign_writes = 0
        #: The keys of the lines that this host's slot had no room for.
        self._left_out: tuple[str, ...] = ()
        self._silent: frozenset[int] = frozenset()
        #: The turn on the storage that is under way.
        self._turn: asyncio.Future[None] | None = None
        self._changed = asyncio.Event()
        # Before the lockspace looks for the first time: a host that has given its id back does
        # not join because its broker is started.
        self._own_id = OwnId(float(config.storage.io_timeout))
        #: Who may still free this host's id.
        self._freed_by: Freeing | None = None
        #: The last good read of the fence log brought all of it, and began when this host was
        #: in the lockspace.
        self._log_read_joined = False
        self._gives_back = False
        self._give_back_id()
        self.lockspace.hold = LOG_NOT_READ
        self._version = 0
        #: The bound as it was made last: when, from what, and what it is.
        self._bound_made: tuple[float, tuple[object, ...], Bound | None] | None = None
        self._status_made: tuple[float, tuple[object, ...], bytes] | None = None
        self._news = asyncio.Event()
        monitors.on_change = self._monitor_changed
        self.heartbeats.on_change = self._tell_news

    def reconfigure(self, config: Config) -> None:
        """Go by another configuration from the next beat on."""
        self.config, self.config_problem = config, ""
        self.same_storage.reconfigure(config)
        self.board.signatures.wanted = Unsigned(config.storage.unsigned)
        self.members.base_score = config.score.base_score
        self._timing, self._rules = config.timing_rules(), config.rules(0)
        self._agreed, self._agreed_lines = agreement.agreed(config), agreement.published(config)
        self._healthy_once.reconfigure(config.health)
        self._changed.set()

    def use_key(self, key: ClusterKey | None) -> None:
        """Sign, and accept, by the secrets file as it is now. A key where there was none, or none
        where there was one, needs a restart."""
        if self.heartbeats.key is not None and key is not None:
            self.heartbeats.key = self.board.signatures.key = key

    def refuse_config(self, problem: str) -> None:
        """The configuration file as it is now is not gone by: show it and tell it."""
        self.config_problem = problem
        self._lookout.config_refused(problem)

    # --- the beat ---------------------------------------------------------------------

    async def run(self) -> None:
        """Publish and read once a beat, for ever; sooner when the agent has news."""
        loop = asyncio.get_running_loop()
        planned_s = loop.time()
        try:
            while True:
                begun_s = loop.time()
                self.lateness.add(begun_s - planned_s)
                # A beat that was missed as a whole is not made up for.
                is_missed = begun_s - planned_s >= self._timing.beat
                next_s = (begun_s if is_missed else planned_s) + self._timing.beat
                await self.beat(begun_s, next_s)
                self.durations.add(loop.time() - begun_s)
                self.on_beat()
                planned_s = next_s if await self._rest(next_s) else loop.time()
        finally:
            if self._turn is not None:
                self._turn.cancel()

    async def _rest(self, next_s: float) -> bool:
        """Wait for the next beat; False: news bring it forward to this moment.

        Half a beat before it the peers' slots are read once more: who is silent is known half
        a beat sooner.
        """
        loop, second_s = asyncio.get_running_loop(), next_s - self._timing.beat / 2
        if loop.time() < second_s:
            if await self._changed_before(second_s):
                return False
            await self._take_turn(self._read_again, loop.time(), next_s)
        return not await self._changed_before(next_s)

    async def _changed_before(self, until_s: float) -> bool:
        """Whether something to be published at once came up before `until_s`."""
        try:
            async with asyncio.timeout_at(until_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    async def beat(self, now_s: float, until_s: float | None = None) -> None:
        """One turn: this host's slot out, everybody's slots in.

        What the storage has not answered by `until_s` is left to itself (None: waited for).
        """
        await self._take_turn(self._publish_and_read, now_s, until_s)
        self._look_outside(now_s)
        self._look_out(now_s)
        self._remember(now_s)
        record = self._switched_off.untold(self._previous_boot_id)
        if record is not None:
            self._lookout.was_switched_off(record.by_name, record.ordered, record.text)
        self._tell_news()

    async def _take_turn(
        self,
        turn: Callable[[float], Coroutine[Any, Any, None]],
        now_s: float,
        until_s: float | None,
    ) -> None:
        """Begin a turn on the storage, and wait for its end or `until_s`.

        Each call in it has its deadline. While an earlier turn has not ended none begins.
        """
        if self._turn is not None:
            if not await self._turn_ends(self._turn, until_s):
                return
            now_s = asyncio.get_running_loop().time()
        self._turn = asyncio.ensure_future(turn(now_s))
        await self._turn_ends(self._turn, until_s)

    async def _turn_ends(self, turn: asyncio.Future[None], until_s: float | None) -> bool:
        loop = asyncio.get_running_loop()
        await asyncio.wait((turn,), timeout=None if until_s is None else until_s - loop.time())
        if not turn.done():
            return False
        self._turn = None
        turn.result()
        return True

    async def _publish_and_read(self, now_s: float) -> None:
        # Before sanlock has given us this id the slot may be another host's.
        self._owns_slot = self._owns_slot or self.lockspace.joined is True
        if self._started or await self._take_up():
            # Out on request: the slot that it has written all along it goes on with.
            is_out = self.lockspace.no_join or self._freed_by is not None
            self._owns_slot = self._owns_slot or (is_out and self._found_own_slot)
            if self._owns_slot:
                report, (freeing, is_fencer) = self._report, self._freeing()
                # From here on the slot may say either; the old line is no announcement any more.
                if freeing != self._announced:
                    self._announced = None
                await self.board.write(self._own_slot(now_s), now_s)
                if not self.board.write_problem:
                    self._told_beat = self._told_beat if report is None else report.beat
                    self._announced = freeing if is_fencer else None
            await self.read(now_s)
            await self.disks.look(self._owns_vm(now_s), self._last_ran)
        await self.board.put_cluster_right(now_s)
        await self._end_what_is_over(now_s)

    async def _read_again(self, now_s: float) -> None:
        before = self._in_hands()
        await self.read(now_s, second_look=True)
        if self._in_hands() != before:
            # Who waits for a host to let go of the VM need not wait for the beat.
            self._tell_news()

    def _in_hands(self) -> frozenset[tuple[int, str, VmStatus]]:
        """What the other hosts do with the VM."""
        return frozenset((peer.host_id, peer.state, peer.engine.vm) for peer in self._peers())

    async def read(self, now_s: float, second_look: bool = False) -> None:
        """Read everybody's slots; a peer that falls silent or comes back is news."""
        before, joined = self.board.own, self.lockspace.joined
        self.board.in_use = self._ids_in_use()
        await self.board.read(now_s, second_look)
        self.members.look(now_s)
        self._guard_own_id(joined, now_s)
        if not self._owns_slot:
            self._check_nobody_writes_our_slot(before, self.board.own)
        self._seen = look(self._seen, self._peers(), now_s)
        silent = frozenset(
            host
            for host, seen in self._seen.items()
            if self._liveness(seen, now_s) is Liveness.SILENT
        )
        if silent != self._silent:
            self._silent = silent
            self._tell_news()
        still_since_s = now_s - QUIET_BEATS * self._timing.beat
        quiet = {host for host, seen in self._seen.items() if seen.since_s < still_since_s}
        if self._freed_by is not None:
            quiet.add(self._freed_by.by)
        if quiet != self.lockspace.renewals.watch or not second_look:
            self._look_elsewhere(frozenset(quiet), now_s)
        self.same_storage.look(self._seen, now_s)

    def _ids_in_use(self) -> frozenset[int]:
        """Host ids that somebody has joined the lockspace under, as far as this host knows."""
        table, witnesses = self.lockspace.renewals.table, self.lockspace.witnesses
        named = {host for host, found in witnesses.items() if found.state != "free"}
        return frozenset(named | {host for host, found in table.items() if found.timestamp})

    def _guard_own_id(self, joined: bool | None, now_s: float) -> None:
        """Stay out of the lockspace while another host may still free this host's id. `joined`:
        as it was when the read that has just ended began."""
        board, lockspace = self.board, self.lockspace
        if joined is not True:
            self._log_read_joined = False
        if board.last_read_s != now_s or not board.fence_log.known:
            return
        self._log_read_joined = self._log_read_joined or (joined is True and not board.log_grew)
        acts = slot_lines.freeings_of(
            self.config.host.id, board.fence_log.under_way, self.members.reports.values()
        )
        boots = {
            host: report.extra.get("boot-id", "")
            for host, report in self.members.reports.items()
            if report.extra_trusted
        }
        owner, was = lockspace.fence_owner, self._freed_by
        self._freed_by = act = self._own_id.look(acts, owner, lockspace.renewals, boots, now_s)
        lockspace.hold = "" if act is None else f"{act.by_name} may still free this host's id"
        # Also of an act that is over for us: without an answer it would be under way again.
        lockspace.watch_fence = bool(acts)
        if not acts:
            lockspace.fence_owner = None
        if (act is None) != (was is None):
            if act is not None:
                log.warning("not in the lockspace until that is over: %s", lockspace.hold)
            else:
                log.info("nobody frees this host's id any more")
            self._give_back_id(now_s)

    def _look_elsewhere(self, quiet: frozenset[int], now_s: float) -> None:
        """Let the other witnesses look more closely at those whose slots stand still."""
        self.lockspace.renewals.watch = quiet
        asked = {
            host: slot_lines.ways_of(report)
            for host, report in self.board.reports.items()
            if host not in self.members.why_not or host in self.members.strangers
        }
        self.gate.members(
            {
                host: ways.ports + ways.listeners
                for host, ways in asked.items()
                if ways is not None and host in self.members.reports
            }
        )
        quick = {
            host
            for host in quiet
            if host in self._seen and now_s - self._seen[host].since_s < QUIET_MAX_S
        }
        self.heartbeats.look(asked, quick, self._timing.beat, now_s)

    def _look_outside(self, now_s: float) -> None:
        """Say where the VM is asked from here, how often, and whether this host is in doubt."""
        if self._outside is None or self._way_out is None:
            return
        is_up = self._engine_status(now_s)[0].vm is VmStatus.UP
        plan = self._outside_watch.plan(
            self._live(self._peers()),
            self._own_status(now_s).score,
            self._last_ran if is_up else None,
            self._outside.seen,
            self.monitors.value("uplink"),
            self._timing,
            now_s,
            self._outside.is_late(now_s),
        )
        if self._outside.watch(plan.place, plan.every_s):
            self.monitors.wake(self._outside.name)
        if self._way_out.ask(plan.is_in_doubt):
            self.monitors.wake(self._way_out.name)
        since_s = now_s if self._way_out_since_s is None else self._way_out_since_s
        self._way_out_since_s = since_s if self._own_way_out() else None

    def _way_out_for_others(self, now_s: float) -> bool | None:
        """What this host publishes of it. Good only once what it then says of the VM was asked
        over the good network: where all networks come back at once, nobody may count on a bad one
        that it has not looked at anew."""
        value, since_s = self._own_way_out(), self._way_out_since_s
        steady_s = self.config.health.timeout + self._timing.outside_interval
        is_steady = since_s is not None and now_s - since_s >= steady_s
        return value if not value or is_steady else None

    def _live(self, peers: tuple[PeerReport, ...]) -> list[PeerReport]:
        """Those that are seen to live."""
        return [
            peer
            for peer in peers
            if (seen := self._seen.get(peer.host_id)) is not None
            and seen.changed
            and peer.host_id not in self._silent
        ]

    def heartbeat(self, nonce: str, now_s: float) -> bytes | None:
        """The answer to who asks for a sign of life at the listener; None: there is no key to sign
        it with."""
        key = self.heartbeats.key
        return None if key is None else signed(key, self._sign_of_life(nonce, now_s))

    def answer(self, datagram: bytes, source: str, now_s: float) -> bytes | None:
        """The answer to a datagram that has come to the port for heartbeats from that address;
        None: there is none."""
        key = self.heartbeats.key
        if key is None:
            return None
        question = self.gate.admit(key, datagram, source, now_s)
        if isinstance(question, Refusal):
            self._refusals.refused(source, self.gate.host_at(source), question)
            return None
        return answer_bytes(key, question, self._sign_of_life(question.nonce, now_s))

    def _sign_of_life(self, nonce: str, now_s: float) -> Heartbeat:
        ids, renewal = self.same_storage.ids, self.lockspace.renewals.table.get(self.config.host.id)
        return Heartbeat(
            self.config.host.id,
            self._boot_id,
            self._timestamp,
            self._engine_status(now_s)[0].vm,
            nonce,
            cluster=ids.cluster,
            whiteboard=ids.whiteboard,
            leases=ids.leases,
            written=self.board.written,
            generation=0 if renewal is None else renewal.generation,
            renewed=0 if renewal is None else renewal.timestamp,
        )

    def _look_out(self, now_s: float) -> None:
        """Show everything to who tells what has changed."""
        engine, taken_s = self._engine_status(now_s)
        self._sick_vm.look(engine, self._healthy_once.known, now_s)
        own = HostGlance(
            self.config.host_name, None, True, False, engine.vm is VmStatus.UP, taken_s
        )
        hosts, blind = {self.config.host.id: own}, self._is_blind(now_s)
        for host, report in self.members.reports.items():
            if (seen := self._seen.get(host)) is not None:
                hosts[host] = HostGlance(
                    name=report.hostname,
                    silent_s=now_s - seen.since_s if host in self._silent else None,
                    lived=seen.changed,
                    stopped=report.stopped,
                    shut_down=bool(slot_lines.host_shutdown_of(report)),
                    up=report.engine_status.vm is VmStatus.UP,
                    known_s=seen.since_s,
                    is_known=not blind,
                )
        self._lookout.look(hosts, self.agent_silent_s(now_s), now_s)
        names = {host: glance.name for host, glance in hosts.items()}
        self._lookout.storage_of_others(names, self.same_storage.judgement.others)
        shown = {host: report.hostname for host, report in self.board.reports.items()}
        self._lookout.slots_not_counted(shown, self.members.why_not)
        log_is_known = self.board.fence_log.known
        self._peer_events.look(
            self.members.reports,
            self.board.global_maintenance is not None,
            self.board.global_mode,
            self._modes.in_force,
            self.board.fence_log.last(FENCE_LOG_SHOWN) if log_is_known else None,
        )
        budget_max_s = BUDGET_IO_TIMEOUTS * float(self.config.storage.io_timeout)
        in_use = self.disks.in_use()
        self._lookout.differences(
            None if in_use is None else disks_shown.differences(in_use), self.disks.held
        )
        self._lookout.budget(self.lockspace_budget_s(now_s), budget_max_s)
        proof = self.monitors.latest.get("can_start")
        if proof is not None and proof.verdict is not Verdict.UNKNOWN:
            self._lookout.can_start(proof.problem)

    def _remember(self, now_s: float) -> None:
        """Everybody's score, where the engine is, and since when that is so."""
        own = self._own_status(now_s)
        self._healthy_once.look(
            own.engine_status.health is Health.GOOD,
            [
                report.extra.get(healthy_once.LINE, "")
                for report in self.members.reports.values()
                if report.extra_trusted
            ],
        )
        scores: dict[int, int | None] = {own.host_id: self._shown(own, now_s).score}
        for host, report in self.members.reports.items():
            is_known = not self._is_blind(now_s) and host not in self._silent
            scores[host] = report.score if is_known else None
        place = self.vm_place(now_s)
        where = place.host if place.up else 0
        self.history.take(scores, None if place.up is None else where, now_s)
        self._place.look(place, now_s)
        self._lookout.place(place, self._name_of(place.host), self._is_blind(now_s), now_s)

    def _name_of(self, host: int | None) -> str:
        report = self.members.reports.get(host or 0)
        if report is None:
            return self.config.host_name if host == self.config.host.id else ""
        return report.hostname

    # --- where the VM is ------------------------------------------------------------------

    def _is_blind(self, now_s: float) -> bool:
        """Whether this host cannot say what the others do, since it does not read them."""
        return is_blind(self.board.last_read_s, now_s, self._timing.suspect_after)

    def _liveness(self, seen: Seen, now_s: float) -> Liveness:
        read_s = self.board.last_read_s
        return liveness_known(seen, read_s, now_s, self._timing.suspect_after)

    def vm_place(self, now_s: float) -> VmPlace:
        """Where the VM is, as far as this host knows."""
        hosts = [
            self._seen_here(now_s),
            *seen_peers(
                self.board,
                self.members,
                self._seen,
                self.lockspace,
                self.heartbeats,
                self._rules,
                now_s,
            ),
        ]
        reads = OwnReads(
            blind=self._is_blind(now_s),
            age_s=_age(self.board.last_read_s, now_s),
            state=self._storage_state(),
            all_known=self.board.all_read or bool(self.lockspace.witnesses),
            elsewhere=self.same_storage.judgement.unfit or self.board.set_back_unfit(now_s),
        )
        return vm_place(hosts, reads, self._lease_owner(now_s))

    def _seen_here(self, now_s: float) -> SeenHost:
        engine, _ = self._engine_status(now_s)
        return SeenHost(
            host_id=self.config.host.id,
            name=self.config.host_name,
            vm=engine.vm,
            health=engine.health,
            reason=engine.reason or "",
            local=True,
            moving=self._report is not None and self._report.state == MOVING,
        )

    def _lease_owner(self, now_s: float) -> LeaseOwner | None:
        """Whom this host's agent found to own the engine lease."""
        lease = None if self._report is None else self._report.lease
        if lease is None:
            return None
        is_own = lease.owner == self.config.host.id
        here = self._engine_status(now_s)[0].vm
        gone = lease.gone or (is_own and here not in (VmStatus.UP, VmStatus.UNKNOWN))
        return LeaseOwner(lease.owner, gone, now_s - lease.asked_s)

    def _owner_asked(self) -> tuple[int | None, float] | None:
        """The same for `Members.lease_owner`; not known where it was asked long ago."""
        lease = None if self._report is None else self._report.lease
        if lease is None or asyncio.get_running_loop().time() - lease.asked_s > LEASE_OLD_S:
            return None
        return lease.owner, lease.asked_s

    def _check_nobody_writes_our_slot(
        self, before: SlotReport | None, after: SlotReport | None
    ) -> None:
        """Raise LockspaceError when another host writes the slot that we do not write yet.

        sanlock comes to the same verdict, but watches the id for minutes before it does.
        One change may be a late write or a stale read, and the earlier broker of this boot of
        this machine is no other host.
        """
        if before is None or after is None or after.timestamp <= before.timestamp:
            return
        ours = {"boot-id": self._boot_id, "system-uuid": self._system_uuid}
        if after.extra_trusted and all(after.extra.get(key, "") == ours[key] for key in ours):
            return
        self._foreign_writes += 1
        if self._foreign_writes >= FOREIGN_WRITES_MAX:
            raise LockspaceError(
                f"host id {self.config.host.id} is in use by {after.hostname}, which writes its "
                f"slot on {self.config.storage.whiteboard}; give this host its own host.id"
            )

    def _tell(self, notice: Notice) -> None:
        """What the lookout has seen, to all who want to know."""
        self.tally.take(notice, asyncio.get_running_loop().time())
        self.events.add(notice)
        self.notices.notify(notice)

    @property
    def lease_held(self) -> bool | None:
        """Whether the engine's process here holds the engine lease; None: not known."""
        return self._engine.lease_held

    def _monitor_changed(self, name: str) -> None:
        if name in _PUBLISHED_AT_ONCE:
            self._changed.set()

    def _tell_news(self) -> None:
        self._version += 1
        self._news.set()
        self._news = asyncio.Event()

    @property
    def news(self) -> int:
        """Grows with each beat, and whenever there is something new in between."""
        return self._version

    async def wait_for_news(self, than: int, patience_s: float) -> None:
        """Until `news` is above `than`, or for `patience_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._version <= than:
                    await self._news.wait()

    async def newer_view(self, than: int, patience_s: float) -> View:
        """The view as soon as it is newer than version `than`, or after `patience_s`."""
        await self.wait_for_news(than, patience_s)
        return self.view(asyncio.get_running_loop().time())

    async def _take_up(self) -> bool:
        """Go on where this host's slot left off, so that its timestamp never goes back."""
        try:
            own = await self.board.read_own()
        except StorageTrouble as error:
            self.board.read_problem = str(error)
            return False
        if own is not None:
            # Peers live by change alone: to count anew costs nothing.
            self._timestamp = own.timestamp if own.timestamp <= TIMESTAMP_TAKEN_MAX else 0
            self._counter = min(counter_of(own), COUNTER_WALL_MAX)
            extra = own.extra if own.extra_trusted else {}
            named = own.hostname == fit_hostname(self.config.host_name)
            same_machine = extra.get("system-uuid") == self._system_uuid != ""
            self._found_own_slot = named and same_machine
            self._last_ran = slot_lines.last_ran_of(extra)
            boot_id = extra.get("boot-id", "")
            is_same = boot_id == self._boot_id
            self._previous_boot_id = extra.get("previous-boot-id", "") if is_same else boot_id
        self._started = True
        return True

    # --- what goes out ------------------------------------------------------------------

    def take_report(self, report: Report, now_s: float) -> None:
        """What the agent wants published; a new state is published at once."""
        old = self._report
        self._report, self._reported_s = report, now_s
        if old is not None and report.beat < old.beat:
            # Another agent, which counts anew: what is in the slot is none of its own.
            self._told_beat = 0
        self._last_ran = max(self._last_ran, report.last_ran)
        self._lookout.reported(report, now_s, self._wall())
        self.orders.answered(report.answers)
        if old is None or (old.state, old.stopped) != (report.state, report.stopped):
            self._changed.set()

    def agent_silent_s(self, now_s: float) -> float | None:
        """For how long the agent has been silent; None while it reports or was stopped."""
        if self._report is not None and self._report.stopped:
            return None
        silent_s = now_s - self._reported_s
        return silent_s if silent_s > AGENT_SILENT_BEATS * self._timing.beat else None

    def _own_slot(self, now_s: float) -> SlotReport:
        # Grows with each write, whatever the clock does; starts from the time since boot as
        # the reference's does, so that a person can read it.
        self._timestamp = max(self._timestamp + 1, int(now_s))
        self._counter = next_counter(self._counter, self._wall())
        status = self._own_status(now_s)
        lines = {
            "state": status.state,
            "agent": status.agent,
            "boot-id": self._boot_id,
            COUNTER_LINE: str(self._counter),
            "previous-boot-id": self._previous_boot_id,
            "system-uuid": self._system_uuid,
            "last-ran": str(self._last_ran),
            healthy_once.LINE: self._healthy_once.line,
            "memory-image": "yes" if self._engine.facts.memory_image else "",
            "domain-type": status.domain_type,
            "unknown": ",".join(status.unknown),
            "beat": str(self._report.beat) if self._report is not None else "",
            "reason": status.reason,
            "network": publish(self.monitors.value("network") or ()),
            "intent": self._intent_line(now_s),
            "differs": ",".join(status.differs),
            "host-shutdown": status.host_shutdown,
            "outside": slot_lines.outside_line(self._seen_outside(), now_s),
            "way-out": slot_lines.way_out_line(self._way_out_for_others(now_s)),
            "uplink": slot_lines.uplink_line(self.monitors.value("uplink")),
            "api": ",".join(self._advertised),
            "heartbeat": ",".join(self._heartbeat_at),
            "hears": slot_lines.hears_line(
                self.heartbeats.heard_within(HEARS_BEATS * self._timing.beat, now_s)
            ),
            "mem-free": slot_lines.mem_free_line(self.monitors.value("memory")),
            "fence-ask": slot_lines.fence_ask_line(self._fence_ask(now_s)),
            **self._modes.lines(now_s),
            **slot_lines.freeing_lines(*self._freeing()),
            **{f"penalty-{p.name}": f"{p.points} {p.why}" for p in status.penalties},
            **self._agreed_lines,
        }
        if self._report is not None:
            lines |= slot_lines.measured_lines(self._report.measured)
            lines |= path_lines(self._report.fence_paths)
        extra, self._left_out = slot_room.fit(lines)
        return SlotReport(
            host_id=self.config.host.id,
            timestamp=self._timestamp,
            score=status.score,
            engine_status=status.engine_status,
            hostname=status.hostname,
            maintenance=status.maintenance,
            stopped=status.stopped,
            conf_on_shared_storage=self.config.vm.shared_definition is not None,
            local_conf_timestamp=0,
            extra=extra,
        )

    def _own_status(self, now_s: float) -> HostStatus:
        report = self._report
        silent_s = self.agent_silent_s(now_s)
        penalties: tuple[PenaltyOnWire, ...] = ()
        score, agent = 0, "ok"
        if report is None or silent_s is not None:
            agent = "silent" if report is None else f"silent for {silent_s:.0f} s"
            why = "the agent on this host does not report"
            penalties = (PenaltyOnWire("agent", self.config.score.base_score, why),)
        else:
            score, penalties = report.score, report.penalties
            agent = "stopped" if report.stopped else "ok"
        intent, move = slot_lines.intent_of(self._intent_line(now_s), self.config.host.id)
        return HostStatus(
            host_id=self.config.host.id,
            hostname=self.config.host_name,
            liveness=Liveness.LIVE.value,
            score=score,
            state=report.state if report is not None else "",
            penalties=penalties,
            reason=report.reasons[0].text if report is not None and report.reasons else "",
            engine_status=self._engine_status(now_s)[0],
            age_s=None if self.board.last_write_s is None else now_s - self.board.last_write_s,
            maintenance=self.local_maintenance,
            mode=mode_status(self._modes.local_countdown, now_s),
            **self._sanlock(self.config.host.id, now_s),
            stopped=report.stopped if report is not None else False,
            local=True,
            agent=agent,
            domain_type=report.domain_type if report is not None else "",
            unknown=report.unknown if report is not None else (),
            intent=intent,
            move=move,
            left_out=len(self._left_out),
            differs=disks_shown.codes(self.disks.in_use()),
            host_shutdown=self._shutdown.way or "" if self._shutdown.drains else "",
            memory_image=bool(self._engine.facts.memory_image),
            outside=_outside_status(self._seen_outside(), now_s),
            way_out=self._own_way_out(),
            uplink_up=self.monitors.value("uplink"),
            fence_ask=_fence_ask(self._fence_ask(now_s)),
        )

    def _freeing(self) -> tuple[int | None, bool]:
        """Whose host id this host frees, and whether without the fence lease. Where no agent has
        reported yet, what an earlier one may have begun."""
        if self._report is not None:
            return self._report.freeing, self._report.freeing_fencer
        if self._freeing_left is not None:
            self._freeing_left = self._look_for_freeing()
        return self._freeing_left, self._freeing_left is not None

    def _fence_ask(self, now_s: float) -> FenceAsk | None:
        """What this host says of a sick VM that nobody here can end."""
        return self._sick_vm.ask(self._report, self.agent_silent_s(now_s), now_s)

    def _is_unheard(self, now_s: float) -> bool:
        """Whether this host's slot was not written for so long that the others call it silent."""
        written_s = self.board.last_write_s
        return written_s is not None and now_s - written_s >= self._timing.suspect_after

    def _shown(self, own: HostStatus, now_s: float) -> HostStatus:
        """This host for people: what its peers count it for, not what it would like to publish."""
        if not self._is_unheard(now_s):
            return own
        why = f"its slot was not written for {own.age_s:.0f} s: the other hosts see it silent"
        penalty = PenaltyOnWire("storage", self.config.score.base_score, why)
        return replace(own, score=0, penalties=(penalty,))

    def _seen_outside(self) -> OutsideView | None:
        return None if self._outside is None else self._outside.seen

    def _own_way_out(self) -> bool | None:
        """Whether this host's network leads anywhere; None: not asked, or not known. Without a
        network test the carrier of its own uplink is what there is."""
        if self._way_out is None or not self._way_out.is_asked:
            return None
        value: bool | None = self.monitors.value("way_out")
        given = self.config.network
        is_tested = given.test == "dns" or (given.test != "none" and given.targets)
        if value is None and not is_tested and self.monitors.value("uplink"):
            return True
        return value

    def _intent_line(self, now_s: float) -> str:
        """What this host's agent is about to do, as its slot says it; nothing once it is silent."""
        if self._report is None or self.agent_silent_s(now_s) is not None:
            return ""
        return slot_lines.intent_line(self._report, self.config.host.id, now_s)

    def _engine_status(self, now_s: float) -> tuple[EngineStatus, float]:
        """The engine as this host sees it, and when that was."""
        sample = self.monitors.latest.get("engine")
        if sample is None:
            reason = "not sampled yet"
        elif sample.value is None:
            reason = sample.problem or "no answer"
        elif now_s - sample.taken_s > SAMPLE_OLD_S:
            reason = f"the last sample is {now_s - sample.taken_s:.0f} s old"
        else:
            assert isinstance(sample.value, EngineStatus)
            return sample.value, sample.taken_s
        return EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN, "unknown", reason), now_s

    def _owns_vm(self, now_s: float) -> bool:
        """Whether the VM is up here under its lease, and not about to leave."""
        engine, _ = self._engine_status(now_s)
        is_leaving = engine.detail == DETAIL_MIGRATION_SOURCE
        return engine.vm is VmStatus.UP and self._engine.lease_held is True and not is_leaving

    async def decide_what_ran(self, adopt: bool, who: str) -> WhatRan:
        """What ran last is right, or the definition is; CannotDecide, StorageTrouble."""
        now_s = asyncio.get_running_loop().time()
        up_on = next(
            (
                report.hostname
                for host, report in self.members.reports.items()
                if report.engine_status.vm is VmStatus.UP and host not in self._silent
            ),
            None,
        )
        if self._engine_status(now_s)[0].vm is VmStatus.UP:
            up_on = None
        record = await self.disks.decide(adopt, who, up_on, self._last_ran)
        log.warning("what ran last is %s", record.decided)
        self._tell_news()
        return record

    def line(self, now_s: float) -> str:
        """This host in one line, for the service manager."""
        own = self._own_status(now_s)
        parts = [
            f"host {own.host_id}",
            "lockspace joined" if self.lockspace.joined else self.lockspace.problem,
            f"agent {own.agent}",
            f"storage: {self.board.problem}" if self.board.problem else "storage ok",
            self.config_problem,
        ]
        return ", ".join(filter(None, parts))

    # --- what comes in ------------------------------------------------------------------

    def _peers(self) -> tuple[PeerReport, ...]:
        """Every other host's report; one that is as it was is not made anew."""
        known, self._known_peers = self._known_peers, {}
        for host, report in sorted(self.members.reports.items()):
            seen = self._seen.get(host)
            renewal = self.lockspace.renewals.table.get(host)
            others = (
                *self.heartbeats.times(host),
                self.lockspace.renewals.renewal_s(host),
                0 if renewal is None else renewal.timestamp,
            )
            old = known.get(host)
            if old is None or old[0] is not report or old[1] is not seen or old[2] != others:
                is_signed = self.board.signed.get(host) in GOOD
                made = slot_lines.peer_report(report, seen, others, is_signed)
                old = (report, seen, others, made)
            self._known_peers[host] = old
        return tuple(old[3] for old in self._known_peers.values())

    def view(self, now_s: float) -> View:
        """What the agent decides on."""
        engine, taken_s = self._engine_status(now_s)
        value = self.monitors.value
        return View(
            version=self._version,
            local=LocalHost(
                host_id=self.config.host.id,
                engine=engine,
                engine_taken_s=taken_s,
                lease_held=self._engine.lease_held,
                network=self._network(now_s).fraction,
                bridge_up=value("bridge"),
                mem_free_mb=value("memory"),
                cpu_load=value("cpu_load"),
                config_up_to_date=value("definition"),
                maintenance=self.local_maintenance,
                last_ran=self._last_ran,
                fence_path_ok=self._own_fence_path(),
                lock_driver=value("lock_driver"),
                unfit=tuple(self._unfit(engine, now_s)),
                migrating_s=None
                if self._engine.migration is None
                else self._engine.migration.elapsed_s,
                domain=self._engine.facts,
                shutdown=self._shutdown.for_agent,
                healthy_before=self._healthy_once.known,
                uplink_up=value("uplink"),
                way_out=self._own_way_out(),
                outside=self._seen_outside(),
            ),
            peers=self._peers(),
            storage_good_since_s=self.board.storage_good_since_s if self._started else None,
            sweep=self.board.sweep,
            global_maintenance=self.board.global_maintenance,
            newer_versions=self.members.newer_versions,
            lockspace_joined=self._is_joined(),
            system_uuids={
                host: report.extra.get("system-uuid", "")
                for host, report in self.members.reports.items()
                if report.extra_trusted
            },
            hostnames={host: report.hostname for host, report in self.members.reports.items()},
            fence_log=self.board.fence_log.recent(now_s),
            order=self.orders.pending(now_s),
            told_beat=self._told_beat,
            announced=self._announced,
            what_ran=None if (ran := self.disks.on_disk) is None else ran.record,
            unsure=self.same_storage.judgement.unsure,
            log_is_written=self.board.log_is_written,
        )

    def _unfit(self, engine: EngineStatus, now_s: float) -> Iterator[Unfit]:
        """What keeps this host from starting the VM."""
        yield from self.same_storage.unfit
        proof = self.monitors.latest.get("can_start")
        if proof is not None and proof.value is False:
            yield Unfit(Obstacle.CANNOT_START, proof.problem)
        yield from disks_shown.unfit(self.disks)
        yield from in_the_way(self._engine.facts, engine, now_s)

    def _is_joined(self) -> bool | None:
        """Whether this host is in the lockspace for good: nobody began to free its id before it
        had joined. None: that is not known yet."""
        if self._freed_by is not None:
            return False
        joined = self.lockspace.joined
        return None if joined and not self._log_read_joined else joined

    def status_json(self, now_s: float) -> bytes:
        """The same as JSON; what was made within STATUS_FRESH_S from the same is given again, so
        that many who ask cost no more than one."""
        made_from = (
            self._version,
            self._report,
            self.monitors.latest.get("engine"),
            self._modes.in_force,
            self.board.global_mode,
            self.config_problem,
            self.config_file_s,
            self.monitors.latest.get("what_runs"),
            self.disks.on_disk,
            self.disks.problem,
        )
        old = self._status_made
        is_same = old is not None and all(map(operator.is_, old[1], made_from))
        if old is None or not is_same or not 0 <= now_s - old[0] < STATUS_FRESH_S:
            old = self._status_made = (now_s, made_from, encode(self.status(now_s)))
        return old[2]

    def status(self, now_s: float) -> Status:
        """The cluster for people and scripts."""
        hosts = {self.config.host.id: self._shown(self._own_status(now_s), now_s)}
        for host_id, report in self.board.reports.items():
            hosts[host_id] = self._peer_status(report, now_s)
        place = self.vm_place(now_s)
        where = None if place.host is None else hosts[place.host]
        own_report = self._report
        agents = "" if own_report is None else own_report.state_problem
        state_problems = self.events.problem, agents
        paths = fence_paths(
            self.config.host.id,
            own_report.fence_paths if own_report is not None else {},
            self.members.reports.values(),
            self._wall(),
        )
        return Status(
            version=STATUS_VERSION,
            cluster=self.config.cluster.name,
            host_id=self.config.host.id,
            engine=self._place.summary(
                place,
                None if where is None else where.hostname,
                self._lookout.last_up,
                now_s,
                reached(where, hosts.values(), self._timing.isolation_after),
            ),
            global_maintenance=self.board.global_maintenance,
            global_mode=mode_status(self._modes.global_countdown, now_s),
            monitors=shown_monitors(self.monitors.latest, now_s),
            network=self._network(now_s).text,
            config_problem=self.config_problem
            or (self._report.config_problem if self._report is not None else ""),
            state_problem="; ".join(filter(None, state_problems)),
            hosts=dict(sorted(hosts.items())),
            bad_slots={slot: fault.cause for slot, fault in sorted(self.board.bad.items())},
            storage=StorageStatus(
                whiteboard=self.config.storage.whiteboard,
                named=bool(self.config.cluster.id and self.same_storage.ids.whiteboard),
                signed=self.heartbeats.key is not None,
                last_read_age_s=_age(self.board.last_read_s, now_s),
                last_write_age_s=_age(self.board.last_write_s, now_s),
                problem=self.board.problem,
                state=self._storage_state(),
                trouble_s=_age(self.board.trouble_since_s, now_s),
                errors=self.board.errors,
                read_times=_times(self.board.read_times),
                write_times=_times(self.board.write_times),
                blind=self._is_blind(now_s),
                unheard=self._is_unheard(now_s),
            ),
            lockspace_budget_s=self.lockspace_budget_s(now_s),
            lockspace_budget_max_s=BUDGET_IO_TIMEOUTS * float(self.config.storage.io_timeout),
            beat=_times(self.lateness),
            notify=self.notices.status(now_s),
            lockspace="joined" if self.lockspace.joined else self.lockspace.problem,
            reasons=self._report.reasons if self._report is not None else (),
            fence_log=tuple(
                slot_lines.log_entry(record, signature)
                for record, signature in self.board.fence_log.shown(FENCE_LOG_SHOWN)
            ),
            fence_paths=tuple(paths),
            bound=None if where is None else self._bound(where.host_id, paths, hosts, now_s),
            migration=self._engine.migration,
            differences=disks_shown.differences(self.disks.in_use()),
            what_ran=disks_shown.record(self.disks.on_disk),
            what_ran_problem=disks_shown.problem(self.disks),
            one_host=disks_shown.one_host(self.disks.in_use()),
            config_file_s=self.config_file_s,
            switched_off=None
            if (ended := self._switched_off.record(self._previous_boot_id)) is None
            else slot_lines.log_entry(ended),
        )

    def _bound(
        self,
        dead: int,
        paths: Sequence[FencePathStatus],
        hosts: Mapping[int, HostStatus],
        now_s: float,
    ) -> Bound | None:
        """What the decision would do if the VM's host died now; asked anew where something has
        changed, and every BOUND_FRESH_S."""
        heirs = heirs_of(dead, hosts.values())
        made_from = (
            dead,
            tuple((h.host_id, h.score, h.state, h.liveness) for h in hosts.values()),
            tuple((path.by, path.host, path.ok) for path in paths),
            self.board.global_maintenance,
            self.members.newer_versions,
            self.board.storage_good_since_s is None,
            heirs,
        )
        old = self._bound_made
        if old is not None and old[1] == made_from and 0 <= now_s - old[0] < BOUND_FRESH_S:
            return old[2]
        view, own, report = self.view(now_s), hosts[self.config.host.id], self._report
        observation = Observation(
            local=replace_local(view.local, engine=NOT_RUNNING),
            peers=view.peers,
            storage_good_since_s=view.storage_good_since_s,
            sweep=view.sweep,
            global_maintenance=view.global_maintenance,
            newer_versions=view.newer_versions,
            lockspace_joined=view.lockspace_joined,
            fence_log=view.fence_log,
            unsure=view.unsure,
        )
        itself = PeerReport(
            own.host_id,
            self._timestamp,
            own.score,
            own.engine_status,
            own.hostname,
            state=own.state,
            last_ran=self._last_ran,
        )
        found = bound_of(
            dead,
            paths,
            MeasuredOnWire() if report is None else report.measured,
            self.members.reports.values(),
            Picture(self._rules, observation, self._seen, itself, now_s),
            heirs,
        )
        self._bound_made = (now_s, made_from, found)
        return found

    def place_order(self, wanted: NewOrder) -> Order:
        """Give an order to this host's agent."""
        order = self.orders.place(wanted.kind, wanted.target, asyncio.get_running_loop().time())
        log.warning("order %d: %s %s", order.number, order.kind, order.target or "")
        self._tell_news()
        return order

    def _own_fence_path(self) -> bool | None:
        paths = self._report.fence_paths if self._report is not None else {}
        own = paths.get(self.config.host.id)
        return None if own is None else own.ok

    # --- the fence log ------------------------------------------------------------------

    async def note_fence(self, note: FenceNote) -> LogRecord | None:
        """Write to the fence log for this host's agent; None: there is nothing to be closed.

        StorageTrouble where that fails.
        """
        target = self.members.reports.get(note.target)
        trusted = target is not None and target.extra_trusted
        own = self.lockspace.renewals.table.get(self.config.host.id)

        def record(number: int) -> LogRecord:
            newest = self.board.fence_log.under_way
            if note.only_closes and (
                newest is None or (newest.by, newest.target) != (self.config.host.id, note.target)
            ):
                raise NotUnderWay
            return LogRecord(
                number=number,
                step=note.step,
                by=self.config.host.id,
                by_name=fit_hostname(self.config.host_name),
                target=note.target,
                target_name=fit_hostname(target.hostname) if target is not None else "",
                boot_id=target.extra.get("boot-id", "") if target and trusted else "",
                wall_s=self._wall(),
                ordered=note.ordered,
                text=note.text,
                by_generation=0 if own is None else own.generation,
                by_boot=self._boot_id,
                over=note.over,
                withdrawn=note.withdrawn,
            )

        now_s = asyncio.get_running_loop().time()
        try:
            written = await self.board.append_to_log(record, now_s)
        except NotUnderWay:
            return None
        except StorageTrouble:
            self._tell_news()
            raise
        name = written.target_name
        if note.step is not FenceStep.FREEING:
            self._lookout.fenced(
                note.step, note.target, name, note.ordered, note.text, note.withdrawn
            )
        self._tell_news()
        return written

    def lockspace_budget_s(self, now_s: float) -> float | None:
        """How long the storage may still stay away before sanlock ends the VM here."""
        if not self.lockspace.joined:
            return None
        return budget_s(self.lockspace.renewed_s, float(self.config.storage.io_timeout), now_s)

    def _sanlock(self, host_id: int, now_s: float) -> dict[str, Any]:
        """sanlock's word on a host, as fields of its status."""
        witness = self.lockspace.witnesses.get(host_id)
        if witness is None:
            return {}
        return {"sanlock_state": witness.state, "sanlock_age_s": now_s - witness.changed_s}

    def _witnesses(self, host_id: int, now_s: float) -> WitnessStatus:
        """Each way in which this host sees whether a peer lives."""
        seen, pulse = self._seen.get(host_id), self.heartbeats.pulses.get(host_id)
        known = self.lockspace.witnesses.get(host_id)
        renewal = self.lockspace.renewals.table.get(host_id)
        is_live = seen is not None and self._liveness(seen, now_s) is Liveness.LIVE
        trouble = self.heartbeats.trouble(host_id, now_s) if is_live else None
        return WitnessStatus(
            whiteboard_age_s=now_s - seen.since_s if seen is not None and seen.changed else None,
            heartbeat=self.heartbeats.word(host_id).value,
            heartbeat_age_s=_age(pulse.heartbeat_s, now_s) if pulse is not None else None,
            unanswered_s=_age(pulse.unanswered_since_s, now_s) if pulse is not None else None,
            heartbeat_problem=pulse.problem if pulse is not None else "",
            bad_answers=pulse.bad_answers if pulse is not None else {},
            renewal_age_s=_age(self.lockspace.renewals.renewal_s(host_id), now_s),
            sanlock_state=known.state if known is not None else "unknown",
            generation=renewal.generation if renewal is not None else None,
            heartbeat_trouble="" if trouble is None else trouble.value,
            port_silent_s=_age(pulse.port_silent_since_s, now_s) if pulse is not None else None,
            port_problem=pulse.port_problem if pulse is not None else "",
            refused=self.gate.refusals_of(host_id),
        )

    def _storage_state(self) -> str:
        if not self.board.problem:
            return "ok"
        return "hung" if self.board.is_hung else "error"

    def _network(self, now_s: float) -> NetworkVerdict:
        """What the network tests here and on the live peers mean together."""
        results: Sequence[TargetResult] = self.monitors.value("network") or ()
        if self._is_blind(now_s) or not any(result.fails for result in results):
            return verdict(results, ())
        peers = [
            published(report.extra.get("network", "") if report.extra_trusted else "")
            for host, report in self.members.reports.items()
            if host in self._seen and self._seen[host].changed and host not in self._silent
        ]
        return verdict(results, peers)

    def _peer_status(self, report: SlotReport, now_s: float) -> HostStatus:
        seen = self._seen.get(report.host_id)
        kind = Liveness.UNCERTAIN if seen is None else self._liveness(seen, now_s)
        extra = report.extra if report.extra_trusted else {}
        age_s = now_s - seen.since_s if seen is not None else 0.0
        intent, move = slot_lines.intent_of(extra.get("intent", ""), report.host_id, age_s)
        return HostStatus(
            host_id=report.host_id,
            hostname=report.hostname,
            liveness=kind.value,
            score=report.score,
            state=extra.get("state", ""),
            penalties=tuple(slot_lines.penalties_of(extra)),
            reason=extra.get("reason", ""),
            engine_status=report.engine_status,
            age_s=now_s - seen.since_s if seen is not None and seen.changed else None,
            maintenance=report.maintenance,
            mode=slot_lines.mode_of(report),
            **self._sanlock(report.host_id, now_s),
            witnesses=self._witnesses(report.host_id, now_s),
            stopped=report.stopped,
            agent=extra.get("agent", ""),
            domain_type=extra.get("domain-type", ""),
            unknown=tuple(filter(None, extra.get("unknown", "").split(","))),
            intent=intent,
            move=move,
            left_out=slot_lines.count_of(extra.get(LEFT_OUT_KEY, "")),
            differs=tuple(filter(None, extra.get("differs", "").split(","))),
            memory_image=bool(extra.get("memory-image", "")),
            outside=_outside_status(
                slot_lines.outside_of(extra.get("outside", ""), now_s - age_s), now_s
            ),
            way_out=slot_lines.way_out_of(extra.get("way-out", "")),
            uplink_up=slot_lines.uplink_of(extra.get("uplink", "")),
            fence_ask=_fence_ask(slot_lines.fence_ask_of(extra.get("fence-ask", ""))),
            config_drift=tuple(
                map(str, agreement.differences(self._agreed, self._agreed_lines, extra))
            ),
            host_shutdown=slot_lines.host_shutdown_of(report),
            other_storage=self.same_storage.judgement.others.get(report.host_id, ""),
            storage_odd=self.same_storage.judgement.odd.get(report.host_id, ""),
            signature=self._signature(report.host_id),
            not_counted=self.members.why_not.get(report.host_id, ""),
        )

    def _signature(self, host_id: int) -> str:
        if self.board.signatures.key is None:
            return ""
        return self.board.signed[host_id].value

    # --- maintenance --------------------------------------------------------------------

    @property
    def local_maintenance(self) -> bool:
        """Whether this host is in local maintenance, or shuts down."""
        return self._modes.in_force is not None

    async def set_maintenance(self, kind: str, wanted: Maintenance, owner: str) -> None:
        """Set or end a mode as asked for. `kind`: global or local; `owner`: who asks, without the
        host. StorageTrouble or OSError when it cannot be written."""
        mode = self.mode(wanted, f"{owner}@{self.config.host_name}")
        if kind == "global":
            await self.set_global_maintenance(mode)
        else:
            self.set_local_maintenance(mode)

    async def set_global_maintenance(self, mode: Mode | None) -> None:
        """Set or end it for all hosts; StorageTrouble when it cannot be written."""
        await self.board.set_global_maintenance(mode)
        self._modes.look(mode, asyncio.get_running_loop().time())

    def set_local_maintenance(self, mode: Mode | None) -> None:
        """Set or end it for this host, kept over restarts; OSError when it cannot be written."""
        self._modes.set_local(mode, asyncio.get_running_loop().time())
        self._changed.set()

    def mode(self, wanted: Maintenance, owner: str) -> Mode | None:
        """What was asked for as a mode that begins now."""
        if not wanted.on:
            return None
        return self._modes.new(owner, wanted.reason, wanted.for_s, wanted.release_id)

    def _give_back_id(self, now_s: float = 0.0) -> None:
        """The host id goes once the agent calls this host empty: in the middle of a migration, when
        no process holds the lease, it may be needed again; for one to here as well. It is not
        joined anew meanwhile."""
        local = self._modes.in_force
        empty = self._report is not None and self._report.state == StateName.LOCAL_MAINTENANCE
        asked_for = local is not None and local.release_id
        self.lockspace.no_join = asked_for
        empty = empty and self._shutdown.is_told(now_s) and not self._arriving(now_s)
        self._gives_back = asked_for and (empty or self._gives_back)
        self.lockspace.stay_out = self._gives_back or self._freed_by is not None

    def host_shuts_down(self, now_s: float) -> HostShutdownStatus:
        """systemd shuts this host down, says the unit's command: drain it. How far that is."""
        shutdown = self._shutdown
        if shutdown.say(OnHostShutdown(self.config.vm.on_host_shutdown), now_s):
            log.warning("this host is shutting down (vm.on-host-shutdown: %s)", shutdown.way)
            mode = shutdown.mode(int(self._wall())) if shutdown.drains else None
            self._modes.set_shutdown(mode, now_s)
            self._changed.set()
            self._tell_news()
        return shutdown.status(self._scene(now_s), now_s, self._timing)

    def _scene(self, now_s: float) -> Scene:
        own, engine = self._own_status(now_s), self._engine_status(now_s)[0]
        reasons = () if self._report is None else self._report.reasons
        waits = [reason.text for reason in reasons if reason.code == Code.DRAIN_WAITING]
        return Scene(
            vm=engine.vm,
            detail=engine.detail,
            state=own.state,
            reason=waits[0] if waits else own.reason,
            intent=own.intent,
            agent="" if own.agent == "ok" else own.agent,
            arriving=self._arriving(now_s),
            global_maintenance=self.board.global_maintenance is True,
            joined=self.lockspace.joined is True,
        )

    def _arriving(self, now_s: float) -> str:
        """The live host that is migrating the VM to this one; empty: none is."""
        for host, report in self.members.reports.items():
            if report.extra_trusted and host in self._seen and host not in self._silent:
                age_s = now_s - self._seen[host].since_s
                _, move = slot_lines.intent_of(report.extra.get("intent", ""), host, age_s)
                if move is not None and move.target == self.config.host.id and move.left_s != 0:
                    return report.hostname
        return ""

    async def _end_what_is_over(self, now_s: float) -> None:
        """Maintenance ends by itself. What cannot be written ended stays set."""
        modes = self._modes
        if self._shutdown.lapses(now_s):
            log.warning("this host does not shut down after all")
            modes.set_shutdown(None, now_s)
        modes.look(self.board.global_mode, now_s)
        self._give_back_id(now_s)
        for name, countdown in modes.end_soon(now_s):
            left_s = countdown.left_s(now_s)
            log.warning("%s maintenance ends in %.0f s", name, left_s)
            reason = countdown.mode.reason if countdown.mode is not None else ""
            self._lookout.maintenance_ends_soon(name, left_s, reason)
        try:
            if modes.local_countdown.is_over(now_s):
                self.set_local_maintenance(None)
                log.warning("local maintenance has ended by itself")
                self._lookout.maintenance_over("local")
            mode = modes.global_countdown.mode
            if (
                mode is not None
                and modes.global_countdown.is_over(now_s)
                and self._others_see_it_over()
                and await self.board.end_global_maintenance(mode)
            ):
                modes.look(None, now_s)
                log.warning("global maintenance has ended by itself")
                self._lookout.maintenance_over("global")
        except (StorageTrouble, OSError) as error:
            log.error("maintenance is over and could not be ended: %s", error)

    def _others_see_it_over(self) -> bool:
        """No live host counts longer: one wall clock that is wrong ends nothing early."""
        return not any(
            slot_lines.count_of(report.extra.get("global-left", "")) > 0
            for host, report in self.members.reports.items()
            if report.extra_trusted and host in self._seen and host not in self._silent
        )


def _fence_ask(ask: FenceAsk | None) -> str:
    return "" if ask is None else told(ask)


def _outside_status(seen: OutsideView | None, now_s: float) -> OutsideStatus | None:
    if seen is None or (seen.good_s is None and seen.bad_since_s is None):
        return None
    return OutsideStatus(seen.owner, _age(seen.good_s, now_s), _age(seen.bad_since_s, now_s))


def _times(histogram: Histogram) -> Times:
    return Times(
        histogram.count,
        histogram.quantile_s(0.5),
        histogram.quantile_s(0.99),
        histogram.max_s,
    )


def _age(at_s: float | None, now_s: float) -> float | None:
    return None if at_s is None else now_s - at_s

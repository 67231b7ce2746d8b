# SPDX-License-Identifier: LGPL-2.1-or-later
"""A simulated cluster: hosts, shared volumes, links, and the product's daemons on each host."""

from __future__ import annotations

import asyncio
import math
import random
import re
import shutil
import tempfile
import uuid
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.actions import ActionRunner
from agent.beat import Agent
from agent.fence.levels import FenceLevels
from broker.broker import Broker, Given
from broker.config.cluster_key import ClusterKey
from broker.config.sections import (
    ApiSection,
    ClusterSection,
    Config,
    DaemonSection,
    FenceSection,
    HealthSection,
    HostSection,
    NetworkSection,
    ScoreSection,
    StorageSection,
    TimingSection,
    VmSection,
)
from broker.events.detector import NOTIFIED_CODES
from broker.lockspace.port import LockspaceError
from broker.monitors.outside import OutsideMonitor, is_local
from broker.monitors.runner import MonitorRunner
from broker.monitors.vms_outside import VmsOutside
from broker.monitors.watched import Watched
from broker.monitors.way_out import WayOutMonitor
from broker.peers.asker import Heartbeats
from broker.peers.vm_place import VmPlace
from broker.this_host.disks_record import CannotDecide
from broker.whiteboard.board import Board
from broker.whiteboard.errors import BadSlot
from broker.whiteboard.identity import VolumeKind, expected, problem
from broker.whiteboard.mode import Mode, to_lines
from broker.whiteboard.signatures import CLUSTER as CLUSTER_SLOT
from broker.whiteboard.signatures import Signatures
from broker.whiteboard.slot import EMPTY_SLOT, decode_cluster, decode_slot, encode_cluster
from broker.whiteboard.store import StorageTrouble
from broker.wire.exchange import BegunReason, Report
from broker.wire.status import Maintenance, NewOrder
from scoring.decision import Code, FreeHostId
from scoring.lease_times import WATCHDOG_FIRE_S
from scoring.observation import OrderKind
from scoring.rules import Rules
from scoring.vm.state import StateName, VmState
from scoring.vm_facts import ENGINE, Pause, VmStatus
from tests.simulation import earlier_decisions, orderly
from tests.simulation.bmc import fence_levels
from tests.simulation.disks import BASE, SHARED, SimWhatRuns
from tests.simulation.forger import Forger
from tests.simulation.host import CLUSTER, WALL_EPOCH_S, Host, Qemu, identity_of, volume_id
from tests.simulation.laws import RENEWALS, THIRD_HOST, Laws
from tests.simulation.lockspace import LeaseVolume, Membership, Refused
from tests.simulation.ports import (
    CANCELLED,
    IS_ACTIVE,
    NOT_RUNNING,
    SimCanStart,
    SimEngineMonitor,
    SimFenceLog,
    SimHeartbeats,
    SimLeases,
    SimLink,
    SimLockspace,
    SimNetwork,
    SimOutsideProbe,
    SimReach,
    SimSample,
    SimStore,
    SimTargets,
    no_libvirt,
)
from tests.simulation.quick import make_quick
from tests.simulation.timeline import Process, Timeline
from tests.simulation.vm_ports import SimHypervisors, SimVmsMonitor
from tests.simulation.vms import RESERVE_MB, Vms
from tests.simulation.whiteboard import Whiteboard

RESTART_S = 1.5
LIBVIRTD_RESTART_S = 1.5
#: From a change of a domain until libvirt's event of it has arrived.
LIBVIRT_EVENT_S = 0.02
#: Reasons of an agent whose words are in the trace.
_TOLD = frozenset({*NOTIFIED_CODES, Code.CANNOT_START})
#: A stretch that is passed over is at least so long, begins after so long a rest, and ends so
#: long before the next thing that is planned.
LEAP_MIN_S = 15.0
LEAP_REST_S = 12.0
LEAP_MARGIN_S = 4.0
#: How often it is asked whether all is at rest.
LEAP_LOOK_S = 5.0
#: States that wait for a change of the world, and one that only waits for its time to end.
AT_REST = frozenset(
    s.value
    for s in (
        StateName.ENGINE_UP,
        StateName.ENGINE_DOWN,
        StateName.LOCAL_MAINTENANCE,
        StateName.GLOBAL_MAINTENANCE,
        StateName.ENGINE_UNEXPECTEDLY_DOWN,
    )
)
VM_MEMORY_MB = 4096.0
#: A host that has been well for so long is seen to be fit by all.
WELL_BEFORE_MOVE_S = 10.0
#: A claim in a slot: the VM, the host that it is brought to, and for how long.
CLAIM = re.compile(r"([0-9]+)>([0-9]+)/")
CLUSTER_KEY = ClusterKey(b"the simulated cluster's own key.")
#: What a host may have for the cluster's key, by name.
KEYS: dict[str, ClusterKey | None] = {
    "cluster": CLUSTER_KEY,
    "other": ClusterKey(b"a key that another cluster has.."),
    "none": None,
}
#: So much earlier may a mode end that is counted by clocks which run a little fast.
DRIFT_S = 0.5
SAFETY_S = 90.0
#: From what a third host hears until all have read it: a question, a beat there, a beat here.
HEARSAY_S = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a cluster is made of. Times in seconds."""

    hosts: int = 3
    io_timeout_s: int = 10
    beat_s: float = 1.0
    fence: bool = True
    #: `fence.power-off` of the configuration.
    power_off: bool = True
    migration: bool = True
    host_boot_s: float = 40.0
    guest_boot_s: float = 20.0
    latency_s: float = 0.004
    #: Largest difference of a host's clock from true time, as a fraction.
    drift: float = 0.0002
    on_wire: bool = False
    timing: dict[str, float] = field(default_factory=dict)
    #: Whether the cluster has a key, so that the brokers ask each other over the network.
    heartbeat: bool = True
    #: Whether migrations have a network of their own.
    migration_apart: bool = False
    #: The health check as configured, and what becomes of a VM that nobody reaches.
    health_page: str = "http://the-guest/"
    on_isolation: str = "move"
    balance: bool = False
    #: Whether each host's sanlock has a fixed name, as `ha-agent init` and `join` give it.
    names_fixed: bool = True
    #: The memory of each host where several VMs share it, and what no VM may have; MiB.
    memory_mb: float | None = None
    reserve_mb: float = RESERVE_MB


def new_order(kind: OrderKind, target: int | None, vm: int) -> NewOrder:
    """An operator's order about a VM."""
    return NewOrder(kind, target, vm)


@dataclass(slots=True)
class Move:
    """A live migration under way; `result` "" once it went well, else why not."""

    result: str | None = None


@dataclass(frozen=True, slots=True)
class Outage:
    """A time in which no healthy VM was there, true times."""

    began_s: float
    ended_s: float
    cause: str


@dataclass(frozen=True, slots=True)
class Shot:
    """A host that is on was switched off by another. `heard_for_s`: by each path, for how long
    it could have been heard by then; None where it could not. `at_once`: nobody could reach its
    machine any more, and its daemons ended in the same moment. `gave_up`: it alone had lost the
    storage, and ran no VM any more."""

    at_s: float
    by: str
    target: str
    heard_for_s: dict[str, float | None]
    boots: int = 0
    at_once: bool = False
    gave_up: bool = False


class World:
    """One cluster. The same settings and the same `random` give the same run.

    `trace`: (true time, who, what). Call `close` when done.
    """

    def __init__(self, settings: Settings, chance: random.Random) -> None:
        make_quick()
        self.settings = settings
        self.chance = chance
        #: Packets of questions are lost without a change of any other draw.
        self.network_chance = random.Random(settings.hosts)
        self.outside_chance = random.Random(settings.hosts + 1)
        self.kernel_chance = random.Random(settings.hosts + 2)
        #: Who does not get through to the guest wherever it runs: "", "users" (nobody does) or
        #: "hosts" (its users do).
        self.guest_closed_to = ""
        #: Since when each VM on each host is reached by its users, for sure.
        self._reached_since_s: dict[tuple[int, int], float] = {}
        self.timeline = Timeline()
        self.trace: list[tuple[float, str, str]] = []
        self.laws = Laws(self)
        self.leases = LeaseVolume(identity_of(VolumeKind.LEASES, CLUSTER))
        self.board = Whiteboard(identity_of(VolumeKind.WHITEBOARD, CLUSTER))
        self.hosts: dict[int, Host] = {}
        self.by_address: dict[str, Host] = {}
        self.brokers: dict[int, Broker] = {}
        #: The eyes of each broker on the VMs beside the engine.
        self.monitors: dict[int, SimVmsMonitor] = {}
        self.agents: dict[int, Agent] = {}
        self.links: dict[int, SimLink] = {}
        #: The last migration of each VM from each host: how it ends, its source and target.
        self._moves: dict[tuple[int, int], tuple[Move, Host, Qemu, Host, Qemu]] = {}
        #: The protected VMs beside the engine.
        self.vms = Vms(self)
        self.cut_links: set[tuple[int, int]] = set()
        #: (from, to): the part of the packets that is lost, and what one takes longer.
        self.link_loss: dict[tuple[int, int], float] = {}
        self.link_delay_s: dict[tuple[int, int], float] = {}
        #: Hosts that no migration reaches or leaves, whatever their own network does.
        self.no_migration: set[int] = set()
        #: How often the VM went over to another host alive.
        self.moves = 0
        #: The last order of an operator: the host, its broker, its number.
        self.last_order: tuple[Host, Broker, int] | None = None
        #: A story says that nothing is wrong any more: law `up` holds from its bound on.
        self.is_story_calm = False
        self.score: dict[int, ScoreSection] = {}
        self.global_maintenance_since_s: float | None = None
        self.faults: Counter[str] = Counter()
        self.open_faults = 0
        self.busy_faults = 0
        self.modes_with_end = 0
        self._serial = 0
        self.forger = Forger(
            self.timeline,
            self.board,
            self.leases,
            CLUSTER_KEY if settings.heartbeat else None,
            lambda: WALL_EPOCH_S + self.timeline.now_s,
        )
        self.calm_since_s = 0.0
        self.extra_bound_s = 0.0
        self.down_wanted = False
        #: The image that the guest wrote to last, and how many were made.
        self.newest_image = BASE
        self._images = 0
        #: When an operator last gave an order to a host.
        self.ordered_s: dict[int, float] = {}
        #: What it was, until it is refused, and its number.
        self.ordered: dict[int, OrderKind] = {}
        self.ordered_vm: dict[int, int] = {}
        self._order_numbers: dict[int, int] = {}
        self.outages: list[Outage] = []
        self.shots: list[Shot] = []
        #: (asker, target): when packets last could not go there and back.
        self._unheard_s: dict[tuple[int, int], float] = {}
        self.beat_s = settings.beat_s
        self._well = False
        self._changed_s = 0.0
        self._down_since_s = 0.0
        self._down_cause = "first start"
        self._failures: list[str] = []
        self._all_processes: list[Process] = []
        self._states: dict[int, str] = {}
        self._begun: dict[int, tuple[BegunReason, ...]] = {}
        self._states_since_s: dict[int, float] = {}
        self._scores: dict[int, int] = {}
        self._penalties: dict[int, tuple[str, ...]] = {}
        self._state_dir = Path(tempfile.mkdtemp(prefix="ha-simulation-"))
        for number in range(1, settings.hosts + 1):
            self._make_host(number)
        self.timeline.after(1.0, self._look)

    def _make_host(self, number: int) -> None:
        chance, settings = self.chance, self.settings
        host = Host(
            self.timeline,
            self.leases,
            self.board,
            self,
            number,
            io_timeout_s=settings.io_timeout_s,
            rate=1.0 + chance.uniform(-settings.drift, settings.drift),
            clock_s=chance.uniform(50.0, 5_000_000.0),
            boot_s=settings.host_boot_s * chance.uniform(0.9, 1.1),
            guest_boot_s=settings.guest_boot_s,
            system_uuid=str(uuid.UUID(int=chance.getrandbits(128))),
        )
        if not settings.names_fixed:
            host.sanlock_name = ""
        if settings.memory_mb is not None:
            host.total_mb = host.memory_mb = settings.memory_mb
            host.reserve_mb = settings.reserve_mb
            host.takes_mb[ENGINE] = VM_MEMORY_MB
        self.hosts[number] = host
        self.by_address[host.address] = self.by_address[host.heartbeat_address] = host

    # --- the product on a host --------------------------------------------------------------

    def config(self, host: Host) -> Config:
        """The configuration of a host."""
        timing = {"beat": self.settings.beat_s, **self.settings.timing, **host.timing}
        return Config(
            cluster=ClusterSection(id=CLUSTER),
            host=HostSection(
                id=host.host_id,
                name=host.name,
                system_uuid=host.system_uuid,
            ),
            storage=StorageSection(
                whiteboard="/simulated/whiteboard",
                leases="/simulated/leases",
                whiteboard_id=volume_id(VolumeKind.WHITEBOARD, CLUSTER),
                leases_id=volume_id(VolumeKind.LEASES, CLUSTER),
                io_timeout=int(host.io_timeout_s),
            ),
            api=ApiSection(advertise=(host.address,)),
            daemon=DaemonSection(state_dir=str(self._state_dir / host.name)),
            vm=VmSection(
                on_host_shutdown=host.on_host_shutdown.value,
                on_isolation=self.settings.on_isolation,
                balance=self.settings.balance,
            ),
            score=self.score.get(host.number, ScoreSection()),
            timing=TimingSection(**timing),
            health=HealthSection(url=self.settings.health_page),
            network=NetworkSection(targets=("gateway",)),
            fence=FenceSection(power_off=self.settings.power_off),
        )

    def booted(self, host: Host) -> None:
        self.laws.fence.told(host, False)
        order = ["broker", "agent"]
        self.chance.shuffle(order)
        for name in order:
            self._restart(host, name, self.chance.uniform(0.2, 1.0))

    def daemon_ended(self, host: Host, name: str) -> None:
        if name == "shutdown":
            return
        if name == "broker":
            self.brokers.pop(host.number, None)
            self._cut(host)
        else:
            self._agent_gone(host)
        self._restart(host, name, RESTART_S)

    def _agent_gone(self, host: Host) -> None:
        """What it reported is not true of the next one."""
        for reported in (self._states, self._scores, self._penalties, self._begun):
            reported.pop(host.number, None)
        self.laws.agent_gone(host)

    def _cut(self, host: Host) -> None:
        link = self.links.get(host.number)
        if link is not None:
            link.cut()

    def _restart(self, host: Host, name: str, after_s: float) -> None:
        self.timeline.after(after_s, self._start, host, name, host.boots)

    def _start(self, host: Host, name: str, boot: int) -> None:
        """Start a daemon unless the host is not what it was, or the daemon runs."""
        if not host.up or host.boots != boot or name in host.processes:
            return
        if (name == "agent" and not host.agent_wanted) or not host.daemons_wanted:
            return
        if host.going_down_since_s is not None:
            return
        loop = host.loop
        assert loop is not None

        def on_end(process: Process, error: BaseException | None) -> None:
            if host.processes.get(name) is process:
                del host.processes[name]
                self._daemon_gave_up(host, name, error)

        process = Process(loop, f"{host.name} {name}", on_end)
        process.expected = (LockspaceError,)
        host.processes[name] = process
        self._all_processes.append(process)
        if name == "broker":
            process.start(self._broker(host))
        else:
            process.start(self._agent(host))

    async def _broker(self, host: Host) -> None:
        engine = SimEngineMonitor(host)
        config = self.config(host)
        probe = None if is_local(config.health) else SimOutsideProbe(self, host)
        outside = OutsideMonitor(probe, config.health.timeout + 5.0)
        way_out = WayOutMonitor(SimTargets(self, host).any_answers)
        runner = MonitorRunner(
            [
                engine,
                SimNetwork(host),
                SimWhatRuns(host),
                outside,
                way_out,
                SimSample("bridge", 10.0, host, "bridge_up"),
                SimSample("uplink", 2.0, host, "bridge_leads_out"),
                SimSample("memory", 10.0, host, "free_memory_mb"),
                SimSample("cpu_load", 10.0, host, "load"),
                SimSample("definition", 10.0, host, "config_up_to_date"),
                SimSample("lock_driver", 5.0, host, "lock_driver"),
                SimCanStart(host),
            ]
        )
        for kind, volume in (
            (VolumeKind.WHITEBOARD, host.whiteboard),
            (VolumeKind.LEASES, host.leases),
        ):
            # As broker.main.check_storage: it ends, and is started again by itself.
            if wrong := problem(volume.identity, expected(config, kind)):
                raise LockspaceError(wrong)
        store = SimStore(host, self.settings.latency_s)
        boot_id = f"{host.name}-boot-{host.boots}"
        lockspace, registry = SimLockspace(host), self.vms.cache(host)
        monitor = self.monitors[host.number] = SimVmsMonitor(self, host, runner)
        vms_outside = VmsOutside(
            lambda vm: None if probe is None else SimOutsideProbe(self, host, vm.number),
            config.health.timeout + 5.0,
            lambda: runner.on_change(outside.name),
        )
        key = KEYS[host.key] if self.settings.heartbeat else None
        broker = Broker(
            config,
            Board(store, host.host_id, host.wall_s, Signatures(key)),
            lockspace,
            Watched(runner, engine, outside, way_out, monitor, vms_outside),
            Given(
                boot_id,
                host.wall_s,
                host.frees_without_lease,
                registry,
                SimReach(self, host),
            ),
            heartbeats=Heartbeats(
                host.host_id,
                key,
                SimHeartbeats(self, host),
            ),
        )
        host.broker_since_s = self.timeline.now_s
        if host.wall_offset_s != 0.0:
            host.wrong_start_s = self.timeline.now_s
        self.brokers[host.number] = broker
        async with asyncio.TaskGroup() as group:
            group.create_task(broker.run(), name="beat")
            group.create_task(lockspace.run(), name="lockspace")
            group.create_task(lockspace.renewals.run(), name="renewals")
            group.create_task(broker.heartbeats.run(), name="heartbeats")
            group.create_task(broker.table.machine.run(), name="the engine's machine")
            group.create_task(runner.run(), name="monitors")
            if self.vms.records:
                group.create_task(registry.run(), name="registry")

    async def _agent(self, host: Host) -> None:
        leases, config = SimLeases(self, host), self.config(host)
        fence = FenceLevels((), host.host_id)
        if self.settings.fence and host.has_fence:
            fence = fence_levels(self, host, config.fence.timeout)
        link = self.links.get(host.number)
        if link is None:
            link = self.links[host.number] = SimLink(self, host, self.settings.on_wire)
        agent = Agent(
            config.rules(VM_MEMORY_MB),
            link,
            ActionRunner(
                SimHypervisors(self, host, leases), leases, fence, SimFenceLog(self, host)
            ),
            "kvm",
            migration_possible=self.settings.migration,
        )
        agent.refused = lambda: host.refused
        host.decides_earlier = host.wants_earlier
        if host.decides_earlier:
            agent.decides = earlier_decisions.decide
        host.agent_since_s = self.timeline.now_s
        self.agents[host.number] = agent
        await agent.run()

    def _daemon_gave_up(self, host: Host, name: str, error: BaseException | None) -> None:
        if name == "broker":
            self.brokers.pop(host.number, None)
            self._cut(host)
        else:
            self._agent_gone(host)
        if error is not None and not _only(error, LockspaceError):
            self._failures.append(f"{name} of {host.name} failed: {error!r}")
            self.laws.clean()
        self.tell(host.name, f"{name} ended" + (f": {_first(error)}" if error else ""))
        if name == "agent":
            host.let_go_of_fence()
        # One that was asked to end, and is wanted again, is started as soon as it has ended.
        if error is not None or (name == "agent" and host.agent_wanted):
            self._restart(host, name, RESTART_S)

    # --- what happens -----------------------------------------------------------------------

    def tell(self, who: str, what: str) -> None:
        self.trace.append((self.timeline.now_s, who, what))

    def vm_changed(self, host: Host, vm: int = ENGINE) -> None:
        self.laws.vm_changed(vm)
        self.timeline.after(LIBVIRT_EVENT_S, self._libvirt_event, host, host.boots, vm)

    def vm_ended(self, host: Host, why: str, vm: int = ENGINE) -> None:
        self.tell(host.name, f"QEMU ended: {why}{self.vms.of(vm)}")
        self.vms.trouble_s[host.number, vm] = self.timeline.now_s
        if self._well and vm == ENGINE:
            self._down_cause = why
        self.laws.vm_ended(host, why, vm)

    def _libvirt_event(self, host: Host, boot: int, vm: int) -> None:
        """libvirt tells the broker that something has become of the VM."""
        broker = self.brokers.get(host.number)
        if broker is None or host.boots != boot or not host.libvirt_up:
            return
        if vm == ENGINE:
            broker.monitors.wake("engine")
        else:
            self.monitors[host.number].wake(vm)

    def began(self, host: Host, act: str | FreeHostId, vm: int = ENGINE) -> None:
        """An agent begins an action on a VM or on a host id."""
        if isinstance(act, str):
            self.tell(host.name, f"agent: {act}{self.vms.of(vm)}")
        else:
            self.tell(host.name, f"agent: frees {act}")
        self.laws.began(host, act, vm)

    def claims_of(self, host: Host) -> frozenset[tuple[int, int]]:
        """The VMs and their targets that a host's slot claims, on the storage that it writes to."""
        try:
            slots = host.whiteboard.slots
            report = decode_slot(host.host_id, slots.get(host.host_id, EMPTY_SLOT))
        except BadSlot:
            return frozenset()
        if report is None or not report.extra_trusted:
            return frozenset()
        return frozenset(
            (int(number), int(target))
            for number, target in CLAIM.findall(report.extra.get("claims", ""))
        )

    def short_of(self, vm: int) -> int | None:
        """How many MiB a VM is short of by the plan of an agent; None: nobody says so."""
        for number, agent in sorted(self.agents.items()):
            if agent.last is not None and self.both_run(self.hosts[number]):
                short = agent.last.plan.short
                if vm in short:
                    return short[vm]
        return None

    def called(self, vm: int) -> str:
        """What a VM is called in the trace."""
        return "the VM" if vm == ENGINE else self.vms.name_of(vm)

    def start_fails(self, host: Host, vm: int) -> str:
        """Why libvirt cannot start a VM there; empty: it can."""
        return host.starts_fail or self.vms.start_fails.get((host.number, vm), "")

    def freeing(self, host: Host, act: FreeHostId) -> None:
        """A host id is about to be freed on disk."""
        self.tell(host.name, f"frees host id {act.host_id}")
        self.laws.freeing(host, act)

    def freed(self, host: Host, act: FreeHostId) -> None:
        """The writing of that lands, late."""
        self.tell(host.name, f"the freeing of host id {act.host_id} lands")
        self.laws.freed(host, act)

    def wrote(self, host: Host) -> None:
        self.laws.fence.wrote(host)

    def shoots(self, host: Host, target: Host) -> None:
        """A BMC takes the order to switch a host off that is on."""
        now_s = self.timeline.now_s
        heard = self.heard_since_s(host, target)
        heard_for_s = {path: None if s is None else now_s - s for path, s in heard.items()}
        at_once, gave_up = self.laws.fence.hangs(target, host), self.laws.fence.gave_up(target)
        self.tell(host.name, f"switches host {target.host_id} off")
        self.laws.began(host, "switch a host off")
        self.laws.shoots(host, target)
        self.shots.append(
            Shot(now_s, host.name, target.name, heard_for_s, target.boots, at_once, gave_up)
        )

    def switches_another(self, host: Host, target: Host, word: str) -> None:
        """A machine that is nobody's of the cluster takes an order that is meant for a host."""
        self.tell(host.name, f"switches another machine {word}, not {target.name}")
        self.laws.switches_another(host, target)

    def reported(self, host: Host, report: Report) -> None:
        """An agent reports to its broker."""
        self._scores[host.number] = report.score
        for answer in report.answers:
            if answer.number == self._order_numbers.get(host.number) and answer.ok is False:
                self.ordered.pop(host.number, None)
        for begun in report.begun:
            if begun.code in _TOLD and begun not in self._begun.get(host.number, ()):
                self.tell(host.name, f"{begun.code}: {begun.text}")
        self._begun[host.number] = report.begun
        self._penalties[host.number] = tuple(penalty.name for penalty in report.penalties)
        old = self._states.get(host.number)
        if old != report.state:
            self._changed_s = self.timeline.now_s
            self._states[host.number] = report.state
            self._states_since_s[host.number] = self.timeline.now_s
            why = report.reasons[0].text if report.reasons else ""
            self.tell(host.name, f"{report.state}, score {report.score}: {why}")
        self.laws.reported(host, report)

    def state(self, host: Host) -> str:
        """The state a host's agent last reported; "" while there is no agent or no broker."""
        return self._states.get(host.number, "") if self.both_run(host) else ""

    @staticmethod
    def both_run(host: Host) -> bool:
        """Whether both daemons of a host run."""
        return host.processes.keys() >= {"agent", "broker"}

    def told_place(self, host: Host) -> VmPlace | None:
        """Where a host's status says that the VM is; None where nobody can ask it."""
        broker, loop = self.brokers.get(host.number), host.loop
        if broker is None or loop is None or host.frozen or host.is_stopped("broker"):
            return None
        return broker.place.now(loop.time())

    def told_places(self, host: Host) -> dict[int, VmPlace]:
        """Where each VM beside the engine is, by a host's broker and its registry."""
        broker, loop = self.brokers.get(host.number), host.loop
        if broker is None or loop is None or host.frozen or host.is_stopped("broker"):
            return {}
        if not broker.vms_now.has_several:
            return {}
        known = broker.vms_now.known(loop.time())
        return {vm: seen.place for vm, seen in known.seen.items() if vm != ENGINE}

    def newest_images(self, vm: int) -> frozenset[str]:
        """Where the guest of a VM may go on: the image that it wrote to last, and the one that an
        operator chose since."""
        if vm == ENGINE:
            return frozenset({self.newest_image})
        return self.vms.newest.get(vm, frozenset({BASE}))

    def score_of(self, host: Host) -> int | None:
        """The score a host's agent last reported."""
        return self._scores.get(host.number) if self.state(host) else None

    def penalties_of(self, host: Host) -> tuple[str, ...]:
        """What a host's agent last reported that its score lacks."""
        return self._penalties.get(host.number, ()) if self.state(host) else ()

    def told_of(self, host: Host, kind: str) -> list[str]:
        """What a host's broker, since it was started, has told people of that kind."""
        broker = self.brokers.get(host.number)
        events = () if broker is None else broker.events.after(0).events
        return [event.text for event in events if event.kind == kind]

    def finds_elsewhere(self, host: Host, other: Host) -> bool:
        """Whether a host's broker says that another one is on other storage."""
        broker = self.brokers.get(host.number)
        return broker is not None and other.host_id in broker.same_storage.judgement.others

    def _look(self) -> None:
        """Note how the VM is, once a second: for outage times, and for the laws on what is said."""
        well = any(host.vm_healthy for host in self.hosts.values())
        if well != self._well:
            now_s = self.timeline.now_s
            if well:
                self.tell("guest", "healthy")
                self.outages.append(Outage(self._down_since_s, now_s, self._down_cause))
            else:
                self.tell("guest", "not healthy")
                self._down_since_s = now_s
            self._well = well
        if well:
            self._down_cause = "sick"
        self.vms.look()
        self.laws.look()
        if self.is_story_calm and self.is_quiet():
            self.laws.must_be_up()
        self._look_at_links()
        for host in self.hosts.values():
            for vm in (ENGINE, *self.vms.numbers):
                if not self.is_surely_reached(host, vm):
                    self._reached_since_s.pop((host.number, vm), None)
                else:
                    self._reached_since_s.setdefault((host.number, vm), self.timeline.now_s)
        self.timeline.after(1.0, self._look)

    def wish_daemons(self, host: Host, running: bool) -> None:
        """Kill broker and agent and keep them away, or let them start."""
        host.daemons_wanted = running
        for name in ("broker", "agent"):
            if running:
                self._start(host, name, host.boots)
            else:
                host.crash(name)

    def wish_agent(self, host: Host, running: bool) -> None:
        """Stop a host's agent in good order (as the service manager does), or start it."""
        host.agent_wanted = running
        if running:
            self._start(host, "agent", host.boots)
        elif "agent" in host.processes and host.loop is not None:
            self.timeline.call_within(host.loop, self.agents[host.number].stop)

    def shut_down(self, host: Host, reboots: bool) -> None:
        """systemd shuts a host down in order, or reboots it; nothing where it does so already."""
        if not host.up or host.loop is None or host.going_down_since_s is not None:
            return
        host.going_down_since_s, host.move_failed = self.timeline.now_s, False
        self.tell(host.name, "systemd reboots it" if reboots else "systemd shuts it down")

        def on_end(process: Process, error: BaseException | None) -> None:
            host.processes.pop("shutdown", None)
            if error is not None:
                self._failures.append(f"the shutdown of {host.name} failed: {error!r}")

        process = Process(host.loop, f"{host.name} shutdown", on_end)
        host.processes["shutdown"] = process
        self._all_processes.append(process)
        process.start(orderly.shut_down(self, host, reboots))

    def could_take_the_vm(self, source: Host) -> Host | None:
        """A host to which a live migration from this one would go well, as far as can be seen."""
        if self.well_for_s(source) < WELL_BEFORE_MOVE_S:
            return None
        for host in self.hosts.values():
            if (
                self.settings.migration
                and host is not source
                and self.state(host) == StateName.ENGINE_DOWN.value
                and (self.score_of(host) or 0) > 0
                and host.going_down_since_s is None
                and host.local_maintenance_since_s is None
                and host.free_memory_mb >= VM_MEMORY_MB
                and self.well_for_s(host) > WELL_BEFORE_MOVE_S
                and self.timeline.now_s - self._states_since_s[host.number] > WELL_BEFORE_MOVE_S
            ):
                return host
        return None

    def well_for_s(self, host: Host) -> float:
        """For how long its daemons, its storage and its kernel have been fine."""
        since_s = max(host.daemons_since_s, host.storage_bad_until_s, host.frozen_until_s)
        return self.timeline.now_s - since_s

    def order(
        self, host: Host, kind: OrderKind, target: int | None = None, vm: int = ENGINE
    ) -> None:
        """An operator's order on a host; nothing where no broker answers."""
        broker = self.brokers.get(host.number)
        if broker is None or host.loop is None:
            self._no_broker(host)
        else:
            wanted = new_order(kind, target, vm)
            order = self.timeline.call_within(host.loop, broker.exchange.place_order, wanted)
            self.last_order = host, broker, order.number
            self.ordered_s[host.number] = self.timeline.now_s
            self.ordered[host.number], self.ordered_vm[host.number] = kind, vm
            self._order_numbers[host.number] = order.number
            self.tell(
                "operator",
                f"order {order.number} to {host.name}: {kind} {target or ''}{self.vms.of(vm)}",
            )

    def _no_broker(self, host: Host) -> None:
        self.tell("operator", f"no broker answers on {host.name}: nothing is done")

    # --- disks ------------------------------------------------------------------------------

    def snapshot(self, host: Host, shared: bool) -> None:
        """The VM there goes on in a new image, on the shared storage or on its host alone."""
        assert host.qemu is not None
        self._images += 1
        host.qemu.image = f"{SHARED if shared else f'/{host.name}/'}overlay{self._images}"
        self.newest_image = host.qemu.image
        self.tell(host.name, f"the VM writes to {host.qemu.image}")

    def pivot(self, host: Host) -> None:
        """The VM there goes on in the image that the definition names, with all that was written;
        a job that waited for it is over."""
        assert host.qemu is not None
        host.qemu.image, host.qemu.job = BASE, ""
        self.newest_image = BASE
        self.tell(host.name, f"the VM writes to {BASE}")

    def decide(self, host: Host, adopt: bool) -> None:
        """An operator says on a host what is right; nothing where no broker answers."""
        broker = self.brokers.get(host.number)
        if broker is None or host.loop is None:
            self._no_broker(host)
            return

        async def ask() -> None:
            try:
                record = await broker.asked.decide_what_ran(adopt, "operator")
            except (CannotDecide, StorageTrouble) as error:
                self.tell("operator", f"{host.name} refuses: {error}")
                return
            self.tell("operator", f"what ran last is {record.decided}")
            if not adopt and not any(each.runs_vm for each in self.hosts.values()):
                self.newest_image = BASE

        self.timeline.call_within(host.loop, host.processes["broker"].begin, ask())

    # --- the storage as a whole -----------------------------------------------------------------

    def split_storage(self, sides: list[list[Host]]) -> None:
        """From now on each side has a half of its own, equal at first; the first one is what was
        the cluster's."""
        for side in sides[1:]:
            leases, board = self.leases.copy(), self.board.copy()
            for host in side:
                host.go_over(leases, board)
        self.tell("storage", " / ".join(", ".join(h.name for h in side) for side in sides))

    def join_storage(self) -> None:
        """There is one storage again: what the first half has become."""
        for host in self.hosts.values():
            if not host.is_on_shared:
                host.go_over(self.leases, self.board)
        self.tell("storage", "one again")

    def keep_storage(self) -> tuple[LeaseVolume, Whiteboard]:
        """A snapshot of what is on the volumes now."""
        self.tell("storage", "a snapshot is taken")
        return self.leases.copy(), self.board.copy()

    def set_storage_back(
        self, before: tuple[LeaseVolume, Whiteboard], parts: tuple[str, ...]
    ) -> None:
        """Put a snapshot back, or parts of it, under all that runs."""
        leases, board = before
        if "leases" in parts:
            self.leases.set_back(leases)
        if "whiteboard" in parts:
            self.board.set_back(board)
        for host in self.hosts.values():
            host.storage.since_s = host.sick_until_s = self.timeline.now_s
            host.was_led_astray = True
        self.tell("storage", f"set back: {', '.join(parts)}")

    # --- links ------------------------------------------------------------------------------

    def heard_since_s(self, asker: Host, target: Host) -> dict[str, float | None]:
        """Since when a host can hear that another one lives, by each path; None: it cannot.

        Before its broker has run, and its kernel, nobody can. Its sanlock counts while a healthy
        VM runs there.
        """
        now_s = self.timeline.now_s
        heard: dict[str, float | None] = {"storage": None, "network": None}
        if target.frozen or not target.up:
            return heard
        storage_s = target.written_since_s(self.settings.latency_s)
        if "broker" in target.processes and not target.is_stopped("broker"):
            alive_s = max(target.frozen_until_s, target.on_since_s, target.broker_since_s)
            alive_s = max(alive_s, min(target.stopped_until_s, now_s))
            if storage_s is not None and asker.reads_of(target):
                heard["storage"] = max(alive_s, storage_s)
            if self._asks(asker, target) and self._is_clear(asker, target):
                unheard_s = self._unheard_s.get((asker.number, target.number), 0.0)
                heard["network"] = max(alive_s, unheard_s)
            for third in self.hosts.values():
                told_s = self._told_since_s(asker, third, target)
                if told_s is not None and max(alive_s, told_s) + HEARSAY_S <= now_s:
                    heard[f"{THIRD_HOST}{third.name}"] = max(alive_s, told_s) + HEARSAY_S
        renewed_s, ours, its = target.renews_since_s(), asker.sanlock, target.sanlock
        is_seen = ours is not None and its is not None and its.shares_volume(ours)
        is_seen = is_seen and asker.leases.stale is None
        is_well = any(target.is_healthy(vm) for vm in target.qemus)
        if is_seen and renewed_s is not None and renewed_s <= now_s and is_well:
            heard[RENEWALS] = renewed_s
        return heard

    def _told_since_s(self, asker: Host, third: Host, target: Host) -> float | None:
        """Since when a third host hears one, and writes so where all read it; None: it does not."""
        if third in (asker, target) or not self.both_run(third) or third.frozen:
            return None
        written_s = third.written_since_s(self.settings.latency_s)
        is_clear = self._asks(third, target) and self._is_clear(third, target)
        if written_s is None or not is_clear or not asker.reads_of(third):
            return None
        unheard_s = self._unheard_s.get((third.number, target.number), 0.0)
        return max(written_s, third.daemons_since_s, third.frozen_until_s, unheard_s)

    def _asks(self, asker: Host, target: Host) -> bool:
        """Whether one host's questions over the network are answered in words that it believes."""
        return self.settings.heartbeat and asker.key == target.key != "none"

    def _is_clear(self, asker: Host, target: Host) -> bool:
        """Whether packets go there and back in time, all of them."""
        slow = self.delay_s(asker, target)
        loss = asker.packet_loss or target.packet_loss or self._link_loss(asker, target)
        return not slow and not loss and self.reaches(asker, target)

    def _look_at_links(self) -> None:
        hosts = self.hosts.values()
        ways = self.cut_links or self.link_loss or self.link_delay_s
        if not ways and all(host.is_reached_in_time for host in hosts):
            return
        for asker in hosts:
            for target in hosts:
                if asker is not target and not self._is_clear(asker, target):
                    self._unheard_s[asker.number, target.number] = self.timeline.now_s

    def reaches(
        self, asker: Host, target: Host, bmc: bool = False, chance: random.Random | None = None
    ) -> bool:
        """Whether packets go from one host to another, or to its BMC, and back."""
        chance = chance or self.chance
        if not asker.network_up or not asker.power:
            return False
        loss = asker.packet_loss
        if not bmc:
            loss = max(loss, target.packet_loss, self._link_loss(asker, target))
        if loss and chance.random() < loss:
            return False
        if bmc:
            return target.bmc_network_up
        ways = {(asker.number, target.number), (target.number, asker.number)}
        return target.network_up and target.power and not (ways & self.cut_links)

    def machine_answers(self, target: Host) -> bool:
        """Whether the kernel there can answer a host that has a broker to ask with; a way that
        loses packets is one."""
        if not target.up or target.loop is None or target.frozen or not target.network_up:
            return False
        return any(
            asker is not target
            and asker.power
            and asker.network_up
            and not asker.frozen
            and "broker" in asker.processes
            and not {(asker.number, target.number), (target.number, asker.number)} & self.cut_links
            for asker in self.hosts.values()
        )

    def _link_loss(self, one: Host, other: Host) -> float:
        ways = (one.number, other.number), (other.number, one.number)
        return max(self.link_loss.get(way, 0.0) for way in ways)

    def delay_s(self, one: Host, other: Host) -> float:
        """What a packet takes longer between two hosts, by the slower way."""
        ways = (one.number, other.number), (other.number, one.number)
        slowest_s = max(self.link_delay_s.get(way, 0.0) for way in ways)
        return max(one.packet_delay_s, other.packet_delay_s, slowest_s)

    # --- the VM's users ---------------------------------------------------------------------

    def users_reach(self, host: Host, vm: int = ENGINE) -> bool:
        """Whether a VM is well on a host, and its users get there."""
        return host.is_healthy(vm) and host.is_way_open and self.guest_closed_to != "users"

    def is_surely_reached(self, host: Host, vm: int = ENGINE) -> bool:
        """Whether they do without any packet lost or late, the way through the gateway."""
        hurt = host.packet_loss or host.packet_delay_s or host.gateway_answers < 1.0
        return self.users_reach(host, vm) and not hurt

    def reached_for_s(self, host: Host, vm: int = ENGINE) -> float:
        """For how long a VM's users have reached it there without a break; 0: they do not."""
        since_s = self._reached_since_s.get((host.number, vm))
        return 0.0 if since_s is None else self.timeline.now_s - since_s

    def hears_guest(self, asker: Host, owner: Host) -> bool:
        """Whether a question of one host to the VM on another one, and its answer, get through."""
        return (
            not self.guest_closed_to
            and asker.is_way_open
            and owner.is_way_open
            and self.reaches(asker, owner, chance=self.outside_chance)
        )

    def named(self, hostname: str) -> Host | None:
        """The host of that name."""
        return next((h for h in self.hosts.values() if h.name == hostname), None)

    def migration_reaches(self, source: Host, target: Host) -> bool:
        """Whether a migration gets from one host to another."""
        if {source.number, target.number} & self.no_migration:
            return False
        if self.settings.migration_apart:
            return source.power and target.power
        return self.reaches(source, target)

    def migrate(self, source: Host, hostname: str, vm: int = ENGINE) -> Move:
        """Begin a live migration; its result comes later."""
        move = Move()
        target, qemu = self.named(hostname), source.qemus.get(vm)
        if target is None or not target.up or not self.migration_reaches(source, target):
            source.move_failed = True
            self.timeline.after(2.0, setattr, move, "result", no_libvirt(hostname))
        elif not target.libvirt_up or target.libvirt_hangs or vm in target.qemus:
            source.move_failed = True
            busy = f"libvirt: {IS_ACTIVE}" if vm in target.qemus else no_libvirt(hostname)
            self.timeline.after(2.0, setattr, move, "result", busy)
        elif qemu is None or not qemu.running or qemu.leaving:
            move.result = f"libvirt: {NOT_RUNNING}"
        else:
            self.laws.moves(source, target, vm)
            qemu.leaving, qemu.leaving_since_s = True, self.timeline.now_s
            new = target.create_qemu(received=True, disk=qemu.image, vm=vm)
            self.tell(source.name, f"migrates {self.called(vm)} to {target.name}")
            took_s = source.migration_s + 10.0 * self.delay_s(source, target)
            ends = (move, source, qemu, target, new)
            self._moves[source.number, vm] = ends
            self.timeline.after(took_s, self._switch_over, *ends)
        return move

    def start_by_hand(self, host: Host, locked: bool = True, vm: int = ENGINE) -> None:
        """`virsh start`; not `locked`: past sanlock's lock driver, so that no lease is held."""
        of = self.vms.of(vm)
        if not host.up or not host.libvirt_up or host.libvirt_hangs or vm in host.qemus:
            self.tell("operator", f"virsh start on {host.name} fails{of}")
            return
        host.by_hand_s = self.timeline.now_s
        image = BASE if vm == ENGINE else self.vms.images.get(vm, BASE)
        qemu = host.create_qemu(force_boot=False, disk=image, vm=vm)
        healthy_from_s = self.timeline.now_s + self.vms.boots_s(host, vm)
        if not locked:
            qemu.by_hand = qemu.running = qemu.has_run = True
            qemu.healthy_from_s = healthy_from_s
            self.vm_changed(host, vm)
        else:
            try:
                host.resume_qemu(healthy_from_s, vm)
            except Refused as error:
                host.end_qemu(f"not started: {error}", VmStatus.DOWN, "failed to start", vm=vm)
                self.tell("operator", f"virsh start on {host.name} fails: {error}{of}")
                return
        self.tell("operator", f"virsh start on {host.name}{of}")

    def cancel_move(self, source: Host, vm: int = ENGINE) -> None:
        """libvirt is told to abort the migration that is under way from a host, and soon has."""
        ends = self._moves[source.number, vm]
        ends[2].cancelled = True
        self.timeline.after(0.2, self._switch_over, *ends)

    def libvirtd_dies(self, host: Host) -> None:
        """The process dies, and is started again by itself; a migration from or to its host
        breaks off."""
        host.libvirt_up = False
        self.tell(host.name, "libvirtd is killed")
        self.timeline.after(LIBVIRTD_RESTART_S, setattr, host, "libvirt_up", True)
        for ends in self._moves.values():
            if host in (ends[1], ends[3]) and ends[0].result is None:
                self._break_off(*ends, "libvirtd died")

    def _break_off(
        self, move: Move, source: Host, old: Qemu, target: Host, new: Qemu, why: str
    ) -> None:
        """A migration ends without success: the VM goes on at its source, if it is there."""
        move.result, source.move_failed = why, True
        if source.qemus.get(old.vm) is old:
            old.leaving = False
        if target.qemus.get(old.vm) is new and target.keeps_orphans:
            target.leave_qemu(crashed=False, vm=old.vm)
        elif target.qemus.get(old.vm) is new:
            why = "the migration failed"
            target.end_qemu(why, VmStatus.DOWN, "failed to start", vm=old.vm)

    def _switch_over(self, move: Move, source: Host, old: Qemu, target: Host, new: Qemu) -> None:
        if move.result is not None:
            return
        vm = old.vm
        comes, goes = target.qemus.get(vm) is new, source.qemus.get(vm) is old
        is_there = goes and comes and not old.cancelled
        if is_there and max(old.stopped_until_s, new.stopped_until_s) > self.timeline.now_s:
            self.timeline.after(1.0, self._switch_over, move, source, old, target, new)
            return
        if not goes or not old.running:
            move.result = "the source has ended"
        elif old.cancelled:
            move.result, old.cancelled = CANCELLED, False
            self.tell(source.name, "the migration is cancelled")
        elif not comes or source.frozen or target.frozen:
            move.result = "the target has ended"
        elif not self.migration_reaches(source, target):
            move.result = "the connection broke"
        if move.result is not None:
            self._break_off(move, source, old, target, new, move.result)
            return
        source.pause_qemu(vm)
        new.memory = old.memory
        try:
            target.resume_qemu(old.healthy_from_s, vm)
        except Refused as error:
            move.result = f"the target did not get the lease: {error}"
            source.move_failed = True
            target.end_qemu("the migration failed", VmStatus.DOWN, "failed to start", vm=vm)
            old.leaving = False
            try:
                source.resume_qemu(old.healthy_from_s, vm)
            except Refused:
                old.pause = Pause.OTHER
            return
        new.is_hung, new.ignores_shutdown = old.is_hung, old.ignores_shutdown
        source.end_qemu("migrated", VmStatus.DOWN, "migrated", release=False, vm=vm)
        move.result = ""
        self.moves += 1
        self.vms.moved(vm)

    # --- maintenance ------------------------------------------------------------------------

    def set_global_maintenance(self, on: bool, lasts_s: int | None = None) -> None:
        """Set or end the mode as an operator does through a broker with a right clock; written at
        once."""
        self._serial += 1
        lines = {"serial": str(self._next_serial())}
        if on:
            since_s = math.ceil(WALL_EPOCH_S + self.timeline.now_s)
            lines |= to_lines(Mode("operator", "", since_s, lasts_s))
        self.board.put(0, encode_cluster(on, lines, self._sign_cluster))
        self.global_maintenance_since_s = self.timeline.now_s if on else None
        ends = f" for {lasts_s} s" if lasts_s is not None else ""
        self.tell("operator", f"global maintenance {'on' if on else 'off'}{ends}")
        if on and lasts_s is not None:
            self.modes_with_end += 1
            self.timeline.after(lasts_s - DRIFT_S, self._global_is_over, self._serial)

    def _sign_cluster(self, data: bytes) -> str:
        key = CLUSTER_KEY if self.settings.heartbeat else None
        return Signatures(key).sign(CLUSTER_SLOT, 0, data)

    def set_global_at(self, host: Host, on: bool) -> None:
        """Set or end the mode as an operator does on a host; nothing where no broker answers."""
        broker = self.brokers.get(host.number)
        if broker is None or host.loop is None:
            self._no_broker(host)
            return

        async def set_it() -> None:
            mode = broker.keeper.mode(Maintenance(on), "operator")
            try:
                await broker.keeper.set_global(mode)
            except StorageTrouble as error:
                self.tell("operator", f"global maintenance at {host.name}: {error}")
                return
            self.global_maintenance_since_s = self.timeline.now_s if on else None
            self.tell("operator", f"global maintenance {'on' if on else 'off'} at {host.name}")

        self.timeline.call_within(host.loop, host.loop.create_task, set_it())

    @property
    def vm_memory_mb(self) -> float:
        """What the VM needs."""
        return VM_MEMORY_MB

    def _next_serial(self) -> int:
        """What a broker that reads slot 0 would write next."""
        try:
            return 1 + int(decode_cluster(self.board.slots[0]).extra["serial"])
        except (BadSlot, KeyError):
            return 1

    def _global_is_over(self, serial: int) -> None:
        self.modes_with_end -= 1
        if serial == self._serial:
            self.global_maintenance_since_s = None
            self.tell("operator", "global maintenance should end now")

    def wall_is_in_doubt(self, since_s: float) -> bool:
        """Whether a broker was started since then on a host whose wall clock is wrong."""
        return any(host.wrong_start_s > since_s for host in self.hosts.values())

    def set_local_maintenance(
        self,
        host: Host,
        on: bool,
        lasts_s: int | None = None,
        release_id: bool = False,
        restart: bool = False,
    ) -> None:
        """Set or end local maintenance of one host; nothing where no broker answers."""
        broker = self.brokers.get(host.number)
        if broker is None or host.loop is None:
            self._no_broker(host)
            return
        mode = broker.keeper.mode(Maintenance(on, "", lasts_s, release_id, restart), "operator")
        self.timeline.call_within(host.loop, broker.keeper.set_local, mode)
        since_s = host.local_maintenance_since_s = self.timeline.now_s if on else None
        host.may_restart = restart
        ends = f" for {lasts_s} s" if lasts_s is not None else ""
        self.tell("operator", f"local maintenance of {host.name} {'on' if on else 'off'}{ends}")
        if since_s is not None and lasts_s is not None:
            self.modes_with_end += 1
            self.timeline.after(lasts_s - DRIFT_S, self._local_is_over, host, since_s)

    def _local_is_over(self, host: Host, since_s: float) -> None:
        self.modes_with_end -= 1
        if host.local_maintenance_since_s == since_s:
            host.local_maintenance_since_s = None
            self.tell("operator", f"local maintenance of {host.name} should end now")

    # --- faults -----------------------------------------------------------------------------

    def fault_began(self, kind: str, lies_still: bool = False) -> None:
        """Something goes wrong, or is changed from outside.

        `lies_still`: once its effects are there it has no more of them while it lasts.
        """
        self.faults[kind] += 1
        self.open_faults += 1
        self.busy_faults += not lies_still

    def fault_ended(self, extra_bound_s: float = 0.0, lies_still: bool = False) -> None:
        """Note that a fault is mended; `extra_bound_s`: added to the usual bound of recovery."""
        self.open_faults -= 1
        self.busy_faults -= not lies_still
        self._changed_s = self.timeline.now_s
        if self.is_calm_for() > self.bound_s():
            self.extra_bound_s = 0.0
        self.calm_since_s = self.timeline.now_s
        self.extra_bound_s = max(self.extra_bound_s, extra_bound_s)

    def calm(self, extra_bound_s: float = 0.0) -> None:
        """A story's trouble is over: from the bound on laws `quiet` and `up` hold."""
        if not self.is_story_calm:
            self.is_story_calm = True
            self.fault_ended(extra_bound_s)

    def trouble(self) -> None:
        """A story makes trouble again."""
        if self.is_story_calm:
            self.is_story_calm = False
            self.fault_began("scenario")

    def longest_downtime_s(self) -> float:
        """The longest time in which no healthy VM was there, after it was healthy once."""
        ended = [each.ended_s - each.began_s for each in self.outages[1:]]
        if self.outages and not self._well:
            ended.append(self.timeline.now_s - self._down_since_s)
        return max(ended, default=0.0)

    def fenced(self) -> int:
        """How often a host that was on was ordered off by another; orders that are given again
        before it has booted anew count once."""
        return len({(shot.target, shot.boots) for shot in self.shots})

    def is_calm_for(self) -> float:
        """For how long nothing has been wrong; 0 while something is."""
        return 0.0 if self.open_faults else self.timeline.now_s - self.calm_since_s

    def bound_s(self) -> float:
        """How long after the last fault the VM must be healthy again.

        A dead host's time (8 * io_timeout + 60) twice, since a host that came back waits as
        long for its own id; the boot of a host and of the guest; the 40 s in which it may
        show up elsewhere; and SAFETY_S. `extra_bound_s` comes on top.
        """
        dead_s = 8 * self.settings.io_timeout_s + WATCHDOG_FIRE_S
        boot_s = 1.1 * self.settings.host_boot_s + self.settings.guest_boot_s
        several_s = self.laws.vms.bound_s()
        return 2 * dead_s + boot_s + 40.0 + SAFETY_S + self.extra_bound_s + several_s

    def is_quiet(self) -> bool:
        """Nothing has been wrong for longer than anything may take."""
        return self.is_calm_for() > self.bound_s()

    def may_be_down(self) -> bool:
        """Whether nobody is expected to run the VM."""
        if self.down_wanted or self.global_maintenance_since_s is not None:
            return True
        return not any(
            host.power
            and host.local_maintenance_since_s is None
            and host.going_down_since_s is None
            for host in self.hosts.values()
        )

    # --- running ----------------------------------------------------------------------------

    def power_all_on(self, within_s: float = 0.0) -> None:
        """Switch all hosts on, in any order."""
        for host in self.hosts.values():
            self.timeline.after(self.chance.uniform(0.0, within_s), host.power_on)

    def run(self, for_s: float, leaps: bool = False) -> None:
        """Let time pass; raises the breach of a law. `leaps`: pass over what is quiet."""
        until_s = self.timeline.now_s + for_s
        while self.timeline.now_s < until_s:
            step_s = LEAP_LOOK_S if leaps else for_s
            self.timeline.run_until(min(until_s, self.timeline.now_s + step_s))
            self.laws.clean()
            if self.laws.broken is not None:
                raise self.laws.broken
            if leaps:
                self.leap_until(until_s)

    # --- passing over what is quiet ---------------------------------------------------------

    def leap_until(self, until_s: float) -> None:
        """Pass over the time up to the next plan, but not beyond `until_s`, if all is at rest.

        At rest: nothing is wrong that is still having its effects, the VM is healthy, each
        agent is in a state that waits for nothing but a change or its own end and has waited
        for it a while, each host is in the lockspace, and so the next beat would be like the
        last one. What an agent remembers of the past grows older by the leap.
        """
        # A mode with an end is counted down by clocks that stand still in a leap.
        if self.busy_faults or self.modes_with_end or not self._well or not self.vms.at_rest:
            return
        if self.timeline.now_s - self._changed_s < LEAP_REST_S:
            return
        end_s = min(until_s, self.timeline.next_plan_s())
        waiting_s = [self._waits_s(host) for host in self.hosts.values() if host.power]
        by_s = min(end_s - self.timeline.now_s, *waiting_s) - LEAP_MARGIN_S
        if by_s < LEAP_MIN_S:
            return
        self.timeline.leap(by_s)
        for host in self.hosts.values():
            if host.loop is not None:
                host.loop.leapt(by_s)
                _age(self.agents[host.number], by_s)
            if host.sanlock is not None:
                host.sanlock.leapt(by_s)

    def _waits_s(self, host: Host) -> float:
        """How long a host's beats would all be like the last one; 0 while they are not."""
        if (
            self._states.get(host.number) not in AT_REST
            or host.sanlock is None
            or host.sanlock.membership is not Membership.IN
            or host.sanlock.is_overwritten
            or host.is_misled
            or host.frozen
            or not self.both_run(host)
            or host.going_down_since_s is not None
        ):
            return 0.0
        return _waits_s(self.agents[host.number], host.clock_s())

    def problems(self) -> list[str]:
        """What failed in a daemon or a loop."""
        found = list(self._failures)
        for process in self._all_processes:
            found += process.failures
        for host in self.hosts.values():
            for loop in (*host.ended_loops, host.loop):
                found += loop.problems if loop is not None else []
        return found

    def stop(self) -> None:
        """End every daemon; what is left of them is a breach."""
        for host in self.hosts.values():
            if host.loop is not None:
                host.loop.frozen_until_s = 0.0  # a story may end while a host is frozen
            for name in list(host.processes):
                host.processes.pop(name).kill()
        self.timeline.run_until(self.timeline.now_s + 0.001)
        left = [t.get_name() for p in self._all_processes for t in p.tasks]
        if left and self.laws.broken is None:
            self.laws.breach("clean", f"tasks left: {left}")
        self.laws.clean()
        if self.laws.broken is not None:
            raise self.laws.broken

    def forget_own_files(self, host: Host) -> None:
        """What its daemons kept on its own disk is gone."""
        shutil.rmtree(self._state_dir / host.name, ignore_errors=True)

    def close(self) -> None:
        """Take the world down for good, whatever state it is in."""
        self.timeline.halted = False
        for host in self.hosts.values():
            for process in host.processes.values():
                process.kill()
            if host.loop is not None:
                host.loop.frozen_until_s = 0.0
        self.timeline.run_until(self.timeline.now_s + 0.001)
        shutil.rmtree(self._state_dir, ignore_errors=True)

    def cluster_slot_is_bad(self) -> bool:
        """Whether slot 0 cannot be read."""
        try:
            decode_cluster(self.board.slots.get(0, EMPTY_SLOT))
        except BadSlot:
            return True
        return False

    def owner(self, vm: int = ENGINE) -> Host | None:
        """The host that runs a VM now."""
        return next((host for host in self.hosts.values() if host.runs(vm)), None)


def _waits_s(agent: Agent, now_s: float) -> float:
    """How long an agent waits for nothing but time to pass; 0 while anything is under way."""
    if agent.last is None or agent.last.state.host.takeover is not None:
        return 0.0
    state = agent.last.state
    return min(_machine_waits_s(vm, state.rules, now_s) for vm in state.vms.values())


def _machine_waits_s(state: VmState, rules: Rules, now_s: float) -> float:
    """How long the machine of one VM still waits by itself, s."""
    if (
        state.acting
        or state.asking_lease
        or state.better_since_s is not None
        or state.move_failed_s
        or state.name.value not in AT_REST
        or state.held is not None
    ):
        return 0.0
    timing, ends_s = rules.timing, float("inf")
    if state.retries:
        ends_s = state.last_failure_s + timing.retry_expiry
    if state.name is StateName.ENGINE_UNEXPECTEDLY_DOWN:
        assert state.since_s is not None
        ends_s = min(ends_s, state.since_s + timing.unexpected_down)
    return ends_s - now_s


def _age(agent: Agent, by_s: float) -> None:
    """Make what the agent remembers older by this much: its clock stood still in a leap."""
    aged = {
        number: replace(
            state,
            since_s=None if state.since_s is None else state.since_s - by_s,
            last_failure_s=state.last_failure_s - by_s,
        )
        for number, state in agent._state.vms.items()
    }
    agent._state = replace(agent._state, vms=aged)


def _only(error: BaseException, kind: type[BaseException]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_only(inner, kind) for inner in error.exceptions)
    return isinstance(error, kind)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

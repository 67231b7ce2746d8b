# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plain makers of what `decide` takes in: a healthy host 1 in a quiet cluster, unless set
otherwise. Each test then says only what is different in its story."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from scoring.decide import Decision, decide
from scoring.decision import (
    Action,
    AskFenceOwner,
    AskLease,
    AskPower,
    Code,
    DropFenceLease,
    FreeHostId,
    MigrateVm,
    NoteFenceFailed,
    PowerOffHost,
    PowerOffVm,
    ShutDownVm,
    StartVm,
    TakeFenceLease,
)
from scoring.hosts.evidence import Evidence
from scoring.hosts.state import HostState, Seen
from scoring.observation import (
    FenceLeaseAnswer,
    FenceOwnerAnswer,
    HostIdFreed,
    LeaseAnswer,
    LocalHost,
    Observation,
    Outcome,
    PeerReport,
    Power,
    PowerAnswer,
    PowerOffEnded,
    Standing,
    StartResult,
    VmStartEnded,
)
from scoring.rules import Rules
from scoring.state import AgentState
from scoring.vm.state import StateName, VmState
from scoring.vm_facts import (
    DETAIL_ALREADY_LOCKED,
    DETAIL_MIGRATION_SOURCE,
    DETAIL_PAUSED,
    ENGINE,
    EngineStatus,
    Health,
    PeerVm,
    VmHere,
    VmStatus,
)

HostT = TypeVar("HostT", LocalHost, PeerReport)

#: A moment in the middle of a long life; a whole number, so that sums of it are exact.
NOW_S = 10_000.0
#: Storage has been read without a gap for long enough before NOW_S.
LONG_S = 1_000.0
#: The shortest time that counts as "just before".
MOMENT_S = 0.001

RULES = Rules(vm_memory_mb=4096)
TIMING = RULES.timing

UP = EngineStatus(VmStatus.UP, Health.GOOD, "up")
BOOTING = EngineStatus(VmStatus.UP, Health.BAD, "up", "the health page does not answer")
SICK = BOOTING
UNANSWERED = EngineStatus(VmStatus.UP, Health.UNKNOWN, "up", "the health page was late")
DOWN = EngineStatus(VmStatus.DOWN, Health.BAD, "shut down", "vm not running on this host")
MISSING = EngineStatus(VmStatus.DOWN_MISSING, Health.BAD, "vanished", "libvirt forgot it")
DIED = EngineStatus(VmStatus.DOWN_UNEXPECTED, Health.BAD, "crashed", "the guest crashed")
UNKNOWN = EngineStatus(VmStatus.UNKNOWN, Health.UNKNOWN, "unknown", "libvirt hangs")
LEAVING = EngineStatus(VmStatus.UP, Health.UNKNOWN, DETAIL_MIGRATION_SOURCE)
PAUSED = EngineStatus(VmStatus.UP, Health.BAD, DETAIL_PAUSED, "paused by an I/O error")
LOCKED_OUT = EngineStatus(VmStatus.DOWN, Health.BAD, DETAIL_ALREADY_LOCKED)

VM_ACTIONS = {StartVm, ShutDownVm, PowerOffVm, MigrateVm}
#: States in which the agent has nothing under way and looks at the guards first.
GUARDED = [
    name
    for name in StateName
    if name
    not in (StateName.AGENT_STOPPED, StateName.GLOBAL_MAINTENANCE, StateName.LOCAL_MAINTENANCE)
]


#: What `local` and `replaced` call otherwise than VmHere and PeerVm do.
_OTHERWISE = {"engine": "report", "engine_taken_s": "taken_s"}
_OF_HERE = {each.name for each in fields(VmHere)} - {"number"} | set(_OTHERWISE)
_OF_THERE = set(PeerVm._fields) - {"outside"} | {"engine"}


def local(engine: EngineStatus = DOWN, **changed: Any) -> LocalHost:
    """Host 1 with every sample fine; its engine was sampled at NOW_S. Further fields: as in
    `replaced`."""
    host = LocalHost(
        host_id=1,
        vms=(VmHere(engine, NOW_S, config_up_to_date=True),),
        network=1.0,
        bridge_up=True,
        mem_free_mb=8192,
        cpu_load=0.1,
    )
    return replaced(host, **changed)


def peer(
    host_id: int, score: int = 3400, engine: EngineStatus = DOWN, **changed: Any
) -> PeerReport:
    """Another host's slot, by default as good as host 1. Further fields: as in `replaced`."""
    report = PeerReport(
        host_id=host_id,
        timestamp=500,
        score=score,
        vms={ENGINE: PeerVm(engine, StateName.ENGINE_DOWN.value)},
        hostname=f"host{host_id}",
    )
    return replaced(report, **changed)


def replaced(host: HostT, **changed: Any) -> HostT:
    """A host with other fields: its own, and those of VM 1 beside them (`engine`: its report,
    `engine_taken_s`: when that was sampled). `vms`: those beside VM 1."""
    if isinstance(host, LocalHost):
        engine, *others = host.vms
        of_vm = {_OTHERWISE.get(n, n): changed.pop(n) for n in _OF_HERE & changed.keys()}
        vms = (replace(engine, **of_vm), *changed.pop("vms", others))
        return replace(host, vms=vms, **changed)
    of_vm = {_OTHERWISE.get(n, n): changed.pop(n) for n in _OF_THERE & changed.keys()}
    rest = changed.pop("vms", host.vms)
    reached = dict(changed.pop("reached", host.reached))
    if "outside" in changed:
        reached |= {ENGINE: changed.pop("outside")}
    kept = {number: seen for number, seen in reached.items() if seen is not None}
    vms_there = {**rest, ENGINE: host.engine._replace(**of_vm)}
    return replace(host, vms=vms_there, reached=kept, **changed)


def observe(here: LocalHost | None = None, **changed: Any) -> Observation:
    """A beat's picture in which nothing forbids anything."""
    observation = Observation(
        local=here or local(),
        storage_good_since_s=NOW_S - LONG_S,
        sweep=1000,
        global_maintenance=False,
        lockspace_joined=True,
        migration_possible=True,
    )
    return replace(observation, **changed)


def seen(
    live: Sequence[PeerReport] = (),
    silent: Sequence[PeerReport] = (),
    uncertain: Sequence[PeerReport] = (),
    now_s: float = NOW_S,
) -> dict[int, Seen]:
    """The memory of the beat before, so that at `now_s` the peers look as they are named."""
    table = {p.host_id: Seen(p.timestamp - 1, now_s - 1, changed=True) for p in live}
    table |= {
        p.host_id: Seen(p.timestamp, now_s - TIMING.suspect_after, changed=True) for p in silent
    }
    return table | {p.host_id: Seen(p.timestamp, now_s - 1) for p in uncertain}


def state_of(**remembered: Any) -> AgentState:
    """The memory of an agent: fields of its rules, of its HostState and of VM 1, by their names."""
    of_host = {each.name for each in fields(HostState)}
    rules = remembered.pop("rules", RULES)
    host = {name: value for name, value in remembered.items() if name in of_host}
    vm = {name: value for name, value in remembered.items() if name not in of_host}
    return AgentState(rules, HostState(**host), {ENGINE: VmState(**vm)})


def in_state(
    name: StateName,
    here: LocalHost | None = None,
    *,
    for_s: float = 0.0,
    live: Sequence[PeerReport] = (),
    silent: Sequence[PeerReport] = (),
    uncertain: Sequence[PeerReport] = (),
    remembered: dict[str, Any] | None = None,
    **observed: Any,
) -> Decision:
    """What is decided at NOW_S by a host that has been in state `name` for `for_s`.

    `remembered`: other fields of its memory, see `state_of`; `observed`: of the Observation.
    """
    state = state_of(
        name=name,
        since_s=NOW_S - for_s,
        **{
            "missing_since_s": NOW_S - LONG_S,
            "seen": seen(live, silent, uncertain),
            **(remembered or {}),
        },
    )
    return decide(state, observe(here, peers=(*live, *silent, *uncertain), **observed), NOW_S)


def free_lease(asked_s: float = NOW_S) -> LeaseAnswer:
    """Nobody owns the engine lease."""
    return LeaseAnswer(known=True, asked_s=asked_s)


def lease_of(owner: int, asked_s: float = NOW_S, **changed: Any) -> LeaseAnswer:
    """The engine lease is owned by a host that still renewed its id when sanlock looked."""
    answer = LeaseAnswer(
        known=True,
        asked_s=asked_s,
        owner=owner,
        owner_generation=5,
        current_generation=5,
        owner_timestamp=77,
        standing=Standing.LIVE,
        dead_in_s=140.0,
    )
    return replace(answer, **changed)


def evidence(owner: int = 2, **changed: Any) -> Evidence:
    """All witnesses of a hanging owner have been silent for long; it was alive before.

    `peer`: fields of its slot that differ.
    """
    slot = {
        "timestamp": 500,
        "boot_id": "its-boot",
        "heartbeat_s": NOW_S - 60,
        "unanswered_since_s": NOW_S - 59,
        "renewal_s": NOW_S - 60,
        "renewal_timestamp": 77,
        **changed.pop("peer", {}),
    }
    found = Evidence(
        lease=lease_of(owner),
        peer=peer(owner, **slot),
        slot_since_s=NOW_S - 58,
        looked_since_s=NOW_S - LONG_S,
        fence_lease_held=True,
        global_maintenance=False,
        fence_log=(),
    )
    return replace(found, **changed)


def off(host_id: int, read_s: float, proven: bool = True) -> PowerAnswer:
    """A power reading "off"."""
    return PowerAnswer(host_id, Power.OFF, read_s, identity_proven=proven)


def codes(decision: Decision) -> list[Code]:
    """The codes of a decision's reasons, in order."""
    return [reason.code for reason in decision.reasons]


def kinds(decision: Decision) -> set[type[Action]]:
    """The kinds of actions a decision emits."""
    return {type(action) for action in decision.actions}


@dataclass
class Life:
    """One agent through virtual time: each `beat` is one decision on the world as set.

    `here`, `peers` and `world` are what the next observation shows; peers in `beating` change
    their timestamp with each beat, the others stand still.
    """

    here: LocalHost = field(default_factory=local)
    peers: tuple[PeerReport, ...] = ()
    beating: set[int] = field(default_factory=set)
    world: dict[str, Any] = field(default_factory=dict)
    now_s: float = 0.0
    state: AgentState = field(default_factory=lambda: AgentState(RULES))
    history: list[Decision] = field(default_factory=list)

    def beat(self, *outcomes: Outcome, after_s: float = 1.0) -> Decision:
        """Let time pass, then decide on what is there, with these outcomes delivered."""
        self.now_s += after_s
        self.here = replaced(self.here, engine_taken_s=self.now_s)
        self.peers = tuple(
            replace(p, timestamp=p.timestamp + 1) if p.host_id in self.beating else p
            for p in self.peers
        )
        world: dict[str, Any] = {"storage_good_since_s": 0.0, **self.world}
        observation = observe(self.here, peers=self.peers, outcomes=outcomes, **world)
        decision = decide(self.state, observation, self.now_s)
        self.state = decision.state
        self.history.append(decision)
        return decision

    def change_peer(self, host_id: int, **changed: Any) -> None:
        """Let a peer's slot show something else from the next beat on."""
        self.peers = tuple(
            replaced(p, **changed) if p.host_id == host_id else p for p in self.peers
        )


def may_start(**remembered: Any) -> dict[str, Any]:
    """The memory of a host that has just had the answer that the engine lease is free."""
    return {"lease": free_lease(), **remembered}


def acting(**remembered: Any) -> dict[str, Any]:
    """The memory of a host whose last action on the VM has not ended."""
    return {"acting": True, **remembered}


def starts(decision: Decision) -> bool:
    """Whether the decision starts the VM here, and is in EngineStart for it."""
    started = StartVm in kinds(decision)
    assert started == (decision.state.engine.name is StateName.ENGINE_START)
    assert started == decision.state.engine.acting
    return started


def down(here: LocalHost | None = None, **given: Any) -> Decision:
    """A decision in EngineDown, the lease being free unless `remembered` says otherwise."""
    given.setdefault("remembered", may_start())
    return in_state(StateName.ENGINE_DOWN, here, for_s=given.pop("for_s", 100.0), **given)


def long_silent(**remembered: Any) -> dict[str, Any]:
    """The memory of a host that has seen the slot of host 2 stand still for a minute."""
    memory = {2: Seen(500, NOW_S - 60, changed=True)}
    return {"lease": lease_of(2), "seen": memory, **remembered}


#: The host that `Fall` lets fall silent.
DEAD = 2


class Fall:
    """Host 2 ran the VM and falls silent at second 20; host 1 watches, one beat at a time.

    The questions of host 1 are answered at the next beat as the fields say.
    """

    def __init__(self, *others: int, device: bool = True) -> None:
        self.life = Life(
            peers=(peer(DEAD, 3400, UP), *(peer(h) for h in others)),
            beating={DEAD, *others},
            world={"fence_devices": frozenset({DEAD} if device else ())},
        )
        self.power = Power.OFF
        self.proven = True
        self.fence_given = True
        self.freed = self.begun = True
        self.order_works = True
        self.start = StartResult.STARTED
        self.lease: dict[str, Any] = {}
        self.actions: list[object] = []
        for _ in range(20):
            self.beat()
        assert self.life.state.engine.name is StateName.ENGINE_DOWN
        assert not self.actions
        self.life.beating.discard(DEAD)

    def beat(self, *extra: Any) -> Decision:
        outcomes = [self.answer(action) for action in self.pending()]
        given = [outcome for outcome in outcomes if outcome is not None]
        decision = self.life.beat(*given, *extra)
        self.actions.extend(decision.actions)
        return decision

    def pending(self) -> tuple[object, ...]:
        return self.life.history[-1].actions if self.life.history else ()

    def answer(self, action: object) -> Any:
        """What became of an action of the last beat; None: no outcome, or none yet."""
        now_s = self.life.now_s + 0.5
        match action:
            case AskLease():
                return lease_of(DEAD, now_s, **self.lease)
            case AskPower(host_id=host_id):
                return PowerAnswer(host_id, self.power, now_s, self.proven, "as read")
            case NoteFenceFailed():
                return None
            case PowerOffHost(host_id=host_id):
                if self.order_works:
                    self.power = Power.OFF
                return PowerOffEnded(host_id, self.order_works, "as ordered")
            case TakeFenceLease():
                self.life.world["fence_lease_held"] = self.fence_given
                return FenceLeaseAnswer(self.fence_given, now_s, "" if self.fence_given else "no")
            case DropFenceLease():
                self.life.world["fence_lease_held"] = False
                return None
            case AskFenceOwner():
                return FenceOwnerAnswer(free_lease(now_s))
            case FreeHostId(host_id=host_id):
                detail = "" if self.freed else "still there"
                return HostIdFreed(host_id, self.freed, detail, self.freed or self.begun)
            case StartVm():
                if self.start is StartResult.STARTED:
                    self.life.here = replaced(self.life.here, engine=UP)
                return VmStartEnded(self.start, "so it ended")
        raise AssertionError(action)

    def run(self, beats: int) -> None:
        for _ in range(beats):
            self.beat()

    def until(self, kind: type, beats: int = 60) -> Decision:
        """Beat until an action of this kind is emitted."""
        for _ in range(beats):
            decision = self.beat()
            if kind in kinds(decision):
                return decision
        raise AssertionError(f"no {kind.__name__} within {beats} beats: {self.actions}")

    def did(self, kind: type) -> int:
        return sum(isinstance(action, kind) for action in self.actions)

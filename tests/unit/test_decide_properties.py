# SPDX-License-Identifier: LGPL-2.1-or-later
"""The laws of the decision over random histories.

Two sources of trouble:

1. Any state with any observation at all; and `Storm`: a long life in a world that changes
   at random, with outcomes that do not fit or were never asked for. `decide` must survive
   it and keep the laws.
2. `Cluster`: a world that behaves: outcomes come once and only for actions that were begun,
   peers beat or fall silent, devices answer well or badly. Here nothing may ever be asked
   for twice at once.

The laws are written down here a second time, from what went in and what came out, without
the code under test.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from broker.wire.hosts import LocalOnWire, PeerOnWire
from scoring.decide import Decision, decide
from scoring.decision import (
    Action,
    AskFenceOwner,
    AskLease,
    AskPower,
    CancelMigration,
    DisarmDomain,
    DropFenceLease,
    FreeHostId,
    MigrateVm,
    PowerOffVm,
    ShutDownVm,
    StartVm,
    TakeFenceLease,
)
from scoring.observation import (
    DomainDisarmed,
    FenceLeaseAnswer,
    FenceOwnerAnswer,
    HostIdFreed,
    HostShutdown,
    LeaseAnswer,
    LocalHost,
    MigrationCancelled,
    Observation,
    OnHostShutdown,
    Outcome,
    PeerReport,
    Power,
    PowerAnswer,
    Standing,
    StartResult,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)
from scoring.state import AgentState
from scoring.vm.state import TRANSITIONS, StateName
from scoring.vm_facts import (
    DETAIL_ALREADY_LOCKED,
    DETAIL_MIGRATION_SOURCE,
    DETAIL_PAUSED,
    DomainHere,
    EngineStatus,
    Health,
    Leftover,
    Pause,
    VmStatus,
)
from tests.unit.builders import (
    DIED,
    DOWN,
    RULES,
    SICK,
    TIMING,
    UNKNOWN,
    UP,
    local,
    peer,
    replaced,
    state_of,
)
from tests.unit.draws import draws

VM_ACTIONS = (StartVm, ShutDownVm, PowerOffVm, MigrateVm)
MOVES_OR_FREES = (*VM_ACTIONS, CancelMigration, FreeHostId)


def _reachable() -> dict[StateName, frozenset[StateName]]:
    """Where one beat may end: after any chain of transitions."""
    table: dict[StateName, frozenset[StateName]] = {}
    for start in StateName:
        found = {start}
        while new := {after for name in found for after in TRANSITIONS[name]} - found:
            found |= new
        table[start] = frozenset(found)
    return table


REACHABLE = _reachable()


@dataclass
class Witness:
    """Remembers what went into `decide`, and holds what comes out to the laws."""

    state: AgentState = field(default_factory=lambda: AgentState(RULES))
    readings: dict[int, list[PowerAnswer]] = field(default_factory=dict)
    fence_given_s: float | None = None
    freed_s: float | None = None
    lease: LeaseAnswer | None = None
    fence_owner: LeaseAnswer | None = None

    def decide(self, observation: Observation, now_s: float) -> Decision:
        for outcome in observation.outcomes:
            match outcome:
                case PowerAnswer():
                    self.readings.setdefault(outcome.host_id, []).append(outcome)
                case FenceLeaseAnswer(held=True):
                    self.fence_given_s = outcome.since_s
                case LeaseAnswer():
                    self.lease = outcome
                case FenceOwnerAnswer(answer=answer):
                    self.fence_owner = answer
                case HostIdFreed(ok=True):
                    self.freed_s = now_s
        before = self.state
        decision = decide(before, observation, now_s)
        assert decide(before, observation, now_s) == decision, "the same inputs, another decision"
        self.state = decision.state
        self.check_shape(before, decision, now_s)
        self.check_laws(observation, decision)
        for action in decision.actions:
            if isinstance(action, FreeHostId):
                self.check_proof(action, observation, now_s)
        return decision

    def check_shape(self, before: AgentState, decision: Decision, now_s: float) -> None:
        state, was = decision.state.engine, before.engine
        assert decision.reasons, "always say why"
        assert all(reason.text for reason in decision.reasons)
        assert state.name in REACHABLE[was.name]
        assert state.since_s is not None
        assert state.since_s <= now_s
        if state.name is was.name and was.since_s is not None:
            assert state.since_s in (was.since_s, now_s)
        else:
            assert state.since_s == now_s, "the clock of a state starts when it is entered"
        assert all(moment.since_s <= now_s for moment in decision.state.host.seen.values())
        assert 0 <= decision.score.value <= RULES.weights.base_score
        assert sum(isinstance(a, VM_ACTIONS) for a in decision.actions) <= 1
        if was.acting and not state.acting:
            assert not any(isinstance(a, VM_ACTIONS) for a in decision.actions)

    def check_laws(self, seen: Observation, decision: Decision) -> None:
        acts = [a for a in decision.actions if isinstance(a, MOVES_OR_FREES)]
        starts = any(isinstance(a, StartVm) for a in acts)
        vm = seen.local.engine.report.vm
        # Law 4; and what is not known to be over is not over.
        assert seen.global_maintenance is False or not acts
        assert not seen.newer_versions or not acts
        assert not seen.stopping or not acts
        # Law 5.
        assert not (seen.local.maintenance and starts)
        # Law 7.
        assert vm is not VmStatus.UNKNOWN or not acts
        if starts:
            assert seen.storage_good_since_s is not None
            assert seen.lockspace_joined is True
            assert vm is not VmStatus.UP
            assert seen.local.engine.taken_s > decision.state.engine.acted_s
            lease, freed_s = self.lease, self.freed_s
            freed = freed_s is not None and (lease is None or lease.asked_s <= freed_s)
            assert freed or (lease is not None and lease.known)
        if any(isinstance(a, ShutDownVm | MigrateVm) for a in acts):
            assert vm is VmStatus.UP
            assert seen.local.engine.taken_s > decision.state.engine.acted_s
        for act in acts:
            if isinstance(act, MigrateVm):
                assert seen.migration_possible
                target = next(p for p in seen.peers if p.host_id == act.target)
                assert target.score > 0
                assert not target.maintenance
                assert not target.stopped

    def check_proof(self, act: FreeHostId, seen: Observation, now_s: float) -> None:
        """Law 3."""
        if act.fencer:
            assert seen.announced == act.host_id
        else:
            assert seen.fence_lease_held
            assert self.fence_given_s is not None
            assert act.off_read_s >= self.fence_given_s
        assert seen.global_maintenance is False
        assert seen.storage_good_since_s is not None
        assert act.host_id in seen.fence_devices
        assert act.host_id != seen.local.host_id
        assert now_s - act.off_read_s <= RULES.io_timeout_s
        run = _offs_at_the_end(self.readings[act.host_id])
        assert act.off_read_s in run
        assert any(read_s <= act.off_read_s - TIMING.power_reread for read_s in run)
        lease = self.fence_owner if act.fencer else self.lease
        assert lease is not None
        assert lease.known
        assert (lease.owner, lease.owner_generation) == (act.host_id, act.generation)
        assert lease.owner_timestamp == act.timestamp
        assert lease.owner_generation > 0


def _offs_at_the_end(readings: Iterable[PowerAnswer]) -> list[float]:
    """When the device was read off and nothing but off, up to the newest answer."""
    run: list[float] = []
    for answer in readings:
        good = answer.power is Power.OFF and answer.identity_proven
        run = [*run, answer.read_s] if good else []
    return run


# --- 1. any history at all ------------------------------------------------------------------

hosts = st.integers(1, 4)
times = st.floats(-10, 3000)
maybe = st.none() | st.booleans()
samples = st.none() | st.floats(0, 2) | st.floats()
engines = st.builds(
    EngineStatus,
    vm=st.sampled_from(VmStatus),
    health=st.sampled_from(Health),
    detail=st.sampled_from(
        ["", "up", DETAIL_PAUSED, DETAIL_MIGRATION_SOURCE, DETAIL_ALREADY_LOCKED]
    ),
    reason=st.none() | st.just("why"),
)


def _observed(here: LocalOnWire) -> LocalHost:
    """A host that shuts down is in maintenance meanwhile."""
    local = here.observed()
    return local if local.shutdown is None else replace(local, maintenance=True)


locals_ = st.builds(
    LocalOnWire,
    host_id=st.just(1),
    engine=engines,
    engine_taken_s=times | st.just(1e9),
    lease_held=maybe,
    network=samples,
    bridge_up=maybe,
    mem_free_mb=samples,
    cpu_load=samples,
    config_up_to_date=maybe,
    maintenance=st.booleans(),
    last_ran=st.integers(0, 5),
    migrating_s=st.none() | times,
    domain=st.builds(
        DomainHere,
        pause=st.none() | st.sampled_from(Pause),
        outdated=maybe,
        leftover=st.none() | st.sampled_from(Leftover),
        leftover_since_s=times,
        memory_image=maybe,
        autostart=maybe,
    ),
    healthy_before=st.booleans(),
    shutdown=st.none()
    | st.builds(
        HostShutdown, times, st.sampled_from([OnHostShutdown.MIGRATE, OnHostShutdown.SHUTDOWN])
    ),
).map(_observed)
peers = st.builds(
    PeerOnWire,
    host_id=hosts,
    timestamp=st.integers(0, 2**53),
    score=st.sampled_from([0, 1000, 3400, 10000]),
    engine=engines,
    hostname=st.sampled_from(["", "host"]),
    maintenance=st.booleans(),
    stopped=st.booleans(),
    state=st.sampled_from(["", "nonsense", *StateName]),
    boot_id=st.just(""),
    last_ran=st.integers(0, 5),
    read_s=st.none() | times,
    moving_until_s=st.none() | times,
).map(PeerOnWire.observed)
outcomes = st.one_of(
    st.builds(VmStartEnded, result=st.sampled_from(StartResult)),
    st.builds(VmStopEnded, ok=st.booleans()),
    st.builds(VmMigrationEnded, target=hosts, ok=st.booleans()),
    st.builds(
        LeaseAnswer,
        known=st.booleans(),
        asked_s=times,
        owner=st.none() | hosts,
        owner_generation=st.integers(0, 2),
        current_generation=st.integers(0, 2),
        owner_timestamp=st.integers(0, 9),
        standing=st.sampled_from(Standing),
        dead_in_s=st.none() | times,
    ),
    st.builds(
        PowerAnswer,
        host_id=hosts,
        power=st.sampled_from(Power),
        read_s=times,
        identity_proven=st.booleans(),
    ),
    st.builds(FenceLeaseAnswer, held=st.booleans(), since_s=times),
    st.builds(
        FenceOwnerAnswer,
        answer=st.builds(LeaseAnswer, known=st.booleans(), asked_s=times, owner=st.none() | hosts),
    ),
    st.builds(HostIdFreed, host_id=hosts, ok=st.booleans()),
    st.builds(MigrationCancelled, ok=st.booleans()),
    st.builds(DomainDisarmed, ok=st.booleans()),
)
observations = st.builds(
    Observation,
    local=locals_,
    peers=st.lists(peers, max_size=3).map(tuple),
    storage_good_since_s=st.none() | st.floats(-100, 0),
    sweep=st.integers(0, 9),
    global_maintenance=st.sampled_from([False, False, True, None]),
    newer_versions=st.sampled_from([(), (), (3,)]),
    lockspace_joined=maybe,
    fence_devices=st.frozensets(st.integers(2, 4)),
    fence_lease_held=st.booleans(),
    migration_possible=st.booleans(),
    outcomes=st.lists(outcomes, max_size=3).map(tuple),
    stopping=st.booleans(),
)


@settings(max_examples=draws(200), suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(StateName), st.floats(0, 1000), observations, st.booleans())
def test_any_state_survives_any_observation(
    name: StateName, for_s: float, observation: Observation, acting: bool
) -> None:
    """The state may have been left with an action under way, or be one that is never entered so."""
    state = state_of(name=name, since_s=1000.0 - for_s, acting=acting)
    decision = decide(state, observation, 1000.0)
    assert decision.reasons
    assert decision.state.engine.name in REACHABLE[name]
    if observation.global_maintenance is not False or observation.newer_versions:
        assert not any(isinstance(a, MOVES_OR_FREES) for a in decision.actions)


class Storm:
    """A long run of host 1 through a world that changes a little each second, by one seed.

    Most of the time most things are well, or else nothing would ever be begun. Outcomes
    come soon, late or twice, fit or do not, and also without anything having been asked.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.witness = Witness()
        self.now_s = 0.0
        self.here = local(self.pick(UP, DOWN))
        self.peers: dict[int, PeerReport] = {h: peer(h) for h in (2, 3)}
        self.beating = {2, 3}
        self.lease = LeaseAnswer(True, 0.0, self.pick(None, 1, 2, 2), 5, 5, 77, Standing.LIVE, 140)
        self.world = Observation(
            local=self.here,
            storage_good_since_s=0.0,
            global_maintenance=False,
            lockspace_joined=True,
            fence_devices=frozenset({2, 3}),
            migration_possible=True,
        )
        self.pending: list[Action] = []

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def beats(self, count: int) -> None:
        calm = 0
        for _ in range(count):
            if calm:
                calm -= 1
            elif self.chance(0.04):
                calm = 20
                self.calm_down()
            else:
                self.change()
            self.beat()

    def calm_down(self) -> None:
        """For a while nothing forbids anything, and the VM is where it was or nowhere."""
        engine = self.pick(self.here.engine.report, DOWN, DOWN)
        self.here = local(engine, maintenance=self.chance(0.2))
        self.world = replace(
            self.world,
            global_maintenance=False,
            newer_versions=(),
            lockspace_joined=True,
            storage_good_since_s=self.world.storage_good_since_s or self.now_s,
        )
        for host, report in self.peers.items():
            engine = DOWN if self.chance(0.8) else report.engine.report
            self.peers[host] = replaced(report, engine=engine, state="")
        self.beating.discard(2)

    def change(self) -> None:
        """One or two things are different from now on."""
        if not self.chance(0.25):
            return
        host = self.pick(2, 2, 3, 4)
        match self.random.randrange(14):
            case 0 | 1:
                engine = self.pick(UP, DOWN, DOWN, SICK, SICK, DIED, UNKNOWN, *ODD_ENGINES)
                self.here = replaced(
                    self.here, engine=engine, lease_held=self.pick(True, False, None)
                )
            case 2:
                way = self.pick(OnHostShutdown.MIGRATE, OnHostShutdown.SHUTDOWN)
                shutdown = HostShutdown(self.now_s, way) if self.chance(0.2) else None
                maintenance = shutdown is not None or self.chance(0.2)
                self.here = replace(self.here, maintenance=maintenance, shutdown=shutdown)
            case 3:
                value = self.pick(False, False, False, True, None)
                self.world = replace(self.world, global_maintenance=value)
            case 4:
                good_since_s = None if self.chance(0.3) else self.now_s - self.pick(0, 100)
                self.world = replace(self.world, storage_good_since_s=good_since_s)
            case 5:
                joined = self.pick(True, True, True, False, None)
                self.world = replace(self.world, lockspace_joined=joined)
            case 6 | 7 | 8:
                self.peers[host] = peer(
                    host,
                    self.pick(0, 3000, 3400, 3400, 4300, 4300),
                    self.pick(DOWN, DOWN, DOWN, UP, UNKNOWN),
                    state=self.pick("", "nonsense", *StateName),
                    stopped=self.chance(0.1),
                    maintenance=self.chance(0.1),
                    last_ran=self.pick(0, 1, 99),
                )
                (self.beating.add if self.chance(0.5) else self.beating.discard)(host)
            case 9:
                self.peers.pop(host, None)
            case 10 | 11:
                self.lease = replace(
                    self.lease,
                    owner=self.pick(None, 1, 2, 2, 2, 3, 4),
                    owner_generation=self.pick(0, 5, 5, 5),
                    current_generation=self.pick(0, 5, 5, 5, 6),
                    standing=self.pick(*Standing, Standing.LIVE),
                )
            case 12:
                newer = self.pick((), (), (), (3,))
                possible = self.chance(0.8)
                self.world = replace(
                    self.world,
                    newer_versions=newer,
                    migration_possible=possible,
                    fence_lease_held=self.chance(0.5),
                )
            case _:
                self.here = replace(
                    self.here,
                    network=self.pick(1.0, 1.0, 0.2, None, math.nan),
                    cpu_load=self.pick(0.1, 0.9, None, math.inf),
                )

    def beat(self) -> None:
        pause_s = self.pick(0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 2.0)
        self.now_s += self.pick(30.0, 300.0, 600.0) if self.chance(0.03) else pause_s
        for host in self.beating & set(self.peers):
            report = self.peers[host]
            self.peers[host] = replace(report, timestamp=report.timestamp + 1)
        taken_s = self.now_s + (self.pick(-1, -60, 1e9) if self.chance(0.1) else 0)
        observation = replace(
            self.world,
            local=replaced(self.here, engine_taken_s=taken_s),
            peers=tuple(self.peers.values()),
            outcomes=tuple(self.outcomes()),
            stopping=self.chance(0.0005),
        )
        decision = self.witness.decide(observation, self.now_s)
        self.pending.extend(decision.actions)
        if self.witness.state.engine.name is StateName.AGENT_STOPPED:
            self.witness, self.pending = Witness(), []

    def outcomes(self) -> Iterator[Outcome]:
        """What has ended since the last beat, or is said to have."""
        if self.chance(0.03):
            yield self.outcome(self.pick(*ANY_ACTION))
        for action in list(self.pending):
            if self.chance(0.7):
                if self.chance(0.95):
                    self.pending.remove(action)
                if not isinstance(action, DropFenceLease):
                    yield self.outcome(action)
                else:
                    self.world = replace(self.world, fence_lease_held=False)

    def outcome(self, action: Action) -> Outcome:
        """How it ended: mostly well."""
        well = self.chance(0.8)
        read_s = self.now_s - self.pick(0.0, 0.0, 0.0, 0.5, 5.0, 30.0)
        match action:
            case StartVm():
                result = StartResult.STARTED if well else self.pick(*StartResult)
                if result is StartResult.STARTED:
                    self.here = replaced(self.here, engine=self.pick(UP, SICK))
                return VmStartEnded(result)
            case ShutDownVm() | PowerOffVm():
                if self.chance(0.5):
                    self.here = replaced(self.here, engine=DOWN)
                return VmStopEnded(well)
            case MigrateVm(target=target):
                self.here = replaced(self.here, engine=DOWN if well else self.here.engine.report)
                return VmMigrationEnded(target, well)
            case DisarmDomain():
                self.here = replaced(self.here, domain=DomainHere())
                return DomainDisarmed(well)
            case CancelMigration():
                if well:
                    self.here = replaced(self.here, engine=self.pick(UP, SICK))
                return MigrationCancelled(well)
            case AskLease():
                return replace(self.lease, known=well, asked_s=self.now_s)
            case AskPower(host_id=host_id):
                power = Power.OFF if well else self.pick(*Power)
                self.world = replace(self.world, announced=self.pick(None, host_id))
                return PowerAnswer(host_id, power, read_s, self.chance(0.95))
            case TakeFenceLease():
                self.world = replace(self.world, fence_lease_held=well)
                return FenceLeaseAnswer(well, read_s)
            case AskFenceOwner():
                owner = self.pick(None, 1, 2, 3)
                answer = replace(self.lease, owner=owner, known=well, asked_s=self.now_s)
                return FenceOwnerAnswer(answer)
            case FreeHostId(host_id=host_id):
                return HostIdFreed(host_id, well)
            case _:
                raise AssertionError(action)


ODD_ENGINES = (
    EngineStatus(VmStatus.UP, Health.UNKNOWN, DETAIL_MIGRATION_SOURCE),
    EngineStatus(VmStatus.UP, Health.BAD, DETAIL_PAUSED),
    EngineStatus(VmStatus.DOWN, Health.BAD, DETAIL_ALREADY_LOCKED),
    EngineStatus(VmStatus.UP, Health.UNKNOWN, "up"),
)
ANY_ACTION: tuple[Action, ...] = (
    StartVm(),
    ShutDownVm(),
    PowerOffVm(),
    MigrateVm(2),
    AskLease(),
    AskPower(2),
    AskPower(9),
    TakeFenceLease(),
    AskFenceOwner(),
    FreeHostId(2, 5, 77, 0.0),
    FreeHostId(3, 5, 77, 0.0, fencer=True),
)


@settings(max_examples=draws(100))
@given(st.integers(0, 2**32))
def test_the_laws_hold_through_any_storm(seed: int) -> None:
    Storm(seed).beats(250)


# --- 2. a world that behaves ----------------------------------------------------------------

OWNER = 2


class Cluster(RuleBasedStateMachine):
    """Host 1 decides; host 2 had the VM; hosts 3 and 4 are other candidates."""

    def __init__(self) -> None:
        super().__init__()
        self.witness = Witness()
        self.now_s = 0.0
        self.here = local()
        self.peers = {OWNER: peer(OWNER, 3400, UP), 3: peer(3, 3000)}
        self.beating = {OWNER, 3}
        self.world = Observation(
            local=self.here,
            storage_good_since_s=0.0,
            global_maintenance=False,
            lockspace_joined=True,
            fence_devices=frozenset({OWNER, 3}),
            migration_possible=True,
        )
        self.lease = LeaseAnswer(True, 0.0, OWNER, 5, 5, 77, Standing.LIVE, 140.0)
        self.pending: list[Action] = []
        self.ended: list[Outcome] = []

    # What happens now and then.

    @initialize(alive=st.booleans(), owner=st.sampled_from([None, 1, OWNER, OWNER, OWNER]))
    def begin(self, alive: bool, owner: int | None) -> None:
        self.lease = replace(self.lease, owner=owner)
        if not alive:
            self.beating.discard(OWNER)

    @rule(pause_s=st.sampled_from([0.1, 1.0, 1.0, 3.0, 45.0, 300.0, 600.0]))
    def pass_time(self, pause_s: float) -> None:
        self.beat(pause_s)

    @rule(beats=st.integers(3, 8))
    def pass_some_beats_in_which_all_is_answered_well(self, beats: int) -> None:
        for _ in range(beats):
            while self.pending:
                self.end(self.pending[0], well=True)
            self.beat(1.0)

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), well=st.sampled_from([True, True, True, False]))
    def answer_one(self, data: st.DataObject, well: bool) -> None:
        self.end(data.draw(st.sampled_from(self.pending)), well)

    @rule(engine=st.sampled_from([UP, SICK, DOWN, DIED, UNKNOWN]), held=maybe)
    def the_vm_changes(self, engine: EngineStatus, held: bool | None) -> None:
        self.here = replaced(self.here, engine=engine, lease_held=held)
        self.beat(1.0)

    @rule(on=st.booleans())
    def local_maintenance_is_set(self, on: bool) -> None:
        self.here = replace(self.here, maintenance=on, shutdown=None)
        self.beat(1.0)

    @rule(way=st.sampled_from([OnHostShutdown.MIGRATE, OnHostShutdown.SHUTDOWN]))
    def the_host_shuts_down(self, way: OnHostShutdown) -> None:
        shutdown = HostShutdown(self.now_s, way)
        self.here = replace(self.here, maintenance=True, shutdown=shutdown)
        self.beat(1.0)

    @rule(value=st.sampled_from([True, False, False, None]))
    def global_maintenance_is_set(self, value: bool | None) -> None:
        self.world = replace(self.world, global_maintenance=value)
        self.beat(1.0)

    @rule(good=st.sampled_from([True, True, False]))
    def the_storage_comes_or_goes(self, good: bool) -> None:
        if not good:
            self.world = replace(self.world, storage_good_since_s=None)
        elif self.world.storage_good_since_s is None:
            self.world = replace(self.world, storage_good_since_s=self.now_s)
        self.beat(1.0)

    @rule(joined=st.sampled_from([True, True, False, None]))
    def the_lockspace_comes_or_goes(self, joined: bool | None) -> None:
        self.world = replace(self.world, lockspace_joined=joined)
        self.beat(1.0)

    @rule(
        host_id=st.integers(2, 4),
        score=st.sampled_from([0, 3000, 3400, 4200]),
        engine=st.sampled_from([UP, DOWN, UNKNOWN]),
        state=st.sampled_from(["", StateName.ENGINE_DOWN, StateName.ENGINE_STARTING]),
        beats=st.booleans(),
    )
    def a_peer_changes(
        self, host_id: int, score: int, engine: EngineStatus, state: str, beats: bool
    ) -> None:
        self.peers[host_id] = peer(host_id, score, engine, state=state)
        (self.beating.add if beats else self.beating.discard)(host_id)
        self.beat(1.0)

    @rule(host_id=st.integers(2, 4))
    def a_slot_vanishes(self, host_id: int) -> None:
        self.peers.pop(host_id, None)
        self.beat(1.0)

    @rule(
        standing=st.sampled_from([Standing.LIVE, Standing.LIVE, Standing.FAIL, Standing.DEAD]),
        generation=st.sampled_from([5, 5, 6]),
    )
    def sanlock_learns(self, standing: Standing, generation: int) -> None:
        self.lease = replace(self.lease, standing=standing, current_generation=generation)
        self.beat(1.0)

    @rule(newer=st.sampled_from([(), (), (3,)]))
    def somebody_writes_a_newer_whiteboard(self, newer: tuple[int, ...]) -> None:
        self.world = replace(self.world, newer_versions=newer)
        self.beat(1.0)

    @rule(beats=st.integers(5, 12))
    def the_cluster_is_well_but_for_its_engine(self, beats: int) -> None:
        """Nothing forbids a start; host 2, which may own the lease, is silent."""
        self.here = local(DOWN)
        self.world = replace(
            self.world,
            global_maintenance=False,
            newer_versions=(),
            lockspace_joined=True,
            storage_good_since_s=self.world.storage_good_since_s or self.now_s,
        )
        self.peers = {h: peer(h, min(p.score, 3400)) for h, p in self.peers.items()}
        self.beating.discard(OWNER)
        self.pass_some_beats_in_which_all_is_answered_well(beats)

    @rule()
    def the_fence_lease_is_lost(self) -> None:
        self.world = replace(self.world, fence_lease_held=False)
        self.beat(1.0)

    # How it goes on.

    def beat(self, pause_s: float) -> None:
        self.now_s += pause_s
        self.peers = {
            h: replace(p, timestamp=p.timestamp + (h in self.beating))
            for h, p in self.peers.items()
        }
        observation = replace(
            self.world,
            local=replaced(self.here, engine_taken_s=self.now_s),
            peers=tuple(self.peers.values()),
            outcomes=tuple(self.ended),
        )
        self.ended = []
        decision = self.witness.decide(observation, self.now_s)
        for action in decision.actions:
            if isinstance(action, DropFenceLease):
                self.world = replace(self.world, fence_lease_held=False)
            else:
                self.check_nothing_is_piled_up(action)
                self.pending.append(action)

    def check_nothing_is_piled_up(self, action: Action) -> None:
        """Law 8 for the decisions: who has not answered is not asked again."""
        assert action not in self.pending
        if isinstance(action, VM_ACTIONS):
            assert not any(isinstance(other, VM_ACTIONS) for other in self.pending)
        if isinstance(action, FreeHostId):
            assert not any(isinstance(other, FreeHostId) for other in self.pending)

    def end(self, action: Action, well: bool) -> None:
        """An action ends between two beats; its outcome is in the next observation."""
        self.pending.remove(action)
        match action:
            case StartVm():
                result = StartResult.STARTED if well else StartResult.FAILED
                self.ended.append(VmStartEnded(result))
                self.here = replaced(self.here, engine=UP if well else DOWN)
            case ShutDownVm() | PowerOffVm():
                self.ended.append(VmStopEnded(well))
                self.here = replaced(self.here, engine=DOWN if well else self.here.engine.report)
            case MigrateVm(target=target):
                self.ended.append(VmMigrationEnded(target, well))
                self.here = replaced(self.here, engine=DOWN if well else UP)
            case CancelMigration():
                self.ended.append(MigrationCancelled(well))
                self.here = replaced(self.here, engine=UP if well else self.here.engine.report)
            case AskLease():
                self.ended.append(replace(self.lease, known=well, asked_s=self.now_s))
            case AskPower(host_id=host_id):
                power = Power.OFF if well else Power.UNKNOWN
                self.world = replace(self.world, announced=host_id if well else None)
                self.ended.append(PowerAnswer(host_id, power, self.now_s, well))
            case TakeFenceLease():
                self.world = replace(self.world, fence_lease_held=well)
                self.ended.append(FenceLeaseAnswer(well, self.now_s))
            case AskFenceOwner():
                owner = 3 if well else None
                answer = replace(self.lease, owner=owner, asked_s=self.now_s)
                self.ended.append(FenceOwnerAnswer(answer))
            case FreeHostId(host_id=host_id):
                self.ended.append(HostIdFreed(host_id, well))
            case _:
                raise AssertionError(action)


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=draws(200), stateful_step_count=50)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The working data of one VM in one decision, and the questions that several states ask about it.

Each VM has a turn of its own, so that a finding about one VM cannot decide about another. The
questions are answered here once: if two states had two answers to "is the VM up on another host",
one could start a VM that the other one counts as running.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from scoring.decision import Action, Code, MigrateVm, Reason, VmAction
from scoring.hosts.score import HostSamples, Penalty
from scoring.hosts.turn import HostTurn, name_of
from scoring.observation import (
    LeaseAnswer,
    Observation,
    Outcome,
    PeerReport,
    VmMigrationEnded,
    VmStartEnded,
    VmStopEnded,
)
from scoring.rules import MIGRATION_EXTRA_S, Rules
from scoring.vm import placement, seen
from scoring.vm.score import Score, VmSamples, score
from scoring.vm.several import Several
from scoring.vm.state import StateName, VmState
from scoring.vm_facts import (
    ENGINE,
    THE_VM,
    Obstacle,
    PeerVm,
    Unfit,
    VmHere,
    VmSpec,
    VmStatus,
    called,
)

_Ended = TypeVar("_Ended", VmStartEnded, VmStopEnded, VmMigrationEnded)


@dataclass(slots=True)
class VmTurn:
    """One VM in one call of `decide`: its memory, its ended actions, and the findings about it.

    `ended`: the outcomes of its actions. `several`: what it shares with other VMs (None: it is the
    only VM). `wants_room`: its claim is wanted in this beat. `waits_for`: the answer that its lease
    is owned by a host whose death must be proven before the VM can start. `keeps_waiting`: a
    takeover that was begun for it goes on, though this beat has no new answer. `wants_hosts_back`:
    it runs here, so hosts that were switched off may be switched on again. `start_allowed`: the
    start was allowed in this beat. `state` is replaced, never changed.
    """

    host: HostTurn
    number: int
    state: VmState
    ended: list[Outcome]
    here: VmHere = field(init=False)
    waits_for: LeaseAnswer | None = None
    keeps_waiting: bool = False
    wants_hosts_back: bool = False
    start_allowed: bool = False
    several: Several | None = None
    wants_room: bool = False
    wake_s: float | None = None
    _there: dict[int, PeerVm] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.several is None:
            self.here = seen.here(self.observation.local, self.number)
        else:
            self.here = self.several.here(self.number)

    def at(self, peer: PeerReport) -> PeerVm:
        """This VM as another host reports it."""
        found = self._there.get(peer.host_id)
        if found is None:
            found = self._there[peer.host_id] = seen.at(peer, self.number)
        return found

    @property
    def rules(self) -> Rules:
        return self.host.rules

    @property
    def observation(self) -> Observation:
        return self.host.observation

    @property
    def now_s(self) -> float:
        return self.host.now_s

    @property
    def live(self) -> tuple[PeerReport, ...]:
        return self.host.live

    @property
    def uncertain(self) -> tuple[PeerReport, ...]:
        return self.host.uncertain

    @property
    def asking(self) -> PeerReport | None:
        return self.host.asking

    @property
    def actions(self) -> list[Action]:
        return self.host.actions

    @property
    def reasons(self) -> list[Reason]:
        return self.host.reasons

    @property
    def spec(self) -> VmSpec | None:
        """The VM's record in the registry; None: it has none (the engine, if it is the only VM)."""
        return None if self.several is None else self.several.specs.get(self.number)

    @property
    def starting_s(self) -> float:
        """How long the VM may take from its start until it is healthy."""
        own_s = None if self.spec is None else self.spec.starting_s
        return self.rules.timing.engine_starting if own_s is None else own_s

    @property
    def bad_health_s(self) -> float:
        """How long the VM may be unhealthy before it is stopped."""
        own_s = None if self.spec is None else self.spec.bad_health_s
        return self.rules.timing.bad_health if own_s is None else own_s

    @property
    def migration_timeout_s(self) -> float:
        """A live migration of the VM that takes longer is cancelled."""
        own_s = None if self.spec is None else self.spec.migration_timeout_s
        return self.rules.migration_timeout_s if own_s is None else own_s

    @property
    def migration_within_s(self) -> float:
        """The longest time of a move, from its order until its outcome is known."""
        return self.migration_timeout_s + MIGRATION_EXTRA_S

    @property
    def lease_name(self) -> str:
        return "the engine lease" if self.number == ENGINE else f"{self.called}'s lease"

    @property
    def called(self) -> str:
        """The VM in a sentence."""
        return called(self.number, self.observation.specs)

    def named(self, text: str) -> str:
        """A sentence about this VM, which calls it "the VM", with its name where there are several.
        Each sentence of a VM goes through here, so that none has to care."""
        return text if (name := self.called) == THE_VM else text.replace(THE_VM, name)

    def reason(self, code: Code, text: str) -> Reason:
        return Reason(code, self.named(text), self.number)

    def because(self, code: Code, text: str) -> None:
        self.reasons.append(self.reason(code, text))

    def ask(self, action: VmAction) -> None:
        """Emit a question about the VM, or an action after which its samples stay valid."""
        self.actions.append(action if self.number == ENGINE else replace(action, vm=self.number))

    def act(self, action: VmAction) -> None:
        """Emit an action on the VM; it is under way until its outcome comes."""
        assert not self.state.acting, "one action on a VM at a time"
        self.ask(action)
        self.state = replace(self.state, acting=True)

    @property
    def in_state_s(self) -> float:
        assert self.state.since_s is not None
        return self.now_s - self.state.since_s

    @property
    def vm(self) -> VmStatus:
        return self.here.report.vm

    @property
    def vm_up_here(self) -> bool:
        return self.vm is VmStatus.UP

    @property
    def cluster_allows(self) -> bool:
        return self.host.cluster_allows

    @property
    def sample_is_stale(self) -> bool:
        """Whether the VM's sample was taken before the last action on it had ended.

        In the beat in which an action ends every sample counts as stale.
        """
        taken_s = min(self.here.taken_s, self.now_s)
        return self.state.acting or taken_s <= self.state.acted_s

    @property
    def may_stay_up(self) -> bool:
        """Whether the VM, whose guest was asked to shut down, is surely still up here, and this
        host does not shut down itself."""
        is_up = self.vm_up_here and not self.sample_is_stale
        return is_up and self.observation.local.shutdown is None

    def take(self, kind: type[_Ended]) -> _Ended | None:
        """The outcome of this kind, removed from `ended`: a later state of this beat does not see
        it."""
        for outcome in self.ended:
            if isinstance(outcome, kind):
                self.ended.remove(outcome)
                return outcome
        return None

    @property
    def concerned(self) -> Sequence[PeerReport]:
        """The live hosts that may report more about the VM than that it is down there."""
        if self.several is None or self.number == ENGINE:
            return self.live
        return self.several.said.get(self.number, ())

    def up_elsewhere(self) -> PeerReport | None:
        """A live peer that reports the VM up; None: no peer does. A VM that is sick on a host that
        asks to be switched off does not count."""
        said = ((p, self.at(p).report) for p in self.concerned)
        up = ((p, report) for p, report in said if report.vm is VmStatus.UP)
        return next((p for p, report in up if not self.host.is_given_up(p, report)), None)


def entered(turn: VmTurn, name: StateName) -> VmState:
    """The memory on entering a state: its time begins, and fields of the old state are cleared."""
    state = replace(
        turn.state, name=name, since_s=turn.now_s, better_since_s=None, stop_asked=False
    )
    if name is not StateName.ENGINE_STOP:
        state = replace(state, isolated=False, sick=False)
    if name is not StateName.ENGINE_MIGRATING_AWAY:
        state = replace(state, moving_to=None, moving_until_s=None, cancelled_s=None)
    if name is StateName.ENGINE_UP and turn.state.name is not StateName.ENGINE_UP_BAD_HEALTH:
        newest = max((turn.at(p).last_ran for p in turn.observation.peers), default=0)
        if state.last_ran <= newest:
            state = replace(state, last_ran=newest + 1)
        state = replace(state, retries=0, last_failure="")
    return state


def begin_move(turn: VmTurn, target: int) -> None:
    """Emit the migration, and remember its target and its latest end, which are published."""
    own_s = None if turn.spec is None else turn.spec.migration_timeout_s
    turn.act(MigrateVm(target, timeout_s=own_s))
    until_s = turn.now_s + turn.migration_within_s
    turn.state = replace(turn.state, moving_to=target, moving_until_s=until_s)


def is_short_of_memory(turn: VmTurn, peer: PeerReport) -> bool:
    """Whether the VM does not fit into a peer's free memory: by the free memory that the peer
    publishes, or by its own report, since its definition of the VM may need more than ours."""
    free_mb = peer.mem_free_mb
    return turn.at(peer).memory_short or (free_mb is not None and free_mb < turn.rules.vm_memory_mb)


def others(turn: VmTurn) -> list[placement.Candidate]:
    """The live peers that may run the VM. A peer that does not know the state of its own VM cannot
    start it. A peer on which the VM's bridge has no working uplink is left out if another of these
    hosts, or this one, has one."""
    local = turn.observation.local
    if turn.number != ENGINE:
        assert turn.several is not None and turn.spec is not None
        return turn.several.able(turn.spec)
    able = [
        p
        for p in turn.live
        if p is not turn.asking
        and p.score > 0
        and not p.maintenance
        and not p.stopped
        and turn.at(p).report.vm is not VmStatus.UNKNOWN
    ]
    # A host that shuts down does not count as better: moving the VM to a host without an uplink is
    # better than stopping it.
    is_better_here = turn.here.uplink_up and local.shutdown is None
    if is_better_here or any(turn.at(p).uplink_up for p in able):
        able = [p for p in able if turn.at(p).uplink_up is not False]
    return [placement.Candidate(p.host_id, p.score, turn.at(p).last_ran, p.hostname) for p in able]


def is_cut_off(turn: VmTurn) -> bool | None:
    """Whether this host's own network is bad; None: not known."""
    local = turn.observation.local
    if turn.here.uplink_up is False or local.way_out is False:
        return True
    return None if local.way_out is None else False


def obstacles(turn: VmTurn) -> tuple[Unfit, ...]:
    """The obstacles to a start of the VM here: those that the broker has found, and a network that
    is cut off while a host that can run the VM says that its own network is good."""
    found = turn.here.unfit
    if turn.vm_up_here or not is_cut_off(turn):
        return found
    able = {candidate.host_id for candidate in others(turn)}
    good = next((p for p in turn.live if p.host_id in able and p.way_out), None)
    if good is None:
        return found
    text = f"nobody would reach the VM here: this host's network is cut off, {name_of(good)}'s not"
    return (*found, Unfit(Obstacle.CUT_OFF, text))


def bridge_elsewhere(turn: VmTurn) -> Unfit | None:
    """The obstacle that the VM's bridge has no working uplink here while it has one on another host
    that can run the VM; None: it is not so. The score is not lowered for it,
    since the score follows the reference; the obstacle alone prevents the start."""
    if turn.here.uplink_up is not False or turn.vm_up_here:
        return None
    able = {candidate.host_id for candidate in others(turn)}
    good = next((p for p in turn.live if p.host_id in able and turn.at(p).uplink_up), None)
    if good is None:
        return None
    text = f"nobody would reach the VM here: its bridge leads nowhere, that of {name_of(good)} does"
    return Unfit(Obstacle.CUT_OFF, text)


def own(turn: VmTurn) -> placement.Candidate:
    """This host as a candidate to run the VM."""
    return placement.Candidate(
        turn.observation.local.host_id, own_score(turn).value, turn.state.last_ran
    )


def own_score(turn: VmTurn) -> Score:
    """This host's score for the VM. While local maintenance is set it is that of LocalMaintenance,
    even if the machine is still draining the VM."""
    local, state = turn.observation.local, turn.state
    name = StateName.LOCAL_MAINTENANCE if local.maintenance else state.name
    if state.name is StateName.AGENT_STOPPED:
        name = state.name
    elif local.shutdown is not None:
        why = "this host is shutting down"
        return Score(0, (Penalty("local-maintenance", turn.rules.weights.base_score, why),))
    elif (unfit := obstacles(turn)) and not turn.vm_up_here:
        first, *rest = unfit
        base = turn.rules.weights.base_score
        return Score(
            0,
            (
                Penalty(first.obstacle.value, base, first.text),
                *(Penalty(other.obstacle.value, 0, other.text) for other in rest),
            ),
        )
    elif turn.observation.lockspace_joined is False and not turn.vm_up_here:
        # This host could not start the VM, so no other host must wait for it.
        why = "this host has not joined the lockspace"
        return Score(0, (Penalty("lockspace", turn.rules.weights.base_score, why),))
    elif local.lock_driver is False and not turn.vm_up_here:
        # A VM here would run without its lease, whether it is started here or migrated to here;
        # libvirt allows both without an error.
        why = "libvirt here runs without the sanlock lock driver"
        return Score(0, (Penalty("lock-driver", turn.rules.weights.base_score, why),))
    host = HostSamples(local.network, local.bridge_up, local.cpu_load, local.fence_path_ok)
    vm = VmSamples(
        name,
        local.mem_free_mb,
        turn.rules.vm_memory_mb,
        turn.here.config_up_to_date,
        state.retries,
        state.last_failure,
    )
    found = score(host, vm, turn.rules.weights)
    if (cut := bridge_elsewhere(turn)) is not None:
        found = replace(
            found, penalties=(*found.penalties, Penalty(cut.obstacle.value, 0, cut.text))
        )
    return found

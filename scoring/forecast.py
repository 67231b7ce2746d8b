# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the decision would do if a host lost its power now, and when.

A formula would promise a start that the decision forbids, for example in global maintenance, beside
a newer version, or while a peer is still acting on the VM. So the decision itself is run, beat
after beat, on the present observation with that host dead from this moment on. It ends when the
decision starts the VM or when the longest wait is over. No action is carried out; this file
contains the answer of the outside world to each action.

Rules of this file:

1. The dead host writes nothing, renews nothing and answers nothing. All other hosts stay as they
   are: a live host lives on, a silent host stays silent.
2. The power of the dead host is off. `power_took_s` says whether the asked host can read that.
3. The decision is run each beat, at each answer, and at its own `wake_s`. While its reasons stay
   the same the beats become twice as long, up to the moment when sanlock calls the host dead:
   nothing changes before. So a forecast takes about twenty decisions, and STEPS_MAX at the most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from scoring.decide import Decision, decide
from scoring.decision import AskLease, AskPower, Code, FreeHostId, Reason, StartVm, TakeFenceLease
from scoring.hosts.state import HostState, Seen
from scoring.lease_times import host_dead_s
from scoring.observation import (
    FenceLeaseAnswer,
    HostIdFreed,
    LeaseAnswer,
    LocalHost,
    Observation,
    Outcome,
    PeerReport,
    Power,
    PowerAnswer,
    Standing,
)
from scoring.rules import Rules
from scoring.state import AgentState
from scoring.vm.state import StateName, VmState
from scoring.vm_facts import ENGINE, EngineStatus, Health, VmHere, VmSpec, VmStatus

#: The time in which a healthy lease volume answers.
LEASE_ANSWER_S = 0.1
#: How long after sanlock's host-dead time the forecast goes on: other hosts may come first.
PATIENCE_S = 60.0
STEPS_MAX = 200
#: The longest step.
STEP_MAX_S = 60.0
#: How long the asked host is assumed to have been in EngineDown.
_LONG_S = 3600.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """`starts_s`: how many seconds after the host's death the VM is started (None: it is not).
    `detect_s`: after how many seconds the cluster first acts. `by_device`: a fence device proves
    the host dead. `reasons`: those of the last decision."""

    starts_s: float | None
    detect_s: float
    by_device: bool
    reasons: tuple[Reason, ...]

    @property
    def held(self) -> str:
        """Why the VM is not started; empty: it is."""
        if self.starts_s is not None:
            return ""
        # The last reason belongs to the state in which the beat ended.
        return self.reasons[-1].text if self.reasons else "nothing is decided"


def dead_time_s(rules: Rules) -> float:
    """How long after a renewal sanlock calls a host dead that does not renew again."""
    return host_dead_s(rules.io_timeout_s)


def if_it_loses_power(
    rules: Rules,
    observation: Observation,
    seen: dict[int, Seen],
    dead: int,
    power_took_s: float | None,
    now_s: float,
    spec: VmSpec | None = None,
) -> Forecast:
    """What the asked host would do if the VM's host, `dead`, lost its power at `now_s`.

    `observation`: what the asked host sees now; the VM is not on it. `seen`: when it saw each peer
    change. `power_took_s`: how long the dead host's fence device takes to answer the asked host
    (None: the way to the device is not proven). `spec`: the VM of the registry that the forecast is
    for, as if it waited for no other VM (None: the engine)."""
    if spec is not None:
        observation = _of_one_vm(observation, spec, now_s)
    world = _World(rules, observation, dict(seen), dead, power_took_s, now_s, spec)
    return world.run()


class _World:
    """The time after the death, as far as the decision sees it."""

    def __init__(
        self,
        rules: Rules,
        observation: Observation,
        seen: dict[int, Seen],
        dead: int,
        power_took_s: float | None,
        died_s: float,
        spec: VmSpec | None,
    ) -> None:
        self.rules = rules
        self.vm = ENGINE if spec is None else spec.number
        self.dead, self.died_s, self.power_took_s = dead, died_s, power_took_s
        suspect_s = rules.timing.suspect_after
        self.live = {
            peer.host_id
            for peer in observation.peers
            if peer.host_id != dead
            and peer.host_id in seen
            and seen[peer.host_id].changed
            and died_s - seen[peer.host_id].since_s < suspect_s
        }
        devices = observation.fence_devices - {dead}
        if power_took_s is not None:
            devices |= {dead}
        peers = tuple(map(self._as_of_now, observation.peers))
        self.observation = replace(
            observation, fence_devices=devices, peers=peers, outcomes=(), fence_lease_held=False
        )
        seen |= {host: Seen(seen[host].timestamp, died_s, changed=True) for host in self.live}
        last = next((peer for peer in peers if peer.host_id == dead), None)
        if last is not None:
            seen[dead] = Seen(last.timestamp, died_s, changed=True)
        self.renewal = 1 if last is None else max(1, last.renewal_timestamp)
        down = VmState(StateName.ENGINE_DOWN, since_s=died_s - _LONG_S)
        vms = {self.vm: down}
        if self.vm != ENGINE:
            vms[ENGINE] = VmState(StateName.ENGINE_UP, since_s=died_s - _LONG_S)
        self.state = AgentState(rules, HostState(seen), vms)
        self.outcomes: list[tuple[float, Outcome]] = []
        self.freed = self.by_device = False
        self.beats = 0
        self.step_s = rules.timing.beat
        self.codes: tuple[Code, ...] = ()

    def _as_of_now(self, peer: PeerReport) -> PeerReport:
        """The peer's report as it stands at the moment of the death."""
        hears = peer.hears - {self.dead}
        if peer.host_id != self.dead:
            return replace(peer, hears=hears, read_s=None)
        return replace(peer, hears=frozenset(), read_s=self.died_s, unanswered_since_s=self.died_s)

    def run(self) -> Forecast:
        """Run the decision until it starts the VM, or until the longest wait is over."""
        timing = self.rules.timing
        first_s = now_s = self.died_s + timing.suspect_after + timing.beat / 2
        last_s = self.died_s + dead_time_s(self.rules) + timing.beat + PATIENCE_S
        decision = self._decide(now_s)
        for _ in range(STEPS_MAX):
            started = StartVm(self.vm) in decision.actions
            if started or now_s >= last_s or self._is_over(decision):
                break
            now_s = self._next_s(decision, now_s)
            decision = self._decide(now_s)
        else:
            started = False
        return Forecast(
            now_s - self.died_s if started else None,
            first_s - self.died_s,
            self.by_device,
            tuple(reason for reason in decision.reasons if reason.vm in (self.vm, 0)),
        )

    def _decide(self, now_s: float) -> Decision:
        self.beats += 1
        due = tuple(outcome for at_s, outcome in self.outcomes if at_s <= now_s)
        self.outcomes = [(at_s, outcome) for at_s, outcome in self.outcomes if at_s > now_s]
        if any(isinstance(outcome, FenceLeaseAnswer) for outcome in due):
            self.observation = replace(self.observation, fence_lease_held=True)
        observation = replace(
            self.observation,
            local=_with_fresh_samples(self.observation.local, now_s),
            peers=tuple(
                replace(peer, timestamp=peer.timestamp + self.beats)
                if peer.host_id in self.live
                else peer
                for peer in self.observation.peers
            ),
            sweep=self.observation.sweep + self.beats,
            outcomes=due,
            own_claims=self.state.claims,
        )
        decision = decide(self.state, observation, now_s)
        self.state = decision.state
        for action in decision.actions:
            match action:
                case AskLease(vm) if vm == self.vm:
                    self.outcomes.append((now_s + LEASE_ANSWER_S, self._lease(now_s)))
                case TakeFenceLease():
                    at_s = now_s + LEASE_ANSWER_S
                    self.outcomes.append((at_s, FenceLeaseAnswer(True, at_s)))
                case AskPower() if self.power_took_s is not None:
                    at_s = now_s + self.power_took_s
                    off = PowerAnswer(self.dead, Power.OFF, now_s, True, answered_s=at_s)
                    self.outcomes.append((at_s, off))
                case FreeHostId():
                    self.freed = self.by_device = True
                    freed = HostIdFreed(self.dead, ok=True)
                    self.outcomes.append((now_s + LEASE_ANSWER_S, freed))
                case _:
                    pass
        return decision

    def _lease(self, now_s: float) -> LeaseAnswer:
        left_s = self.died_s + dead_time_s(self.rules) - now_s
        standing = Standing.FREE if self.freed else Standing.DEAD if left_s <= 0 else Standing.LIVE
        return LeaseAnswer(
            True,
            now_s,
            owner=self.dead,
            owner_generation=1,
            current_generation=1,
            owner_timestamp=self.renewal,
            standing=standing,
            dead_in_s=max(0.0, left_s),
            vm=self.vm,
        )

    def _is_over(self, decision: Decision) -> bool:
        """Whether nothing changes by itself any more: the VM has left EngineDown, or the decision
        waits for a person or another host."""
        vm = decision.state.vms.get(self.vm)
        if vm is None or vm.name is not StateName.ENGINE_DOWN:
            return True
        codes = {reason.code for reason in decision.reasons if reason.vm in (self.vm, 0)}
        return not self.outcomes and bool(codes & _FOR_GOOD)

    def _next_s(self, decision: Decision, now_s: float) -> float:
        """When the decision is run next (rule 3)."""
        codes = tuple(reason.code for reason in decision.reasons)
        beat_s = self.rules.timing.beat
        self.step_s = min(2 * self.step_s, STEP_MAX_S) if codes == self.codes else beat_s
        self.codes = codes
        due = [now_s + self.step_s, *(at_s for at_s, _ in self.outcomes)]
        if decision.wake_s is not None and decision.wake_s > now_s:
            due.append(decision.wake_s)
        dead_s = self.died_s + dead_time_s(self.rules)
        if now_s < dead_s:
            due.append(dead_s)
        return min(due)


def _with_fresh_samples(local: LocalHost, now_s: float) -> LocalHost:
    """The host with all samples of its VMs taken now."""
    vms = tuple(replace(vm, taken_s=now_s) for vm in local.vms)
    return replace(local, vms=vms)


def _of_one_vm(observation: Observation, spec: VmSpec, now_s: float) -> Observation:
    """The observation as if this were the only VM beside the engine. The engine runs well on the
    asked host, so that it needs no action."""
    down = VmHere(EngineStatus(VmStatus.DOWN, Health.BAD), now_s, number=spec.number)
    here = next((vm for vm in observation.local.vms if vm.number == spec.number), down)
    engine = replace(
        observation.local.engine,
        report=EngineStatus(VmStatus.UP, Health.GOOD, "up"),
        lease_held=True,
    )
    return replace(
        observation,
        local=replace(observation.local, vms=(engine, here)),
        peers=tuple(map(_without_engine, observation.peers)),
        specs=(replace(spec, after=(), apart=(), together=()),),
    )


def _without_engine(peer: PeerReport) -> PeerReport:
    """The peer without the engine, and without claims."""
    engine = peer.engine._replace(report=EngineStatus(VmStatus.DOWN, Health.BAD), state="")
    return replace(peer, vms={**peer.vms, ENGINE: engine}, claims=())


#: Reasons that do not go away by waiting.
_FOR_GOOD = frozenset(
    {
        Code.NEWER_METADATA,
        Code.GLOBAL_MAINTENANCE_UNKNOWN,
        Code.STORAGE_UNREADABLE,
        Code.LOCKSPACE_NOT_JOINED,
        Code.OTHER_STORAGE,
        Code.CANNOT_START,
        Code.LEFTOVER_VM,
        Code.HELD_BACK,
        Code.CUT_OFF,
    }
)

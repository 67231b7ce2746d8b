# SPDX-License-Identifier: LGPL-2.1-or-later
"""The protected VMs as this host sees them now: where each is, where the missing ones go, and which
would have no place after the death of a host.

The plan is made by the decision's own code (scoring/vm/several.py) from this host's knowledge, so
that people read what the hosts would do. Every host finds the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from broker.config.in_force import InForce
from broker.exchange.view import Exchange
from broker.peers.table import Table
from broker.peers.vm_place import OwnReads, PlaceSince
from broker.peers.vm_places import HostWord, VmSeen, vms_seen
from broker.registry.cache import RegistryCache
from broker.status.boots import Boots
from broker.status.vms import Known, n_plus_1, short
from broker.this_host.facts import ThisHost
from broker.this_host.place_seen import Looked, PlaceSeen
from broker.whiteboard import vm_lines
from broker.wire.status import ReasonOnWire
from broker.wire.vms import Room, WithoutPlace
from scoring.decision import Code
from scoring.hosts.liveness import Liveness
from scoring.hosts.look import look
from scoring.hosts.state import HostState
from scoring.lease_times import host_dead_s
from scoring.observation import Observation
from scoring.vm.plan import NO_PLAN, Plan, after_each_death
from scoring.vm.seen import SPEAKS_SEVERAL
from scoring.vm.several import START_PAUSE_S, Several, engine_spec
from scoring.vm.state import Held, VmState
from scoring.vm_facts import ENGINE, PeerVm, VmSpec

#: The plans after each death are made anew after this time, even if no VM and no host has changed:
#: memory grows and shrinks without news.
PLANS_FRESH_S = 30.0
#: Reasons of the agent why a VM that is to leave this host does not.
_STAYS = (Code.DRAIN_STUCK, Code.DRAIN_WAITING, Code.MOVE_IMPOSSIBLE)
#: Last reasons of a VM's agent that name no obstacle: whose turn it is, and steps of a start.
_NO_OBSTACLES = frozenset(
    code.value
    for code in (
        Code.EQUAL_HOST_FIRST,
        Code.PLACED_ELSEWHERE,
        Code.LEASE_ASKED,
        Code.LEASE_FREE,
        Code.LEASE_OWNER_GONE,
        Code.HOST_ID_FREED,
        Code.ROOM_CLAIMED,
        Code.STARTING,
        Code.VM_NOT_HERE,
    )
)


class VmsNow:
    """`without_place` once a beat; `known` for a status. With the engine alone nothing is asked
    here."""

    def __init__(
        self,
        in_force: InForce,
        table: Table,
        this_host: ThisHost,
        place: PlaceSeen,
        exchange: Exchange,
        registry: RegistryCache,
        engine_since: PlaceSince,
    ) -> None:
        """`engine_since`: since when the engine is where it is."""
        self._in_force, self._table, self._this_host = in_force, table, this_host
        self._place, self._exchange, self._registry = place, exchange, registry
        self._since: dict[int, PlaceSince] = {ENGINE: engine_since}
        self._boots = Boots()
        self._several: Several | None = None
        #: Since when this host could have joined the lockspace; None: it has.
        self._joining_since_s: float | None = float("inf")
        #: The plans after each death: when they were made, and from what.
        self._plans: tuple[float, object, Mapping[int, Plan]] | None = None

    @property
    def has_several(self) -> bool:
        """Whether the registry has a VM beside the engine."""
        return any(number != ENGINE for number in self._registry.cached.vms)

    def _look(self, looked: Looked, now_s: float) -> None:
        self._several = self._asked(now_s)
        if self._is_joining(now_s):
            self._several = self._plans = None
        else:
            self._plan_deaths(self._several, looked.reads, now_s)
        found = self._seen(looked, now_s)
        for number, vm in found.items():
            if number != ENGINE:
                self._since.setdefault(number, PlaceSince()).look(vm.place, now_s)
                self._boots.look(number, vm.place.up, vm.place.healthy, now_s)
        self._boots.keep(found)

    def without_place(self, looked: Looked, now_s: float) -> tuple[WithoutPlace, ...]:
        """Take in the present places, plan anew where something has changed, and return the VMs
        that have no place now, or would have none after a host's death."""
        if not self.has_several:
            self._several = self._plans = None
            return ()
        self._look(looked, now_s)
        # The plans alone say it, not where the VMs are now.
        known = Known(self._specs(), {}, self._name_of, plan=self._plan, plans=self._plans_now)
        return (*short(known), *n_plus_1(known))

    def room_for(self, spec: VmSpec, now_s: float) -> Room:
        """What would have no place if the registry had that VM, and has one without it."""
        observation = self._exchange.observation(now_s)
        reads = self._place.reads(now_s)
        is_known = observation.registry > 0 and not self._is_joining(now_s)
        if not is_known or self._table.is_blind(now_s):
            return Room(known=False)
        others = tuple(each for each in observation.specs if each.number != spec.number)
        sees_all = self._sees_all(reads, now_s)
        before, after = (
            self._planned(replace(observation, specs=specs), sees_all, now_s)
            for specs in (observation.specs, (*others, spec))
        )
        is_lacking = {(each.if_dies, each.vm) for each in (*short(before), *n_plus_1(before))}
        fresh_now, fresh_later = (
            tuple(each for each in found if (each.if_dies, each.vm) not in is_lacking)
            for found in (short(after), n_plus_1(after))
        )
        return Room(True, fresh_now, fresh_later)

    def _planned(self, observation: Observation, sees_all: bool, now_s: float) -> Known:
        """The plans of what is missing in that observation now, and after each death."""
        several = self._several_of(observation, now_s)
        specs, hosts = tuple(several.specs.values()), tuple(several.hosts.values())
        plans = after_each_death(specs, hosts, several.missing) if sees_all else {}
        return Known(specs, {}, self._name_of, plan=several.plan, plans=plans)

    @property
    def registry_problem(self) -> str:
        """What is wrong with the registry; "": nothing, or there is none."""
        return self._registry.cached.problem

    def known(self, now_s: float) -> Known:
        """All VMs, the engine among them."""
        return self._known(self._seen(self._place.look(now_s), now_s), now_s)

    def _known(self, seen: Mapping[int, VmSeen], now_s: float) -> Known:
        return Known(
            self._specs(),
            seen,
            self._name_of,
            {number: self._for_s(number, vm, now_s) for number, vm in seen.items()},
            plan=self._plan,
            plans=self._plans_now,
            host_id=self._in_force.host_id,
            refused=dict(self._this_host.vms.damaged),
            said=self._said(now_s),
            blocked=self._blocked(now_s),
            stays=frozenset(self._this_host.said_of(now_s, *_STAYS)),
            queued=frozenset(self._this_host.said_of(now_s, Code.DRAIN_QUEUED)),
            boot_s=dict(self._boots.took_s),
            holds_still=self._table.board.global_maintenance is True,
            differs=self._differs(),
            differences={
                number: tuple(map(str, found))
                for number, found in self._this_host.vms.differences.items()
            },
        )

    @property
    def _plan(self) -> Plan:
        """Where the missing VMs go."""
        return NO_PLAN if self._several is None else self._several.plan

    @property
    def _plans_now(self) -> Mapping[int, Plan]:
        """Where all VMs would go after each host's death; empty: not known."""
        return {} if self._plans is None else self._plans[2]

    def _differs(self) -> dict[tuple[int, int], tuple[str, ...]]:
        """In what each VM runs unlike its definition, by the word of its host."""
        said = {self._in_force.host_id: self._this_host.vms.unlike}
        for host_id, report in self._table.members.reports.items():
            if report.extra_trusted and vm_lines.UNLIKE in report.extra:
                said[host_id] = vm_lines.unlike_in(report.extra)
        return {
            (host_id, number): tuple(sorted(codes))
            for host_id, vms in said.items()
            for number, codes in vms.items()
        }

    def _specs(self) -> tuple[VmSpec, ...]:
        specs = {spec.number: spec for spec in self._registry.cached.specs}
        specs.setdefault(ENGINE, engine_spec(self._in_force.rules.vm_memory_mb))
        return tuple(specs.values())

    def _name_of(self, host_id: int) -> str:
        return self._table.name_of(host_id) or f"host {host_id}"

    def _for_s(self, number: int, vm: VmSeen, now_s: float) -> tuple[float | None, bool]:
        since = self._since.get(number)
        if since is None:
            return None, False
        summary = since.summary(vm.place, None, None, now_s)
        return summary.for_s, summary.at_least

    def _said(self, now_s: float) -> dict[int, str]:
        """Why this host's agent does what it does about each VM."""
        given = self._this_host.reasons(now_s)
        return {number: _first(reasons) for number, reasons in given.items() if reasons}

    def _blocked(self, now_s: float) -> dict[int, str]:
        """What keeps this host's agent from starting each VM that is missing: the last reason that
        it had, if that is not just whose turn it is."""
        given = self._this_host.reasons(now_s)
        last = {number: reasons[-1] for number, reasons in given.items() if reasons}
        return {
            number: one.text
            for number, one in last.items()
            if number != ENGINE and one.code not in _NO_OBSTACLES
        }

    # --- where they are -------------------------------------------------------------------

    def _seen(self, looked: Looked, now_s: float) -> Mapping[int, VmSeen]:
        hosts, reads, place = looked
        peers = {peer.host_id: peer for peer in self._table.published()}
        words = []
        for host in hosts:
            peer = peers.get(host.host_id)
            if host.local:
                words.append(HostWord(host, self._own_words(now_s)))
            elif peer is None:
                words.append(HostWord(host, {}, lists=False))
            else:
                words.append(HostWord(host, peer.vms, lists=peer.speaks >= SPEAKS_SEVERAL))
        numbers = [spec.number for spec in self._specs() if spec.number != ENGINE]
        found = dict(vms_seen([ENGINE, *numbers], words, reads))
        # The engine's place is more than the slots: its lease, and its answer over the network.
        engine = found[ENGINE]
        word = next((w.vms.get(ENGINE) for w in words if w.host.host_id == place.host), None)
        found[ENGINE] = VmSeen(
            ENGINE,
            place,
            engine.acting if place.host is None else place.host,
            engine.word if place.host is None else word,
        )
        return found

    def _own_words(self, now_s: float) -> dict[int, PeerVm]:
        """This host's own reports of the VMs on it."""
        agent, vms = self._this_host.agent, self._this_host.vms
        is_away = agent.last is None or agent.silent_s(now_s) is not None
        said = {} if is_away or agent.last is None else {vm.number: vm for vm in agent.last.vms}
        words = {ENGINE: PeerVm(self._this_host.vm.status(now_s)[0], agent.state or "")}
        for here in vms.samples(now_s):
            its = said.get(here.number)
            word = PeerVm(here.report, last_ran=vms.last_ran(here.number))
            if its is not None:
                word = word._replace(
                    state=its.state,
                    target=its.moving_to,
                    moving_until_s=its.moving_until_s,
                    barred_until_s=its.barred_until_s,
                )
            words[here.number] = word
        return words

    # --- where they go ----------------------------------------------------------------------

    def _asked(self, now_s: float) -> Several:
        """What the decision would find now."""
        return self._several_of(self._exchange.observation(now_s), now_s)

    def _several_of(self, observation: Observation, now_s: float) -> Several:
        turn = look(HostState(seen=self._table.seen), self._in_force.rules, observation, now_s)
        return Several(turn, self._own_states())

    def _is_joining(self, now_s: float) -> bool:
        """Whether this host is about to join the lockspace for the first time since its broker
        began. After a power cut of the site all hosts do, and until then none may run a VM: the VMs
        wait for that, they are not without a place. No host waits longer than sanlock's own
        time."""
        if self._joining_since_s is None:
            return False
        if self._exchange.is_joined:
            self._joining_since_s = None
            return False
        self._joining_since_s = min(self._joining_since_s, now_s)
        return now_s - self._joining_since_s < 2 * host_dead_s(self._in_force.io_timeout_s)

    def _own_states(self) -> dict[int, VmState]:
        """The part of this host's state machines that the plan needs: barred VMs and claims."""
        report = self._this_host.agent.last
        if report is None:
            return {}
        states = {
            vm.number: VmState(retries=1, last_failure_s=vm.barred_until_s - START_PAUSE_S)
            for vm in report.vms
            if vm.barred_until_s is not None
        }
        for claim in report.claims:
            state = states.get(claim.number, VmState())
            states[claim.number] = replace(state, held=Held(claim, 0))
        return states

    def _sees_all(self, reads: OwnReads, now_s: float) -> bool:
        """Whether every other host is known, and whether it lives; there is another host."""
        seen = self._table.seen
        return bool(reads.all_known and seen) and all(
            host in seen and self._table.liveness(seen[host], now_s) is not Liveness.UNCERTAIN
            for host in self._table.members.reports
        )

    def _plan_deaths(self, several: Several, reads: OwnReads, now_s: float) -> None:
        """Plan for the death of each host. A host that does not see all the others knows nothing
        of it."""
        if self._table.is_blind(now_s) or not self._sees_all(reads, now_s):
            self._plans = None
            return
        hosts = several.hosts
        made_from = (
            tuple(several.specs.values()),
            several.missing,
            tuple((h.host_id, h.vms, h.open, h.barred, h.pausing) for h in hosts.values()),
        )
        old = self._plans
        if old is not None and old[1] == made_from and 0 <= now_s - old[0] < PLANS_FRESH_S:
            return
        plans = after_each_death(several.specs.values(), hosts.values(), several.missing)
        self._plans = (now_s, made_from, plans)


def _first(reasons: tuple[ReasonOnWire, ...]) -> str:
    """What is said of a VM: why it does not leave this host, else the first of the reasons."""
    drain = (each.text for each in reasons if each.code in (*_STAYS, Code.DRAIN_QUEUED))
    return next(drain, reasons[0].text)
